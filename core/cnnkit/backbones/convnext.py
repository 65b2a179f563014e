"""ConvNeXt: Liu, Mao, Wu, Feichtenhofer, Darrell and Xie (2022), "A ConvNet for the 2020s".

A ResNet moved step by step to the design of a Swin transformer: a patchifying stem, large depthwise kernels,
an inverted bottleneck, one normalisation and one activation per block, and separate down-sampling layers::

    y = x + drop_path(gamma * W2 gelu(W1 norm(depthwise7(x))))

The two linear maps act on the channels of every position; ``gamma`` is a scale per channel that starts near 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.errors import ConfigError
from cnnkit.layers.conv import same_padding
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.nd import conv
from cnnkit.layers.norm import LayerNormNd


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, then two linear maps over the channels.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions.
        kernel_size: Size of the depthwise kernel.
        expansion: Hidden width of the linear maps by ``channels``.
        layer_scale: Start of ``gamma``; ``None`` leaves it out.
        drop_path: Probability that the branch is dropped while training.
    """

    def __init__(
        self,
        channels: int,
        *,
        dims: int = 2,
        kernel_size: int = 7,
        expansion: int = 4,
        layer_scale: float | None = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        padding: tuple = same_padding(kernel_size, dims=dims)
        self.conv_dw = conv(dims)(channels, channels, kernel_size, padding=padding, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(channels, expansion * channels))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(expansion * channels, channels))
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale)) if layer_scale is not None else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        # Channels last once, for the normalisation and both linear maps.
        branch = self.mlp(self.norm(self.conv_dw(x).movedim(1, -1)))
        if self.gamma is not None:
            branch = branch * self.gamma
        return x + self.drop_path(branch.movedim(-1, 1))


class ConvNeXtStage(nn.Module):
    """Down-sampling where it is due, then blocks.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        downsample: Halve the size first.
        blocks: The blocks.
        dims: Number of spatial dimensions.
    """

    def __init__(self, in_channels: int, channels: int, *, downsample: bool, blocks: Sequence[nn.Module], dims: int = 2) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if downsample:
            self.downsample = nn.Sequential(LayerNormNd(in_channels), conv(dims)(in_channels, channels, 2, stride=2))
        self.blocks = nn.Sequential(*blocks)


class ConvNeXtHead(nn.Module):
    """The layers of the head that hold parameters: a normalisation of the pooled features and the classifier."""

    def __init__(self, channels: int, fc: nn.Module) -> None:
        super().__init__()
        self.norm = LayerNormNd(channels)
        self.fc = fc


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: stem and down-sampling in one list, stages without a level for blocks."""
    return rename_keys(
        state,
        (
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.", "stages."),
            (r"^(stages\.\d+)\.(\d+)\.(weight|bias)$", r"\1.downsample.\2.\3"),
            (r"^(stages\.\d+)\.(\d+)\.", r"\1.blocks.\2."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv(\d)\.", r".mlp.fc\1."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
            (r"^norm\.", "head.norm."),
        ),
    )


def _from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of torchvision: one list in which stages (odd) and down-sampling (even) take turns."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "features" and parts[1] != "0":
            stage, is_downsample = divmod(int(parts[1]) - 1, 2)
            parts[:2] = ["stages", str(stage + is_downsample), "downsample" if is_downsample else "blocks"]
        renamed[".".join(parts)] = value.flatten() if key.endswith(".layer_scale") else value
    return rename_keys(
        renamed,
        (
            (r"^features\.0\.", "stem."),
            (r"\.layer_scale$", ".gamma"),
            (r"\.block\.0\.", ".conv_dw."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."),
            (r"\.block\.5\.", ".mlp.fc2."),
            (r"^classifier\.0\.", "head.norm."),
            (r"^classifier\.2\.", "head.fc."),
        ),
    )


class ConvNeXt(Backbone):
    """ConvNeXt of any depth and width.

    Args:
        depths: Number of blocks of each stage.
        widths: Channels of each stage.
        kernel_size: Size of the depthwise kernels.
        patch_size: Size and stride of the stem's convolution.
        layer_scale: Start of each block's scale; ``None`` leaves it out.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the head's normalisation.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If ``depths`` and ``widths`` differ in length.
    """

    layouts = (
        Layout("timm"),
        Layout("official", has_keys("downsample_layers.0.0.weight"), _from_official),
        Layout("torchvision", has_keys("features.1.0.layer_scale"), _from_torchvision),
    )
    classifier = "head.fc"
    head_modules = ("head",)

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        kernel_size: int = 7,
        patch_size: int = 4,
        layer_scale: float | None = 1e-6,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if len(depths) != len(widths):
            raise ConfigError(f"depths has {len(depths)} stages and widths {len(widths)}; give one number of each per stage")
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        self.stem = nn.Sequential(conv(dims)(in_chans, widths[0], patch_size, stride=patch_size), LayerNormNd(widths[0]))
        self.stages = nn.ModuleList()
        self.feature_info = FeatureInfo()
        before = widths[0]
        for index, (width, rates) in enumerate(zip(widths, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = [ConvNeXtBlock(width, dims=dims, kernel_size=kernel_size, layer_scale=layer_scale, drop_path=rate) for rate in rates]
            self.stages.append(ConvNeXtStage(before, width, downsample=index > 0, blocks=blocks, dims=dims))
            self.feature_info.append({"num_chs": width, "reduction": patch_size * 2**index, "module": f"stages.{index}"})
            before = width
        self.head: nn.Module = ConvNeXtHead(self.num_features, self.new_classifier(num_classes))
        self.apply(_init)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the other layers are."""
        return super().new_classifier(num_classes).apply(_init)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the four stages."""
        x = self.stem(x)
        levels = []
        for stage in self.stages:
            if isinstance(stage, ConvNeXtStage):
                x = self.run_blocks(stage.blocks, stage.downsample(x))
            levels.append(x)
        return levels

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and normalise the last features, then classify them; see :meth:`Backbone.forward_head`."""
        x = self.global_pool(x)
        if isinstance(self.head, ConvNeXtHead):
            x = self.head.norm(x)
        x = self.head_drop(x)
        return x if pre_logits else self.get_classifier()(x)


def _init(module: nn.Module) -> None:
    """The paper's initialisation: normal with deviation 0.02 cut off at 2, and no bias."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _variant(depths: tuple[int, ...], width: int, figures: Figures) -> Variant:
    return Variant({"depths": depths, "widths": tuple(width * 2**stage for stage in range(4))}, figures)


# Figures of the paper's Table 1 at the precision that its own code's documentation prints.
FAMILY = Family(
    name="convnext",
    cls=ConvNeXt,
    small=("convnext_tiny", {"depths": (1, 1, 2, 1), "widths": (16, 24, 32, 48), "layer_scale": 1.0}),
    paper="convnext",
    summary="A pure convolutional network with the design of a vision transformer (Liu et al., 2022).",
    variants={
        "convnext_tiny": _variant((3, 3, 9, 3), 96, Figures(params_m=28.59, gmacs=4.5, quality="82.1 top-1")),
        "convnext_small": _variant((3, 3, 27, 3), 96, Figures(params_m=50.22, gmacs=8.7, quality="83.1 top-1")),
        "convnext_base": _variant((3, 3, 27, 3), 128, Figures(params_m=88.59, gmacs=15.4, quality="83.8 top-1")),
        "convnext_large": _variant((3, 3, 27, 3), 192, Figures(params_m=197.77, gmacs=34.4, quality="84.3 top-1")),
        "convnext_xlarge": _variant(
            (3, 3, 27, 3), 256, Figures(params_m=350.2, gmacs=60.9, quality="87.0 top-1 after pre-training on ImageNet-22k")
        ),
    },
)

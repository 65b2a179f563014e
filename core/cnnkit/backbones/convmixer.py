"""ConvMixer: Trockman and Kolter (2023), "Patches Are All You Need?".

Asks how much of a vision transformer's strength lies in its patches alone: one linear map of every patch, then the same block over and
over at the same width and resolution, with plain convolutions where a transformer has attention and perceptrons::

    z = x + bn(act(depthwise_k(x)));    y = bn(act(pointwise(z)))

``depthwise`` with a large kernel mixes the places of each channel, ``pointwise`` the channels of each place. ConvMixer-h/d has ``h``
channels and ``d`` blocks. The activation is GELU; the published ConvMixer-768/32 was trained with ReLU.
"""

from __future__ import annotations

from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.layers.act import get_act
from cnnkit.layers.nd import batch_norm, conv


class Shortcut(nn.Module):
    """Add the input to what a module makes of it."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Return ``fn(x) + x``."""
        return self.fn(x) + x


class ConvMixerBlock(nn.Sequential):
    """A depthwise convolution with a shortcut, then a pointwise one; each is followed by activation and batch normalisation.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        kernel_size: Size of the depthwise kernel.
        dims: Number of spatial dimensions.
        act: Name for :func:`~cnnkit.layers.act.get_act`.
    """

    def __init__(self, channels: int, *, kernel_size: int, dims: int = 2, act: str = "gelu") -> None:
        depthwise = conv(dims)(channels, channels, kernel_size, padding="same", groups=channels)
        super().__init__(
            Shortcut(nn.Sequential(depthwise, get_act(act), batch_norm(dims)(channels))),
            conv(dims)(channels, channels, 1),
            get_act(act),
            batch_norm(dims)(channels),
        )


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: one chain of the stem's three layers, the blocks, two layers without weights and the head."""
    last = max(int(key.split(".")[0]) for key in state)
    return rename_keys(
        state,
        (
            (rf"^{last}\.", "head."),
            *((rf"^{index}\.", f"stem.{index}.") for index in range(3)),
            *((rf"^{index + 3}\.", f"blocks.{index}.") for index in range(last - 5)),
        ),
    )


class ConvMixer(Backbone):
    """ConvMixer of any depth and width.

    Args:
        width: Channels.
        depth: Number of blocks; every one is a level of the pyramid, all of the same resolution.
        kernel_size: Size of the depthwise kernels.
        patch_size: Side of a patch.
        act: Name for :func:`~cnnkit.layers.act.get_act`.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
    """

    layouts = (Layout("timm"), Layout("official", has_keys("0.weight", "3.0.fn.0.weight"), _from_official))
    classifier = "head"
    head_modules = ("head",)

    def __init__(
        self,
        *,
        width: int = 1536,
        depth: int = 20,
        kernel_size: int = 9,
        patch_size: int = 7,
        act: str = "gelu",
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=width, global_pool=global_pool, drop_rate=drop_rate
        )
        self.min_size = patch_size
        self.stem = nn.Sequential(conv(dims)(in_chans, width, patch_size, stride=patch_size), get_act(act), batch_norm(dims)(width))
        self.blocks = nn.Sequential(*(ConvMixerBlock(width, kernel_size=kernel_size, dims=dims, act=act) for _ in range(depth)))
        self.feature_info = FeatureInfo({"num_chs": width, "reduction": patch_size, "module": f"blocks.{index}"} for index in range(depth))
        self.head = self.new_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last features; unlike the pyramid, this lets go of those before."""
        self.check_size(x)
        return self.run_blocks(self.blocks, self.stem(x))

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features after every block."""
        self.check_size(x)
        x = self.stem(x)
        levels = []
        for index in range(len(self.blocks)):
            x = self.run_blocks(self.blocks[index : index + 1], x)  # A sequence of one: a block is recomputed as a whole.
            levels.append(x)
        return levels


# Figures of the paper's Table 1; it states no multiply-adds.
FAMILY = Family(
    name="convmixer",
    cls=ConvMixer,
    small=("convmixer_1536_20", {"width": 64, "depth": 4, "kernel_size": 5, "patch_size": 4}),
    small_size=32,
    paper="convmixer",
    summary="Patches, then depthwise and pointwise convolutions at one resolution (Trockman and Kolter, 2023).",
    variants={
        "convmixer_1536_20": Variant(
            {"width": 1536, "depth": 20, "kernel_size": 9, "patch_size": 7}, Figures(params_m=51.6, quality="81.37 top-1")
        ),
        "convmixer_768_32": Variant(
            {"width": 768, "depth": 32, "kernel_size": 7, "patch_size": 7, "act": "relu"}, Figures(params_m=21.1, quality="80.16 top-1")
        ),
        "convmixer_1024_20_ks9_p14": Variant(
            {"width": 1024, "depth": 20, "kernel_size": 9, "patch_size": 14}, Figures(params_m=24.4, quality="76.94 top-1")
        ),
        "convmixer_256_8_ks9_p1": Variant(
            {"width": 256, "depth": 8, "kernel_size": 9, "patch_size": 1},
            Figures(
                params_m=0.707,
                input_size=32,
                quality="about 96 top-1 on CIFAR-10",
                counted_params_m=0.961,
                note="the figure is for the 10 classes of CIFAR-10, and models here have 1000 unless told",
            ),
        ),
    },
)

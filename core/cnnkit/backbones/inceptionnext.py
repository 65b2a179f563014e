"""InceptionNeXt: Yu, Zhou, Yan and Wang (2024), "InceptionNeXt: When Inception Meets ConvNeXt".

A depthwise convolution with a large kernel costs more time than its multiplications say, for it reads much memory.
Here most channels pass as they are, and the large kernel becomes one small cube and a long line along each axis, each
for a few channels by itself::

    mixer(x) = concat(x_1, square3(x_2), line11(x_3), line11'(x_4));    y = x + gamma * W2 gelu(W1 norm(mixer(x)))

``norm`` is a batch normalisation; the classifier has a hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant
from cnnkit.errors import ConfigError
from cnnkit.layers.conv import same_padding
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.init import init_truncated
from cnnkit.layers.mlp import Mlp
from cnnkit.layers.mlp_head import MlpHead
from cnnkit.layers.nd import batch_norm, conv

AXES = ("w", "h", "d")
"""Names of the axes from the last on, in the names of the layers."""


class InceptionDepthwise(nn.Module):
    """Convolve a few channels by a cube, a few by a line along each axis, and pass the others.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions.
        square_kernel: Side of the cube.
        band_kernel: Length of the lines.
        branch_ratio: Channels of each branch by all channels.

    Raises:
        ConfigError: If the branches need more channels than there are.
    """

    def __init__(self, channels: int, *, dims: int = 2, square_kernel: int = 3, band_kernel: int = 11, branch_ratio: float = 0.125) -> None:
        super().__init__()
        part = int(channels * branch_ratio)
        kernels = {"hw": (square_kernel,) * dims}
        for axis in range(dims):
            kernels[AXES[axis]] = tuple(band_kernel if place == dims - 1 - axis else 1 for place in range(dims))
        self.parts = (channels - len(kernels) * part, *(part,) * len(kernels))
        if part == 0 or self.parts[0] < 0:
            raise ConfigError(f"{len(kernels)} branches of {part} channels do not fit into {channels}: choose another branch_ratio")
        self.branches = [f"dwconv_{name}" for name in kernels]
        for branch, kernel in zip(self.branches, kernels.values(), strict=True):
            padding = same_padding(kernel, dims=dims)
            self.add_module(branch, conv(dims)(part, part, kernel, padding=padding, groups=part))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Apply every branch to its channels."""
        passed, *parts = x.split(self.parts, dim=1)
        mixed = [self.get_submodule(branch)(part) for branch, part in zip(self.branches, parts, strict=True)]
        return torch.cat((passed, *mixed), dim=1)


class MetaNeXtBlock(nn.Module):
    """A token mixer, a batch normalisation and a perceptron on one residual branch.

    Args:
        channels: Number of channels.
        mixer: Mixes positions.
        dims: Number of spatial dimensions.
        expansion: Hidden width of the perceptron by ``channels``.
        layer_scale: Start of ``gamma``.
        drop_path: Probability that the branch is dropped while training.
    """

    def __init__(
        self, channels: int, *, mixer: nn.Module, dims: int = 2, expansion: int = 4, layer_scale: float = 1e-6, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.token_mixer = mixer
        self.norm = batch_norm(dims)(channels)
        self.mlp = Mlp(channels, expansion * channels, dims=dims)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        branch = self.mlp(self.norm(self.token_mixer(x)))
        return x + self.drop_path(branch * self.gamma.view(-1, *[1] * (x.ndim - 2)))


class MetaNeXtStage(nn.Module):
    """Down-sampling where it is due, then blocks."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)


class InceptionNeXt(Backbone):
    """InceptionNeXt of any depth and width.

    Args:
        depths: Number of blocks of each stage.
        widths: Channels of each stage.
        band_kernel: Length of the line kernels.
        branch_ratio: Channels of each branch of the mixer by all channels.
        expansions: Hidden width of the perceptrons by the channels, for each stage.
        layer_scale: Start of each block's scale.
        dims: Number of spatial dimensions: 1, 2 or 3; there is a line along every axis.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out, with its hidden layer.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the last layer.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If the stages' settings differ in number, or the branches do not fit into the channels.
    """

    layouts = (Layout("timm"), Layout("official"))
    classifier = "head"
    head_modules = ("head",)

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        band_kernel: int = 11,
        branch_ratio: float = 0.125,
        expansions: Sequence[int] = (4, 4, 4, 3),
        layer_scale: float = 1e-6,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not len(depths) == len(widths) == len(expansions):
            raise ConfigError(
                f"depths has {len(depths)} stages, widths {len(widths)} and expansions {len(expansions)}; give one number of each per stage"
            )
        # The dropout is inside of the classifier, before its last layer.
        super().__init__(dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool)
        self.mlp_drop = drop_rate
        self.stem = nn.Sequential(conv(dims)(in_chans, widths[0], 4, stride=4), batch_norm(dims)(widths[0]))
        self.stages = nn.ModuleList()
        self.feature_info = FeatureInfo()
        rates = drop_path_rates(drop_path_rate, depths)
        for index, (width, expansion) in enumerate(zip(widths, expansions, strict=True)):
            downsample: nn.Module = nn.Identity()
            if index:
                before = widths[index - 1]
                downsample = nn.Sequential(batch_norm(dims)(before), conv(dims)(before, width, 2, stride=2))
            blocks = [
                MetaNeXtBlock(
                    width,
                    mixer=InceptionDepthwise(width, dims=dims, band_kernel=band_kernel, branch_ratio=branch_ratio),
                    dims=dims,
                    expansion=expansion,
                    layer_scale=layer_scale,
                    drop_path=rate,
                )
                for rate in rates[index]
            ]
            self.stages.append(MetaNeXtStage(downsample, blocks))
            self.feature_info.append({"num_chs": width, "reduction": 4 * 2**index, "module": f"stages.{index}"})
        self.head = self.new_classifier(num_classes)
        self.apply(init_truncated)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh network with a hidden layer three times as wide as the features."""
        if not num_classes:
            return nn.Identity()
        return MlpHead(self.num_features, num_classes, hidden=3 * self.num_features, drop=self.mlp_drop).apply(init_truncated)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of every stage."""
        x = self.stem(x)
        levels = []
        for stage in self.stages:
            if isinstance(stage, MetaNeXtStage):
                x = self.run_blocks(stage.blocks, stage.downsample(x))
            levels.append(x)
        return levels


def _variant(depths: tuple[int, ...], width: int, figures: Figures, band_kernel: int = 11, branch_ratio: float = 0.125) -> Variant:
    widths = tuple(width * 2**stage for stage in range(4))
    return Variant({"depths": depths, "widths": widths, "band_kernel": band_kernel, "branch_ratio": branch_ratio}, figures)


NOTE = "the paper's counter adds 5 operations for every value that is normalised"

# Figures of the official code's documentation.
FAMILY = Family(
    name="inceptionnext",
    cls=InceptionNeXt,
    small=("inception_next_tiny", {"depths": (1, 1, 2, 1), "widths": (16, 24, 32, 48), "layer_scale": 1.0}),
    paper="inceptionnext",
    summary="ConvNeXt with large kernels split into small cubes and long lines (Yu et al., 2024).",
    variants={
        "inception_next_atto": _variant(
            (2, 2, 6, 2), 40, Figures(params_m=4.2, gmacs=0.51, quality="75.3 top-1", counted_gmacs=0.503, note=NOTE), 9, 0.25
        ),
        "inception_next_tiny": _variant((3, 3, 9, 3), 96, Figures(params_m=28, gmacs=4.2, quality="82.3 top-1")),
        "inception_next_small": _variant((3, 3, 27, 3), 96, Figures(params_m=49, gmacs=8.4, quality="83.5 top-1")),
        "inception_next_base": _variant(
            (3, 3, 27, 3), 128, Figures(params_m=87, gmacs=14.9, quality="84.0 top-1", counted_gmacs=14.8, note=NOTE)
        ),
    },
)

"""TResNet: Ridnik, Lawen, Noy, Ben Baruch, Sharir and Friedman (2021), "TResNet: High Performance GPU-Dedicated Architecture".

A ResNet rebuilt for throughput on a GPU instead of few multiply-adds. Its stem moves squares of 4x4 positions into channels and
loses nothing; the wide early stages have basic blocks and the later ones bottlenecks; a convolution of stride 2 is one of stride 1
and a binomial filter (:class:`~cnnkit.layers.pool.BlurPool`); squeeze-and-excitation is in all stages but the last, in a bottleneck
where it is narrow::

    basic:       y = relu(x + se(norm(W2 act(norm(W1 x)))))
    bottleneck:  y = relu(x + norm(W3 se(act(norm(W2 act(norm(W1 x)))))))

``act`` is a leaky ReLU of slope 0.001, so that the authors' in-place normalisation can recover its input from its output; in
inference this is a batch normalisation, and here it is one in training too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.nd import avg_pool, batch_norm, conv
from cnnkit.layers.pool import BlurPool
from cnnkit.layers.squeeze_excite import SqueezeExcite


class SpaceToDepth(nn.Module):
    """Move blocks of positions into channels, the offset within a block before the channel.

    Shapes:
        x: ``(B, C, *spatial)``; the result is ``(B, size ** dims * C, *(spatial / size))``.

    Args:
        size: Side length of a block.
    """

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Rearrange ``x``."""
        dims = x.ndim - 2
        for axis in range(dims):
            x = x.unflatten(2 + 2 * axis, (-1, self.size))
        blocks, offsets = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
        return x.permute(0, *offsets, 1, *blocks).flatten(1, 1 + dims)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.size}"


class ConvUnit(nn.Module):
    """A convolution with batch normalisation, an activation where a slope is given, and a blurring subsampling at stride 2.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel.
        dims: Number of spatial dimensions.
        stride: 1 or 2.
        slope: Of the leaky ReLU; ``None`` leaves it out.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, dims: int = 2, stride: int = 1, slope: float | None = None
    ) -> None:
        super().__init__()
        self.conv = conv(dims)(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = batch_norm(dims)(out_channels)
        self.act = nn.Identity() if slope is None else nn.LeakyReLU(slope, inplace=True)
        self.blur = nn.Identity() if stride == 1 else BlurPool(out_channels, dims=dims, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit."""
        return self.blur(self.act(self.bn(self.conv(x))))


class TResNetBlock(nn.Module):
    """A basic block or a bottleneck.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, expansion * width, *ceil(spatial / stride))`` with an expansion of
        1 for a basic block and 4 for a bottleneck.

    Args:
        in_channels: Channels of the input.
        width: Channels of the 3x3 convolutions.
        bottleneck: Which of the two it is.
        attention: Whether it has squeeze-and-excitation.
        dims: Number of spatial dimensions.
        stride: Stride of the block.
        slope: Of the leaky ReLU.
        drop_path: Probability that the branch is dropped while training.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        bottleneck: bool,
        attention: bool,
        dims: int = 2,
        stride: int = 1,
        slope: float = 1e-3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        out_channels = width * (4 if bottleneck else 1)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            project: list[nn.Module] = [ConvUnit(in_channels, out_channels, 1, dims=dims)]
            if stride != 1:
                project.insert(0, avg_pool(dims)(stride, stride, ceil_mode=True, count_include_pad=False))
            self.downsample = nn.Sequential(*project)
        self.se: nn.Module = (
            SqueezeExcite(width, dims=dims, hidden=max(width // (2 if bottleneck else 4), 64)) if attention else nn.Identity()
        )
        self.conv3: nn.Module = nn.Identity()
        if bottleneck:
            self.conv1 = ConvUnit(in_channels, width, 1, dims=dims, slope=slope)
            self.conv2 = ConvUnit(width, width, 3, dims=dims, stride=stride, slope=slope)
            self.conv3 = ConvUnit(width, out_channels, 1, dims=dims)
        else:
            self.conv1 = ConvUnit(in_channels, width, 3, dims=dims, stride=stride, slope=slope)
            self.conv2 = ConvUnit(width, width, 3, dims=dims)
        self.drop_path = DropPath(drop_path)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        branch = self.drop_path(self.conv3(self.se(self.conv2(self.conv1(x)))))
        return self.act(branch + (x if self.downsample is None else self.downsample(x)))


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: units without names, and scales of the in-place normalisation, whose sign does not count."""
    renamed = rename_keys(
        {key: value for key, value in state.items() if not key.endswith(".filt")},
        (
            (r"\.(conv\d)\.0\.0\.", r".\1.conv."),  # Where a blur follows, the unit lies one level deeper.
            (r"\.(conv\d)\.0\.1\.", r".\1.bn."),
            (r"\.(conv\d|downsample\.\d)\.0\.", r".\1.conv."),
            (r"\.(conv\d|downsample\.\d)\.1\.", r".\1.bn."),
        ),
    )
    return {key: value.abs() + 1e-5 if key.endswith(".bn.weight") else value for key, value in renamed.items()}


class TResNet(Backbone):
    """TResNet of any depth and width.

    Args:
        depths: Number of blocks of each stage.
        widths: Channels of the 3x3 convolutions of each stage; the stem has as many as the first.
        blocks: ``"basic"`` or ``"bottleneck"``, for each stage.
        slope: Of the blocks' leaky ReLU.
        stem_slope: Of the stem's.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If a block is unknown, or depths, widths and blocks differ in length.
    """

    layouts = (Layout("timm"), Layout("official", has_keys("body.conv1.0.weight"), _from_official))
    classifier = "head.fc"
    head_modules = ("head",)

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 11, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[str] = ("basic", "basic", "bottleneck", "bottleneck"),
        slope: float = 1e-3,
        stem_slope: float = 1e-2,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not len(depths) == len(widths) == len(blocks):
            raise ConfigError(f"depths, widths and blocks have {len(depths)}, {len(widths)} and {len(blocks)} entries; give one per stage")
        for block in blocks:
            if block not in ("basic", "bottleneck"):
                raise ConfigError(unknown("block", block, ("basic", "bottleneck")))
        super().__init__(
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            num_features=widths[-1] * (4 if blocks[-1] == "bottleneck" else 1),
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        self.size_multiple = 4  # Of the stem's blocks.
        self.min_size = 4 + 2 ** len(depths)  # The last filter reflects at a border, and so needs a side of 2.
        self.body = nn.Sequential(
            OrderedDict(s2d=SpaceToDepth(), conv1=ConvUnit(in_chans * 4**dims, widths[0], 3, dims=dims, slope=stem_slope))
        )
        self.feature_info = FeatureInfo()
        channels = widths[0]
        for index, (width, rates) in enumerate(zip(widths, drop_path_rates(drop_path_rate, depths), strict=True)):
            stage = nn.Sequential()
            for position, rate in enumerate(rates):
                stage.append(
                    TResNetBlock(
                        channels,
                        width,
                        bottleneck=blocks[index] == "bottleneck",
                        attention=index < len(depths) - 1,
                        dims=dims,
                        stride=2 if index and not position else 1,
                        slope=slope,
                        drop_path=rate,
                    )
                )
                channels = width * (4 if blocks[index] == "bottleneck" else 1)
            self.body.add_module(f"layer{index + 1}", stage)
            self.feature_info.append({"num_chs": channels, "reduction": 4 * 2**index, "module": f"body.layer{index + 1}"})
        self.head: nn.Module = nn.Sequential(OrderedDict(fc=self.new_classifier(num_classes)))
        self.init_weights()

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn from a narrow normal distribution as in the paper's code."""
        layer = super().new_classifier(num_classes)
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
        return layer

    def init_weights(self) -> None:
        """Draw the convolutions from a normal distribution, and begin with blocks that pass their input."""
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
            elif isinstance(module, TResNetBlock):
                last = module.conv3 if isinstance(module.conv3, ConvUnit) else module.conv2
                nn.init.zeros_(last.bn.weight)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stages."""
        self.check_size(x)
        x = self.body.conv1(self.body.s2d(x))  # type: ignore[operator]
        levels = []
        for level in self.feature_info:
            x = self.run_blocks(self.get_submodule(level["module"]), x)
            levels.append(x)
        return levels


_PRINTED = "The paper prints 29.4 million and 5.5; its code builds the network counted here."


def _variant(depths: tuple[int, ...], width: int, figures: Figures) -> Variant:
    return Variant({"depths": depths, "widths": tuple(width * 2**stage for stage in range(4))}, figures)


FAMILY = Family(
    name="tresnet",
    cls=TResNet,
    small=("tresnet_m", {"depths": (1, 2, 1, 1), "widths": (8, 12, 16, 24)}),
    paper="tresnet",
    summary="A ResNet rebuilt for throughput on a GPU (Ridnik et al., 2021).",
    variants={
        "tresnet_m": _variant(
            (3, 4, 11, 3),
            64,
            Figures(params_m=29.4, counted_params_m=31.4, gmacs=5.5, counted_gmacs=5.74, note=_PRINTED, quality="80.8 top-1"),
        ),
        "tresnet_l": _variant((4, 5, 18, 3), 76, Figures(gmacs=10.9, quality="81.5 top-1")),
        "tresnet_xl": _variant((4, 5, 24, 3), 83, Figures(gmacs=15.2, quality="82.0 top-1")),
        "tresnet_v2_l": Variant(
            {"depths": (3, 4, 23, 3), "blocks": ("bottleneck",) * 4, "slope": 1e-6, "stem_slope": 1e-6},
            summary="TResNet of bottlenecks alone, of the authors' later pre-training on ImageNet-21k (Ridnik et al., 2021).",
            paper="",
        ),
    },
)

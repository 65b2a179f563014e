"""SimpleNet: Hasanpour, Rouhani, Fayyaz and Sabokrou (2016), "Lets keep it simple".

The full title goes on: "Using simple architectures to outperform deeper and more complex architectures". Thirteen convolutions in a
chain, after a few rules: widen gradually, in groups of equal layers; kernels of 3x3, and of 1x1 only late, where nothing local is lost
any more; pool late; end with the maximum over all positions, which asks whether a feature is there at all::

    x <- drop(relu(norm(W * x + b)))   thirteen times, maxpool2 between the groups;   logits = V max_positions(x)

The networks for images of 32 pixels are those of the paper, as its authors later wrote them for PyTorch: there every convolution is
normalised (in the paper's Caffe files the 1x1 ones are not). Until 2023 that code padded its 1x1 convolutions, so that each put a border
around the features, and had a pooling too many: the weights published for CIFAR want both (``simplenet_cifar_5m_extra_pool``). Training
used a dropout of 0.2 after each layer (``layer_drop_rate``).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cnnkit.backbones._base import Family, FeatureInfo, Figures, Layout, Variant, has_keys
from cnnkit.backbones._chain import ChainNet
from cnnkit.errors import ConfigError
from cnnkit.layers.nd import DROPOUT, batch_norm, conv, max_pool

Groups = Sequence[Sequence[int | Sequence[int]]]
"""Layers between two poolings: a number is the width of a 3x3 convolution, a pair the width and the side of the kernel."""


class SimpleLayer(nn.Module):
    """A convolution with bias, batch normalisation, ReLU, and dropout of whole channels.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *spatial)``, with the size that stride and padding leave.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel.
        dims: Number of spatial dimensions.
        stride: Stride.
        padding: Zeros on each side.
        drop_rate: Probability that a channel is dropped while training.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, dims: int, stride: int, padding: int, drop_rate: float
    ) -> None:
        super().__init__()
        self.conv = conv(dims)(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.bn = batch_norm(dims)(out_channels, momentum=0.05)
        self.act = nn.ReLU(inplace=True)
        self.drop = DROPOUT[dims](drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the four in order."""
        return self.drop(self.act(self.bn(self.conv(x))))


class PoolLayer(nn.Module):
    """Max pooling over cells of 2, and dropout of whole channels.

    Args:
        dims: Number of spatial dimensions.
        drop_rate: Probability that a channel is dropped while training.
    """

    def __init__(self, *, dims: int, drop_rate: float) -> None:
        super().__init__()
        self.pool = max_pool(dims)(2)
        self.drop = DROPOUT[dims](drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, *floor(spatial / 2))``."""
        return self.drop(self.pool(x))


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' own layout: one sequence in which convolutions and normalisations alternate, numbered with all that lies between."""
    numbers = sorted({int(key.split(".")[1]) for key in state if key.startswith("features.")})
    names = {number: f"layers.{place // 2}.{('conv', 'bn')[place % 2]}" for place, number in enumerate(numbers)}
    converted = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        number, _, leaf = rest.partition(".")
        converted[f"{names[int(number)]}.{leaf}" if first == "features" else f"fc.{rest}"] = value
    return converted


class SimpleNet(ChainNet):
    """SimpleNet of any widths; the levels of the pyramid end where the size is reduced.

    Args:
        groups: The layers between the poolings: each a width, or a pair of a width and a side of the kernel.
        strides: Strides of the first layers; those that are not named have 1.
        width: Factor on all widths.
        pointwise_padding: Zeros on each side of a 1x1 convolution's input; the levels are then larger than the input over their reductions.
        layer_drop_rate: Probability that a channel is dropped after a layer, or after the pooling that follows it.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.

    Raises:
        ConfigError: If a group has no layers.
    """

    layouts = (Layout("official", has_keys("features.0.weight", "features.1.running_mean"), _from_official),)

    def __init__(
        self,
        *,
        groups: Groups,
        strides: Sequence[int] = (),
        width: float = 1.0,
        pointwise_padding: int = 0,
        layer_drop_rate: float = 0.0,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "max",
        drop_rate: float = 0.0,
    ) -> None:
        specs = [[(layer, 3) if isinstance(layer, int) else (layer[0], layer[1]) for layer in group] for group in groups]
        if not specs or not all(specs):
            raise ConfigError(f"groups={groups!r} do not fit: give at least one layer per group")
        num_features = round(specs[-1][-1][0] * width)
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=num_features, global_pool=global_pool, drop_rate=drop_rate
        )
        self.layers, self.pools = nn.ModuleList(), nn.ModuleList()
        self.feature_info, self.chain = FeatureInfo(), []
        channels, reduced = in_chans, 1
        for group in specs:
            if self.chain:
                self._add_level(channels, reduced)
                self.pools.append(PoolLayer(dims=dims, drop_rate=layer_drop_rate))
                self.chain.append(f"pools.{len(self.pools) - 1}")
                reduced *= 2
            for place, (wide, kernel_size) in enumerate(group):
                index = len(self.layers)
                stride = strides[index] if index < len(strides) else 1
                if stride > 1 and self.chain:
                    self._add_level(channels, reduced)
                layer = SimpleLayer(
                    channels,
                    round(wide * width),
                    kernel_size,
                    dims=dims,
                    stride=stride,
                    padding=1 if kernel_size == 3 else pointwise_padding,
                    drop_rate=0.0 if place == len(group) - 1 else layer_drop_rate,
                )
                self.layers.append(layer)
                self.chain.append(f"layers.{index}")
                channels, reduced = round(wide * width), reduced * stride
        self._add_level(channels, reduced)
        self.min_size = reduced
        # Each padded 1x1 convolution adds two positions, and there are two of them before any reduction.
        self.size_slack = 4 * pointwise_padding
        self.fc = self.new_classifier(num_classes)
        self.apply(_init)

    def _add_level(self, channels: int, reduction: int) -> None:
        self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": self.chain[-1]})


def _init(module: nn.Module) -> None:
    """Uniform with the variance of Glorot and Bengio (2010), doubled for ReLU, as in the authors' code."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        nn.init.xavier_uniform_(module.weight, gain=2**0.5)


_SLIM = ((64, 32, 32, 32), (32, 32, 64), (64, 64), (128, (256, 1), (64, 1)), (64,))
_SMALL = ((32, 32, 32, 64), (64, 64, 64), (64, 64), (96, (96, 1), (96, 1)), (100,))
_FULL = ((64, 128, 128, 128), (128, 128, 256), (256, 256), (512, (2048, 1), (256, 1)), (256,))
_EXTRA = ((64, 128, 128, 128), (128, 128, 256), (256, 256), (512,), ((2048, 1), (256, 1)), (256,))
_IMAGENET = ((64, 128, 128, 128, 128, 128), (256, 256, 256, 512), ((2048, 1), (256, 1), 256))
_WIDE = ((128, 192, 192, 192, 192, 192), (320, 320, 320, 640), ((2560, 1), (320, 1), 320))
_TEN = "Counted are the weights of the convolutions and of a classifier of ten; the head has a thousand classes by default."
_M1, _M2 = (2, 2, 2), (2, 2, 1, 2)


def _cifar(groups: Groups, params_m: float, counted: float, accuracy: str, *, gmacs: float | None = None, note: str = _TEN) -> Variant:
    quality = f"{accuracy} % on CIFAR-10"
    figures = Figures(params_m=params_m, counted_params_m=counted, gmacs=gmacs, note=note, input_size=32, quality=quality)
    return Variant({"groups": groups}, figures)


def _imagenet(groups: Groups, strides: Sequence[int], width: float, params_m: float, accuracy: str) -> Variant:
    args = {"groups": groups, "strides": strides} | ({} if width == 1.0 else {"width": width})
    return Variant(args, Figures(params_m=params_m, quality=f"{accuracy} % top-1"))


# Of the paper's tables on CIFAR-10, and of the documentation of the authors' code, which adds the networks for ImageNet.
FAMILY = Family(
    name="simplenet",
    cls=SimpleNet,
    paper="simplenet",
    small=("simplenet_cifar_5m", {"width": 0.12}),
    small_size=32,
    summary="A plain chain of 3x3 convolutions that ends with a maximum over positions (Hasanpour et al., 2016).",
    variants={
        "simplenet_cifar_310k": _cifar(_SLIM, 0.31, 0.38, "91.98"),
        "simplenet_cifar_460k": _cifar(
            _SMALL, 0.46, 0.49, "92.33", note="The layers that the authors' code gives have 0.38 million weights with ten classes."
        ),
        "simplenet_cifar_5m": _cifar(_FULL, 5.48, 5.75, "95.32", gmacs=0.652),
        "simplenet_cifar_5m_extra_pool": Variant(
            {"groups": _EXTRA, "pointwise_padding": 1},
            Figures(quality="95.51 % on CIFAR-10, 78.37 % on CIFAR-100"),
            paper="",
            summary="SimpleNet with a pooling too many and padded 1x1 convolutions, as the published weights for CIFAR want it.",
        ),
        "simplenetv1_small_m1_05": _imagenet(_IMAGENET, _M1, 0.5, 1.51, "61.12"),
        "simplenetv1_small_m2_05": _imagenet(_IMAGENET, _M2, 0.5, 1.51, "61.67"),
        "simplenetv1_small_m1_075": _imagenet(_IMAGENET, _M1, 0.75, 3.29, "67.78"),
        "simplenetv1_small_m2_075": _imagenet(_IMAGENET, _M2, 0.75, 3.29, "68.51"),
        "simplenetv1_5m_m1": _imagenet(_IMAGENET, _M1, 1.0, 5.75, "71.55"),
        "simplenetv1_5m_m2": _imagenet(_IMAGENET, _M2, 1.0, 5.75, "72.03"),
        "simplenetv1_9m_m1": _imagenet(_WIDE, _M1, 1.0, 9.51, "73.79"),
        "simplenetv1_9m_m2": _imagenet(_WIDE, _M2, 1.0, 9.51, "74.23"),
    },
)

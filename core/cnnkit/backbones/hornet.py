"""HorNet: Rao, Zhao, Tang, Zhou, Lim and Lu (2022), "Efficient High-Order Spatial Interactions with Recursive Gated Convolutions".

Attention multiplies two features of different places, an interaction of order 2. A gated convolution does so by one depthwise
convolution and a product of elements; applied again to its own result, with ever more channels, it reaches any order ``n``::

    [p_0, q_0 ... q_(n-1)] = W_in x        C / 2^(n-1) channels in p_0 and q_0, twice as many from step to step, C in the last
    p_(k+1) = s f_k(q_k) * g_k(p_k)        f: depthwise over all q at once, g_k: 1x1 to the width of q_k (g_0 the identity)
    gnconv(x) = W_out p_n

Since the early steps are narrow, order ``n`` costs little more than order 1. ``f`` is a 7x7 kernel, or (variants ``gf``, in the last
two stages) for one half of the channels a 3x3 kernel and for the other half a global filter: a learned factor for every frequency of
the Fourier transform, which is a circular convolution as large as the map. Filters are interpolated for other sizes than that of
``img_size``. Around it is a block with a perceptron on the frame of ConvNeXt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant
from cnnkit.errors import ConfigError
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.init import init_truncated
from cnnkit.layers.nd import LINEAR_MODE, check_dims, conv, tupled
from cnnkit.layers.norm import LayerNormNd


class GlobalLocalFilter(nn.Module):
    """Convolve one half of the channels by a small depthwise kernel, the other by a filter of its frequencies.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape, the two halves taking turns channel by channel.

    Args:
        channels: Number of channels, even.
        size: Size of the maps for which the filter has a weight per frequency; for others it is interpolated.

    Raises:
        ConfigError: If the number of channels is odd.
    """

    def __init__(self, channels: int, *, size: Sequence[int]) -> None:
        super().__init__()
        if channels % 2:
            raise ConfigError(f"a global filter takes half of the channels, and {channels} is odd; use twice the width")
        half, dims = channels // 2, check_dims(len(size))
        self.dw = conv(dims)(half, half, 3, padding=1, groups=half, bias=False)
        # The transform of real values is its own mirror image: along the last axis one half of the frequencies is enough.
        frequencies = (*size[:-1], size[-1] // 2 + 1)
        self.complex_weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(half, *frequencies, 2), std=0.02))
        self.pre_norm = LayerNormNd(channels)
        self.post_norm = LayerNormNd(channels)

    def filter(self, size: Sequence[int]) -> Tensor:
        """Return the factors of the frequencies of a map, ``(channels / 2, *size[:-1], size[-1] // 2 + 1)``, complex."""
        frequencies = (*size[:-1], size[-1] // 2 + 1)
        weight = self.complex_weight.to(torch.promote_types(self.complex_weight.dtype, torch.float32))
        if tuple(weight.shape[1:-1]) != frequencies:
            parts = weight.movedim(-1, 0)
            weight = nn.functional.interpolate(parts, frequencies, mode=LINEAR_MODE[len(size)], align_corners=True).movedim(0, -1)
        return torch.view_as_complex(weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Filter both halves."""
        local, whole = self.pre_norm(x).chunk(2, dim=1)
        local = self.dw(local)
        size, axes = whole.shape[2:], tuple(range(2, x.ndim))
        # There are no transforms in half precision for every size and device.
        spectrum = torch.fft.rfftn(whole.to(torch.promote_types(whole.dtype, torch.float32)), dim=axes, norm="ortho")
        whole = torch.fft.irfftn(spectrum * self.filter(size), s=size, dim=axes, norm="ortho").to(local.dtype)
        return self.post_norm(torch.stack((local, whole), dim=2).flatten(1, 2))


class GnConv(nn.Module):
    """Recursive gated convolution.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels, a multiple of ``2 ** (order - 1)``.
        order: Number of steps; the result is a polynomial of degree ``order + 1`` of the input.
        dims: Number of spatial dimensions.
        kernel_size: Size of the depthwise kernel.
        scale: Factor of every gate.
        filter_size: Size of the maps for a :class:`GlobalLocalFilter` instead of the depthwise kernel.

    Raises:
        ConfigError: If the channels cannot be halved so often.
    """

    def __init__(
        self,
        channels: int,
        order: int = 5,
        *,
        dims: int = 2,
        kernel_size: int = 7,
        scale: float = 1.0,
        filter_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if order < 1 or channels % 2 ** (order - 1):
            raise ConfigError(f"order={order} halves {channels} channels {order - 1} times: use a multiple of {2 ** max(order - 1, 0)}")
        self.widths = tuple(channels >> (order - 1 - step) for step in range(order))
        self.scale = scale
        gates = sum(self.widths)
        self.proj_in = conv(dims)(channels, 2 * channels, 1)
        self.dwconv: nn.Module = (
            conv(dims)(gates, gates, kernel_size, padding=kernel_size // 2, groups=gates)
            if filter_size is None
            else GlobalLocalFilter(gates, size=filter_size)
        )
        self.proj_out = conv(dims)(channels, channels, 1)
        self.pws = nn.ModuleList(conv(dims)(width, 2 * width, 1) for width in self.widths[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Let the features of neighbours interact ``order`` times."""
        x, gates = self.proj_in(x).split((self.widths[0], sum(self.widths)), dim=1)
        first, *others = (self.dwconv(gates) * self.scale).split(self.widths, dim=1)
        x = x * first
        for widen, gate in zip(self.pws, others, strict=True):
            x = widen(x) * gate
        return self.proj_out(x)


class HorNetBlock(nn.Module):
    """A recursive gated convolution and a perceptron, each after a normalisation and on a residual branch.

    Args:
        channels: Number of channels.
        mixer: Mixes positions, usually a :class:`GnConv`.
        layer_scale: Start of the branches' scales.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(self, channels: int, *, mixer: nn.Module, layer_scale: float = 1e-6, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNormNd(channels)
        self.gnconv = mixer
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma1 = nn.Parameter(torch.full((channels,), layer_scale))
        self.gamma2 = nn.Parameter(torch.full((channels,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.drop_path(self.gamma1.view(-1, *[1] * (x.ndim - 2)) * self.gnconv(self.norm1(x)))
        # Channels last once, for the normalisation and both linear maps.
        branch = self.gamma2 * self.pwconv2(self.act(self.pwconv1(self.norm2(x.movedim(1, -1)))))
        return x + self.drop_path(branch.movedim(-1, 1))


class HorNet(Backbone):
    """HorNet of any depth and width.

    Args:
        depths: Number of blocks of each stage.
        widths: Channels of each stage.
        orders: Order of the gated convolutions of each stage.
        global_filters: Whether a stage filters globally instead of by a depthwise kernel.
        kernel_size: Size of the depthwise kernels.
        scale: Factor of every gate.
        layer_scale: Start of each branch's scale.
        img_size: Size of the input, one or one per dimension, for which a global filter has a weight per frequency.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the head's normalisation.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If the stages' settings differ in number, or a width does not suit its order.
    """

    layouts = (Layout("official"),)
    classifier = "head"
    head_modules = ("norm", "head")

    def __init__(
        self,
        *,
        depths: Sequence[int] = (2, 3, 18, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        orders: Sequence[int] = (2, 3, 4, 5),
        global_filters: Sequence[bool] = (False, False, False, False),
        kernel_size: int = 7,
        scale: float = 1 / 3,
        layer_scale: float = 1e-6,
        img_size: int | Sequence[int] = 224,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not len(depths) == len(widths) == len(orders) == len(global_filters):
            raise ConfigError(
                f"depths has {len(depths)} stages, widths {len(widths)}, orders {len(orders)} and global_filters {len(global_filters)}; "
                "give one of each per stage"
            )
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        self.feature_info = FeatureInfo()
        rates = drop_path_rates(drop_path_rate, depths)
        for index, (width, order) in enumerate(zip(widths, orders, strict=True)):
            downsample = [LayerNormNd(widths[index - 1]), conv(dims)(widths[index - 1], width, 2, stride=2)]
            stem = [conv(dims)(in_chans, width, 4, stride=4), LayerNormNd(width)]
            self.downsample_layers.append(nn.Sequential(*(downsample if index else stem)))
            reduction = 4 * 2**index
            size = tuple(side // reduction for side in tupled(img_size, dims)) if global_filters[index] else None
            blocks = [
                HorNetBlock(
                    width,
                    mixer=GnConv(width, order, dims=dims, kernel_size=kernel_size, scale=scale, filter_size=size),
                    layer_scale=layer_scale,
                    drop_path=rate,
                )
                for rate in rates[index]
            ]
            self.stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stages.{index}"})
        self.norm: nn.Module = LayerNormNd(self.num_features)
        self.head = self.new_classifier(num_classes)
        self.apply(init_truncated)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the other layers are."""
        return super().new_classifier(num_classes).apply(init_truncated)

    def drop_levels(self, after: int) -> None:
        """Remove the stages after position ``after`` and the down-sampling before each of them."""
        super().drop_levels(after)
        for index in range(after + 1, len(self.stages)):
            self.downsample_layers[index] = nn.Identity()

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of every stage."""
        levels = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = self.run_blocks(stage, downsample(x))
            levels.append(x)
        return levels

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and normalise the last features, then classify them; see :meth:`Backbone.forward_head`."""
        x = self.head_drop(self.norm(self.global_pool(x)))
        return x if pre_logits else self.get_classifier()(x)


def _variant(width: int, figures: Figures, *, global_filter: bool = False, img_size: int = 224) -> Variant:
    widths = tuple(width * 2**stage for stage in range(4))
    filters = {"global_filters": (False, False, True, True), "img_size": img_size} if global_filter else {}
    return Variant({"widths": widths, **filters}, figures)


COUNTER = "the official counter adds operations for the Fourier transforms and 5 for every value that torch's layer normalisation takes"
CLASSIFIER = "the figure is of the pre-trained model, with a classifier of ImageNet-22k (10450 classes give it)"

# Figures of the official code's documentation.
FAMILY = Family(
    name="hornet",
    cls=HorNet,
    small=("hornet_tiny_gf", {"depths": (1, 1, 2, 1), "widths": (8, 16, 32, 64), "layer_scale": 1.0, "img_size": 64}),
    paper="hornet",
    summary="Gated convolutions applied to their own results, on the frame of ConvNeXt (Rao et al., 2022).",
    variants={
        "hornet_tiny_7x7": _variant(64, Figures(params_m=22, gmacs=4.0, quality="82.8 top-1")),
        "hornet_tiny_gf": _variant(64, Figures(params_m=23, gmacs=3.9, quality="83.0 top-1"), global_filter=True),
        "hornet_small_7x7": _variant(96, Figures(params_m=50, gmacs=8.8, quality="83.8 top-1")),
        "hornet_small_gf": _variant(96, Figures(params_m=50, gmacs=8.7, quality="84.0 top-1"), global_filter=True),
        "hornet_base_7x7": _variant(128, Figures(params_m=87, gmacs=15.6, quality="84.2 top-1")),
        "hornet_base_gf": _variant(
            128, Figures(params_m=88, gmacs=15.5, quality="84.3 top-1", counted_gmacs=15.4, note=COUNTER), global_filter=True
        ),
        "hornet_base_gf_img384": _variant(128, Figures(input_size=384), global_filter=True, img_size=384),
        "hornet_large_7x7": _variant(192, Figures(params_m=209, gmacs=34.8, counted_params_m=194.5, note=CLASSIFIER)),
        "hornet_large_gf": _variant(
            192,
            Figures(params_m=211, gmacs=34.7, counted_params_m=196.3, counted_gmacs=34.6, note=f"{CLASSIFIER}; {COUNTER}"),
            global_filter=True,
        ),
        "hornet_large_gf_img384": _variant(
            192,
            Figures(
                params_m=216, gmacs=101.8, input_size=384, counted_params_m=201.8, counted_gmacs=101.6, note=f"{CLASSIFIER}; {COUNTER}"
            ),
            global_filter=True,
            img_size=384,
        ),
    },
)

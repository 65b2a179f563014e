"""UniRepLKNet: Ding et al. (2024), large kernels for images, sound, clips, points and series.

"UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and Image Recognition".

Large kernels see wide without depth, so few of them are enough; depth comes from cheap small ones between them. A block is::

    y = norm(dwconv(x));    x = x + gamma * norm(W2 grn(gelu(W1 se(y))))

and a large depthwise convolution is trained as a sum of a large kernel and small dilated ones, each with its batch normalisation. A
dilated kernel is a large one with zeros between its taps, so for inference the sum is one convolution::

    dwconv(x) = norm_0(K * x) + sum_i norm_i(k_i *_(r_i) x)

Other data enter as a map: a spectrogram as it is, a clip as its frames side by side (:func:`tile_frames`), a series as its lines under
each other (:func:`fold_series`), points as they are seen along the three axes (:func:`draw_points`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.errors import ConfigError, InputError
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.fuse import fold_batch_norm
from cnnkit.layers.grn import GlobalResponseNorm
from cnnkit.layers.init import init_truncated
from cnnkit.layers.nd import batch_norm, conv
from cnnkit.layers.norm import LayerNormNd
from cnnkit.layers.squeeze_excite import SqueezeExcite

BRANCHES: Mapping[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}
"""Size and dilation of the small kernels beside a large one, by its size."""


class DilatedReparamConv(nn.Module):
    """A large depthwise convolution that is trained as a sum with small dilated ones.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        kernel_size: A key of :data:`BRANCHES`.
        dims: Number of spatial dimensions.

    Raises:
        ConfigError: If there are no branches for the size.
    """

    def __init__(self, channels: int, kernel_size: int, *, dims: int = 2) -> None:
        super().__init__()
        if kernel_size not in BRANCHES:
            raise ConfigError(f"kernel_size={kernel_size} has no small kernels beside it; use one of {', '.join(map(str, BRANCHES))}")
        self.dims = dims
        self.kernel_size = kernel_size
        self.lk_origin = conv(dims)(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False)
        self.origin_bn = batch_norm(dims)(channels)
        for size, dilation in BRANCHES[kernel_size]:
            small = conv(dims)(channels, channels, size, padding=dilation * (size - 1) // 2, dilation=dilation, groups=channels, bias=False)
            self.add_module(f"dil_conv_k{size}_{dilation}", small)
            self.add_module(f"dil_bn_k{size}_{dilation}", batch_norm(dims)(channels))

    def branches(self) -> list[tuple[int, nn.Module, nn.Module]]:
        """Return dilation, convolution and normalisation of every branch, the large kernel first."""
        names = [(dilation, f"k{size}_{dilation}") for size, dilation in BRANCHES[self.kernel_size]]
        small = [(dilation, self.get_submodule(f"dil_conv_{name}"), self.get_submodule(f"dil_bn_{name}")) for dilation, name in names]
        return [(1, self.lk_origin, self.origin_bn), *small]

    def forward(self, x: Tensor) -> Tensor:
        """Sum the branches."""
        y = self.origin_bn(self.lk_origin(x))
        for _, small, norm in self.branches()[1:]:
            y = y + norm(small(x))
        return y

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return the one convolution that equals the sum, for inference."""
        channels = self.lk_origin.in_channels
        whole: Any = conv(self.dims)(channels, channels, self.kernel_size, padding=self.kernel_size // 2, groups=channels)
        whole.to(self.lk_origin.weight)
        whole.weight.zero_()
        whole.bias.zero_()
        for dilation, branch, norm in self.branches():
            weight, bias = fold_batch_norm(branch, norm)
            reach = dilation * (weight.shape[-1] - 1) // 2
            taps = slice(self.kernel_size // 2 - reach, self.kernel_size // 2 + reach + 1, dilation)
            whole.weight[(..., *(taps,) * self.dims)] += weight
            whole.bias += bias
        return whole


class BlockSteps(nn.Module):
    """What a block does with its parts; by itself, the block for inference.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        dwconv: The depthwise convolution.
        norm: Normalisation after it.
        se: Reweights the channels.
        pwconv1: The first linear map.
        grn: Makes its channels compete.
        pwconv2: The second linear map.
        norm2: Normalisation after it.
        gamma: Scale of the branch per channel.
        drop_path: Probability that the branch is dropped while training.
    """

    def __init__(
        self,
        dwconv: nn.Module,
        norm: nn.Module,
        se: nn.Module,
        pwconv1: nn.Module,
        grn: nn.Module,
        pwconv2: nn.Module,
        norm2: nn.Module,
        gamma: nn.Parameter | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.dwconv, self.norm, self.se = dwconv, norm, se
        self.pwconv1, self.grn, self.pwconv2, self.norm2 = pwconv1, grn, pwconv2, norm2
        self.gamma = gamma
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = self.se(self.norm(self.dwconv(x))).movedim(1, -1)
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(y)))).movedim(-1, 1)
        y = self.norm2(y)
        if self.gamma is not None:
            y = y * self.gamma.view(-1, *[1] * (x.ndim - 2))
        return x + self.drop_path(y)


class UniRepLKNetBlock(BlockSteps):
    """The block: of a large kernel from 7 on, of a small one below.

    Args:
        channels: Number of channels.
        kernel_size: Size of the depthwise kernel, odd.
        dims: Number of spatial dimensions.
        layer_scale: Start of ``gamma``; ``None`` leaves it out.
        drop_path: Probability that the branch is dropped while training.
    """

    def __init__(self, channels: int, *, kernel_size: int, dims: int = 2, layer_scale: float | None = 1e-6, drop_path: float = 0.0) -> None:
        if kernel_size < 7:
            dwconv: nn.Module = conv(dims)(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False)
        else:
            dwconv = DilatedReparamConv(channels, kernel_size, dims=dims)
        super().__init__(
            dwconv,
            batch_norm(dims)(channels),
            SqueezeExcite(channels, dims=dims, hidden=channels // 4),
            nn.Linear(channels, 4 * channels),
            GlobalResponseNorm(4 * channels),
            nn.Linear(4 * channels, channels, bias=False),
            batch_norm(dims)(channels),
            nn.Parameter(torch.full((channels,), layer_scale)) if layer_scale is not None else None,
            drop_path,
        )

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return the block with the second half's shift, normalisation and scale in its last linear map, for inference."""
        grn: Any = self.grn
        last: Any = self.pwconv2
        whole = nn.Linear(last.in_features, last.out_features).to(last.weight)
        whole.weight.copy_(last.weight)
        whole.bias.copy_(last.weight @ grn.bias)
        weight, bias = fold_batch_norm(whole, self.norm2)
        scale = torch.ones_like(bias) if self.gamma is None else self.gamma
        whole.weight.copy_(weight * scale.unsqueeze(1))
        whole.bias.copy_(bias * scale)
        compete = GlobalResponseNorm(last.in_features, bias=False, eps=grn.eps)
        compete.weight = grn.weight
        return BlockSteps(self.dwconv, self.norm, self.se, self.pwconv1, compete, whole, nn.Identity())


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: modules that only permute axes have a place in its sequences."""
    return rename_keys(
        {key: value.flatten() if ".act.1." in key else value for key, value in state.items()},
        (
            (r"\.se\.down\.", ".se.fc1."),
            (r"\.se\.up\.", ".se.fc2."),
            (r"\.pwconv1\.1\.", ".pwconv1."),
            (r"\.act\.1\.gamma$", ".grn.weight"),
            (r"\.act\.1\.beta$", ".grn.bias"),
            (r"\.pwconv2\.0\.", ".pwconv2."),
            (r"\.pwconv2\.2\.", ".norm2."),
        ),
    )


def _from_merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same code's layout for inference: what was merged comes back as branches that add nothing."""
    whole = _from_official(state)

    def add_norm(name: str, bias: Tensor) -> None:
        whole[f"{name}.weight"], whole[f"{name}.bias"] = torch.ones_like(bias), bias
        # With the variance's eps, the deviation is 1.
        whole[f"{name}.running_mean"], whole[f"{name}.running_var"] = torch.zeros_like(bias), torch.full_like(bias, 1 - 1e-5)

    for key in list(whole):
        block, _, inside = key.partition(".dwconv.")
        if inside == "lk_origin.weight":
            kernel = whole[key]
            for size, dilation in BRANCHES[kernel.shape[-1]]:
                small = kernel.new_zeros(*kernel.shape[:2], *[size] * (kernel.ndim - 2))
                whole[f"{block}.dwconv.dil_conv_k{size}_{dilation}.weight"] = small
                add_norm(f"{block}.dwconv.dil_bn_k{size}_{dilation}", torch.zeros_like(kernel[:, 0].flatten(1)[:, 0]))
            add_norm(f"{block}.dwconv.origin_bn", torch.zeros_like(kernel[:, 0].flatten(1)[:, 0]))
        if inside in ("bias", "lk_origin.bias"):
            add_norm(f"{block}.norm", whole.pop(key))
        elif key.endswith(".pwconv2.bias"):
            block = key.removesuffix(".pwconv2.bias")
            whole[f"{block}.gamma"] = torch.ones_like(whole[key])
            whole[f"{block}.grn.bias"] = torch.zeros_like(whole[f"{block}.grn.weight"])
            add_norm(f"{block}.norm2", whole.pop(key))
    return whole


class UniRepLKNet(Backbone):
    """UniRepLKNet of any depth and width.

    Args:
        depths: Number of blocks of each stage.
        widths: Channels of each stage.
        kernels: Kernel sizes of each stage's blocks, repeated through the stage.
        layer_scale: Start of each block's scale; ``None`` leaves it out.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the head's normalisation.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If arguments by stage differ in length, or a kernel has no known branches.
    """

    layouts = (
        Layout("official merged", has_keys("stages.0.0.pwconv2.0.bias"), _from_merged),
        Layout("official", has_keys("stages.0.0.pwconv2.0.weight"), _from_official),
    )
    classifier = "head"
    head_modules = ("norm", "head")

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 3, 27, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        kernels: Sequence[Sequence[int]] = ((3,), (13,), (13, 3, 3), (13,)),
        layer_scale: float | None = 1e-6,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not len(depths) == len(widths) == len(kernels):
            raise ConfigError("depths, widths and kernels need one entry per stage, and equally many")
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.feature_info = FeatureInfo()
        for index, (width, rates) in enumerate(zip(widths, drop_path_rates(drop_path_rate, depths), strict=True)):
            first = () if index else (conv(dims)(in_chans, width // 2, 3, stride=2, padding=1), LayerNormNd(width // 2), nn.GELU())
            before = widths[index - 1] if index else width // 2
            self.downsample_layers.append(nn.Sequential(*first, conv(dims)(before, width, 3, stride=2, padding=1), LayerNormNd(width)))
            sizes = [kernels[index][number % len(kernels[index])] for number in range(len(rates))]
            blocks = (
                UniRepLKNetBlock(width, kernel_size=size, dims=dims, layer_scale=layer_scale, drop_path=rate)
                for size, rate in zip(sizes, rates, strict=True)
            )
            self.stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": 4 * 2**index, "module": f"stages.{index}"})
        self.norm: nn.Module = LayerNormNd(widths[-1])
        self.head: nn.Module = self.new_classifier(num_classes)
        self.apply(init_truncated)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the other layers are."""
        return super().new_classifier(num_classes).apply(init_truncated)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stages."""
        levels = []
        for shrink, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = self.run_blocks(stage, shrink(x))
            levels.append(x)
        return levels

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and normalise the last features, then classify them; see :meth:`Backbone.forward_head`."""
        x = self.head_drop(self.norm(self.global_pool(x)))
        return x if pre_logits else self.get_classifier()(x)

    def drop_levels(self, after: int) -> None:
        """Remove the stages beyond the level ``after``."""
        for index in range(after + 1, len(self.feature_info)):
            self.downsample_layers[index] = nn.Identity()
        super().drop_levels(after)


def tile_frames(clip: Tensor, columns: int = 0) -> Tensor:
    """Lay the frames of a clip side by side in one image.

    Shapes:
        clip: ``(B, C, T, H, W)``; the result is ``(B, C, T / columns * H, columns * W)``.

    Args:
        clip: The clip.
        columns: Frames per row; by default the least number from the root of ``T`` on that divides it.

    Raises:
        InputError: If ``columns`` does not divide the number of frames.
    """
    frames = clip.shape[2]
    columns = columns or next(number for number in range(math.ceil(frames**0.5), frames + 1) if frames % number == 0)
    if frames % columns:
        raise InputError(f"{frames} frames do not fill rows of {columns}; give a divisor of {frames} as columns")
    return clip.unflatten(2, (-1, columns)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


def fold_series(series: Tensor, period: int) -> Tensor:
    """Write a series in lines of one period each, so that neighbours in a column are one period apart.

    Shapes:
        series: ``(B, C, L)``; the result is ``(B, C, L / period, period)``.

    Args:
        series: The series; its variables are the channels.
        period: Length of a line.

    Raises:
        InputError: If the length is no multiple of the period.
    """
    if series.shape[2] % period:
        raise InputError(f"a series of {series.shape[2]} is not made of lines of {period}; cut it to {series.shape[2] // period * period}")
    return series.unflatten(2, (-1, period))


def draw_points(points: Tensor, size: int) -> Tensor:
    """Draw a cloud of points as it is seen along the three axes: how many points lie behind each pixel, by the fullest one.

    The paper learns its projection, by the method of Wang et al. (2022), "P2P"; this one is fixed.

    Shapes:
        points: ``(B, N, 3)``; the result is ``(B, 3, size, size)``.

    Args:
        points: The points; every cloud is moved and scaled to fill the image.
        size: Side of the image.
    """
    low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    widest = (high - low).amax(2, keepdim=True).clamp_min(torch.finfo(points.dtype).tiny)
    cells = (((points - (low + high) / 2) / widest + 0.5) * size).long().clamp(0, size - 1)
    pairs = torch.stack([cells[..., rows] * size + cells[..., columns] for rows, columns in ((1, 2), (0, 2), (0, 1))], 1)
    image = points.new_zeros(*pairs.shape[:2], size * size).scatter_add(2, pairs, torch.ones_like(pairs, dtype=points.dtype))
    return (image / image.amax(2, keepdim=True)).unflatten(2, (size, size))


_MERGED = "The paper counts the model for inference, with merged branches; the count here is that of the model for training."


def _variant(width: int, depths: tuple[int, ...], third: tuple[int, ...], figures: Figures) -> Variant:
    """Kernels of the third stage differ by depth."""
    kernels = ((3,), (13,), third, (13,))
    return Variant(
        {"depths": depths, "widths": tuple(width * 2**stage for stage in range(4)), "kernels": kernels},
        dataclasses.replace(figures, note=_MERGED),
    )


_FLAT, _DEEP, _MIXED = (2, 2, 6, 2), (3, 3, 27, 3), (13, 3, 3)

FAMILY = Family(
    name="unireplknet",
    cls=UniRepLKNet,
    small=(
        "unireplknet_t",
        {"depths": (1, 1, 2, 1), "widths": (16, 24, 32, 40), "kernels": ((3,), (9,), (13, 3), (7,)), "layer_scale": 1.0},
    ),
    paper="unireplknet",
    summary="Few large kernels, trained as sums with dilated small ones, and depth from small ones (Ding et al., 2024).",
    variants={
        "unireplknet_a": _variant(
            40, _FLAT, (13,), Figures(params_m=4.4, counted_params_m=4.65, gmacs=0.6, counted_gmacs=0.67, quality="77.0 top-1")
        ),
        "unireplknet_f": _variant(
            48, _FLAT, (13,), Figures(params_m=6.2, counted_params_m=6.49, gmacs=0.9, counted_gmacs=0.95, quality="78.6 top-1")
        ),
        "unireplknet_p": _variant(
            64, _FLAT, (13,), Figures(params_m=10.7, counted_params_m=11.08, gmacs=1.6, counted_gmacs=1.63, quality="80.2 top-1")
        ),
        "unireplknet_n": _variant(
            80, (2, 2, 8, 2), (13,), Figures(params_m=18.3, counted_params_m=18.82, gmacs=2.8, counted_gmacs=2.85, quality="81.6 top-1")
        ),
        "unireplknet_t": _variant(
            80, (3, 3, 18, 3), (13, 3), Figures(params_m=31, counted_params_m=31.69, gmacs=4.9, counted_gmacs=5.0, quality="83.2 top-1")
        ),
        "unireplknet_s": _variant(
            96, _DEEP, _MIXED, Figures(params_m=55.6, counted_params_m=56.46, gmacs=9.1, counted_gmacs=9.22, quality="83.9 top-1")
        ),
        "unireplknet_b": _variant(
            128,
            _DEEP,
            _MIXED,
            Figures(
                params_m=98, counted_params_m=99.1, gmacs=47.2, counted_gmacs=47.7, input_size=384, quality="87.4 top-1 at 384 px, 22k"
            ),
        ),
        "unireplknet_l": _variant(
            192,
            _DEEP,
            _MIXED,
            Figures(
                params_m=218, counted_params_m=220.1, gmacs=105.4, counted_gmacs=106.2, input_size=384, quality="87.9 top-1 at 384 px, 22k"
            ),
        ),
        "unireplknet_xl": _variant(
            256,
            _DEEP,
            _MIXED,
            Figures(
                params_m=386, counted_params_m=388.7, gmacs=187, counted_gmacs=187.8, input_size=384, quality="88.0 top-1 at 384 px, 22k"
            ),
        ),
    },
)

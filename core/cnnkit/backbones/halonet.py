"""HaloNet: Vaswani et al. (2021), "Scaling Local Self-Attention for Parameter Efficient Visual Backbones".

A ResNet whose 3x3 convolutions are local self-attention. A window around every position would be much to copy; so a block of ``b x b``
queries shares one neighbourhood, the block and a halo of ``h`` positions around it::

    y_i = sum_j softmax_j(q_i . k_j / sqrt(d) + q_i . (r_(j - i))) v_j,    j in the (b + 2h)^2 positions of i's block and halo

with learned vectors ``r`` by relative position, one table per axis. Beyond the border stand zeros. Where a convolution would have a
stride, only the queries have it. The paper's H0 to H7 consist of attention alone, with values ``r_v`` times and outputs ``r_b`` times as
wide as queries; its table names no activation, here it is SiLU. In timm's ``halonet26t`` and ``halonet50ts`` attention takes turns with
convolutions, as in the paper's hybrids; their published weights count the relative position of strided queries by the queries' own
index, which ``strided_positions=False`` repeats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant
from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.act import get_act
from cnnkit.layers.attention import attend
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.nd import batch_norm, conv, max_pool

STEMS: dict[str, tuple[tuple[float, int], ...]] = {"conv": ((1.0, 7),), "tiered": ((0.375, 3), (0.5, 3), (1.0, 3))}
"""Channels, by those of the stem, and kernel of each of its convolutions."""
KINDS = "ca"


class RelativePositions(nn.Module):
    """Logits of queries by relative position: the products of each query with a vector per offset, one table per axis.

    Shapes:
        query: ``(..., *block, channels)``; the result is ``(..., prod(block), window^dims)``.

    Args:
        channels: Features of a head's query.
        window: Side of the neighbourhood.
        step: By how many entries of the table two queries that follow each other differ.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, *, window: int, step: int, dims: int = 2) -> None:
        super().__init__()
        self.window = window
        self.step = step
        self.names = tuple(f"{axis}_rel" for axis in ("depth", "height", "width")[-dims:])
        for name in self.names:
            self.register_parameter(name, nn.Parameter(torch.empty(2 * window - 1, channels)))

    def forward(self, query: Tensor) -> Tensor:
        """Return the logits."""
        dims = len(self.names)
        block = query.shape[-1 - dims : -1]
        flat = query.flatten(0, -2 - dims)
        logits: Any = 0
        for axis, name in enumerate(self.names):
            steps = torch.arange(self.window, device=query.device) + self.window - 1
            offsets = steps - self.step * torch.arange(block[axis], device=query.device)[:, None]
            vectors = self.get_parameter(name)[offsets]
            # One matrix product per place of the query along this axis.
            lines = flat.movedim(axis + 1, 0)
            found = (lines.flatten(1, -2) @ vectors.mT).unflatten(1, lines.shape[1:-1]).movedim(0, axis + 1)
            logits = logits + found.unflatten(-1, [self.window if other == axis else 1 for other in range(dims)])
        return logits.flatten(-dims).flatten(1, -2).unflatten(0, query.shape[: -1 - dims])


class HaloAttention(nn.Module):
    """Self-attention of blocks of positions to the block and a halo around it.

    Shapes:
        x: ``(B, channels, *spatial)``; the result is ``(B, out_channels, *ceil(spatial / stride))``. A size that the block does not
        divide is filled up with zeros.

    Args:
        channels: Channels of the input, of queries and of keys.
        out_channels: Channels of values.
        heads: Attention heads; they divide both.
        block_size: Side of a block of positions.
        halo_size: Positions around it on each side.
        stride: Step between queries; it divides ``block_size``.
        strided_positions: Count relative positions of strided queries on the grid of the keys, not by the queries' own index.
        dims: Number of spatial dimensions.

    Raises:
        ConfigError: If ``heads`` or ``stride`` do not divide what they must.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        heads: int = 8,
        block_size: int = 8,
        halo_size: int = 3,
        stride: int = 1,
        strided_positions: bool = True,
        dims: int = 2,
    ) -> None:
        super().__init__()
        if channels % heads or out_channels % heads:
            raise ConfigError(f"heads={heads} must divide the channels of queries and of values, {channels} and {out_channels}")
        if block_size % stride:
            raise ConfigError(f"block_size={block_size} must be a multiple of the stride {stride}")
        self.heads = heads
        self.block_size = block_size
        self.halo_size = halo_size
        self.stride = stride
        self.key_width = channels // heads
        self.q = conv(dims)(channels, channels, 1, stride=stride, bias=False)
        self.kv = conv(dims)(channels, channels + out_channels, 1, bias=False)
        self.pos_embed = RelativePositions(
            self.key_width, window=block_size + 2 * halo_size, step=stride if strided_positions else 1, dims=dims
        )

    def init_weights(self) -> None:
        """Draw projections and tables so that their products have the variance of what they multiply."""
        for layer in (self.q, self.kv):
            nn.init.trunc_normal_(layer.weight, std=layer.weight.shape[1] ** -0.5)
        for table in self.pos_embed.parameters():
            nn.init.trunc_normal_(table, std=self.key_width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        size, dims = x.shape[2:], x.ndim - 2
        missing = [-side % self.block_size for side in size]
        if any(missing):
            x = F.pad(x, [amount for side in reversed(missing) for amount in (0, side)])
        places, side = list(range(dims)), self.block_size // self.stride
        query = self.q(x).unflatten(1, (self.heads, -1))
        for axis in places:
            query = query.unflatten(3 + 2 * axis, (-1, side))
        # From (B, heads, d, blocks and places in them by turns) to (B, *blocks, heads, *places, d).
        query = query.permute(0, *(3 + 2 * axis for axis in places), 1, *(4 + 2 * axis for axis in places), 2)
        around = F.pad(self.kv(x), [self.halo_size] * (2 * dims)).unflatten(1, (self.heads, -1))
        for axis in places:
            around = around.unfold(3 + axis, self.block_size + 2 * self.halo_size, self.block_size)
        around = around.flatten(3 + dims).permute(0, *(3 + axis for axis in places), 1, 3 + dims, 2).flatten(0, dims)
        key, value = around.split([self.key_width, around.shape[-1] - self.key_width], dim=-1)
        blocks = query.shape[1 : 1 + dims]
        query = query.flatten(0, dims)
        bias = self.pos_embed(query)
        out = attend(query.flatten(2, -2), key, value, bias).unflatten(2, [side] * dims).unflatten(0, (x.shape[0], *blocks))
        # And back: (B, *blocks, heads, *places, d) to (B, heads, d, blocks and places by turns).
        turns = [position for axis in places for position in (1 + axis, 2 + dims + axis)]
        out = out.permute(0, 1 + dims, 2 + 2 * dims, *turns).flatten(1, 2)
        for axis in places:
            out = out.flatten(2 + axis, 3 + axis)
        for axis, full in enumerate(size):
            out = out.narrow(2 + axis, 0, -(-full // self.stride))
        return out


def conv_norm(in_channels: int, channels: int, kernel_size: int = 1, *, dims: int, stride: int = 1, act: str = "none") -> nn.Sequential:
    """Return a convolution, a batch normalisation and an activation, under timm's names."""
    steps = nn.Sequential()
    layer = conv(dims)(in_channels, channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    steps.add_module("conv", layer)
    steps.add_module("bn", batch_norm(dims)(channels))
    if act != "none":
        steps.add_module("act", get_act(act, inplace=True))
    return steps


class HaloBottleneck(nn.Module):
    """A 1x1 convolution, attention or a 3x3 convolution, a 1x1 convolution, and a shortcut.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, channels, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        inner: Channels between.
        attention: The attention and the channels of its output; ``None`` for a convolution.
        stride: Stride of the middle.
        act: Activation.
        dims: Number of spatial dimensions.
        drop_path: Probability that the branch is dropped while training.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        inner: int,
        *,
        attention: tuple[nn.Module, int] | None = None,
        stride: int = 1,
        act: str = "relu",
        dims: int = 2,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        changes = in_channels != channels or stride != 1
        self.shortcut = conv_norm(in_channels, channels, dims=dims, stride=stride) if changes else nn.Identity()
        self.conv1_1x1 = conv_norm(in_channels, inner, dims=dims, act=act)
        self.attends = attention is not None
        if attention is None:
            self.conv2_kxk = conv_norm(inner, inner, 3, dims=dims, stride=stride, act=act)
        else:
            self.self_attn, inner = attention
            self.post_attn = batch_norm(dims)(inner)
        self.conv3_1x1 = conv_norm(inner, channels, dims=dims)
        self.drop_path = DropPath(drop_path)
        self.act = get_act(act, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = self.conv1_1x1(x)
        y = self.act(self.post_attn(self.self_attn(y))) if self.attends else self.conv2_kxk(y)
        return self.act(self.drop_path(self.conv3_1x1(y)) + self.shortcut(x))


class HaloNet(Backbone):
    """HaloNet of any depth and width, with any share of convolutions.

    Args:
        stages: The blocks of each stage, a letter each: ``"c"`` with a convolution, ``"a"`` with attention.
        inner: Channels inside of the blocks of each stage: of convolutions, queries and keys.
        widths: Channels of each stage.
        value_factor: Channels of values by those of queries.
        heads: Attention heads of each stage.
        block_size: Side of a block of queries.
        halo_size: Positions of the neighbourhood beyond the block, on each side.
        strided_positions: See :class:`HaloAttention`.
        stem: ``"conv"`` (7x7) or ``"tiered"`` (three of 3x3); max pooling follows.
        stem_width: Channels of the stem.
        final_width: Channels of a 1x1 convolution before the pooling; 0 leaves it out.
        act: Activation.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If the arguments by stage differ in length, or a letter or a stem is unknown.
    """

    layouts = (Layout("timm"),)
    classifier = "head.fc"
    head_modules = ("final_conv", "head")

    def __init__(
        self,
        *,
        stages: Sequence[str] = ("aaa", "aaa", "aaaaaaa", "aaa"),
        inner: Sequence[int] = (64, 128, 256, 512),
        widths: Sequence[int] = (32, 64, 128, 256),
        value_factor: float = 1.0,
        heads: Sequence[int] = (4, 8, 8, 8),
        block_size: int = 8,
        halo_size: int = 3,
        strided_positions: bool = True,
        stem: str = "conv",
        stem_width: int = 64,
        final_width: int = 0,
        act: str = "silu",
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not len(stages) == len(inner) == len(widths) == len(heads):
            raise ConfigError("stages, inner, widths and heads need one entry per stage, and equally many")
        if stem not in STEMS:
            raise ConfigError(unknown("stem", stem, STEMS))
        super().__init__(
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            num_features=final_width or widths[-1],
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        self.stem = nn.Sequential()
        before = in_chans
        for index, (factor, kernel) in enumerate(STEMS[stem], 1):
            after = int(stem_width * factor)
            self.stem.add_module(f"conv{index}", conv_norm(before, after, kernel, dims=dims, stride=2 if index == 1 else 1, act=act))
            before = after
        self.pool = max_pool(dims)(kernel_size=3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        self.feature_info = FeatureInfo([{"num_chs": before, "reduction": 2, "module": "stem"}])
        for index, rates in enumerate(drop_path_rates(drop_path_rate, [len(stage) for stage in stages])):
            blocks: list[nn.Module] = []
            for position, (kind, rate) in enumerate(zip(stages[index], rates, strict=True)):
                if kind not in KINDS:
                    raise ConfigError(unknown("kind of block", kind, KINDS))
                stride, attention = 2 if index and position == 0 else 1, None
                if kind == "a":
                    values = int(inner[index] * value_factor)
                    layer = HaloAttention(
                        inner[index],
                        values,
                        heads=heads[index],
                        block_size=block_size,
                        halo_size=halo_size,
                        stride=stride,
                        strided_positions=strided_positions,
                        dims=dims,
                    )
                    attention = (layer, values)
                block = HaloBottleneck(
                    before, widths[index], inner[index], attention=attention, stride=stride, act=act, dims=dims, drop_path=rate
                )
                blocks.append(block)
                before = widths[index]
            self.stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": before, "reduction": 4 * 2**index, "module": f"stages.{index}"})
        self.final_conv: nn.Module = conv_norm(before, final_width, dims=dims, act=act) if final_width else nn.Identity()
        self.head: nn.Module = nn.Sequential()
        self.head.add_module("fc", self.new_classifier(num_classes))
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the convolutions from a normal distribution with variance ``2 / fan_out`` (He et al., 2015); attention has its own."""
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                nn.init.normal_(module.weight, std=math.sqrt(2 / (module.weight.numel() / module.weight.shape[1])))
        for module in self.modules():
            if isinstance(module, HaloAttention):
                module.init_weights()

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stem and of the stages."""
        levels = [self.stem(x)]
        x = self.pool(levels[0])
        for stage in self.stages:
            x = self.run_blocks(stage, x)
            levels.append(x)
        return levels

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last features, ``(B, num_features, *spatial)``, before pooling."""
        return self.final_conv(super().forward_features(x))


_INNER = (64, 128, 256, 512)
_AS_TIMM: dict[str, Any] = {"inner": _INNER, "widths": (256, 512, 1024, 2048), "stem": "tiered", "strided_positions": False}


def _variant(block: int, halo: int, values: float, out: float, depth: int, final: int = 0, figures: Figures | None = None) -> Variant:
    """Return a variant by the columns of the paper's table: b, h, r_v, r_b, l_3 and d_f."""
    args = {
        "stages": ("aaa", "aaa", "a" * depth, "aaa"),
        "widths": tuple(int(width * out) for width in _INNER),
        "value_factor": values,
        "block_size": block,
        "halo_size": halo,
        "final_width": final,
    }
    return Variant(args, figures or Figures())


FAMILY = Family(
    name="halonet",
    cls=HaloNet,
    small=(
        "halonet_h4",
        {
            "stages": ("c", "ca", "a"),
            "inner": (8, 16, 24),
            "widths": (24, 32, 48),
            "heads": (2, 2, 2),
            "block_size": 4,
            "halo_size": 1,
            "stem_width": 16,
            "final_width": 64,
        },
    ),
    small_size=32,
    paper="halonet",
    summary="A residual network of local self-attention in blocks with halos (Vaswani et al., 2021).",
    variants={
        "halonet_h0": _variant(8, 3, 1.0, 0.5, 7, figures=Figures(params_m=5.5, quality="77.9 top-1 at 256 px")),
        "halonet_h1": _variant(8, 3, 1.0, 1.0, 10),
        "halonet_h2": _variant(8, 3, 1.0, 1.25, 11),
        "halonet_h3": _variant(10, 3, 1.0, 1.5, 12, 1024),
        "halonet_h4": _variant(12, 2, 1.0, 3.0, 12, 1280, Figures(params_m=19.1, quality="83.3 top-1 at 384 px")),
        "halonet_h5": _variant(14, 2, 2.5, 2.0, 23, 1536),
        "halonet_h6": _variant(8, 4, 3.0, 2.75, 24, 1536),
        "halonet_h7": _variant(10, 3, 4.0, 3.5, 26, 2048, Figures(params_m=67.4, quality="84.9 top-1 at 600 px")),
        "halonet26t": Variant(
            {"stages": ("cc", "cc", "ca", "aa"), "heads": (8, 8, 8, 8), "halo_size": 2, "act": "relu", **_AS_TIMM},
            summary="A ResNet-26 with three convolutions replaced by halo attention (timm).",
        ),
        "halonet50ts": Variant(
            {"stages": ("ccc", "ccca", "cacaca", "cac"), "heads": (4, 4, 8, 8), **_AS_TIMM},
            summary="A ResNet-50 with five convolutions replaced by halo attention (timm).",
        ),
    },
)

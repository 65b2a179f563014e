"""The shifted-window transformer of Swin UNETR: an encoder of images and volumes at five resolutions.

Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al., 2021), in the form for volumes
that Swin UNETR takes. Inside a window, with a learned bias ``B`` per relative position::

    attention(Q, K, V) = softmax(Q K^T / sqrt(d) + B) V
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from cnnkit.layers import nd
from cnnkit.layers.act import get_act
from cnnkit.layers.attention import attend
from cnnkit.layers.conv import ConvNormAct
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.norm import get_norm
from cnnkit.layers.window import in_windows, map_by_mask, relative_position_index, wrapped_pairs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Added to the logit of a pair of tokens that the cyclic shift made neighbours. The published models were trained
# with this finite value, not with minus infinity.
MASKED = -100.0

# Offsets of the neighbours that one merged patch is made of, in the order of their features.
MERGING: dict[str, tuple[tuple[int, ...], ...]] = {
    "merging": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "merging-0.9": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    "mergingv2": tuple(itertools.product((0, 1), repeat=3)),
}


def named(name: str, module: nn.Module) -> nn.Sequential:
    """Return ``module`` one level down in the names of parameters, where the published files have it."""
    return nn.Sequential(OrderedDict({name: module}))


def plain_conv(dims: int, in_channels: int, channels: int, kernel_size: int, *, bias: bool = False) -> ConvNormAct:
    """Return a convolution alone, whose parameters are named ``conv.weight`` and ``conv.bias``."""
    return ConvNormAct(in_channels, channels, kernel_size, dims=dims, bias=bias, norm="none", act="none")


class ResidualConv(nn.Module):
    """Two convolutions with instance normalisation, added to their input, and leaky ReLU after each.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input; where they differ from ``channels``, the sum takes a 1x1 convolution of it.
        channels: Channels of the output.
    """

    def __init__(self, dims: int, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = plain_conv(dims, in_channels, channels, 3)
        self.conv2 = plain_conv(dims, channels, channels, 3)
        self.conv3 = plain_conv(dims, in_channels, channels, 1) if in_channels != channels else None
        self.norm = get_norm("instance", dims, channels, affine=False)  # without parameters, so one serves all three
        self.act = get_act("leaky_relu", inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, *spatial)`` to ``(B, channels, *spatial)``."""
        y = self.act(self.norm(self.conv1(x)))
        y = self.norm(self.conv2(y))
        y += x if self.conv3 is None else self.norm(self.conv3(x))
        return self.act(y)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias per relative position.

    Args:
        channels: Features of a token.
        num_heads: Attention heads.
        window_size: Side lengths of the largest window.
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout of the output.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: Sequence[int],
        *,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        positions = math.prod(2 * size - 1 for size in window_size)
        self.relative_position_bias_table = nn.Parameter(torch.empty(positions, num_heads))
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(proj_drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def bias(self, tokens: int) -> Tensor:
        """Return the position bias ``(num_heads, tokens, tokens)``.

        Where the grid is smaller than the window, the first rows of the large window's index are used, as in the
        published models, although the row lengths differ.
        """
        index = self.relative_position_index[:tokens, :tokens]
        return self.relative_position_bias_table[index.reshape(-1)].view(tokens, tokens, -1).permute(2, 0, 1)

    def forward(self, x: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
        """Attend inside every window.

        Shapes:
            x: ``(B, *grid, N, C)``, the windows of :func:`partition`; the result has the same shape.
        """
        bias = self.bias(x.shape[-2])

        def attention(qkv: Tensor, last: tuple[bool, ...]) -> Tensor:
            biased = bias + MASKED * wrapped_pairs(window, shift, last, qkv.device) if any(last) else bias
            query, key, value = qkv.flatten(0, len(window)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            out = attend(query, key, value, biased.to(query.dtype)[None], drop=self.attn_drop if self.training else 0.0)
            # Joined head by head: a reshape would be exported as a view, which holds for one kernel's memory layout only.
            return torch.cat(out.unbind(1), dim=-1).unflatten(0, qkv.shape[: len(window) + 1])

        return self.proj_drop(self.proj(map_by_mask(self.qkv(x), shift, attention)))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, over the last axis."""

    def __init__(self, channels: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., C)`` to ``(..., C)``."""
        return self.drop(self.linear2(self.drop(F.gelu(self.linear1(x)))))


class SwinBlock(nn.Module):
    """Window attention and a multi-layer perceptron, each normalised before and added to its input.

    Args:
        channels: Features of a token.
        num_heads: Attention heads.
        window_size: Side lengths of a window; a window never exceeds the grid.
        shifted: Whether windows are shifted by half their size.
        mlp_ratio: Hidden features of the perceptron per feature.
        qkv_bias: Whether queries, keys and values have a bias.
        drop: Dropout of both outputs.
        attn_drop: Dropout of attention weights.
        drop_path: Probability of leaving out a branch for a sample.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: Sequence[int],
        *,
        shifted: bool,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size = tuple(window_size)
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, num_heads, window_size, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, *spatial, C)`` to the same shape."""
        # The zeros that fill the last windows up take part in attention, as in the published models.
        x = x + self.drop_path(in_windows(self.norm1(x), self.window_size, self.shifted, self.attn))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Join every ``2^dims`` neighbours and project them to twice the features.

    Args:
        channels: Features of a token.
        dims: Spatial dimensions.
        order: The order of the neighbours of a volume, a key of :data:`MERGING`; images have one order.
    """

    def __init__(self, channels: int, dims: int, *, order: str = "merging") -> None:
        super().__init__()
        self.offsets = MERGING[order] if dims == 3 else ((0, 0), (1, 0), (0, 1), (1, 1))
        self.norm = nn.LayerNorm(2**dims * channels)
        self.reduction = nn.Linear(2**dims * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, *spatial, C)`` with even sides to ``(B, *spatial / 2, 2 * C)``."""
        neighbours = [x[(slice(None), *(slice(step, None, 2) for step in offset))] for offset in self.offsets]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))


class SwinStage(nn.Module):
    """Blocks at one resolution, with and without shift in turn, and the merging to the next.

    Args:
        channels: Features of a token.
        dims: Spatial dimensions.
        depth: Number of blocks.
        num_heads: Attention heads of each.
        window_size: Side lengths of a window.
        drop_path: One probability per block.
        merging: The order of :class:`PatchMerging`.
        mlp_ratio: See :class:`SwinBlock`.
        qkv_bias: See :class:`SwinBlock`.
        drop: See :class:`SwinBlock`.
        attn_drop: See :class:`SwinBlock`.
        use_checkpoint: Recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        channels: int,
        *,
        dims: int,
        depth: int,
        num_heads: int,
        window_size: Sequence[int],
        drop_path: Sequence[float],
        merging: str,
        mlp_ratio: float,
        qkv_bias: bool,
        drop: float,
        attn_drop: float,
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinBlock(
                channels,
                num_heads,
                window_size,
                shifted=index % 2 == 1,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop=drop,
                attn_drop=attn_drop,
                drop_path=drop_path[index],
            )
            for index in range(depth)
        )
        self.downsample = PatchMerging(channels, dims, order=merging)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *spatial)`` to ``(B, 2 * C, *spatial / 2)``."""
        x = x.movedim(1, -1)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.use_checkpoint and torch.is_grad_enabled() else block(x)
        return self.downsample(x).movedim(-1, 1)


class SwinEncoder(nn.Module):
    """The shifted-window transformer: five resolutions from patches to 1/16 of their grid.

    Args:
        in_chans: Input channels.
        dims: Spatial dimensions.
        feature_size: Features of a patch.
        depths: Blocks per stage.
        num_heads: Attention heads per stage.
        window_size: Side lengths of a window, in tokens.
        mlp_ratio: Hidden features of each perceptron per feature.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout of tokens and outputs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Probability of leaving out a branch, growing linearly to this value at the last block.
        normalize: Normalise each resolution's features, without learned scale, before they leave.
        merging: The order of :class:`PatchMerging`.
        conv_stages: Put a residual convolution block before every stage.
        use_checkpoint: See :class:`SwinStage`.
    """

    def __init__(
        self,
        in_chans: int,
        *,
        dims: int,
        feature_size: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: Sequence[int],
        mlp_ratio: float,
        qkv_bias: bool,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        normalize: bool,
        merging: str,
        conv_stages: bool,
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.conv_stages = conv_stages
        self.patch_embed = named("proj", nd.conv(dims)(in_chans, feature_size, kernel_size=2, stride=2))
        self.pos_drop = nn.Dropout(drop_rate)
        rates = drop_path_rates(drop_path_rate, depths)
        # Lists of one module each, because the published parameter names count stages from 1 and then from 0.
        for index, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            channels = feature_size * 2**index
            stage = SwinStage(
                channels,
                dims=dims,
                depth=depth,
                num_heads=heads,
                window_size=window_size,
                drop_path=rates[index],
                merging=merging,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                use_checkpoint=use_checkpoint,
            )
            self.add_module(f"layers{index + 1}", nn.ModuleList([stage]))
            if conv_stages:
                self.add_module(f"layers{index + 1}c", nn.ModuleList([named("layer", ResidualConv(dims, channels, channels))]))
        self.num_stages = len(depths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of ``(B, in_chans, *spatial)`` at every resolution, finest first."""
        x = self.pos_drop(self.patch_embed(x))
        features = [self._leave(x)]
        for index in range(1, self.num_stages + 1):
            if self.conv_stages:
                x = self.get_submodule(f"layers{index}c.0")(x)
            x = self.get_submodule(f"layers{index}.0")(x)
            features.append(self._leave(x))
        return features

    def _leave(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1) if self.normalize else x

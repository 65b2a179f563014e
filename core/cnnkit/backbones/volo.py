"""VOLO: Yuan, Hou, Jiang, Feng and Yan (2021), "VOLO: Vision Outlooker for Visual Recognition".

Before the transformer, on a grid of tokens twice as fine, stand blocks of outlook attention. The weights that mix a neighbourhood of
``K = k^dims`` values are not compared from queries and keys; the token in its middle states them all, ``K x K`` of them, by a linear
map. Every place of the neighbourhood gets a mixture of all, and a token sums what the neighbourhoods around it give to its place::

    A_p = softmax(W x_p / sqrt(d));    y_q = sum over p and i with p + o_i = q of sum_j A_p[i, j] V x_(p + o_j)

with ``o`` the offsets within a neighbourhood. Neighbourhoods stand at every other token; ``x_p`` is the mean of the tokens there.

Two layers of class attention end the network, in which the class token alone looks at the others. As trained by token labelling
(Jiang et al., 2021, "All Tokens Matter"), a second linear layer classifies every token of the image, and half the maximum of its
logits is added to those of the class token. :meth:`VOLO.forward_dense` returns both for that training.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.backbones._base import Family, FeatureInfo, Figures, Layout, Variant
from cnnkit.backbones._token import TokenBackbone, fit_positions
from cnnkit.errors import ConfigError, UsageError
from cnnkit.layers.attention import Attention, attend, join_heads, split_heads
from cnnkit.layers.drop import drop_path_rates
from cnnkit.layers.init import init_truncated
from cnnkit.layers.nd import avg_pool, batch_norm, conv, tupled
from cnnkit.layers.transformer import TransformerBlock


class OutlookAttention(nn.Module):
    """Mix the values of every neighbourhood by weights that its middle states, and sum the overlapping results.

    Shapes:
        x: ``(B, *grid, channels)``; the result has the same shape.

    Args:
        channels: Features of a token.
        heads: Attention heads; they divide ``channels``.
        kernel_size: Side of a neighbourhood, odd.
        stride: Steps from one neighbourhood to the next.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, *, heads: int, kernel_size: int = 3, stride: int = 1, dims: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.kernel_size = kernel_size
        self.stride = stride
        self.places = kernel_size**dims
        self.v = nn.Linear(channels, channels, bias=False)
        self.attn = nn.Linear(channels, heads * self.places**2)
        self.proj = nn.Linear(channels, channels)
        self.pool = avg_pool(dims)(stride, stride, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        grid, pad = x.shape[1:-1], self.kernel_size // 2
        middle = self.pool(x.movedim(-1, 1)).movedim(1, -1) if self.stride > 1 else x
        logits = self.attn(middle).unflatten(-1, (self.heads, self.places, self.places))
        weights = (logits * (x.shape[-1] // self.heads) ** -0.5).softmax(-1)
        around = F.pad(self.v(x), (0, 0) + (pad, pad) * len(grid))
        for axis in range(len(grid)):
            around = around.unfold(axis + 1, self.kernel_size, self.stride)
        values = around.flatten(-len(grid)).unflatten(-2, (self.heads, -1))
        mixed = (weights @ values.mT).transpose(-3, -2).flatten(-2)
        summed = x.new_zeros(x.shape[0], *(side + 2 * pad for side in grid), x.shape[-1])
        for place, offset in enumerate(itertools.product(range(self.kernel_size), repeat=len(grid))):
            reach = zip(offset, mixed.shape[1:-2], strict=True)
            where = (slice(None), *(slice(start, start + self.stride * (count - 1) + 1, self.stride) for start, count in reach))
            summed[where] = summed[where] + mixed[..., place, :]
        return self.proj(summed[(slice(None), *(slice(pad, pad + side) for side in grid))])


class ClassAttention(nn.Module):
    """Attention of the first token to all.

    Shapes:
        x: ``(B, 1 + N, channels)``; the result is the first token, ``(B, 1, channels)``.

    Args:
        channels: Features of a token.
        heads: Attention heads; they divide ``channels``.
    """

    def __init__(self, channels: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.kv = nn.Linear(channels, 2 * channels, bias=False)
        self.q = nn.Linear(channels, channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        parts = (self.q(x[:, :1]), *self.kv(x).chunk(2, dim=-1))
        return self.proj(join_heads(attend(*(split_heads(part, self.heads) for part in parts))))


class ClassBlock(TransformerBlock):
    """A block that changes the class token, the first, and passes on the others.

    Shapes:
        x: ``(B, 1 + N, channels)``; the result has the same shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        token = x[:, :1] + self.attn(self.norm1(x))
        return torch.cat([token + self.mlp(self.norm2(token)), x[:, 1:]], dim=1)


class VOLOStem(nn.Module):
    """Three convolutions at half the input's size, then a linear map of every patch.

    Args:
        in_chans: Channels of the input.
        hidden: Channels of the convolutions.
        width: Features of a token.
        patch_size: Side of the patch of the input that becomes one token, even.
        dims: Number of spatial dimensions.
    """

    def __init__(self, in_chans: int, hidden: int, width: int, *, patch_size: int = 8, dims: int = 2) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        for channels, kernel, stride in ((in_chans, 7, 2), (hidden, 3, 1), (hidden, 3, 1)):
            self.conv.append(conv(dims)(channels, hidden, kernel, stride=stride, padding=kernel // 2, bias=False))
            self.conv.extend([batch_norm(dims)(hidden), nn.ReLU(inplace=True)])
        self.proj = conv(dims)(hidden, width, patch_size // 2, stride=patch_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the grid of tokens, ``(B, *grid, width)``."""
        return self.proj(self.conv(x)).movedim(1, -1)


class Downsample(nn.Module):
    """Map every patch of 2 tokens along each axis to one.

    Args:
        channels: Features of a token.
        out_channels: Features of a token of the output.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, out_channels: int, *, dims: int = 2) -> None:
        super().__init__()
        self.proj = conv(dims)(channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Turn ``(B, *grid, channels)`` into ``(B, *(grid // 2), out_channels)``."""
        return self.proj(x.movedim(-1, 1)).movedim(1, -1)


class VOLO(TokenBackbone):
    """VOLO of any depth and width.

    Args:
        depths: Number of blocks: those of outlook attention, then three stages of a transformer.
        width: Features of a token in the first stage; the others have twice as many.
        heads: Attention heads of the first stage and of the others.
        mlp_ratio: Hidden width of the perceptrons by that of the tokens.
        stem_width: Channels of the stem's convolutions.
        patch_size: Side of the patches of the first stage, even.
        class_layers: Number of class attention blocks.
        img_size: Input size, one or one per dimension, for which positions are learned; for others they are interpolated.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifiers; 0 leaves them out.
        global_pool: ``"token"`` classifies from the class token; others pool the tokens of the image.
        drop_rate: Dropout before the classifiers.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If ``depths`` are not four, ``patch_size`` is odd, or ``img_size`` is too small.
    """

    layouts = (Layout("timm"), Layout("official"))
    classifier = "head"
    head_modules: ClassVar[tuple[str, ...]] = ("post_network", "norm", "head", "aux_head", "cls_token")

    cls_token: Tensor | None
    pos_embed: Tensor | None

    def __init__(
        self,
        *,
        depths: Sequence[int] = (4, 4, 8, 2),
        width: int = 192,
        heads: Sequence[int] = (6, 12),
        mlp_ratio: float = 3.0,
        stem_width: int = 64,
        patch_size: int = 8,
        class_layers: int = 2,
        img_size: int | Sequence[int] = 224,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if len(depths) != 4 or len(heads) != 2:
            raise ConfigError(
                f"depths={tuple(depths)} and heads={tuple(heads)}: give four depths, and heads of the first stage and of the rest"
            )
        if patch_size % 2:
            raise ConfigError(f"patch_size={patch_size} is odd, and the stem's convolutions halve the size first; use {patch_size + 1}")
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=2 * width, global_pool=global_pool, drop_rate=drop_rate
        )
        self.min_size = 2 * patch_size
        grid = tuple(side // patch_size // 2 for side in tupled(img_size, dims))
        if not all(grid):
            raise ConfigError(f"img_size={img_size} is too small: every side needs at least {self.min_size}")
        self.patch_embed = VOLOStem(in_chans, stem_width, width, patch_size=patch_size, dims=dims)
        self.pos_embed = nn.Parameter(torch.zeros(1, *grid, 2 * width))
        self.network = nn.ModuleList()
        self.feature_info = FeatureInfo()
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            channels, blocks = (2 if index else 1) * width, []
            for rate in rates:
                attention: nn.Module = Attention(channels, heads=heads[1], qkv_bias=False)
                if index == 0:
                    attention = OutlookAttention(channels, heads=heads[0], stride=2, dims=dims)
                blocks.append(TransformerBlock(channels, attention, mlp_ratio=mlp_ratio, eps=1e-5, drop_path=rate))
            if index == 1:
                self.network.append(Downsample(width, channels, dims=dims))
            module, reduction = f"network.{len(self.network)}", (2 if index else 1) * patch_size
            self.network.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": module})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 2 * width))
        self.post_network: nn.Module = nn.Sequential(
            *(ClassBlock(2 * width, ClassAttention(2 * width, heads=heads[1]), mlp_ratio=mlp_ratio, eps=1e-5) for _ in range(class_layers))
        )
        self.norm: nn.Module = nn.LayerNorm(2 * width)
        self.head: nn.Module = self.new_classifier(num_classes)
        self.aux_head: nn.Module = self.new_classifier(num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw linear maps, positions and the class token from a normal distribution of deviation 0.02; convolutions stay PyTorch's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_truncated(module)
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)

    def run(self, x: Tensor, mix: Sequence[slice] | None = None) -> list[Tensor]:
        """Return the features of the stages, ``(B, C, *grid)`` each; see :meth:`forward_dense` for ``mix``."""
        self.check_size(x)
        x = self.patch_embed(x)
        if mix is not None:
            x = _swap(x, [slice(2 * part.start, 2 * part.stop) for part in mix])
        x = self.run_blocks(self.network[0], x)
        levels, x = [x.movedim(-1, 1)], self.network[1](x)
        if self.pos_embed is None:
            return levels * len(self.feature_info)
        grid = tuple(x.shape[1:-1])
        x = (x + fit_positions(self.pos_embed, grid)).flatten(1, -2)
        for stage in self.network[2:]:
            x = self.run_blocks(stage, x)
            levels.append(x.mT.unflatten(2, grid))
        return levels

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the outlook stage and of the three stages of the transformer."""
        return self.run(x)

    def classify_tokens(self, x: Tensor) -> Tensor:
        """Return the normalised tokens after class attention, from the features of the last stage."""
        x = x.flatten(2).mT
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm(self.run_blocks(self.post_network, x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised tokens, ``(B, 1 + N, num_features)``, the class token first.

        A model whose head was dropped has no class token, and returns the ``N`` others.
        """
        return self.classify_tokens(self.run(x)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify the pooled tokens, and add half the maximum of the logits of those of the image; see :meth:`Backbone.forward_head`."""
        pooled = self.head_drop(self.global_pool(x))
        if pre_logits or not self.num_classes:
            return pooled
        return self.head(pooled) + 0.5 * self.aux_head(self.head_drop(x[:, 1:])).amax(1)

    def forward_dense(self, x: Tensor, mix: Sequence[slice] | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits of the class token and those of every token of the image, as token labelling trains them.

        Args:
            x: The input.
            mix: A box of the last stage's grid, one slice with both ends per dimension. Each image gets the tokens of this box from the
                image at the mirrored place in the batch, before the first stage, and the dense logits go back to where they belong.
                The label of the class token is then that of both, by the box's share of the grid.

        Returns:
            ``(B, num_classes)`` and ``(B, num_classes, *grid)``.

        Raises:
            UsageError: If the model has no classifier.
        """
        if not self.num_classes:
            raise UsageError("dense logits need a classifier: build the model with num_classes, or call reset_classifier")
        last = self.run(x, mix)[-1]
        tokens = self.classify_tokens(last)
        dense = self.aux_head(self.head_drop(tokens[:, 1:])).unflatten(1, tuple(last.shape[2:]))
        if mix is not None:
            dense = _swap(dense, mix)
        return self.head(self.head_drop(self.global_pool(tokens))), dense.movedim(-1, 1)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace both classifiers by new ones; see :meth:`Backbone.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        some = next(self.parameters())
        self.aux_head = self.new_classifier(num_classes).to(device=some.device, dtype=some.dtype)

    def drop_head(self) -> None:
        """Remove the classifiers, class attention and the class token."""
        self.post_network, self.norm, self.head, self.aux_head = (nn.Identity() for _ in range(4))
        self.cls_token = None
        self.num_classes = 0

    def drop_levels(self, after: int) -> None:
        """Remove the stages beyond the level ``after``, and with the whole transformer what leads to it."""
        super().drop_levels(after)
        if after == 0:
            self.network[1] = nn.Identity()
            self.pos_embed = None


def _swap(x: Tensor, box: Sequence[slice]) -> Tensor:
    """Exchange a box of ``(B, *grid, C)`` between the samples at mirrored places of the batch."""
    where = (slice(None), *box)
    swapped = x.clone()
    swapped[where] = x.flip(0)[where]
    return swapped


_MACS = "The paper prints 1 to 2 % less and does not say what it leaves out."
_STEM = "The paper's multiply-adds are about those of a stem of 64 channels; its weights have 128. 296 M is met at larger sizes."


def _variant(sizes: Mapping[str, Any], figures: Figures, *, size: int = 224) -> Variant:
    return Variant(dict(sizes) if size == 224 else {**sizes, "img_size": size}, figures)


_D1: Mapping[str, Any] = {"depths": (4, 4, 8, 2), "width": 192, "heads": (6, 12)}
_D2: Mapping[str, Any] = {"depths": (6, 4, 10, 4), "width": 256, "heads": (8, 16)}
_D3: Mapping[str, Any] = {"depths": (8, 8, 16, 4), "width": 256, "heads": (8, 16)}
_D4: Mapping[str, Any] = {"depths": (8, 8, 16, 4), "width": 384, "heads": (12, 16)}
_D5: Mapping[str, Any] = {"depths": (12, 12, 20, 4), "width": 384, "heads": (12, 16), "mlp_ratio": 4.0, "stem_width": 128}

FAMILY = Family(
    name="volo",
    cls=VOLO,
    small=("volo_d1_224", {"depths": (1, 1, 1, 1), "width": 16, "heads": (2, 4), "stem_width": 12, "img_size": 64}),
    paper="volo",
    summary="Outlook attention on a fine grid, then a transformer with class attention (Yuan et al., 2021).",
    variants={
        "volo_d1_224": _variant(_D1, Figures(26.6, 6.8, quality="84.2 top-1", counted_gmacs=6.92, note=_MACS)),
        "volo_d2_224": _variant(_D2, Figures(58.7, 14.1, quality="85.2 top-1", counted_gmacs=14.31, note=_MACS)),
        "volo_d3_224": _variant(_D3, Figures(86.3, 20.6, quality="85.4 top-1", counted_gmacs=20.73, note=_MACS)),
        "volo_d4_224": _variant(_D4, Figures(193, 43.8, quality="85.7 top-1", counted_gmacs=44.26, note=_MACS)),
        "volo_d5_224": _variant(_D5, Figures(296, 69.0, quality="86.1 top-1", counted_params_m=295.5, counted_gmacs=72.3, note=_STEM)),
        "volo_d1_384": _variant(_D1, Figures(27, quality="85.2 top-1"), size=384),
        "volo_d2_384": _variant(_D2, Figures(59, quality="86.0 top-1"), size=384),
        "volo_d3_448": _variant(
            _D3,
            Figures(86, quality="86.3 top-1", counted_params_m=86.6, note="86 M is met at 224; there are more positions here."),
            size=448,
        ),
        "volo_d4_448": _variant(_D4, Figures(193, quality="86.8 top-1"), size=448),
        "volo_d5_448": _variant(_D5, Figures(296, quality="87.0 top-1"), size=448),
        "volo_d5_512": _variant(_D5, Figures(296, quality="87.1 top-1"), size=512),
    },
)

"""CrossViT: Chen, Fan and Panda (2021), "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification".

Two vision transformers look at one image, one in small patches and one in large ones (of the image made a little smaller, so that
its side is a multiple of them). From time to time their class tokens change places: each asks the patches of the other branch, and
brings the answer home::

    c' = f(norm(c));    c' = c' + W softmax(q(c') [k(c'), k(P)]^T / sqrt(d)) [v(c'), v(P)];    c = g(norm(c'))

with ``P`` the patches of the other branch, and ``f`` and ``g`` maps between the two widths. A single query makes this linear in
the number of patches. The logits are the mean of those of both class tokens.

The variants are named by the size of their input. Those with a dagger embed patches by three convolutions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.backbones._token import TokenPool, fit_positions
from cnnkit.errors import ConfigError
from cnnkit.layers.attention import Attention, attend, join_heads, split_heads
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.init import init_truncated
from cnnkit.layers.nd import conv, tupled
from cnnkit.layers.transformer import TransformerBlock

CONV_PATCHES = {12: ((7, 4, 3), (3, 3, 0), (3, 1, 1)), 16: ((7, 4, 3), (3, 2, 1), (3, 2, 1))}
"""Kernel, stride and padding of the convolutions that embed patches of a size."""


def resize_cubic(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resample to a spatial size by cubic convolution, along one axis after the other.

    Shapes:
        x: ``(B, C, *spatial)``; the result is ``(B, C, *size)``.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if len(size) == 2:
        return F.interpolate(x, size=tuple(size), mode="bicubic", align_corners=False)
    for axis, side in enumerate(size, start=2):
        x = x.movedim(axis, -1)
        line = F.interpolate(x.flatten(1, -2).unsqueeze(2), size=(1, side), mode="bicubic", align_corners=False)
        x = line.view(*x.shape[:-1], side).movedim(-1, axis)
    return x


class ClassCrossAttention(nn.Module):
    """Attention of the first token to all: the class token of one branch among the patches of the other.

    Shapes:
        x: ``(B, 1 + N, channels)``; the result is the first token, ``(B, 1, channels)``.

    Args:
        channels: Features of a token.
        heads: Attention heads; they divide ``channels``.
    """

    def __init__(self, channels: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wq = nn.Linear(channels, channels)
        self.wk = nn.Linear(channels, channels)
        self.wv = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        query, key, value = (split_heads(part, self.heads) for part in (self.wq(x[:, :1]), self.wk(x), self.wv(x)))
        return self.proj(join_heads(attend(query, key, value)))


class CrossAttentionBlock(nn.Module):
    """:class:`ClassCrossAttention` with a normalisation before and a shortcut around it.

    Shapes:
        x: ``(B, 1 + N, channels)``; the result is ``(B, 1, channels)``.

    Args:
        channels: Features of a token.
        heads: Attention heads.
        drop_path: Probability that the branch is dropped while training.
    """

    def __init__(self, channels: int, *, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = ClassCrossAttention(channels, heads=heads)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class token."""
        return x[:, :1] + self.drop_path(self.attn(self.norm1(x)))


def _to_width(channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(channels, eps=1e-6), nn.GELU(), nn.Linear(channels, out_channels))


class MultiScaleEncoder(nn.Module):
    """Blocks of either branch, then the exchange of their class tokens.

    Args:
        widths: Features of a token in the branches of small and of large patches.
        depths: Number of blocks in each.
        heads: Attention heads.
        mlp_ratio: Hidden width of the perceptrons by that of the tokens.
        rates: Stochastic depth of the blocks; the exchange has the last.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int], *, heads: int, mlp_ratio: float, rates: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.projs = nn.ModuleList()
        self.fusion = nn.ModuleList()
        self.revert_projs = nn.ModuleList()
        for own, other, depth in zip(widths, reversed(widths), depths, strict=True):
            blocks = [TransformerBlock(own, Attention(own, heads=heads), mlp_ratio=mlp_ratio, drop_path=rate) for rate in rates[:depth]]
            self.blocks.append(nn.Sequential(*blocks))
            self.projs.append(_to_width(own, other))
            self.fusion.append(CrossAttentionBlock(other, heads=heads, drop_path=rates[-1]))
            self.revert_projs.append(_to_width(other, own))

    def exchange(self, branches: Sequence[Tensor]) -> list[Tensor]:
        """Let the class token of each branch attend to the patches of the other; where the modules were removed it stays."""
        exchanged = list(branches)
        for index, (own, other) in enumerate(zip(branches, reversed(branches), strict=True)):
            fusion = self.fusion[index]
            if isinstance(fusion, CrossAttentionBlock):
                token = fusion(torch.cat([self.projs[index](own[:, :1]), other[:, 1:]], dim=1))
                exchanged[index] = torch.cat([self.revert_projs[index](token), own[:, 1:]], dim=1)
        return exchanged


class BranchHeads(nn.ModuleList):
    """One linear layer per branch, and the mean of their logits.

    Shapes:
        x: ``(B, sum of widths)``; the result is ``(B, num_classes)``.

    Args:
        widths: Features of each branch.
        num_classes: Outputs.
    """

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        super().__init__(nn.Linear(width, num_classes) for width in widths)
        self.widths = tuple(widths)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        parts = x.split(self.widths, dim=-1)
        return torch.stack([head(part) for head, part in zip(self, parts, strict=True)]).mean(0)


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: positions and class tokens in lists."""
    return rename_keys(state, ((r"^(pos_embed|cls_token)\.", r"\1_"),))


class CrossViT(Backbone):
    """CrossViT of any depth and width.

    The pyramid has two levels, the patches of either branch after the last encoder.

    Args:
        widths: Features of a token in the branches of small and of large patches.
        depths: Number of blocks of each branch in an encoder.
        encoders: Number of encoders.
        heads: Attention heads.
        mlp_ratio: Hidden width of the perceptrons by that of the tokens.
        patch_sizes: Sides of small and of large patches.
        conv_patches: Embed patches by three convolutions; then they are of 12 and 16.
        scale: Size of the image that is cut into large patches, by that of the input.
        img_size: Input size, one or one per dimension, for which positions are learned; for others they are interpolated.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: ``"token"`` classifies from the class tokens; ``"avg"``, ``"max"`` and ``"avgmax"`` pool the patches of each branch.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If convolutions are asked for with other patches, ``img_size`` is too small, or the pooling is ``"none"``.
    """

    layouts = (Layout("timm"), Layout("official", has_keys("pos_embed.0"), _from_official))
    classifier = "head"

    def __init__(
        self,
        *,
        widths: Sequence[int] = (192, 384),
        depths: Sequence[int] = (1, 5),
        encoders: int = 3,
        heads: int = 6,
        mlp_ratio: float = 3.0,
        patch_sizes: Sequence[int] = (12, 16),
        conv_patches: bool = False,
        scale: float = 224 / 240,
        img_size: int | Sequence[int] = 240,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        self.widths = tuple(widths)
        super().__init__(dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=sum(widths), drop_rate=drop_rate)
        self.global_pool = self.new_pool(global_pool)
        if conv_patches and any(size not in CONV_PATCHES for size in patch_sizes):
            raise ConfigError(f"conv_patches=True needs patch_sizes among {tuple(CONV_PATCHES)}, not {tuple(patch_sizes)}")
        self.scales = (1.0, scale)
        self.min_size = next(side for side in itertools.count(patch_sizes[0]) if round(side * scale) >= patch_sizes[1])
        self.size_slack = 1  # The size of the smaller image is rounded.
        native = tupled(img_size, dims)
        if min(native) < self.min_size:
            raise ConfigError(f"img_size={img_size} is too small: every side needs at least {self.min_size}")
        self.patch_embed = nn.ModuleList()
        self.grids: list[tuple[int, ...]] = []
        self.feature_info = FeatureInfo()
        for index, (width, patch, factor) in enumerate(zip(self.widths, patch_sizes, self.scales, strict=True)):
            self.patch_embed.append(self.new_embedding(in_chans, width, patch, conv_patches))
            self.grids.append(tuple(round(side * factor) // patch for side in native))
            tokens = 1 + int(torch.Size(self.grids[-1]).numel())
            self.register_parameter(f"cls_token_{index}", nn.Parameter(torch.zeros(1, 1, width)))
            self.register_parameter(f"pos_embed_{index}", nn.Parameter(torch.zeros(1, tokens, width)))
            self.feature_info.append({"num_chs": width, "reduction": round(patch / factor), "module": f"blocks.{encoders - 1}"})
        self.blocks = nn.ModuleList(
            MultiScaleEncoder(self.widths, depths, heads=heads, mlp_ratio=mlp_ratio, rates=rates)
            for rates in drop_path_rates(drop_path_rate, [max(depths)] * encoders)
        )
        # The last exchange changes the class tokens alone.
        self.head_modules = ("norm", "head", *_exchange(encoders - 1, 0), *_exchange(encoders - 1, 1))  # type: ignore[misc]
        self.norm: nn.Module = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in self.widths)
        self.head: nn.Module = self.new_classifier(num_classes)
        self.init_weights()

    def new_embedding(self, in_chans: int, width: int, patch: int, by_convolutions: bool) -> nn.Module:
        """Return what maps every patch to one token."""
        embedding = nn.Sequential()
        if not by_convolutions:
            embedding.add_module("proj", conv(self.dims)(in_chans, width, patch, stride=patch))
            return embedding
        layers: list[nn.Module] = []
        for (kernel, stride, padding), out_chans in zip(CONV_PATCHES[patch], (width // 4, width // 2, width), strict=True):
            layers += [conv(self.dims)(in_chans, out_chans, kernel, stride=stride, padding=padding), nn.ReLU(inplace=True)]
            in_chans = out_chans
        embedding.add_module("proj", nn.Sequential(*layers[:-1]))
        return embedding

    def new_pool(self, kind: str) -> TokenPool:
        """Return a pooling of the tokens of one branch."""
        if kind == "none":
            raise ConfigError('global_pool="none": two branches of unlike tokens must be pooled; use "token", "avg", "max" or "avgmax"')
        return TokenPool(kind)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return fresh last layers, one per branch."""
        return BranchHeads(self.widths, num_classes).apply(init_truncated) if num_classes else nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; see :meth:`Backbone.reset_classifier`."""
        pool = self.global_pool if global_pool is None else self.new_pool(global_pool)
        super().reset_classifier(num_classes)
        self.global_pool = pool

    def init_weights(self) -> None:
        """Draw linear maps, positions and class tokens from a normal distribution of deviation 0.02; convolutions stay PyTorch's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_truncated(module)
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, index: int, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return the tokens of a branch with their positions, ``(B, 1 + N, C)``, and the shape of their grid."""
        size = [round(side * self.scales[index]) for side in x.shape[2:]]
        x = self.patch_embed[index](resize_cubic(x, size)).movedim(1, -1)
        grid = tuple(x.shape[1:-1])
        positions = self.get_parameter(f"pos_embed_{index}")
        x = x + fit_positions(positions[:, 1:].unflatten(1, self.grids[index]), grid)
        token = self.get_parameter(f"cls_token_{index}") + positions[:, :1]
        return torch.cat([token.expand(x.shape[0], -1, -1), x.flatten(1, -2)], dim=1), grid

    def run(self, x: Tensor) -> tuple[list[Tensor], list[tuple[int, ...]]]:
        """Return the tokens of both branches after the last encoder, and the shapes of their grids."""
        self.check_size(x)
        embedded = [self.embed(index, x) for index in range(len(self.widths))]
        branches = [tokens for tokens, _ in embedded]
        for encoder in self.blocks:
            if isinstance(encoder, MultiScaleEncoder):
                pairs = zip(encoder.blocks, branches, strict=True)
                branches = encoder.exchange([self.run_blocks(stage, tokens) for stage, tokens in pairs])
        return branches, [grid for _, grid in embedded]

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the small and of the large patches."""
        return [tokens[:, 1:].mT.unflatten(2, grid) for tokens, grid in zip(*self.run(x), strict=True)]

    def forward_features(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Return the normalised tokens of both branches, ``(B, 1 + N, C)`` each, the class token first."""
        branches, _ = self.run(x)
        norms = self.norm if isinstance(self.norm, nn.ModuleList) else [self.norm] * len(branches)
        return [norm(tokens) for norm, tokens in zip(norms, branches, strict=True)]

    def forward_head(self, x: Sequence[Tensor], pre_logits: bool = False) -> Tensor:  # type: ignore[override]
        """Pool the tokens of both branches and classify them.

        Args:
            x: What :meth:`forward_features` returned.
            pre_logits: Return the input of the classifier instead, ``(B, num_features)``.
        """
        pooled = self.head_drop(torch.cat([self.global_pool(tokens) for tokens in x], dim=-1))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def drop_levels(self, after: int) -> None:
        """Remove what only the large patches of the last encoder use, if their level is not wanted."""
        if after == 0:
            last = len(self.blocks) - 1
            for name in (f"blocks.{last}.blocks.1", *(_exchange(last - 1, 1) if last else ())):
                self.set_submodule(name, nn.Identity())


def _exchange(encoder: int, branch: int) -> tuple[str, ...]:
    """Return the names of the modules by which the class token of one branch asks the other."""
    return tuple(f"blocks.{encoder}.{name}.{branch}" for name in ("projs", "fusion", "revert_projs"))


_POSITIONS = "The paper's figure is met without the learned positions."


def _variant(
    width: int, depth: int, heads: int, figures: Figures, *, large: int = 224, mlp_ratio: float = 3.0, dagger: bool = False
) -> Variant:
    args: dict[str, Any] = {"widths": (width, 2 * width), "depths": (1, depth), "heads": heads, "mlp_ratio": mlp_ratio}
    if dagger:
        args["conv_patches"] = True
    if large != 224:
        assert isinstance(figures.input_size, int)
        args |= {"img_size": figures.input_size, "scale": large / figures.input_size}
    return Variant(args, figures)


FAMILY = Family(
    name="crossvit",
    cls=CrossViT,
    small=(
        "crossvit_9_dagger_240",
        {"widths": (32, 64), "depths": (1, 2), "encoders": 1, "heads": 4, "img_size": 48, "scale": 5 / 6},
    ),
    small_size=48,
    paper="crossvit",
    summary="Two vision transformers of unlike patches that exchange their class tokens (Chen et al., 2021).",
    variants={
        "crossvit_tiny_240": _variant(96, 4, 3, Figures(6.9, 1.6, 240, "73.4 top-1", counted_params_m=7.0, note=_POSITIONS), mlp_ratio=4.0),
        "crossvit_small_240": _variant(
            192, 4, 6, Figures(26.7, 5.6, 240, "81.0 top-1", counted_params_m=26.9, note=_POSITIONS), mlp_ratio=4.0
        ),
        "crossvit_base_240": _variant(
            384, 4, 12, Figures(104.7, 21.2, 240, "82.2 top-1", counted_params_m=105.0, note=_POSITIONS), mlp_ratio=4.0
        ),
        "crossvit_9_240": _variant(128, 3, 4, Figures(8.6, 1.8, 240, "73.9 top-1")),
        "crossvit_15_240": _variant(192, 5, 6, Figures(27.4, 5.8, 240, "81.5 top-1", counted_params_m=27.5, note=_POSITIONS)),
        "crossvit_18_240": _variant(224, 6, 7, Figures(43.3, 9.0, 240, "82.5 top-1")),
        "crossvit_9_dagger_240": _variant(128, 3, 4, Figures(8.8, 2.0, 240, "77.1 top-1"), dagger=True),
        "crossvit_15_dagger_240": _variant(192, 5, 6, Figures(28.2, 6.1, 240, "82.3 top-1"), dagger=True),
        "crossvit_18_dagger_240": _variant(224, 6, 7, Figures(44.3, 9.5, 240, "82.8 top-1"), dagger=True),
        "crossvit_15_dagger_408": _variant(192, 5, 6, Figures(28.5, 21.4, 408, "83.5 top-1"), large=384, dagger=True),
        "crossvit_18_dagger_408": _variant(224, 6, 7, Figures(44.6, 32.4, 408, "83.9 top-1"), large=384, dagger=True),
        # Of the paper's Table 4, which names 480; that the small patches are of 504 is what both of its counts say.
        "crossvit_18_dagger_504": _variant(224, 6, 7, Figures(44.9, 56.6, 504, "84.1 top-1"), large=480, dagger=True),
    },
)

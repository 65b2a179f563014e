"""PVT: Wang et al. (2021), "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions".

A transformer in four stages whose grid of tokens shrinks from a quarter to a 32nd of the image, so that it can stand where a pyramid
of a convolutional network stands. Attention over the fine grids is affordable since keys and values come from a coarser one::

    SRA(x) = softmax(Q(x) K(r)^T / sqrt(d)) V(r),    r = norm(S x),    S: a linear map of every R x R patch to one token

with ``R`` = 8, 4, 2, 1 from stage to stage; ``R = 1`` is ordinary attention. Positions are learned, per stage, and interpolated
for other sizes than the one that the model was built for. The class token joins in the last stage, for classification alone: the
pyramid is computed without it, as in the paper's own detectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.backbones._token import TokenBackbone
from cnnkit.errors import ConfigError
from cnnkit.layers.attention import attend, join_heads, split_heads
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.mlp import Mlp
from cnnkit.layers.nd import conv, resize, tupled


class SpatialReductionAttention(nn.Module):
    """Attention of every token to those of a grid that is coarser by ``reduction``.

    Shapes:
        x: ``(B, *spatial, channels)``; with ``reduction=1`` also ``(B, N, channels)``. The result has the same shape.

    Args:
        channels: Features of a token.
        heads: Attention heads; they divide ``channels``.
        reduction: Side of the patch that becomes one key and one value.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, *, heads: int, reduction: int = 1, dims: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.reduction = reduction
        if reduction > 1:
            self.sr = conv(dims)(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        tokens = x.flatten(1, -2)
        coarse = self.norm(self.sr(x.movedim(-1, 1)).flatten(2).mT) if self.reduction > 1 else tokens
        key, value = (split_heads(part, self.heads) for part in self.kv(coarse).chunk(2, dim=-1))
        attended = attend(split_heads(self.q(tokens), self.heads), key, value)
        return self.proj(join_heads(attended)).view(x.shape)


class PVTBlock(nn.Module):
    """Attention and a perceptron, each with a normalisation before and a shortcut around it.

    Shapes:
        x: As for :class:`SpatialReductionAttention`.

    Args:
        channels: Features of a token.
        heads: Attention heads.
        mlp_ratio: Hidden width of the perceptron by ``channels``.
        reduction: Side of the patch that becomes one key and one value.
        dims: Number of spatial dimensions.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(
        self, channels: int, *, heads: int, mlp_ratio: float = 4.0, reduction: int = 1, dims: int = 2, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = SpatialReductionAttention(channels, heads=heads, reduction=reduction, dims=dims)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Map every patch to one token.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, *(spatial // patch_size), channels)``.

    Args:
        in_channels: Channels of the input.
        channels: Features of a token.
        patch_size: Side of a patch.
        dims: Number of spatial dimensions.
    """

    def __init__(self, in_channels: int, channels: int, *, patch_size: int, dims: int = 2) -> None:
        super().__init__()
        self.proj = conv(dims)(in_channels, channels, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the grid of tokens."""
        return self.norm(self.proj(x).movedim(1, -1))


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of transformers: lists of stages that count from 0, keys and values apart."""
    stages = [
        rule
        for stage in range(4)
        for rule in (
            (rf"^encoder\.block\.{stage}\.", f"block{stage + 1}."),
            (rf"^encoder\.patch_embeddings\.{stage}\.position_embeddings$", f"pos_embed{stage + 1}"),
            (rf"^encoder\.patch_embeddings\.{stage}\.(projection|layer_norm)\.", rf"patch_embed{stage + 1}.\1."),
        )
    ]
    renamed = rename_keys(
        state,
        (
            (r"^pvt\.", ""),
            (r"^classifier\.", "head."),
            (r"^encoder\.layer_norm\.", "norm."),
            (r"^encoder\.patch_embeddings\.\d\.cls_token$", "cls_token"),
            *stages,
            (r"^(patch_embed\d)\.projection\.", r"\1.proj."),
            (r"\.layer_norm_(\d)\.", r".norm\1."),
            (r"\.layer_norm\.", ".norm."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.attention\.self\.", ".attn."),
            (r"\.attn\.query\.", ".attn.q."),
            (r"\.attn\.sequence_reduction\.", ".attn.sr."),
            (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
        ),
    )
    for key in [key for key in renamed if ".attn.key." in key]:
        joined = torch.cat([renamed.pop(key), renamed.pop(key.replace(".key.", ".value."))])
        renamed[key.replace(".key.", ".kv.")] = joined
    return renamed


class PVT(TokenBackbone):
    """Pyramid vision transformer of any depth and width.

    Args:
        depths: Number of blocks of each stage.
        widths: Features of a token by stage.
        heads: Attention heads by stage.
        mlp_ratios: Hidden width of the perceptrons by the stage's width.
        reductions: Side of the patch that becomes one key and one value, by stage; 1 in the last, for the class token.
        patch_size: Side of the first stage's patches.
        img_size: Input size, one or one per dimension, for which positions are learned; for others they are interpolated.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: ``"token"`` classifies from the class token; others pool the tokens of the image.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If the arguments by stage differ in length, the last reduction is not 1, or ``img_size`` leaves a stage without keys.
    """

    layouts = (
        Layout("official"),
        Layout("transformers", has_keys("pvt.encoder.block.0.0.mlp.dense1.weight"), _from_transformers),
    )
    classifier = "head"
    head_modules: ClassVar[tuple[str, ...]] = ("norm", "head", "cls_token")

    cls_token: Tensor | None

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 320, 512),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        patch_size: int = 4,
        img_size: int | Sequence[int] = 224,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        lengths = {len(by_stage) for by_stage in (depths, widths, heads, mlp_ratios, reductions)}
        if len(lengths) > 1:
            raise ConfigError("depths, widths, heads, mlp_ratios and reductions need one number per stage, and equally many")
        if reductions[-1] != 1:
            raise ConfigError(f"reductions={tuple(reductions)}: the last must be 1, for the class token is no part of a grid")
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        self.stages = len(depths)
        self.last = self.stages - 1
        self.feature_info = FeatureInfo()
        self.grids: list[tuple[int, ...]] = []
        before, grid, reduction = in_chans, tupled(img_size, dims), 1
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            width, patch = widths[index], 2 if index else patch_size
            grid = tuple(side // patch for side in grid)
            reduction *= patch
            tokens = int(torch.Size(grid).numel()) + (index == self.last)
            blocks = [
                PVTBlock(width, heads=heads[index], mlp_ratio=mlp_ratios[index], reduction=reductions[index], dims=dims, drop_path=rate)
                for rate in rates
            ]
            # The names of the paper's own code, which holds stages side by side.
            self.add_module(f"patch_embed{index + 1}", PatchEmbedding(before, width, patch_size=patch, dims=dims))
            self.register_parameter(f"pos_embed{index + 1}", nn.Parameter(torch.zeros(1, tokens, width)))
            self.add_module(f"block{index + 1}", nn.Sequential(*blocks))
            self.grids.append(grid)
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"block{index + 1}"})
            before = width
        # A level that is smaller than the patch of one key has no keys.
        self.min_size = max(level["reduction"] * coarse for level, coarse in zip(self.feature_info, reductions, strict=True))
        if min(tupled(img_size, dims)) < self.min_size:
            raise ConfigError(f"img_size={img_size} is too small: every side needs at least {self.min_size}")
        self.norm: nn.Module = nn.LayerNorm(before, eps=1e-6)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, before))
        self.head: nn.Module = self.new_classifier(num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw linear maps, positions and the class token from a normal distribution of deviation 0.02; convolutions stay PyTorch's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters(recurse=False):
            if name == "cls_token" or name.startswith("pos_embed"):
                nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, index: int, x: Tensor) -> Tensor:
        """Return the tokens that enter a stage, ``(B, *grid, C)``, with their positions but without the class token."""
        x = self.get_submodule(f"patch_embed{index + 1}")(x)
        positions: Tensor = self.get_parameter(f"pos_embed{index + 1}")
        if index == self.last:
            positions = positions[:, 1:]
        grid = positions.unflatten(1, self.grids[index])
        if grid.shape[1:] != x.shape[1:]:
            grid = resize(grid.movedim(-1, 1), x.shape[1:-1]).movedim(1, -1)
        return x + grid

    def run_stage(self, index: int, x: Tensor) -> Tensor:
        """Apply the blocks of a stage."""
        return self.run_blocks(self.get_submodule(f"block{index + 1}"), x)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stages, computed without the class token."""
        self.check_size(x)
        levels = []
        for index in range(self.stages):
            x = self.run_stage(index, self.embed(index, x)).movedim(-1, 1)
            levels.append(x)
        return levels

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised tokens of the last stage, ``(B, 1 + N, num_features)``, the class token first.

        A model whose head was dropped has no class token, and returns the ``N`` others.
        """
        self.check_size(x)
        for index in range(self.last):
            x = self.run_stage(index, self.embed(index, x)).movedim(-1, 1)
        x = self.embed(self.last, x).flatten(1, -2)
        if self.cls_token is not None:
            token = self.cls_token + self.get_parameter(f"pos_embed{self.last + 1}")[:, :1]
            x = torch.cat([token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm(self.run_stage(self.last, x))

    def drop_head(self) -> None:
        """Remove the classifier, its normalisation and the class token."""
        self.norm = self.head = nn.Identity()
        self.cls_token = None
        self.num_classes = 0

    def drop_levels(self, after: int) -> None:
        """Remove the stages beyond the level ``after``."""
        for index in range(after + 1, self.stages):
            for name in ("patch_embed", "pos_embed", "block"):
                delattr(self, f"{name}{index + 1}")
        self.stages = min(self.stages, after + 1)


def _variant(depths: tuple[int, ...], figures: Figures) -> Variant:
    return Variant({"depths": depths}, figures)


FAMILY = Family(
    name="pvt",
    cls=PVT,
    small=(
        "pvt_small",
        {"depths": (1, 1, 2, 1), "widths": (16, 24, 32, 48), "heads": (1, 2, 2, 3), "mlp_ratios": (4, 4, 2, 2), "img_size": 64},
    ),
    paper="pvt",
    summary="A vision transformer with a feature pyramid and spatial-reduction attention (Wang et al., 2021).",
    variants={
        "pvt_tiny": _variant((2, 2, 2, 2), Figures(params_m=13.2, gmacs=1.9, quality="75.1 top-1")),
        "pvt_small": _variant((3, 4, 6, 3), Figures(params_m=24.5, gmacs=3.8, quality="79.8 top-1")),
        "pvt_medium": _variant((3, 4, 18, 3), Figures(params_m=44.2, gmacs=6.7, quality="81.2 top-1")),
        "pvt_large": _variant((3, 8, 27, 3), Figures(params_m=61.4, gmacs=9.8, quality="81.7 top-1")),
    },
)

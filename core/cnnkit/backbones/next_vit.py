"""Next-ViT: Li et al. (2022), "Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios".

Convolution and attention in blocks of operators that inference engines run fast: batch normalisation, which merges into the linear map
beside it, and ReLU. A convolution block mixes positions by a convolution in groups of one head each (``MHCA``)::

    x = x + W relu(norm(groupconv3(x)));    y = x + MLP(norm(x))

A transformer block takes three quarters of its channels from attention and the others from a convolution of what attention made, so
that low and high frequencies stand side by side::

    z = x + E-MHSA(norm(x));    h = P z + MHCA(P z);    y = [z, h] + MLP(norm([z, h]))

Keys and values of ``E-MHSA`` are means. Every stage but the first is made of groups of convolution blocks that end with one
transformer block. As in the paper's own code, a mean is that of ``s^dims`` tokens in a row, the image read line by line.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.errors import ConfigError
from cnnkit.layers.attention import attend, join_heads, split_heads
from cnnkit.layers.conv import ConvNormAct
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.fuse import fold_batch_norm_before
from cnnkit.layers.init import init_truncated
from cnnkit.layers.mlp import Mlp
from cnnkit.layers.nd import avg_pool, batch_norm, conv


class PatchEmbedding(nn.Module):
    """Bring features to another width, at half the size where asked for; nothing is done where neither changes.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, channels, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Side of the cells whose mean is taken; 1 for none.
        dims: Number of spatial dimensions.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1, dims: int = 2) -> None:
        super().__init__()
        self.pool = avg_pool(dims)(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        projects = stride > 1 or in_channels != channels
        self.conv = conv(dims)(in_channels, channels, 1, bias=False) if projects else nn.Identity()
        self.norm = batch_norm(dims)(channels) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Pool, project and normalise."""
        return self.norm(self.conv(self.pool(x)))


class ConvAttention(nn.Module):
    """Mix neighbours within heads, then all channels: a grouped 3x3 convolution and a 1x1 convolution.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        head_dim: Channels of a head; they divide ``channels``.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, *, head_dim: int, dims: int = 2) -> None:
        super().__init__()
        self.group_conv3x3 = conv(dims)(channels, channels, 3, padding=1, groups=channels // head_dim, bias=False)
        self.norm = batch_norm(dims)(channels)
        self.act = nn.ReLU(inplace=True)
        self.projection = conv(dims)(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix neighbours, then channels."""
        return self.projection(self.act(self.norm(self.group_conv3x3(x))))


class EfficientAttention(nn.Module):
    """Attention whose keys and values are means of tokens in a row.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Features of a token.
        head_dim: Channels of a head; they divide ``channels``.
        run: Tokens per mean; what is left over at the end has no part. 1 for no means.
    """

    def __init__(self, channels: int, *, head_dim: int, run: int = 1) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.run = run
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)
        self.norm = nn.BatchNorm1d(channels) if run > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Let every token attend to the means."""
        grid, x = x.shape[2:], x.flatten(2)
        kept = self.norm(F.avg_pool1d(x, self.run)) if self.run > 1 else x
        query, key, value = self.q(x.mT), self.k(kept.mT), self.v(kept.mT)
        x = join_heads(attend(*(split_heads(part, self.heads) for part in (query, key, value))))
        return self.proj(x).mT.unflatten(2, grid)


class ConvSteps(nn.Module):
    """What a convolution block does with its parts; by itself, the block for inference.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, channels, *ceil(spatial / stride))``.

    Args:
        patch_embed: Brings the input to the block's width and size.
        mhca: Mixes positions.
        norm: Normalisation before the perceptron.
        mlp: The perceptron.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(self, patch_embed: nn.Module, mhca: nn.Module, norm: nn.Module, mlp: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.mhca = mhca
        self.norm = norm
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = self.patch_embed(x)
        x = x + self.drop_path(self.mhca(x))
        return x + self.drop_path(self.mlp(self.norm(x)))


class ConvBlock(ConvSteps):
    """The convolution block.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        head_dim: Channels of a head.
        stride: 2 to halve the size.
        dims: Number of spatial dimensions.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(self, in_channels: int, channels: int, *, head_dim: int, stride: int, dims: int = 2, drop_path: float = 0.0) -> None:
        super().__init__(
            PatchEmbedding(in_channels, channels, stride=stride, dims=dims),
            ConvAttention(channels, head_dim=head_dim, dims=dims),
            batch_norm(dims)(channels),
            Mlp(channels, 3 * channels, dims=dims, act="relu"),
            drop_path,
        )

    def merged(self) -> nn.Module:
        """Return the block with its normalisation in the perceptron, for inference."""
        return ConvSteps(self.patch_embed, self.mhca, nn.Identity(), _mlp_after(self.norm, self.mlp))


class TransformerSteps(nn.Module):
    """What a transformer block does with its parts; by itself, the block for inference.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, channels, *ceil(spatial / stride))``.

    Args:
        patch_embed: Brings the input to the width of attention and to the block's size.
        norm1: Normalisation before attention.
        e_mhsa: Attention.
        projection: Brings the result to the width of the convolution.
        mhca: The convolution.
        norm2: Normalisation before the perceptron.
        mlp: The perceptron.
        drop_path: Probability that the perceptron's branch is dropped while training; each of the others shares it by its channels.
        share: Share of the channels that attention makes.
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        norm1: nn.Module,
        e_mhsa: nn.Module,
        projection: nn.Module,
        mhca: nn.Module,
        norm2: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        share: float = 0.75,
    ) -> None:
        super().__init__()
        self.patch_embed, self.norm1, self.e_mhsa = patch_embed, norm1, e_mhsa
        self.projection, self.mhca = projection, mhca
        self.norm2, self.mlp = norm2, mlp
        self.attention_drop_path = DropPath(drop_path * share)
        self.conv_drop_path = DropPath(drop_path * (1 - share))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = self.patch_embed(x)
        x = x + self.attention_drop_path(self.e_mhsa(self.norm1(x)))
        high = self.projection(x)
        x = torch.cat((x, high + self.conv_drop_path(self.mhca(high))), 1)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class TransformerBlock(TransformerSteps):
    """The transformer block.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        head_dim: Channels of a head.
        run: Tokens per mean of keys and values.
        share: Share of the channels that attention makes, in whole heads.
        stride: 2 to halve the size.
        dims: Number of spatial dimensions.
        drop_path: Probability that the perceptron's branch is dropped while training.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        head_dim: int,
        run: int,
        share: float = 0.75,
        stride: int = 1,
        dims: int = 2,
        drop_path: float = 0.0,
    ) -> None:
        low = int(channels * share / head_dim + 0.5) * head_dim
        super().__init__(
            PatchEmbedding(in_channels, low, stride=stride, dims=dims),
            batch_norm(dims)(low),
            EfficientAttention(low, head_dim=head_dim, run=run),
            PatchEmbedding(low, channels - low, dims=dims),
            ConvAttention(channels - low, head_dim=head_dim, dims=dims),
            batch_norm(dims)(channels),
            Mlp(channels, 2 * channels, dims=dims, act="relu"),
            drop_path,
            share,
        )

    def merged(self) -> nn.Module:
        """Return the block with its normalisations in the linear maps, for inference; a mean of tokens commutes with an affine map."""
        attention: Any = copy.deepcopy(self.e_mhsa)
        if attention.run > 1:
            attention.k, attention.v = _after(attention.norm, attention.k), _after(attention.norm, attention.v)
            attention.norm = nn.Identity()
        attention.q, attention.k, attention.v = (_after(self.norm1, layer) for layer in (attention.q, attention.k, attention.v))
        mlp = _mlp_after(self.norm2, self.mlp)
        return TransformerSteps(self.patch_embed, nn.Identity(), attention, self.projection, self.mhca, nn.Identity(), mlp)


def _after(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """Return a layer that equals ``layer(norm(x))``."""
    folded = copy.deepcopy(layer)
    weight, bias = fold_batch_norm_before(norm, layer)
    folded.weight, folded.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return folded


def _mlp_after(norm: nn.Module, mlp: nn.Module) -> nn.Module:
    """Return a perceptron that equals ``mlp(norm(x))``."""
    folded: Any = copy.deepcopy(mlp)
    folded.fc1 = _after(norm, folded.fc1)
    return folded


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: blocks in one list; a stage begins where convolution blocks change their width."""
    widths: dict[int, int] = {}
    transformers = set()
    for key, value in state.items():
        if key.endswith(".mhca.group_conv3x3.weight"):
            widths[int(key.split(".")[1])] = value.shape[0]
        elif key.endswith(".e_mhsa.q.weight"):
            transformers.add(int(key.split(".")[1]))
    places, stage, index, before = {}, -1, 0, 0
    for block in sorted(widths):
        if block not in transformers and widths[block] != before:
            stage, index, before = stage + 1, 0, widths[block]
        places[str(block)] = f"stages.{stage}.blocks.{index}"
        index += 1
    renamed = {}
    for key, value in state.items():
        if key.startswith("features."):
            _, number, inside = key.split(".", 2)
            key = f"{places.get(number, f'features.{number}')}.{inside}"
        renamed[key] = value
    return rename_keys(renamed, ((r"\.mlp\.conv(\d)\.", r".mlp.fc\1."), (r"^proj_head\.0\.", "head.fc.")))


class NextViT(Backbone):
    """Next-ViT of any depth and width.

    Args:
        depths: Number of blocks of each stage.
        repeats: Number of groups of blocks of each stage; a transformer block ends each. 0 for convolution blocks alone.
        widths: Channels of the convolution blocks by stage.
        mix_widths: Channels of the transformer blocks by stage; what stands at a stage without them has no part.
        stem_widths: Channels of the stem's first three convolutions; the fourth has those of the third.
        head_dim: Channels of a head.
        kv_ratios: Means of ``ratio^dims`` tokens are keys and values, by stage.
        share: Share of a transformer block's channels that attention makes.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If arguments by stage differ in length, groups do not divide a stage, or heads a width.
    """

    layouts = (Layout("timm"), Layout("official", has_keys("features.0.mhca.group_conv3x3.weight"), _from_official))
    classifier = "head.fc"
    head_modules = ("norm", "head")

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 10, 3),
        repeats: Sequence[int] = (0, 1, 2, 1),
        widths: Sequence[int] = (96, 192, 384, 768),
        mix_widths: Sequence[int] = (0, 256, 512, 1024),
        stem_widths: Sequence[int] = (64, 32, 64),
        head_dim: int = 32,
        kv_ratios: Sequence[int] = (8, 4, 2, 1),
        share: float = 0.75,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not len(depths) == len(repeats) == len(widths) == len(mix_widths) == len(kv_ratios):
            raise ConfigError("depths, repeats, widths, mix_widths and kv_ratios need one number per stage, and equally many")
        for depth, groups in zip(depths, repeats, strict=True):
            if groups and depth % groups:
                raise ConfigError(f"repeats={groups} groups do not divide a stage of {depth} blocks")
        if odd := [width for width in (*widths, *mix_widths) if width % head_dim]:
            raise ConfigError(f"head_dim={head_dim} does not divide the widths {odd}")
        ends = [mix if groups else width for width, mix, groups in zip(widths, mix_widths, repeats, strict=True)]
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=ends[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        stem = (in_chans, *stem_widths, stem_widths[-1])
        self.stem = nn.Sequential(
            *(ConvNormAct(a, b, 3, dims=dims, stride=stride) for (a, b), stride in zip(itertools.pairwise(stem), (2, 1, 1, 2), strict=True))
        )
        self.stages = nn.ModuleList()
        self.feature_info = FeatureInfo()
        before = stem[-1]
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            reduction, group = 4 * 2**index, depths[index] // max(repeats[index], 1)
            blocks: list[nn.Module] = []
            for number, rate in enumerate(rates, start=1):
                stride = 2 if index and number == 1 else 1
                if repeats[index] and number % group == 0:
                    run, width = kv_ratios[index] ** dims, mix_widths[index]
                    blocks.append(
                        TransformerBlock(before, width, head_dim=head_dim, run=run, share=share, stride=stride, dims=dims, drop_path=rate)
                    )
                else:
                    width = widths[index]
                    blocks.append(ConvBlock(before, width, head_dim=head_dim, stride=stride, dims=dims, drop_path=rate))
                before = width
            if repeats[index]:  # At least one mean: a side of at least its ratio at this stage.
                self.min_size = max(self.min_size, (kv_ratios[index] - 1) * reduction + 1)
            self.stages.append(nn.Sequential())
            self.stages[-1].add_module("blocks", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": before, "reduction": reduction, "module": f"stages.{index}"})
        self.norm: nn.Module = batch_norm(dims)(before)
        self.head: nn.Module = nn.Sequential()
        self.head.add_module("fc", self.new_classifier(num_classes))
        self.apply(init_truncated)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the other layers are."""
        return super().new_classifier(num_classes).apply(init_truncated)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stages."""
        self.check_size(x)
        x = self.stem(x)
        levels = []
        for stage in self.stages:
            x = self.run_blocks(stage[0] if isinstance(stage, nn.Sequential) else stage, x)
            levels.append(x)
        return levels

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised features of the last stage."""
        return self.norm(super().forward_features(x))


def _variant(depth: int, figures: Figures) -> Variant:
    """Five blocks to a group in the third stage."""
    return Variant({"depths": (3, 4, depth, 3), "repeats": (0, 1, depth // 5, 1)}, figures)


_CUT = "The paper cuts its parameters off after the first decimal instead of rounding them."

FAMILY = Family(
    name="next_vit",
    cls=NextViT,
    small=(
        "nextvit_small",
        {
            "depths": (1, 2, 4, 2),
            "widths": (16, 24, 32, 40),
            "mix_widths": (0, 32, 40, 48),
            "stem_widths": (16, 8, 16),
            "head_dim": 8,
        },
    ),
    paper="next-vit",
    summary="Convolution blocks in groups that end with one transformer block, for fast inference engines (Li et al., 2022).",
    variants={
        "nextvit_small": _variant(10, Figures(params_m=31.7, counted_params_m=31.76, gmacs=5.8, note=_CUT, quality="82.5 top-1")),
        "nextvit_base": _variant(20, Figures(params_m=44.8, gmacs=8.3, quality="83.2 top-1")),
        "nextvit_large": _variant(30, Figures(params_m=57.8, counted_params_m=57.87, gmacs=10.8, note=_CUT, quality="83.6 top-1")),
    },
)

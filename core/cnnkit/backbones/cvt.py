"""CvT: Wu, Xiao, Codella, Liu, Dai, Yuan and Zhang (2021), "CvT: Introducing Convolutions to Vision Transformers".

Convolutions enter a vision transformer in two places. Tokens are embedded by overlapping, strided convolutions, which shrink the grid
from stage to stage; and queries, keys and values come from a depthwise convolution in place of a linear map of each token alone::

    q, k, v = W flatten(norm(depthwise3(x))),    stride 1 for q, 2 for k and v;    y = W softmax(q k^T / sqrt(C)) v

A stride of 2 leaves a quarter of the keys. The convolutions know where a token stands, so there are no positions to learn and every
input size is admitted. A class token joins in the last stage; it passes by the convolutions. So the convolution of the last block's
queries, which makes those of the image's tokens alone, has no part in a class score that is read from the class token.

As in the paper's own code, logits are scaled by the whole width ``C``, not by that of a head, and the perceptrons have the quick
approximation of GELU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.backbones._token import TokenBackbone
from cnnkit.errors import ConfigError
from cnnkit.layers.attention import attend, join_heads, split_heads
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.mlp import Mlp
from cnnkit.layers.nd import batch_norm, conv


class ConvProjection(nn.Sequential):
    """A depthwise 3x3 convolution and a batch normalisation.

    Shapes:
        x: ``(B, channels, *spatial)``; the result is ``(B, channels, *ceil(spatial / stride))``.

    Args:
        channels: Number of channels.
        stride: Stride of the convolution.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, *, stride: int, dims: int = 2) -> None:
        super().__init__()
        self.add_module("conv", conv(dims)(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False))
        self.add_module("bn", batch_norm(dims)(channels))


class ConvAttention(nn.Module):
    """Attention whose queries, keys and values come from convolutions of the grid; a class token before the grid passes by them.

    Shapes:
        x: ``(B, P + N, channels)`` with ``P`` tokens besides the grid (0 or more) and ``N = prod(grid)``; the result has the same shape.

    Args:
        channels: Features of a token.
        heads: Attention heads; they divide ``channels``.
        kv_stride: Stride of the convolutions that make keys and values.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, *, heads: int, kv_stride: int = 2, dims: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.scale = channels**-0.5
        for name, stride in (("q", 1), ("k", kv_stride), ("v", kv_stride)):
            self.add_module(f"conv_proj_{name}", ConvProjection(channels, stride=stride, dims=dims))
            self.add_module(f"proj_{name}", nn.Linear(channels, channels))
        self.proj = nn.Linear(channels, channels)

    def project(self, name: str, token: Tensor, image: Tensor) -> Tensor:
        """Return queries (``"q"``), keys or values by head."""
        x = self.get_submodule(f"conv_proj_{name}")(image).flatten(2).mT
        if token.shape[1]:
            x = torch.cat([token, x], dim=1)
        return split_heads(self.get_submodule(f"proj_{name}")(x), self.heads)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """Attend; ``grid`` is the shape of the grid of tokens."""
        before = x.shape[1] - int(torch.Size(grid).numel())
        token, image = x[:, :before], x[:, before:].mT.unflatten(2, tuple(grid))
        query, key, value = (self.project(name, token, image) for name in "qkv")
        return self.proj(join_heads(attend(query, key, value, scale=self.scale)))


class CvTBlock(nn.Module):
    """Attention and a perceptron, each with a normalisation before and a shortcut around it.

    Shapes:
        x: As for :class:`ConvAttention`.

    Args:
        channels: Features of a token.
        heads: Attention heads.
        mlp_ratio: Hidden width of the perceptron by ``channels``.
        kv_stride: Stride of the convolutions that make keys and values.
        act: Activation of the perceptron.
        dims: Number of spatial dimensions.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(
        self, channels: int, *, heads: int, mlp_ratio: float, kv_stride: int, act: str, dims: int = 2, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = ConvAttention(channels, heads=heads, kv_stride=kv_stride, dims=dims)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), act=act)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """Apply the block; ``grid`` is the shape of the grid of tokens."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ConvEmbedding(nn.Module):
    """An overlapping, strided convolution and a normalisation of every token.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, *grid, channels)``.

    Args:
        in_channels: Channels of the input.
        channels: Features of a token.
        kernel_size: Size of the convolution.
        stride: Its stride.
        padding: Zeros on each side.
        dims: Number of spatial dimensions.
    """

    def __init__(self, in_channels: int, channels: int, *, kernel_size: int, stride: int, padding: int, dims: int = 2) -> None:
        super().__init__()
        self.proj = conv(dims)(in_channels, channels, kernel_size, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the grid of tokens."""
        return self.norm(self.proj(x).movedim(1, -1))


class CvTStage(nn.Module):
    """Embedding, blocks, and in the last stage a class token.

    Args:
        embedding: The embedding.
        blocks: The blocks.
        token: Features of the class token; 0 leaves it out.
    """

    cls_token: Tensor | None

    def __init__(self, embedding: nn.Module, blocks: Sequence[nn.Module], *, token: int = 0) -> None:
        super().__init__()
        self.patch_embed = embedding
        self.blocks = nn.Sequential(*blocks)
        self.register_parameter("cls_token", nn.Parameter(torch.zeros(1, 1, token)) if token else None)


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of transformers."""
    return rename_keys(
        state,
        (
            (r"^cvt\.encoder\.stages\.(\d+)\.", r"stage\1."),
            (r"^layernorm\.", "norm."),
            (r"^classifier\.", "head."),
            (r"\.embedding\.convolution_embeddings\.projection\.", ".patch_embed.proj."),
            (r"\.embedding\.convolution_embeddings\.normalization\.", ".patch_embed.norm."),
            (r"^(stage\d+)\.layers\.", r"\1.blocks."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.attention\.attention\.convolution_projection_([qkv])\w+\.convolution_projection\.", r".attn.conv_proj_\1."),
            (r"(conv_proj_[qkv])\.convolution\.", r"\1.conv."),
            (r"(conv_proj_[qkv])\.normalization\.", r"\1.bn."),
            (r"\.attention\.attention\.projection_([qkv])\w+\.", r".attn.proj_\1."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
        ),
    )


class CvT(TokenBackbone):
    """Convolutional vision transformer of any depth and width.

    Args:
        depths: Number of blocks of each stage.
        widths: Features of a token by stage.
        heads: Attention heads by stage.
        mlp_ratio: Hidden width of the perceptrons by the stage's width.
        kv_stride: Stride of the convolutions that make keys and values.
        act: Activation of the perceptrons.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: ``"token"`` classifies from the class token; others pool the tokens of the image.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 over the last stage, as in the paper.

    Raises:
        ConfigError: If ``depths``, ``widths`` and ``heads`` differ in length.
    """

    layouts = (
        Layout("official"),
        Layout("transformers", has_keys("cvt.encoder.stages.0.embedding.convolution_embeddings.projection.weight"), _from_transformers),
    )
    classifier = "head"
    head_modules = ("norm", "head")

    def __init__(
        self,
        *,
        depths: Sequence[int] = (1, 2, 10),
        widths: Sequence[int] = (64, 192, 384),
        heads: Sequence[int] = (1, 3, 6),
        mlp_ratio: float = 4.0,
        kv_stride: int = 2,
        act: str = "quick_gelu",
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not len(depths) == len(widths) == len(heads):
            raise ConfigError("depths, widths and heads need one number per stage, and equally many")
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        self.feature_info = FeatureInfo()
        before, last = in_chans, len(depths) - 1
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            size = {"kernel_size": 3, "stride": 2, "padding": 1} if index else {"kernel_size": 7, "stride": 4, "padding": 2}
            blocks = [
                CvTBlock(width, heads=heads[index], mlp_ratio=mlp_ratio, kv_stride=kv_stride, act=act, dims=dims, drop_path=rate)
                for rate in drop_path_rates(drop_path_rate if index == last else 0.0, (depth,))[0]
            ]
            stage = CvTStage(ConvEmbedding(before, width, dims=dims, **size), blocks, token=width if index == last else 0)
            self.add_module(f"stage{index}", stage)
            self.feature_info.append({"num_chs": width, "reduction": 4 * 2**index, "module": f"stage{index}"})
            before = width
        self.norm: nn.Module = nn.LayerNorm(before)
        self.head: nn.Module = self.new_classifier(num_classes)
        self.apply(_init)

    def run_stages(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the grids of features of the stages, ``(B, C, *grid)``, and all tokens of the last one, ``(B, P + N, C)``."""
        levels, tokens = [], x
        for name in self.feature_info.module_name():
            stage = self.get_submodule(name)
            if isinstance(stage, CvTStage):
                image = stage.patch_embed(x)
                grid, tokens = tuple(image.shape[1:-1]), image.flatten(1, -2)
                if stage.cls_token is not None:
                    tokens = torch.cat([stage.cls_token.expand(x.shape[0], -1, -1), tokens], dim=1)
                tokens = self.run_blocks(stage.blocks, tokens, grid)
                x = tokens[:, int(stage.cls_token is not None) :].mT.unflatten(2, grid)
            levels.append(x)
        return levels, tokens

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stages; the class token takes part in the last one."""
        return self.run_stages(x)[0]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised tokens of the last stage, ``(B, 1 + N, num_features)``, the class token first."""
        return self.norm(self.run_stages(x)[1])


def _init(module: nn.Module) -> None:
    """The paper's initialisation of linear maps and the class token; convolutions stay PyTorch's."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, CvTStage) and module.cls_token is not None:
        nn.init.trunc_normal_(module.cls_token, std=0.02)


_COUNT = "Every convolution, linear map and product is counted; the paper prints about 1 % less and does not say what it leaves out."

FAMILY = Family(
    name="cvt",
    cls=CvT,
    # Pooled, so that all queries count: read from the class token alone, the last block's convolution of queries has no gradient.
    small=("cvt_13", {"depths": (1, 1, 2), "widths": (16, 32, 48), "heads": (1, 2, 3), "global_pool": "avg"}),
    small_size=32,
    paper="cvt",
    summary="A vision transformer with convolutional embeddings and projections (Wu et al., 2021).",
    variants={
        "cvt_13": Variant({"depths": (1, 2, 10)}, Figures(params_m=20, gmacs=4.5, counted_gmacs=4.57, note=_COUNT, quality="81.6 top-1")),
        "cvt_21": Variant({"depths": (1, 4, 16)}, Figures(params_m=32, gmacs=7.1, counted_gmacs=7.18, note=_COUNT, quality="82.5 top-1")),
        "cvt_w24": Variant(
            {"depths": (2, 2, 20), "widths": (192, 768, 1024), "heads": (3, 12, 16)},
            Figures(
                params_m=277,
                gmacs=193.2,
                input_size=384,
                counted_gmacs=194.2,
                note=_COUNT,
                quality="87.7 top-1 at 384 px after pre-training on ImageNet-22k",
            ),
        ),
    },
)

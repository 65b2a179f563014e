"""MLP-Mixer: Tolstikhin et al. (2021), "MLP-Mixer: An all-MLP Architecture for Vision".

Neither convolution nor attention: the image becomes a table of patches by channels, and every block applies one perceptron along each
side of it, first to the columns (the places of one channel), then to the rows (the channels of one place)::

    Y = X + (W2 gelu(W1 norm(X)^T))^T;    Z = Y + W4 gelu(W3 norm(Y))

All columns share a perceptron, and all rows. Its weights belong to places, so there is no need of a position code, and the input has
one size. For one that is ``k`` times larger, :func:`enlarged` makes block-diagonal weights, as the paper's appendix does.

``act="gelu"`` is the exact function, as in timm; the official code computes its approximation, ``act="gelu_tanh"``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.errors import ConfigError
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.mlp import Mlp
from cnnkit.layers.nd import conv, tupled
from cnnkit.layers.norm import LayerNormNd


class MixerBlock(nn.Module):
    """A perceptron over the tokens and one over the channels, each after a normalisation and with a shortcut.

    Shapes:
        x: ``(B, tokens, channels)``; the result has the same shape.

    Args:
        channels: Features of a token.
        tokens: Number of tokens.
        token_hidden: Hidden width of the perceptron over the tokens.
        channel_hidden: Hidden width of the perceptron over the channels.
        act: Name for :func:`~cnnkit.layers.act.get_act`.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(
        self, channels: int, tokens: int, *, token_hidden: int, channel_hidden: int, act: str = "gelu", drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp_tokens = Mlp(tokens, token_hidden, act=act)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp_channels = Mlp(channels, channel_hidden, act=act)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.drop_path(self.mlp_tokens(self.norm1(x).mT).mT)
        return x + self.drop_path(self.mlp_channels(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Map every patch to one token.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, tokens, channels)``.

    Args:
        in_channels: Channels of the input.
        channels: Features of a token.
        patch_size: Side of a patch.
        dims: Number of spatial dimensions.
    """

    def __init__(self, in_channels: int, channels: int, *, patch_size: int, dims: int = 2) -> None:
        super().__init__()
        self.proj = conv(dims)(in_channels, channels, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, row by row."""
        return self.proj(x).flatten(2).mT


def enlarged(state: Mapping[str, Tensor], grid: Sequence[int], factor: int) -> dict[str, Tensor]:
    """Return weights for an input that is ``factor`` times larger along every axis, from those of a trained model.

    The larger grid of tokens is cut into tiles of the size of ``grid``; block-diagonal weights mix the tokens of each tile as before, and
    those of different tiles not yet. The model that takes them has a ``token_hidden`` that is larger by the number of tiles.

    Args:
        state: Weights of a :class:`MlpMixer`, under its own names.
        grid: Tokens along each axis of the trained model.
        factor: How many times larger the new grid is.
    """
    tiles, tokens = factor ** len(grid), math.prod(grid)
    # The place in the larger grid of every token, counted tile by tile; and the other way round.
    split = [size for side in grid for size in (factor, side)]
    axes = [*range(0, len(split), 2), *range(1, len(split), 2)]
    by_place = torch.arange(tiles * tokens).view(split).permute(axes).flatten().argsort()
    larger = dict(state)
    for key, value in state.items():
        if ".mlp_tokens." in key:
            copies = torch.block_diag(*(value,) * tiles) if key.endswith("weight") else value.repeat(tiles)
            if key.endswith("fc1.weight"):
                copies = copies[:, by_place]
            larger[key] = copies[by_place] if ".fc2." in key else copies
    return larger


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code in JAX: linear maps act from the right, and a patch has its channels last."""
    turned = {}
    for key, value in state.items():
        if key.endswith("/kernel"):
            value = value.movedim((-1, -2), (0, 1)) if key.startswith("stem") else value.mT
        turned[key] = value
    return rename_keys(
        turned,
        (
            (r"/kernel$", "/weight"),
            (r"/scale$", "/weight"),
            (r"^stem/", "stem/proj/"),
            (r"^MixerBlock_(\d+)/", r"blocks/\1/"),
            (r"/LayerNorm_0/", "/norm1/"),
            (r"/LayerNorm_1/", "/norm2/"),
            (r"/(token|channel)_mixing/", r"/mlp_\1s/"),
            (r"/Dense_0/", "/fc1/"),
            (r"/Dense_1/", "/fc2/"),
            (r"^pre_head_layer_norm/", "norm/"),
            (r"/", "."),
        ),
    )


class MlpMixer(Backbone):
    """MLP-Mixer of any depth and width.

    Args:
        width: Features of a token.
        depth: Number of blocks; every one is a level of the pyramid, all of the same resolution.
        token_hidden: Hidden width of the perceptrons over the tokens; by default half of ``width``.
        channel_hidden: Hidden width of the perceptrons over the channels; by default four times ``width``.
        patch_size: Side of a patch.
        act: Name for :func:`~cnnkit.layers.act.get_act`.
        img_size: Size of the input, one or one per dimension, a multiple of ``patch_size``.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling after the head's normalisation.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If patches do not fill the image.
    """

    layouts = (Layout("timm"), Layout("official", has_keys("stem/kernel"), _from_official))
    classifier = "head"
    head_modules = ("norm", "head")

    def __init__(
        self,
        *,
        width: int = 512,
        depth: int = 8,
        token_hidden: int | None = None,
        channel_hidden: int | None = None,
        patch_size: int = 16,
        act: str = "gelu",
        img_size: int | Sequence[int] = 224,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=width, global_pool=global_pool, drop_rate=drop_rate
        )
        self.fixed_size = tupled(img_size, dims)
        if any(side % patch_size for side in self.fixed_size):
            raise ConfigError(
                f"img_size={img_size!r} is not a multiple of patch_size={patch_size}; the nearest larger size is "
                f"{tuple(-(-side // patch_size) * patch_size for side in self.fixed_size)}"
            )
        self.grid = tuple(side // patch_size for side in self.fixed_size)
        self.stem = PatchEmbedding(in_chans, width, patch_size=patch_size, dims=dims)
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        self.blocks = nn.Sequential(
            *(
                MixerBlock(
                    width,
                    math.prod(self.grid),
                    token_hidden=width // 2 if token_hidden is None else token_hidden,
                    channel_hidden=4 * width if channel_hidden is None else channel_hidden,
                    act=act,
                    drop_path=rate,
                )
                for rate in rates
            )
        )
        self.feature_info = FeatureInfo({"num_chs": width, "reduction": patch_size, "module": f"blocks.{index}"} for index in range(depth))
        self.norm: nn.Module = LayerNormNd(width)
        self.apply(_init)
        self.head = self.new_classifier(num_classes)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer of zeros."""
        layer = super().new_classifier(num_classes)
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
        return layer

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last features, before the head's normalisation; unlike the pyramid, this lets go of those before."""
        self.check_size(x)
        return self.run_blocks(self.blocks, self.stem(x)).mT.unflatten(2, self.grid)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features after every block, before the head's normalisation."""
        self.check_size(x)
        x = self.stem(x)
        levels = []
        for index in range(len(self.blocks)):
            x = self.run_blocks(self.blocks[index : index + 1], x)
            levels.append(x.mT.unflatten(2, self.grid))
        return levels

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normalise and pool the last features, then classify them; see :meth:`Backbone.forward_head`."""
        return super().forward_head(self.norm(x), pre_logits)


def _init(module: nn.Module) -> None:
    """The official initialisation: a truncated normal whose variance is one over the number of inputs, and no bias."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
        deviation = module.weight[0].numel() ** -0.5 / 0.87962566103423978  # Of a unit normal cut off at 2.
        nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def _variant(width: int, depth: int, patch_size: int, params_m: float, counted: float, quality: str = "") -> Variant:
    note = "the paper counts without the classifier"
    return Variant(
        {"width": width, "depth": depth, "patch_size": patch_size},
        Figures(params_m=params_m, quality=quality, counted_params_m=counted, note=note),
    )


# Figures of the paper's Table 1; it states no multiply-adds.
FAMILY = Family(
    name="mlp_mixer",
    cls=MlpMixer,
    small=("mixer_s16_224", {"width": 48, "depth": 3, "patch_size": 4, "img_size": 32}),
    small_size=32,
    paper="mlp-mixer",
    summary="Perceptrons over the places and over the channels of patches, in turns (Tolstikhin et al., 2021).",
    variants={
        "mixer_s32_224": _variant(512, 8, 32, 19, 19.1),
        "mixer_s16_224": _variant(512, 8, 16, 18, 18.5),
        "mixer_b32_224": _variant(768, 12, 32, 60, 60.3),
        "mixer_b16_224": _variant(768, 12, 16, 59, 59.9, "76.44 top-1"),
        "mixer_l32_224": _variant(1024, 24, 32, 206, 206.9),
        "mixer_l16_224": _variant(1024, 24, 16, 207, 208.2),
        "mixer_h14_224": _variant(1280, 32, 14, 431, 432.4, "87.94 top-1 after pre-training on JFT-300M"),
    },
)

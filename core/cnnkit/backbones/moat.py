"""MOAT: Yang et al. (2023), "MOAT: Alternating Mobile Convolution and Attention Brings Strong Vision Models".

A transformer block whose perceptron became an inverted bottleneck and went to the front. Its depthwise convolution lets positions
exchange before they attend, and also makes the stride, with a learnt kernel where transformers join patches::

    x = shortcut(x) + W2 gelu(norm(depthwise(gelu(norm(W1 norm(x))))));    x = x + attention(norm(x))

Two stages of inverted bottlenecks alone, with squeeze-and-excitation, come before two of such blocks. Attention is global. On
large maps ``windows`` restricts it, and needs no shifted ones: the convolutions lead across the borders.

The bias by relative position belongs to maps of 14 and 7 positions, those of 224 pixels, and is resampled for others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant
from cnnkit.errors import ConfigError
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.init import init_truncated
from cnnkit.layers.mbconv import PreNormMBConv
from cnnkit.layers.nd import batch_norm
from cnnkit.layers.relative_bias import RelativeAttention
from cnnkit.layers.same import padded_conv
from cnnkit.layers.window import in_windows

NORM_EPS = 1e-3


class MOATBlock(nn.Module):
    """An inverted bottleneck, then attention.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, channels, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the depthwise convolution.
        dims: Number of spatial dimensions.
        head_dim: Channels of one attention head.
        positions: Side of the map that the table of relative positions is made for; 0 leaves out the bias.
        window: Side of the windows within which tokens attend; 0 for the whole map.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        dims: int = 2,
        head_dim: int = 32,
        positions: int = 14,
        window: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.window = window
        self.conv = PreNormMBConv(in_channels, channels, dims=dims, stride=stride, se_ratio=0.0, norm_eps=NORM_EPS, drop_path=drop_path)
        self.norm = nn.LayerNorm(channels)
        self.attn = RelativeAttention(channels, heads=channels // head_dim, window=(positions,) * dims if positions else None)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = self.conv(x).movedim(1, -1)
        window = (self.window,) * (x.ndim - 2) if self.window else x.shape[1:-1]
        return (x + self.drop_path(in_windows(self.norm(x), window, False, self.attend))).movedim(-1, 1)

    def attend(self, windows: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
        """Attend within windows ``(B, *grid, N, channels)``, which are not shifted."""
        return self.attn(windows.flatten(0, -3), window=window).reshape(windows.shape)


class MOATStem(nn.Sequential):
    """Two 3x3 convolutions, the first with stride 2 and normalised."""

    def __init__(self, in_chans: int, channels: int, *, dims: int) -> None:
        super().__init__()
        self.add_module("conv1", padded_conv(in_chans, channels, 3, dims=dims, stride=2, bias=True, padding="same"))
        self.add_module("norm1", batch_norm(dims)(channels, eps=NORM_EPS))
        self.add_module("act", nn.GELU())
        self.add_module("conv2", padded_conv(channels, channels, 3, dims=dims, bias=True))


_AVERAGE = "/ExponentialMovingAverage"
_PLACES = {
    # The names of the paper's own code, of layers and of blocks' parts.
    "stem/conv_0": "stem.conv1",
    "stem/norm_0": "stem.norm1",
    "stem/conv_1": "stem.conv2",
    "final_layer_norm": "norm",
    "logits_head": "fc",
    "shortcut_conv": "shortcut.expand",
    "pre_norm": "pre_norm",
    "expand_conv": "conv1_1x1",
    "expand_norm": "norm1",
    "depthwise_conv": "conv2_kxk",
    "depthwise_norm": "norm2",
    "se/reduce_conv2d": "se.fc1",
    "se/expand_conv2d": "se.fc2",
    "shrink_conv": "conv3_1x1",
}
_LEAVES = {
    **{"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"},
    **{"kernel": "weight", "depthwise_kernel": "weight", "weight": "weight", "bias": "bias"},
}


def _is_official(present: Collection[str]) -> bool:
    return any(key.startswith("moat/block_00_00/") for key in present)


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The variables of the paper's TensorFlow code under their names there; averages over the training go before the last values."""
    state = {key.removesuffix(":0"): value for key, value in state.items()}
    state |= {key.removesuffix(_AVERAGE): value for key, value in state.items() if key.endswith(_AVERAGE)}
    attends = {key.partition("/attention/")[0] for key in state if "/attention/" in key}
    converted: dict[str, Tensor] = {}
    maps: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        found = re.fullmatch(r"(moat(?:/block_(\d+)_(\d+))?)/(.+)/(\w+)", key)
        if not found:  # What the optimiser kept.
            continue
        block = f"stages.{int(found[2])}.{int(found[3])}." if found[2] else ""
        place, leaf = found[4], found[5]
        if leaf == "relative_position_embedding":
            converted[f"{block}attn.rel_pos.relative_position_bias_table"] = value
        elif leaf not in _LEAVES:
            continue
        elif place.startswith("attention/"):
            maps.setdefault(block, {})[f"{place[-1]}.{leaf}"] = value
        elif place == "attention_norm":
            converted[f"{block}norm.{_LEAVES[leaf]}"] = value
        else:
            if leaf == "kernel":
                value = value.permute(3, 2, 0, 1)
            elif leaf == "depthwise_kernel":
                value = value.permute(2, 3, 0, 1)
            if place == "logits_head":
                value = value.flatten(1) if value.ndim > 1 else value
            inner = "conv." if found[1] in attends else ""
            converted[f"{block}{inner}{_PLACES[place]}.{_LEAVES[leaf]}"] = value
    for block, parts in maps.items():
        width = parts["o.bias"].shape[0]
        converted[f"{block}attn.qkv.weight"] = torch.cat([parts[f"{name}.weight"].flatten(1).T for name in "qkv"])
        converted[f"{block}attn.qkv.bias"] = torch.cat([parts[f"{name}.bias"].flatten() for name in "qkv"])
        converted[f"{block}attn.proj.weight"] = parts["o.weight"].reshape(-1, width).T
        converted[f"{block}attn.proj.bias"] = parts["o.bias"]
    return converted


class MOAT(Backbone):
    """MOAT of any depth and width: two stages of inverted bottlenecks, two of MOAT blocks.

    Every input size is admitted; the sides of volumes are at least 17.

    Args:
        depths: Number of blocks of each of the four stages.
        widths: Channels of each stage.
        stem_width: Channels of the stem.
        head_dim: Channels of one attention head.
        positions: Sides of the maps that the tables of relative positions are made for, of the last two stages; 0 leaves them out.
        windows: Sides of the windows within which tokens attend, of the last two stages; 0 for the whole map. Zeros fill up
            windows that the map does not, and are attended to.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the head's normalisation.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If the arguments by stage differ in number from the stages, or a width is no multiple of ``head_dim``.
    """

    layouts = (Layout("official", _is_official, _from_official),)
    classifier = "fc"
    head_modules = ("norm", "fc")

    def __init__(
        self,
        *,
        depths: Sequence[int] = (2, 3, 7, 2),
        widths: Sequence[int] = (96, 192, 384, 768),
        stem_width: int = 64,
        head_dim: int = 32,
        positions: Sequence[int] = (14, 7),
        windows: Sequence[int] = (0, 0),
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not (len(depths) == len(widths) == 4 and len(positions) == len(windows) == 2):
            raise ConfigError("give four depths and widths, one per stage, and two positions and windows, of the last two stages")
        if any(width % head_dim for width in widths[2:]):
            raise ConfigError(f"head_dim={head_dim} does not divide the widths {tuple(widths[2:])} of the stages with attention")
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        if dims == 3:
            self.min_size = 17  # PyTorch's mean over cells of volumes needs one whole cell.
        self.stem = MOATStem(in_chans, stem_width, dims=dims)
        self.feature_info = FeatureInfo([{"num_chs": stem_width, "reduction": 2, "module": "stem"}])
        self.stages = nn.ModuleList()
        before = stem_width
        for index, (width, rates) in enumerate(zip(widths, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = nn.Sequential()
            for block, rate in enumerate(rates):
                words: dict[str, Any] = {"stride": 1 if block else 2, "dims": dims, "drop_path": rate}
                if index < 2:
                    blocks.append(PreNormMBConv(before, width, norm_eps=NORM_EPS, **words))
                else:
                    words |= {"head_dim": head_dim, "positions": positions[index - 2], "window": windows[index - 2]}
                    blocks.append(MOATBlock(before, width, **words))
                before = width
            self.stages.append(blocks)
            self.feature_info.append({"num_chs": width, "reduction": 4 * 2**index, "module": f"stages.{index}"})
        self.norm: nn.Module = nn.LayerNorm(before)
        self.fc = self.new_classifier(num_classes)
        self.apply(init_truncated)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the other layers are."""
        return super().new_classifier(num_classes).apply(init_truncated)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stem at half resolution and those of the stages."""
        self.check_size(x)
        levels = [self.stem(x)]
        for stage in self.stages:
            levels.append(self.run_blocks(stage, levels[-1]))
        return levels

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and normalise the last features, then classify them; see :meth:`Backbone.forward_head`."""
        x = self.head_drop(self.norm(self.global_pool(x)))
        return x if pre_logits else self.fc(x)


_SHALLOW, _MIDDLE, _DEEP = (2, 3, 7, 2), (2, 6, 14, 2), (2, 12, 28, 2)
_COUNT = "The paper does not say what it counts; the convolutions, linear maps and products of attention come to 1 to 5 % less."
_22K = "after pre-training on ImageNet-22k"


def _variant(depths: tuple[int, ...], width: int, stem: int, figures: Figures) -> Variant:
    return Variant({"depths": depths, "widths": tuple(width * 2**stage for stage in range(4)), "stem_width": stem}, figures)


# Figures as the documentation of the paper's own code prints them.
FAMILY = Family(
    name="moat",
    cls=MOAT,
    small=(
        "tiny_moat_0",
        {"depths": (1, 2, 1, 1), "widths": (8, 12, 16, 24), "stem_width": 8, "head_dim": 8, "positions": (3, 2), "windows": (2, 0)},
    ),
    paper="moat",
    summary="Blocks of an inverted bottleneck and attention (Yang et al., 2023).",
    variants={
        "moat_0": _variant(_SHALLOW, 96, 64, Figures(params_m=27.8, gmacs=5.7, counted_gmacs=5.64, note=_COUNT, quality="83.3 top-1")),
        "moat_1": _variant(_MIDDLE, 96, 64, Figures(params_m=41.6, gmacs=9.1, counted_gmacs=9.0, note=_COUNT, quality="84.2 top-1")),
        "moat_2": _variant(
            _MIDDLE,
            128,
            128,
            Figures(params_m=73.4, gmacs=54.3, counted_gmacs=53.3, note=_COUNT, input_size=384, quality=f"87.5 top-1 {_22K}"),
        ),
        "moat_3": _variant(
            _DEEP,
            160,
            160,
            Figures(params_m=190.0, gmacs=271.0, counted_gmacs=263.4, note=_COUNT, input_size=512, quality=f"88.4 top-1 {_22K}"),
        ),
        "moat_4": _variant(
            _DEEP,
            256,
            256,
            Figures(params_m=483.2, gmacs=648.5, counted_gmacs=636.3, note=_COUNT, input_size=512, quality=f"89.1 top-1 {_22K}"),
        ),
        "tiny_moat_0": _variant(
            _SHALLOW, 32, 32, Figures(params_m=3.4, gmacs=1.1, counted_gmacs=1.04, note=_COUNT, input_size=256, quality="76.6 top-1")
        ),
        "tiny_moat_1": _variant(_SHALLOW, 40, 40, Figures(params_m=5.1, gmacs=1.6, input_size=256, quality="79.2 top-1")),
        "tiny_moat_2": _variant(_SHALLOW, 56, 56, Figures(params_m=9.8, gmacs=3.0, input_size=256, quality="81.7 top-1")),
        "tiny_moat_3": _variant(
            _SHALLOW, 80, 80, Figures(params_m=19.5, gmacs=6.0, counted_gmacs=5.90, note=_COUNT, input_size=256, quality="83.3 top-1")
        ),
    },
)

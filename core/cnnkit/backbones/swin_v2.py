"""Swin Transformer V2: Liu et al. (2022), "Swin Transformer V2: Scaling Up Capacity and Resolution".

Attention within windows of a grid, which every other block shifts by half a window (Swin: Liu et al., 2021), in a form that
stays stable at three billion parameters and whose positions hold for other windows than those of the training::

    x = x + norm(attention(x));    x = x + norm(mlp(x))
    attention = softmax(cos(q, k) / tau + B) v,    B(d) = 16 sigmoid(MLP(sign(d) log2(1 + 8 |d|) / log2(8)))

Normalising what a branch returns, not what it takes, keeps the sums from growing with depth; the cosine keeps single logits from
ruling. ``tau``, of at least 0.01, is learnt per head. ``d`` is the distance of query and key along each axis in units of the window
that was trained, so that :meth:`SwinV2.resize_window` needs no new parameters, and distances that both windows have keep their bias.

The paper's pre-training is :class:`cnnkit.layers.simmim.SimMIM`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.errors import ConfigError
from cnnkit.layers.cosine_attention import CosineAttention
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.init import init_truncated
from cnnkit.layers.mlp import Mlp
from cnnkit.layers.nd import conv
from cnnkit.layers.window import in_windows, pad_to_multiple


class SwinV2Block(nn.Module):
    """Attention in windows and a perceptron, each normalised after and added to its input.

    Shapes:
        x: ``(B, *spatial, channels)``; the result has the same shape.

    Args:
        channels: Features of a token.
        heads: Attention heads.
        window: Side of a window.
        trained: Side of the window that the weights were trained with.
        shifted: Whether windows are shifted by half their side.
        dims: Number of spatial dimensions.
        mlp_ratio: Hidden width of the perceptron by ``channels``.
        extra_norm: Normalise also the sum.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        window: int,
        trained: int,
        shifted: bool,
        dims: int = 2,
        mlp_ratio: float = 4.0,
        extra_norm: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.shifted = shifted
        self.attn = CosineAttention(channels, heads=heads, window=window, trained=trained, dims=dims)
        self.norm1 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels) if extra_norm else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.drop_path(self.norm1(in_windows(x, self.attn.window, self.shifted, self.attn)))
        return self.norm3(x + self.drop_path(self.norm2(self.mlp(x))))


class PatchEmbedding(nn.Module):
    """A linear map of every patch, normalised; an incomplete patch is filled up with zeros.

    Shapes:
        x: ``(B, in_chans, *spatial)``; the result is ``(B, *ceil(spatial / patch_size), channels)``.
    """

    def __init__(self, in_chans: int, channels: int, *, patch_size: int, dims: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = conv(dims)(in_chans, channels, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the grid of tokens, channels last."""
        x = pad_to_multiple(x, [self.patch_size] * (x.ndim - 2), first=2)
        return self.norm(self.proj(x).movedim(1, -1))


class PatchMerging(nn.Module):
    """Join ``2^dims`` neighbours and project them; an odd side is filled up with zeros.

    Shapes:
        x: ``(B, *spatial, channels)``; the result is ``(B, *ceil(spatial / 2), out_channels)``.
    """

    def __init__(self, channels: int, out_channels: int, *, dims: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(2**dims * channels, out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the grid."""
        dims = x.ndim - 2
        x = pad_to_multiple(x, [2] * dims, first=1)
        x = x.reshape(x.shape[0], *(part for side in x.shape[1:-1] for part in (side // 2, 2)), x.shape[-1])
        # Of the neighbours, the first axis counts fastest.
        x = x.permute(0, *range(1, 2 * dims, 2), *range(2 * dims, 0, -2), 2 * dims + 1)
        return self.norm(self.reduction(x.flatten(dims + 1)))


class SwinV2Stage(nn.Module):
    """Merging where it is due, then blocks."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)


_DERIVED = re.compile(r"\.(relative_coords_table|relative_position_index|attn_mask)$")


def _without_derived(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not _DERIVED.search(key)}


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: merging at the end of a stage, not at the start of the next."""
    state = {
        re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.", key): value
        for key, value in _without_derived(state).items()
    }
    return rename_keys(state, ((r"^head\.", "head.fc."),))


def _from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of torchvision: one list in which stages (odd) and merging (even) take turns; one bias for the three maps."""
    renamed: dict[str, Tensor] = {}
    for key, value in _without_derived(state).items():
        parts = key.split(".")
        if parts[0] == "features" and parts[1] != "0":
            stage, is_merging = divmod(int(parts[1]) - 1, 2)
            parts[:2] = ["layers", str(stage + is_merging), "downsample" if is_merging else "blocks"]
        key = ".".join(parts)
        if key.endswith(".qkv.bias"):
            query, _, values = value.chunk(3)
            renamed |= {key.replace("qkv.bias", "q_bias"): query, key.replace("qkv.bias", "v_bias"): values}
        else:
            renamed[key] = value
    return rename_keys(
        renamed,
        (
            (r"^features\.0\.0\.", "patch_embed.proj."),
            (r"^features\.0\.2\.", "patch_embed.norm."),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
            (r"^head\.", "head.fc."),
        ),
    )


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of transformers: three maps in place of one, merging at the end of a stage."""
    renamed = rename_keys(
        _without_derived(state),
        (
            (r"^swinv2\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^swinv2\.embeddings\.norm\.", "patch_embed.norm."),
            (r"^swinv2\.layernorm\.", "norm."),
            (r"^swinv2\.encoder\.", ""),
            (r"\.attention\.self\.continuous_position_bias_mlp\.", ".attn.cpb_mlp."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.attention\.self\.query\.bias$", ".attn.q_bias"),
            (r"\.attention\.self\.value\.bias$", ".attn.v_bias"),
            (r"\.attention\.self\.", ".attn."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
            (r"^classifier\.", "head."),
        ),
    )
    for key in [key for key in renamed if key.endswith(".attn.query.weight")]:
        maps = [renamed.pop(key.replace("query", name)) for name in ("query", "key", "value")]
        renamed[key.replace("query", "qkv")] = torch.cat(maps)
    return _from_official(renamed)


class SwinV2(Backbone):
    """Swin Transformer V2 of any depth and width.

    Every input size is admitted. A window is never larger than the map, and what does not fill the last windows is padded.

    Args:
        depths: Number of blocks of each stage.
        width: Features of a token in the first stage; every further stage has twice as many.
        heads: Attention heads by stage.
        windows: Sides of the windows by stage; those of the named variants are the map's, where it is smaller than the window.
        trained_windows: Sides of the windows that the weights were trained with, by stage; by default ``windows``.
        patch_size: Side of a patch.
        mlp_ratio: Hidden width of the perceptrons by the stage's width.
        extra_norm_every: Normalise the sum after every so many blocks of a stage, which the largest models need; 0 for never.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If the arguments by stage differ in length.
    """

    layouts = (
        Layout("timm", has_keys("head.fc.weight", "layers.0.blocks.0.attn.relative_coords_table"), _without_derived),
        Layout("official", has_keys("layers.0.downsample.reduction.weight"), _from_official),
        Layout("torchvision", has_keys("features.0.0.weight", "features.1.0.attn.logit_scale"), _from_torchvision),
        Layout("transformers", has_keys("swinv2.embeddings.patch_embeddings.projection.weight"), _from_transformers),
    )
    classifier = "head.fc"
    head_modules = ("norm", "head")

    def __init__(
        self,
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        width: int = 96,
        heads: Sequence[int] = (3, 6, 12, 24),
        windows: Sequence[int] = (8, 8, 8, 8),
        trained_windows: Sequence[int] | None = None,
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        extra_norm_every: int = 0,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        trained_windows = windows if trained_windows is None else trained_windows
        if not len(depths) == len(heads) == len(windows) == len(trained_windows):
            raise ConfigError("depths, heads, windows and trained_windows need one number per stage, and equally many")
        super().__init__(
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            num_features=width * 2 ** (len(depths) - 1),
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        self.patch_embed = PatchEmbedding(in_chans, width, patch_size=patch_size, dims=dims)
        self.layers = nn.ModuleList()
        self.feature_info = FeatureInfo()
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            channels = width * 2**index
            blocks = [
                SwinV2Block(
                    channels,
                    heads=heads[index],
                    window=windows[index],
                    trained=trained_windows[index],
                    shifted=block % 2 == 1,
                    dims=dims,
                    mlp_ratio=mlp_ratio,
                    extra_norm=extra_norm_every > 0 and (block + 1) % extra_norm_every == 0,
                    drop_path=rate,
                )
                for block, rate in enumerate(rates)
            ]
            self.layers.append(SwinV2Stage(PatchMerging(channels // 2, channels, dims=dims) if index else nn.Identity(), blocks))
            self.feature_info.append({"num_chs": channels, "reduction": patch_size * 2**index, "module": f"layers.{index}"})
        self.norm: nn.Module = nn.LayerNorm(self.num_features)
        self.head: nn.Module = nn.Sequential()
        self.head.add_module("fc", self.new_classifier(num_classes))
        self.apply(_init)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the other linear layers are."""
        return super().new_classifier(num_classes).apply(init_truncated)

    def resize_window(self, windows: int | Sequence[int]) -> None:
        """Give the attention larger or smaller windows; biases at distances that both have stay the same.

        Args:
            windows: One side for all stages, or one per stage.

        Raises:
            ConfigError: If their number is not that of the stages.
        """
        sides = [windows] * len(self.layers) if isinstance(windows, int) else list(windows)
        if len(sides) != len(self.layers):
            raise ConfigError(f"windows has {len(sides)} sides and the model {len(self.layers)} stages; give one side, or one per stage")
        for stage, side in zip(self.layers, sides, strict=True):
            for module in stage.modules():
                if isinstance(module, CosineAttention):
                    module.resize_window(side)

    def run_stages(self, x: Tensor) -> list[Tensor]:
        """Return the grids of the stages, channels last, from that of the embedded patches."""
        grids = []
        for stage in self.layers:
            if isinstance(stage, SwinV2Stage):
                x = self.run_blocks(stage.blocks, stage.downsample(x))
            grids.append(x)
        return grids

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stages."""
        return [grid.movedim(-1, 1) for grid in self.run_stages(self.patch_embed(x))]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised features of the last stage, ``(B, num_features, *spatial)``."""
        return self.norm(self.run_stages(self.patch_embed(x))[-1]).movedim(-1, 1)


def _init(module: nn.Module) -> None:
    """The initialisation of the paper's code: truncated normals, convolutions as PyTorch's, and branches that start at zero."""
    if isinstance(module, nn.Linear):
        init_truncated(module)
    elif isinstance(module, SwinV2Block):
        for norm in (module.norm1, module.norm2):
            nn.init.zeros_(norm.weight)


_COUNT = "The paper's code leaves out the perceptron of the position biases."
_22K = "after pre-training on ImageNet-22k"
_SIZES = {
    "tiny": {"depths": (2, 2, 6, 2), "width": 96, "heads": (3, 6, 12, 24)},
    "small": {"depths": (2, 2, 18, 2), "width": 96, "heads": (3, 6, 12, 24)},
    "base": {"depths": (2, 2, 18, 2), "width": 128, "heads": (4, 8, 16, 32)},
    "large": {"depths": (2, 2, 18, 2), "width": 192, "heads": (6, 12, 24, 48)},
    "huge": {"depths": (2, 2, 18, 2), "width": 352, "heads": (8, 16, 32, 64), "extra_norm_every": 6},
    "giant": {"depths": (2, 2, 42, 4), "width": 512, "heads": (16, 32, 64, 128), "extra_norm_every": 6},
}


def _variant(
    size: str, window: int, input_size: int, params: float, gmacs: float | None = None, counted: float | None = None, quality: str = ""
) -> Variant:
    args = {**_SIZES[size], "windows": tuple(min(window, input_size // reduction) for reduction in (4, 8, 16, 32))}
    if quality.endswith(_22K):
        args["trained_windows"] = (12, 12, 12, 6)
    note = _COUNT if counted else ""
    return Variant(args, Figures(params_m=params, gmacs=gmacs, counted_gmacs=counted, input_size=input_size, quality=quality, note=note))


# Figures as the documentation of the paper's own code prints them.
FAMILY = Family(
    name="swin_v2",
    cls=SwinV2,
    small=("swinv2_tiny_window8_256", {"depths": (1, 2), "width": 32, "heads": (4, 8), "windows": (4, 3), "extra_norm_every": 2}),
    small_size=32,
    paper="swin-v2",
    summary="Shifted windows with cosine attention, normalised branches and continuous positions (Liu et al., 2022).",
    variants={
        "swinv2_tiny_window8_256": _variant("tiny", 8, 256, 28, 5.9, quality="81.8 top-1"),
        "swinv2_tiny_window16_256": _variant("tiny", 16, 256, 28, 6.6, 6.66, "82.8 top-1"),
        "swinv2_small_window8_256": _variant("small", 8, 256, 50, 11.5, quality="83.7 top-1"),
        "swinv2_small_window16_256": _variant("small", 16, 256, 50, 12.6, 12.78, "84.1 top-1"),
        "swinv2_base_window8_256": _variant("base", 8, 256, 88, 20.3, quality="84.2 top-1"),
        "swinv2_base_window16_256": _variant("base", 16, 256, 88, 21.8, 21.97, "84.6 top-1"),
        "swinv2_base_window12_192": _variant("base", 12, 192, 88),
        "swinv2_base_window12to16_192to256": _variant("base", 16, 256, 88, 21.8, 21.97, f"86.2 top-1 {_22K}"),
        "swinv2_base_window12to24_192to384": _variant("base", 24, 384, 88, 54.7, 55.1, f"87.1 top-1 {_22K}"),
        "swinv2_large_window12_192": _variant("large", 12, 192, 197),
        "swinv2_large_window12to16_192to256": _variant("large", 16, 256, 197, 47.5, 47.7, f"86.9 top-1 {_22K}"),
        "swinv2_large_window12to24_192to384": _variant("large", 24, 384, 197, 115.4, 116.0, f"87.6 top-1 {_22K}"),
        "swinv2_huge_window12_192": _variant("huge", 12, 192, 658),
        "swinv2_giant_window12_192": Variant(
            _variant("giant", 12, 192, 3000).args,
            Figures(params_m=3000, counted_params_m=3001.94, input_size=192, note="The paper prints 3.0 billion."),
        ),
    },
)

"""IdentityFormer, RandFormer, PoolFormerV2, ConvFormer and CAFormer: Yu et al. (2024), "MetaFormer Baselines for Vision".

One skeleton with the simplest mixers of positions: none, a random matrix, a mean over neighbours, a separable
convolution; CAFormer has convolutions in its first two stages and attention in the last two. With ``relu(x)^2``
as activation, learnt in scale and shift, and a scale per channel on the shortcuts of the last two stages::

    y = s1 * x + mixer(norm(x));    z = s2 * y + W2 star_relu(W1 norm(y)),    star_relu(x) = a relu(x)^2 + b

Normalisations and maps have no bias. Convolution and attention follow a normalisation over the channels of each
position, the simpler mixers one over a whole map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from cnnkit.backbones._base import Family, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.backbones._metaformer import MetaFormer, MetaFormerBlock, MetaFormerHead, new_mixer
from cnnkit.layers.init import init_truncated
from cnnkit.layers.mlp import Mlp
from cnnkit.layers.mlp_head import MlpHead
from cnnkit.layers.norm import LayerNormNd


def _without_bias(norm: nn.Module) -> nn.Module:
    norm.register_parameter("bias", None)
    return norm


def _map_norm(channels: int) -> nn.Module:
    return _without_bias(nn.GroupNorm(1, channels, eps=1e-6))


def _channel_norm(channels: int) -> nn.Module:
    return _without_bias(LayerNormNd(channels))


def _token_norm(channels: int) -> nn.Module:
    return nn.LayerNorm(channels, eps=1e-6, bias=False)


NORMS: dict[str, Callable[[int], nn.Module]] = {"conv": _channel_norm, "attention": _token_norm}
"""The normalisation that belongs to a mixer, where it is not the one over a whole map."""


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: down-sampling in its own list, linear layers for what are 1x1 convolutions here."""
    attention = tuple(key.partition("token_mixer.qkv.")[0].split(".")[1] for key in state if ".0.token_mixer.qkv." in key)
    shaped = {}
    for key, value in state.items():
        inner = key.startswith("stages.") and (".mlp.fc" in key or ".pwconv" in key) and key.endswith(".weight")
        shaped[key] = value[:, :, None, None] if inner and key.split(".")[1] not in attention else value
    return rename_keys(
        shaped,
        (
            (r"^(stages\.\d+)\.(\d+)\.", r"\1.blocks.\2."),
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
            (r"\.(pre|post)_norm\.", ".norm."),
            (r"^stem\.post_norm\.", "stem.norm."),
            (r"^head\.", "head.fc."),
            (r"^norm\.", "head.norm."),
        ),
    )


class MetaFormerBaseline(MetaFormer):
    """Any of the five, of any depth and width.

    Args:
        depths: Number of blocks of each stage.
        widths: Channels of each stage.
        mixers: Token mixer of each stage: ``"identity"``, ``"random"``, ``"pool"``, ``"conv"``, ``"attention"`` or ``"spatial"``.
        layer_scale: Start of each branch's scale; ``None`` leaves it out.
        res_scale: Start of each shortcut's scale, for each stage; ``None`` leaves it out.
        mlp_head: Whether the classifier has a hidden layer, four times as wide as the features.
        img_size: Size of the input, one or one per dimension; only ``"random"`` and ``"spatial"`` read it.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out, with its hidden layer.
        global_pool: Pooling before the head's normalisation.
        drop_rate: Dropout before the last layer.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If the stages' settings differ in number, or a mixer is unknown.
    """

    layouts = (Layout("timm"), Layout("official", has_keys("downsample_layers.0.conv.weight"), _from_official))

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (64, 128, 320, 512),
        mixers: Sequence[str] = ("conv", "conv", "attention", "attention"),
        layer_scale: float | None = None,
        res_scale: Sequence[float | None] = (None, None, 1.0, 1.0),
        mlp_head: bool = True,
        img_size: int | Sequence[int] = 224,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        def new_block(stage: int, size: Sequence[int], drop_path: float) -> nn.Module:
            width, trailing = widths[stage], 0 if mixers[stage] == "attention" else dims
            return MetaFormerBlock(
                width,
                mixer=new_mixer(mixers[stage], width, size, axis=1 if trailing else -1),
                mlp=Mlp(width, 4 * width, dims=trailing, act="star_relu", bias=False),
                norm=NORMS.get(mixers[stage], _map_norm),
                trailing=trailing,
                layer_scale=layer_scale,
                res_scale=res_scale[stage],
                drop_path=drop_path,
            )

        # Before the parent builds the classifier, which depends on them.
        self.mlp_head = mlp_head
        self.mlp_drop = drop_rate
        super().__init__(
            depths=depths,
            widths=widths,
            mixers=mixers,
            channels_last=[name == "attention" for name in mixers],
            img_size=img_size,
            new_block=new_block,
            down_norm=_channel_norm,
            head_norm=LayerNormNd(widths[-1]),
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=0.0 if mlp_head else drop_rate,
            drop_path_rate=drop_path_rate,
        )

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh linear layer, or a network with one hidden layer."""
        if not (self.mlp_head and num_classes):
            return super().new_classifier(num_classes)
        width = self.num_features
        head = MlpHead(width, num_classes, hidden=4 * width, act="squared_relu", eps=1e-5, drop=self.mlp_drop)
        return head.apply(init_truncated)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and normalise the last features, then classify them; see :meth:`Backbone.forward_head`."""
        x = self.global_pool(x)
        if isinstance(self.head, MetaFormerHead):
            x = self.head.norm(x)
        x = self.head_drop(x)
        return x if pre_logits else self.get_classifier()(x)


def _simple(name: str, mixers: tuple[str, ...], gmacs: Sequence[float], quality: Sequence[str]) -> dict[str, Variant]:
    """Return the five sizes of a model with simple mixers."""
    small, middle = (64, 128, 320, 512), (96, 192, 384, 768)
    sizes = {
        "s12": ((2, 2, 6, 2), small, 11.9),
        "s24": ((4, 4, 12, 4), small, 21.3),
        "s36": ((6, 6, 18, 6), small, 30.8),
        "m36": ((6, 6, 18, 6), middle, 56.1),
        "m48": ((8, 8, 24, 8), middle, 73.3),
    }
    variants = {}
    for (size, (depths, widths, params)), macs, top in zip(sizes.items(), gmacs, quality, strict=True):
        args = {"depths": depths, "widths": widths, "mixers": mixers, "mlp_head": False}
        variants[f"{name}_{size}"] = Variant(args, Figures(params_m=params, gmacs=macs, quality=f"{top} top-1"))
    return variants


def _strong(
    name: str, mixers: tuple[str, ...], params: Sequence[float], gmacs: Sequence[float], quality: Sequence[str]
) -> dict[str, Variant]:
    """Return the four sizes of a model with convolutions or attention."""
    deep = (3, 12, 18, 3)
    sizes = {
        "s18": ((3, 3, 9, 3), (64, 128, 320, 512)),
        "s36": (deep, (64, 128, 320, 512)),
        "m36": (deep, (96, 192, 384, 576)),
        "b36": (deep, (128, 256, 512, 768)),
    }
    variants = {}
    for (size, (depths, widths)), millions, macs, top in zip(sizes.items(), params, gmacs, quality, strict=True):
        args = {"depths": depths, "widths": widths, "mixers": mixers}
        variants[f"{name}_{size}"] = Variant(args, Figures(params_m=millions, gmacs=macs, quality=f"{top} top-1"))
    return variants


# Figures of the official code's documentation. The random matrices are frozen: it counts them apart, and they are no parameters here.
FAMILY = Family(
    name="metaformer_baselines",
    cls=MetaFormerBaseline,
    small=(
        "caformer_s18",
        {"depths": (1, 1, 1, 1), "widths": (16, 24, 32, 48), "mixers": ("pool", "conv", "random", "attention"), "img_size": 64},
    ),
    paper="metaformer-baselines",
    summary="A transformer's skeleton with common token mixers and StarReLU (Yu et al., 2024).",
    variants={
        **_simple("identityformer", ("identity",) * 4, (1.8, 3.4, 5.0, 8.8, 11.5), ("74.6", "78.2", "79.3", "80.0", "80.4")),
        **_simple(
            "randformer",
            ("identity", "identity", "random", "random"),
            (1.9, 3.5, 5.2, 9.0, 11.9),
            ("76.6", "78.2", "79.5", "81.2", "81.4"),
        ),
        **_simple("poolformerv2", ("pool",) * 4, (1.8, 3.4, 5.0, 8.8, 11.5), ("78.0", "80.7", "81.6", "82.2", "82.6")),
        **_strong("convformer", ("conv",) * 4, (27, 40, 57, 100), (3.9, 7.6, 12.8, 22.6), ("83.0", "84.1", "84.5", "84.8")),
        **_strong(
            "caformer",
            ("conv", "conv", "attention", "attention"),
            (26, 39, 56, 99),
            (4.1, 8.0, 13.2, 23.2),
            ("83.6", "84.5", "85.2", "85.5"),
        ),
    },
)

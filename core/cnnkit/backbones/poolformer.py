"""PoolFormer: Yu, Luo, Zhou, Si, Zhou, Wang, Feng and Yan (2022), "MetaFormer Is Actually What You Need for Vision".

What makes transformers good is their skeleton, the MetaFormer, more than attention: PoolFormer keeps the skeleton
and mixes positions by nothing but a mean over 3 x 3 of them::

    y = x + g1 * (mean3(n) - n),    n = norm(x)
    z = y + g2 * W2 gelu(W1 norm(y))

``norm`` takes mean and variance of a whole map (one group); ``g1`` and ``g2`` are scales per channel that start near 0.
The mixer of every stage can be another one, as in the paper's ablations: ``create_model("poolformer_s12",
mixers=("pool", "pool", "pool", "attention"))``.

The paper normalises the last map and then pools it, which is what its weights were trained with; timm pools first and
normalises the means over the channels, so its logits differ, and only they.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cnnkit.backbones._base import Family, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.backbones._metaformer import MetaFormer, MetaFormerBlock, MetaFormerHead, new_mixer
from cnnkit.layers.mlp import Mlp


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: one list in which stages (even) and down-sampling (odd) take turns."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "network":
            stage, is_downsample = divmod(int(parts[1]), 2)
            parts[:2] = ["stages", str(stage + is_downsample), "downsample" if is_downsample else "blocks"]
        renamed[".".join(parts)] = value
    return rename_keys(
        renamed,
        (
            (r"^patch_embed\.proj\.", "stem.conv."),
            (r"\.downsample\.proj\.", ".downsample.conv."),
            (r"\.layer_scale_(\d)$", r".layer_scale\1.scale"),
            (r"^head\.", "head.fc."),
            (r"^norm\.", "head.norm."),
        ),
    )


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of transformers: down-sampling layers, the stem among them, and stages in two lists."""
    return rename_keys(
        state,
        (
            (r"^poolformer\.encoder\.patch_embeddings\.0\.projection\.", "stem.conv."),
            (r"^poolformer\.encoder\.patch_embeddings\.(\d+)\.projection\.", r"stages.\1.downsample.conv."),
            (r"^poolformer\.encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
            (r"\.before_norm\.", ".norm1."),
            (r"\.after_norm\.", ".norm2."),
            (r"\.output\.conv(\d)\.", r".mlp.fc\1."),
            (r"\.layer_scale_(\d)$", r".layer_scale\1.scale"),
            (r"^norm\.", "head.norm."),
            (r"^classifier\.", "head.fc."),
        ),
    )


class PoolFormer(MetaFormer):
    """PoolFormer of any depth and width, and the paper's other MetaFormers.

    Args:
        depths: Number of blocks of each stage.
        widths: Channels of each stage.
        mixers: Token mixer of each stage: ``"pool"``, ``"identity"``, ``"random"``, ``"spatial"``, ``"conv"`` or ``"attention"``.
        layer_scale: Start of each branch's scale; ``None`` leaves it out.
        img_size: Size of the input, one or one per dimension; only ``"random"`` and ``"spatial"`` read it.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling after the head's normalisation.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If the stages' settings differ in number, or a mixer is unknown.
    """

    layouts = (
        Layout("timm"),
        Layout("official", has_keys("patch_embed.proj.weight"), _from_official),
        Layout("transformers", has_keys("poolformer.encoder.patch_embeddings.0.projection.weight"), _from_transformers),
    )

    def __init__(
        self,
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        widths: Sequence[int] = (64, 128, 320, 512),
        mixers: Sequence[str] = ("pool", "pool", "pool", "pool"),
        layer_scale: float | None = 1e-5,
        img_size: int | Sequence[int] = 224,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        def new_block(stage: int, size: Sequence[int], drop_path: float) -> nn.Module:
            width = widths[stage]
            mixer = new_mixer(mixers[stage], width, size)
            mlp = Mlp(width, 4 * width, dims=dims)
            return MetaFormerBlock(width, mixer=mixer, mlp=mlp, norm=_norm, trailing=dims, layer_scale=layer_scale, drop_path=drop_path)

        super().__init__(
            depths=depths,
            widths=widths,
            mixers=mixers,
            channels_last=(False,) * len(depths),
            img_size=img_size,
            new_block=new_block,
            down_norm=lambda channels: nn.Identity(),
            head_norm=_norm(widths[-1]),
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normalise and pool the last features, then classify them; see :meth:`Backbone.forward_head`."""
        if isinstance(self.head, MetaFormerHead):
            x = self.head.norm(x)
        return super().forward_head(x, pre_logits)


SMALL, MIDDLE = (64, 128, 320, 512), (96, 192, 384, 768)


def _variant(depths: tuple[int, ...], widths: tuple[int, ...], layer_scale: float, figures: Figures) -> Variant:
    return Variant({"depths": depths, "widths": widths, "layer_scale": layer_scale}, figures)


# Figures of the paper's Table 2.
FAMILY = Family(
    name="poolformer",
    cls=PoolFormer,
    small=("poolformer_s12", {"depths": (1, 1, 2, 1), "widths": (16, 24, 32, 48), "layer_scale": 0.1}),
    paper="poolformer",
    summary="A transformer's skeleton whose token mixer is a mean over neighbours (Yu et al., 2022).",
    variants={
        "poolformer_s12": _variant((2, 2, 6, 2), SMALL, 1e-5, Figures(params_m=11.9, gmacs=1.8, quality="77.2 top-1")),
        "poolformer_s24": _variant((4, 4, 12, 4), SMALL, 1e-5, Figures(params_m=21.4, gmacs=3.4, quality="80.3 top-1")),
        "poolformer_s36": _variant((6, 6, 18, 6), SMALL, 1e-6, Figures(params_m=30.9, gmacs=5.0, quality="81.4 top-1")),
        "poolformer_m36": _variant((6, 6, 18, 6), MIDDLE, 1e-6, Figures(params_m=56.2, gmacs=8.8, quality="82.1 top-1")),
        "poolformer_m48": _variant(
            (8, 8, 24, 8),
            MIDDLE,
            1e-6,
            Figures(
                params_m=73.5,
                gmacs=11.6,
                quality="82.5 top-1",
                counted_gmacs=11.5,
                note="the paper's counter adds 5 operations for every value that is normalised",
            ),
        ),
    },
)

"""ECA-Net: Wang, Wu, Zhu, Li, Zuo and Hu (2020), "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks".

A residual network that reweights each channel of a block's branch by its neighbours' global means
(:mod:`cnnkit.layers.eca`)::

    y = relu(x + s * F(x)),     s = sigmoid(conv_k(mean(F(x))))

Each block gains ``k`` parameters. The paper's models fix ``k`` for each stage; timm's take it from the number of channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cnnkit.backbones._base import Family, Figures, Layout, Variant, rename_keys
from cnnkit.backbones.resnet import ResNet
from cnnkit.errors import ConfigError
from cnnkit.layers.eca import EfficientChannelAttention


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: the attention is called by its name."""
    return rename_keys(state, ((r"\.eca\.conv\.", ".se.conv."),))


class ECAResNet(ResNet):
    """ResNet with efficient channel attention.

    Args:
        block: ``"basic"`` or ``"bottleneck"``.
        depths: Number of blocks of each stage.
        widths: Width of each stage's blocks.
        kernel_sizes: Neighbours that weigh a channel, for each stage; by default from the number of channels.
        stem: ``"conv"`` (7x7, stride 2), ``"deep"`` (three of 3x3, stride 2) or ``"small"`` (3x3, stride 1, no max pooling).
        shortcut: Where the shape changes: ``"conv"``, or ``"pool"`` to average before it.
        output_stride: Reduction of the last stage: 32, or 16 or 8 with dilation in place of stride.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If there is not one kernel size per stage, one is even, or a name is unknown.
    """

    layouts = (Layout("timm"), Layout("official", lambda keys: any(".eca.conv." in key for key in keys), _from_official))

    def __init__(
        self,
        *,
        block: str = "bottleneck",
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        kernel_sizes: Sequence[int] | None = None,
        stem: str = "conv",
        shortcut: str = "conv",
        output_stride: int = 32,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            block=block,
            depths=depths,
            widths=widths,
            attention="eca",
            stem=stem,
            shortcut=shortcut,
            output_stride=output_stride,
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        if kernel_sizes is None:
            return
        if len(kernel_sizes) != len(depths):
            raise ConfigError(f"kernel_sizes has {len(kernel_sizes)} entries and the network {len(depths)} stages; give one for each")
        for level, size in zip(self.feature_info[1:], kernel_sizes, strict=True):
            for position in range(len(self.get_submodule(level["module"]))):  # type: ignore[arg-type]
                self.set_submodule(f"{level['module']}.{position}.se", EfficientChannelAttention(level["num_chs"], kernel_size=size))


_UNITS = "The paper counts parameters in units of 2^20, and multiply-adds with a bottleneck's stride in its first 1x1 convolution."


def _paper(depths: tuple[int, ...], kernel_sizes: tuple[int, ...], figures: Figures) -> Variant:
    return Variant({"depths": depths, "kernel_sizes": kernel_sizes}, figures)


def _timm(depths: tuple[int, ...], **args: object) -> Variant:
    return Variant({"depths": depths, "shortcut": "pool", **args})


# Figures and kernel sizes of the table in the authors' repository.
FAMILY = Family(
    name="eca_resnet",
    cls=ECAResNet,
    small=("ecaresnet50", {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32), "kernel_sizes": (3, 5, 5, 7)}),
    paper="eca",
    summary="Residual network that reweights each channel by its neighbours' means (Wang et al., 2020).",
    variants={
        "ecaresnet18": Variant({"block": "basic", "depths": (2, 2, 2, 2), "kernel_sizes": (3, 3, 3, 3)}),
        "ecaresnet34": Variant({"block": "basic", "depths": (3, 4, 6, 3), "kernel_sizes": (3, 3, 3, 3)}),
        "ecaresnet50": _paper(
            (3, 4, 6, 3),
            (3, 5, 5, 7),
            Figures(params_m=24.37, counted_params_m=25.56, gmacs=3.86, counted_gmacs=4.09, note=_UNITS, quality="77.48 top-1"),
        ),
        "ecaresnet101": _paper(
            (3, 4, 23, 3),
            (3, 3, 5, 7),
            Figures(params_m=42.49, counted_params_m=44.55, gmacs=7.35, counted_gmacs=7.80, note=_UNITS, quality="78.65 top-1"),
        ),
        "ecaresnet152": _paper(
            (3, 8, 36, 3),
            (3, 3, 5, 7),
            Figures(params_m=57.41, counted_params_m=60.19, gmacs=10.83, counted_gmacs=11.51, note=_UNITS, quality="78.92 top-1"),
        ),
        "ecaresnetlight": _timm((1, 1, 11, 3)),
        "ecaresnet50d": _timm((3, 4, 6, 3), stem="deep"),
        "ecaresnet101d": _timm((3, 4, 23, 3), stem="deep"),
        "ecaresnet269d": _timm((3, 30, 48, 8), stem="deep"),
    },
)

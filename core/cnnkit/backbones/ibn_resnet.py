"""IBN-Net: Pan, Luo, Shi and Tang (2018), "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net".

Appearance (contrast, colour, style) shows in shallow features, content in deep ones. A residual network therefore removes
appearance where it is shallow, and nowhere else, by instance normalisation in one of two forms::

    a:  the first normalisation of a branch is IBN (half instance, half batch; see cnnkit.layers.ibn), in all stages but the last
    b:  y = relu(IN(x + F(x))) in the last block of the first two stages, and IN in the stem

Neither costs a parameter more than a convolution's usual normalisation: form a has exactly ResNet's number.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Family, Figures, Layout, Variant
from cnnkit.backbones.resnet import BasicBlock, Bottleneck, ResNet
from cnnkit.errors import ConfigError
from cnnkit.layers.ibn import InstanceBatchNorm
from cnnkit.layers.nd import instance_norm


def _is_official(keys: Collection[str]) -> bool:
    return any(key.endswith(".se.fc.0.weight") or re.match(r"layer\d\.\d+\.IN\.", key) for key in keys)


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: instance normalisation beside its block's activation, linear excitation without biases."""
    renamed = {}
    for key, value in state.items():
        if found := re.fullmatch(r"(.*\.se\.)fc\.([02])\.weight", key):
            layer = found[1] + ("fc1" if found[2] == "0" else "fc2")
            renamed[f"{layer}.weight"] = value[..., None, None]
            renamed[f"{layer}.bias"] = torch.zeros_like(value[:, 0])
        else:
            renamed[re.sub(r"^(layer\d\.\d+)\.IN\.", r"\1.act_out.IN.", key)] = value
    return renamed


class IBNResNet(ResNet):
    """ResNet or ResNeXt with instance normalisation at shallow depth.

    Args:
        ibn: For each stage ``"a"``, ``"b"`` or ``"none"``.
        block: ``"basic"`` or ``"bottleneck"``.
        depths: Number of blocks of each stage.
        widths: Width of each stage's blocks.
        inner_factor: Inner width of a bottleneck by its width.
        groups: Groups of a bottleneck's 3x3 convolution.
        attention: What reweights the features at the end of each block's branch: a name for
            :func:`~cnnkit.layers.recalibrate.get_recalibration`.
        output_stride: Reduction of the last stage: 32, or 16 or 8 with dilation in place of stride.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If ``ibn`` has another word, or not one for each stage.
    """

    layouts = (Layout("official", _is_official, _from_official),)

    def __init__(
        self,
        *,
        ibn: Sequence[str] = ("a", "a", "a", "none"),
        block: str = "bottleneck",
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        inner_factor: float = 1.0,
        groups: int = 1,
        attention: str = "none",
        output_stride: int = 32,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if len(ibn) != len(depths) or not set(ibn) <= {"a", "b", "none"}:
            raise ConfigError(f"ibn={tuple(ibn)!r} does not fit: give 'a', 'b' or 'none' for each of the {len(depths)} stages")
        super().__init__(
            block=block,
            depths=depths,
            widths=widths,
            inner_factor=inner_factor,
            groups=groups,
            attention=attention,
            output_stride=output_stride,
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        if ibn[0] == "b":
            self.bn1 = instance_norm(dims)(self.feature_info[0]["num_chs"], affine=True)
        for level, form in zip(self.feature_info[1:], ibn, strict=True):
            blocks = [module for module in self.get_submodule(level["module"]).children() if isinstance(module, (BasicBlock, Bottleneck))]
            if form == "a":
                for module in blocks:
                    first: Any = module.conv1
                    module.bn1 = InstanceBatchNorm(first.out_channels, dims=dims)
            if form == "b":
                norm = instance_norm(dims)(level["num_chs"], affine=True)
                blocks[-1].act_out = nn.Sequential(OrderedDict(IN=norm, act=nn.ReLU(inplace=True)))


_B = ("b", "b", "none", "none")


def _variant(depths: tuple[int, ...], quality: str = "", **args: object) -> Variant:
    return Variant({"depths": depths, **args}, Figures(quality=quality))


FAMILY = Family(
    name="ibn_resnet",
    cls=IBNResNet,
    small=("resnet50_ibn_a", {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32), "ibn": ("b", "a", "a", "none")}),
    paper="ibn-net",
    summary="Residual network with instance normalisation at shallow depth (Pan et al., 2018).",
    variants={
        "resnet18_ibn_a": _variant((2, 2, 2, 2), block="basic"),
        "resnet34_ibn_a": _variant((3, 4, 6, 3), block="basic"),
        "resnet50_ibn_a": Variant({}, Figures(params_m=25.56, quality="77.46 top-1")),
        "resnet101_ibn_a": _variant((3, 4, 23, 3), "78.61 top-1"),
        "resnet152_ibn_a": _variant((3, 8, 36, 3)),
        "resnet18_ibn_b": _variant((2, 2, 2, 2), block="basic", ibn=_B),
        "resnet34_ibn_b": _variant((3, 4, 6, 3), block="basic", ibn=_B),
        "resnet50_ibn_b": _variant((3, 4, 6, 3), ibn=_B),
        "resnet101_ibn_b": _variant((3, 4, 23, 3), ibn=_B),
        "resnet152_ibn_b": _variant((3, 8, 36, 3), ibn=_B),
        "resnext50_ibn_a": _variant((3, 4, 6, 3), inner_factor=2.0, groups=32),
        "resnext101_ibn_a": _variant((3, 4, 23, 3), "79.12 top-1", inner_factor=2.0, groups=32),
        "seresnet50_ibn_a": _variant((3, 4, 6, 3), attention="se"),
        "seresnet101_ibn_a": _variant((3, 4, 23, 3), "78.75 top-1", attention="se"),
    },
)

"""All-CNN: Springenberg, Dosovitskiy, Brox and Riedmiller (2015), "Striving for Simplicity: The All Convolutional Net".

Pooling is a convolution whose weights are fixed and whose activation is a p-norm; a convolution of the same stride can learn it. And a
fully connected layer is a 1x1 convolution and an average. What is left are convolutions and ReLU::

    maxpool3, stride 2   becomes   x <- relu(W3x3 * x) with stride 2;      logits = mean over positions of relu(W1x1 * x)

The paper asks which part of pooling matters. For each of its base models A, B and C (which have pooling) there are three others: the
convolution before the pooling is strided instead (``_strided``), the pooling is replaced by a strided convolution (All-CNN), or a
convolution is put before the pooling, which gives it the weights of All-CNN (``_conv_pool``).

The last 3x3 convolution is not padded: 32 pixels give levels of 32, 16 and 6. In the network for ImageNet only the strided
convolutions are not, and 224 pixels give 55, 27, 13 and 6. ``aligned=True`` pads all; weights fit both. Training used a dropout of 0.2
on the input and of 0.5 after what reduces the size, and no normalisation: mind the learning rate.

:func:`guided_gradient` is the paper's way to show what a unit sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Family, FeatureInfo, Figures, Variant
from cnnkit.backbones._chain import ChainNet
from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.nd import conv, max_pool


class Layer(NamedTuple):
    """A convolution of the paper's tables, or max pooling if the width is 0.

    Without a padding it is half the kernel; what reduces the size may be followed by dropout.
    """

    width: int
    kernel: int
    stride: int = 1
    padding: int | None = None
    drop: bool = False


GROUPS: dict[str, tuple[tuple[Layer, ...], ...]] = {
    "a": ((Layer(96, 5),), (Layer(192, 5),)),
    "b": ((Layer(96, 5), Layer(96, 1)), (Layer(192, 5), Layer(192, 1))),
    "c": ((Layer(96, 3), Layer(96, 3)), (Layer(192, 3), Layer(192, 3))),
}
"""The paper's Table 1: what each base model has before each of its two poolings."""

IMAGENET = (
    Layer(96, 11, 4, 2),
    Layer(96, 1),
    Layer(96, 3, 2, 0),
    Layer(256, 5),
    Layer(256, 1),
    Layer(256, 3, 2, 0),
    Layer(384, 3),
    Layer(384, 1),
    Layer(384, 3, 2, 0, True),
    Layer(1024, 3),
    Layer(1024, 1),
)
"""All-CNN-B upscaled, the paper's table in its appendix."""

REDUCTIONS = ("pool", "stride", "conv_pool", "conv")


def layers_of(base: str, reduction: str) -> list[Layer]:
    """Return the layers before the classifier.

    Args:
        base: ``"a"``, ``"b"`` or ``"c"`` of the paper's Table 1, or ``"imagenet"``.
        reduction: What halves the size: see :class:`AllCNN`.

    Raises:
        ConfigError: If there is no such network.
    """
    if base not in (*GROUPS, "imagenet"):
        raise ConfigError(unknown("base", base, (*GROUPS, "imagenet")))
    if reduction not in REDUCTIONS:
        raise ConfigError(unknown("reduction", reduction, REDUCTIONS))
    if base == "imagenet":
        if reduction != "conv":
            raise ConfigError(f"base='imagenet' has no pooling to begin with; reduction={reduction!r} is for 'a', 'b' and 'c'")
        return list(IMAGENET)
    layers: list[Layer] = []
    for group in GROUPS[base]:
        layers += group
        if reduction.startswith("conv"):
            layers.append(Layer(group[-1].width, 3))
        if reduction in ("conv", "stride"):
            layers[-1] = layers[-1]._replace(stride=2, drop=True)
        else:
            layers.append(Layer(0, 3, stride=2, drop=True))
    return [*layers, Layer(192, 3, padding=0), Layer(192, 1)]


class ConvLayer(nn.Module):
    """A convolution with bias, or max pooling, then ReLU and perhaps dropout.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *spatial)``, with the size that stride and padding leave.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; 0 for max pooling, which keeps them.
        spec: Kernel, stride and padding.
        dims: Number of spatial dimensions.
        drop_rate: Dropout at the end.
    """

    def __init__(self, in_channels: int, out_channels: int, spec: Layer, *, dims: int = 2, drop_rate: float = 0.0) -> None:
        super().__init__()
        padding = spec.kernel // 2 if spec.padding is None else spec.padding
        if spec.width:
            self.conv: nn.Module = conv(dims)(in_channels, out_channels, spec.kernel, stride=spec.stride, padding=padding)
            self.act: nn.Module = nn.ReLU(inplace=True)
        else:
            self.conv = max_pool(dims)(spec.kernel, stride=spec.stride, padding=padding)
            self.act = nn.Identity()
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self.drop(self.act(self.conv(x)))


class AllCNN(ChainNet):
    """A network of convolutions; the levels of its pyramid end where the size is reduced.

    The classifier is a 1x1 convolution, whose rectified results are pooled.

    Args:
        base: ``"a"``, ``"b"`` or ``"c"`` of the paper's Table 1, or ``"imagenet"``.
        reduction: What halves the size: ``"pool"`` as in the base models, ``"stride"`` of the convolution before, a convolution and a
            pooling (``"conv_pool"``), or a strided convolution (``"conv"``: All-CNN).
        width: Factor on all widths.
        aligned: Pad every convolution, so that the levels are the input's size over their reductions.
        input_drop_rate: Dropout on the input; the paper trains with 0.2.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling of the rectified class scores.
        drop_rate: Dropout after the pooling, or what is in its place; the paper trains with 0.5.

    Raises:
        ConfigError: If there is no such network.
    """

    classifier = "head"
    head_modules = ("head",)

    def __init__(
        self,
        *,
        base: str = "c",
        reduction: str = "conv",
        width: float = 1.0,
        aligned: bool = False,
        input_drop_rate: float = 0.0,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        specs = layers_of(base, reduction)
        widths = [round(spec.width * width) for spec in specs]
        super().__init__(dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool)
        if aligned:
            self.min_size = 2
        else:
            self.min_size, self.size_slack = (63, 1) if base == "imagenet" else (12, 2)
        self.input_drop = nn.Dropout(input_drop_rate)
        self.layers = nn.ModuleList()
        self.feature_info = FeatureInfo()
        channels, reduced = in_chans, 1
        for index, (spec, out_channels) in enumerate(zip(specs, widths, strict=True)):
            if spec.stride > 1 and index > 0:
                self._add_level(channels, reduced, index - 1)
            spec = spec._replace(padding=None) if aligned else spec
            self.layers.append(ConvLayer(channels, out_channels, spec, dims=dims, drop_rate=drop_rate if spec.drop else 0.0))
            channels, reduced = out_channels or channels, reduced * spec.stride
        self._add_level(channels, reduced, len(specs) - 1)
        self.chain = ["input_drop", *(f"layers.{index}" for index in range(len(specs)))]
        self.act = nn.ReLU()
        self.layers.apply(_init)
        self.head = self.new_classifier(num_classes)

    def _add_level(self, channels: int, reduction: int, index: int) -> None:
        self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"layers.{index}"})

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last convolution that starts with a score of about 1 everywhere: a class that is never positive cannot learn."""
        if not num_classes:
            return nn.Identity()
        head = conv(self.dims)(self.num_features, num_classes, 1)
        nn.init.normal_(head.weight, std=0.01)
        if head.bias is not None:
            nn.init.ones_(head.bias)
        return head

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify every position and pool what is positive; see :meth:`Backbone.forward_head`."""
        return self.global_pool(x if pre_logits else self.act(self.head(x)))


def _init(module: nn.Module) -> None:
    """Variance ``2 / fan_in`` (He et al., 2015), without which a chain of ReLU fades, and no bias."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def guided_gradient(model: nn.Module, x: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what in the input speaks for a score: guided backpropagation, of the same paper.

    It is the gradient, but every ReLU passes back only what is positive, besides what its own derivative passes, that is where its
    input was positive. So it shows the parts that excite a unit, without those that inhibit it::

        R_l = [x_l > 0] [R_{l+1} > 0] R_{l+1}

    Args:
        model: Any network whose rectifications are modules of the class ``nn.ReLU``; in evaluation mode, and unchanged afterwards.
        x: Its input.
        score: What is to be explained, a number per sample from the model's output, for example ``lambda logits: logits[:, 3]``.

    Returns:
        A tensor of the shape of ``x``.
    """

    def positive_only(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp(min=0))

    handles = [module.register_forward_hook(positive_only) for module in model.modules() if isinstance(module, nn.ReLU)]
    try:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(score(model(leaf)).sum(), leaf)
    finally:
        for handle in handles:
            handle.remove()
    return gradient


_TEN = "The paper prints approximations for 10 classes; the head has 1000 by default."
_TEN_C = "The paper prints 1.3 million, but its Table 1 gives 0.95 with 10 classes; the head has 1000 by default."


def _variant(base: str, reduction: str, params_m: float, counted: float, error: str, note: str = _TEN) -> Variant:
    figures = Figures(params_m=params_m, counted_params_m=counted, note=note, input_size=32, quality=f"{error} % error on CIFAR-10")
    return Variant({"base": base, "reduction": reduction}, figures)


# The paper's Table 3, without augmentation of the data.
FAMILY = Family(
    name="all_cnn",
    cls=AllCNN,
    paper="all-cnn",
    small=("all_cnn_b", {"width": 0.17}),
    small_size=32,
    summary="Convolutions alone, strided in place of pooling (Springenberg et al., 2015).",
    variants={
        "all_cnn_a": _variant("a", "conv", 1.28, 1.45, "10.30"),
        "all_cnn_a_base": _variant("a", "pool", 0.9, 1.03, "12.47"),
        "all_cnn_a_strided": _variant("a", "stride", 0.9, 1.03, "13.46"),
        "all_cnn_a_conv_pool": _variant("a", "conv_pool", 1.28, 1.45, "10.21"),
        "all_cnn_b": _variant("b", "conv", 1.35, 1.49, "9.10"),
        "all_cnn_b_base": _variant("b", "pool", 1, 1.08, "10.20"),
        "all_cnn_b_strided": _variant("b", "stride", 1, 1.08, "10.98"),
        "all_cnn_b_conv_pool": _variant("b", "conv_pool", 1.35, 1.49, "9.33"),
        "all_cnn_c": _variant("c", "conv", 1.4, 1.56, "9.08"),
        "all_cnn_c_base": _variant("c", "pool", 1.3, 1.15, "9.74", _TEN_C),
        "all_cnn_c_strided": _variant("c", "stride", 1.3, 1.15, "10.19", _TEN_C),
        "all_cnn_c_conv_pool": _variant("c", "conv_pool", 1.4, 1.56, "9.31"),
        "all_cnn_b_imagenet": Variant({"base": "imagenet"}, Figures(quality="41.2 % top-1 error, center crop")),
    },
)

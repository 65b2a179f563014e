"""VGG: Simonyan and Zisserman (2015), "Very Deep Convolutional Networks for Large-Scale Image Recognition".

Depth from small kernels: two 3x3 convolutions see what one of 5x5 sees, three what one of 7x7 sees, with fewer weights and a
nonlinearity after each::

    x <- relu(W3x3 * x)   several times,   x <- maxpool2(x)   five times;   then three fully connected layers

The paper's configurations A, A-LRN, B, C, D and E have 11, 11, 13, 16, 16 and 19 layers with weights; in C the last convolution of
the groups 3 to 5 is 1x1. Batch normalisation after each convolution is later practice, not the paper's.

The fully connected layers are convolutions, the first of 7x7 as the paper tests them: densely, at every position of a larger input,
and the results averaged. On 224 pixels there is one position, and they are the fully connected layers. Training used a dropout of
0.5 between them (``drop_rate``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.backbones._base import Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.backbones._chain import ChainNet
from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.nd import batch_norm, conv, max_pool

ADAPTIVE_AVG_POOL: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
NORMS = ("none", "batch", "local_response")


class DenseLayers(nn.Module):
    """The first two fully connected layers as convolutions: one result per position at which the first kernel fits.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, channels, *(spatial - kernel_size + 1))``. A side that is smaller than
        the kernel is first stretched to it.

    Args:
        in_channels: Channels of the features.
        channels: Width of both layers.
        kernel_size: Size of the features for which the first layer is a fully connected one.
        dims: Number of spatial dimensions.
        drop_rate: Dropout between the layers.
    """

    def __init__(self, in_channels: int, channels: int, *, kernel_size: int = 7, dims: int = 2, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.fc1 = conv(dims)(in_channels, channels, kernel_size)
        self.act1 = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = conv(dims)(channels, channels, 1)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers at every position."""
        size = [max(side, self.kernel_size) for side in x.shape[2:]]
        if size != list(x.shape[2:]):
            x = ADAPTIVE_AVG_POOL[len(size)](x, size)
        return self.act2(self.fc2(self.drop(self.act1(self.fc1(x)))))


class Classifier(nn.Module):
    """The last fully connected layer, under the name that timm gives it."""

    def __init__(self, fc: nn.Module) -> None:
        super().__init__()
        self.fc = fc


def _from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of torchvision: the fully connected layers are linear ones on the flattened features."""
    last = max((key for key in state if key.startswith("features.") and state[key].ndim == 4), key=lambda key: int(key.split(".")[1]))
    for name, channels in (("classifier.0.weight", state[last].shape[0]), ("classifier.3.weight", state["classifier.3.weight"].shape[1])):
        side = round((state[name].shape[1] / channels) ** 0.5)
        state[name] = state[name].reshape(-1, channels, side, side)
    return rename_keys(
        state, ((r"^classifier\.0\.", "pre_logits.fc1."), (r"^classifier\.3\.", "pre_logits.fc2."), (r"^classifier\.6\.", "head.fc."))
    )


class VGG(ChainNet):
    """VGG of any depth.

    The levels of the pyramid are those before each pooling, and the last one after it. With ``num_classes=0`` all fully connected
    layers are left out; the features before the last one are ``forward_head(features, pre_logits=True)`` of a classifier.

    Args:
        depths: Number of convolutions of each group.
        widths: Channels of each group.
        pointwise_from: The first group whose last convolution is 1x1; ``None`` for no such group.
        norm: After the convolutions: ``"none"``, ``"batch"``, or ``"local_response"`` after the first one alone (A-LRN).
        head_width: Channels of the first two fully connected layers.
        head_size: Side of the features that the fully connected layers see: 7 for inputs of 224.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling of the results over the positions.
        drop_rate: Dropout after the first two fully connected layers; the paper trains with 0.5.

    Raises:
        ConfigError: If the normalisation is unknown, or ``depths`` and ``widths`` differ in length.
    """

    layouts = (Layout("timm"), Layout("torchvision", has_keys("classifier.0.weight", "classifier.6.weight"), _from_torchvision))
    classifier = "head.fc"
    head_modules = ("pre_logits", "head")

    def __init__(
        self,
        *,
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        pointwise_from: int | None = None,
        norm: str = "none",
        head_width: int = 4096,
        head_size: int = 7,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        if norm not in NORMS:
            raise ConfigError(unknown("norm", norm, NORMS))
        if len(depths) != len(widths):
            raise ConfigError(f"depths has {len(depths)} groups and widths {len(widths)}; give one number of each per group")
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        self.min_size = 2 ** len(depths)
        self.head_width, self.head_size, self.drop_rate = head_width, head_size, drop_rate
        self.feature_info = FeatureInfo()
        layers: list[nn.Module] = []
        channels = in_chans
        for group, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for index in range(depth):
                pointwise = pointwise_from is not None and group >= pointwise_from and index == depth - 1
                kernel_size = 1 if pointwise else 3
                layers.append(conv(dims)(channels, width, kernel_size, padding=kernel_size // 2))
                if norm == "batch":
                    layers.append(batch_norm(dims)(width))
                layers.append(nn.ReLU(inplace=True))
                if norm == "local_response" and len(layers) == 2:
                    # The paper's 1e-4 multiplies the sum over the five channels, torch's alpha their mean.
                    layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
                channels = width
            self._add_level(layers, channels, 2**group)
            layers.append(max_pool(dims)(2))
        self._add_level(layers, channels, 2 ** len(depths))
        self.features = nn.Sequential(*layers)
        self.chain = [f"features.{index}" for index in range(len(layers))]
        self.pre_logits: nn.Module = nn.Identity()
        self._set_pre_logits(num_classes)
        self.head: nn.Module = Classifier(self.new_classifier(num_classes))
        self.apply(_init)

    def _add_level(self, layers: Sequence[nn.Module], channels: int, reduction: int) -> None:
        self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"features.{len(layers) - 1}"})

    def _set_pre_logits(self, num_classes: int) -> None:
        """Set the fully connected layers before the last one; without classes there are none."""
        if not num_classes:
            self.pre_logits = nn.Identity()
        elif not isinstance(self.pre_logits, DenseLayers):
            self.pre_logits = DenseLayers(
                self.num_features, self.head_width, kernel_size=self.head_size, dims=self.dims, drop_rate=self.drop_rate
            ).apply(_init)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the others are."""
        return (nn.Linear(self.head_width, num_classes) if num_classes else nn.Identity()).apply(_init)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer; without classes also the layers before it go. See :meth:`Backbone.reset_classifier`."""
        some = next(self.parameters())
        self._set_pre_logits(num_classes)
        self.pre_logits.to(device=some.device, dtype=some.dtype).train(self.training)
        super().reset_classifier(num_classes, global_pool)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Apply the fully connected layers at every position, and average before the last; see :meth:`Backbone.forward_head`."""
        return super().forward_head(self.pre_logits(x), pre_logits)


def _init(module: nn.Module) -> None:
    """Normal with variance ``2 / fan_out`` for convolutions (He et al., 2015), with deviation 0.01 for the last layer, and no bias."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)) and module.bias is not None:
        nn.init.zeros_(module.bias)


_A, _B, _D, _E = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
_BN = "VGG with batch normalisation after each convolution, which is later than the paper."

# Parameters of the paper's Table 2, errors of its Table 3 (one scale).
FAMILY = Family(
    name="vgg",
    cls=VGG,
    paper="vgg",
    small=("vgg16_bn", {"depths": (1, 1, 2, 2, 1), "widths": (8, 16, 24, 32, 48), "head_width": 64, "head_size": 2}),
    small_size=32,
    summary="Very deep convolutional networks of 3x3 convolutions (Simonyan and Zisserman, 2015).",
    variants={
        "vgg11": Variant({"depths": _A}, Figures(params_m=133, quality="29.6 % top-1 error")),
        "vgg11_lrn": Variant(
            {"depths": _A, "norm": "local_response"},
            Figures(params_m=133, quality="29.7 % top-1 error"),
            summary="VGG's configuration A-LRN, with a local response normalisation after the first convolution.",
        ),
        "vgg13": Variant({"depths": _B}, Figures(params_m=133, quality="28.7 % top-1 error")),
        "vgg16_pointwise": Variant(
            {"depths": _D, "pointwise_from": 2},
            Figures(params_m=134, quality="27.3 % top-1 error"),
            summary="VGG's configuration C, with 1x1 convolutions in the groups 3 to 5.",
        ),
        "vgg16": Variant({"depths": _D}, Figures(params_m=138, quality="25.6 % top-1 error")),
        "vgg19": Variant({"depths": _E}, Figures(params_m=144, quality="25.5 % top-1 error")),
        "vgg11_bn": Variant({"depths": _A, "norm": "batch"}, paper="", summary=_BN),
        "vgg13_bn": Variant({"depths": _B, "norm": "batch"}, paper="", summary=_BN),
        "vgg16_bn": Variant({"depths": _D, "norm": "batch"}, paper="", summary=_BN),
        "vgg19_bn": Variant({"depths": _E, "norm": "batch"}, paper="", summary=_BN),
    },
)

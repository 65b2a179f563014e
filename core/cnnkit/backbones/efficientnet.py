"""EfficientNet: Tan and Le (2019), "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks".

A small network found by architecture search is enlarged along all three axes at once. One coefficient ``phi`` rules
depth, width and resolution, with ratios that were searched once, on the small network::

    depth = 1.2^phi,  width = 1.1^phi,  resolution = 1.15^phi,    1.2 * 1.1^2 * 1.15^2 = 1.92

so that a step of ``phi`` about doubles the multiply-adds. The blocks are inverted bottlenecks with
squeeze-and-excitation (:mod:`cnnkit.layers.mbconv`). :func:`compound_scaling` and :func:`scale_arguments` apply the
rule to the other families too, as the paper does to MobileNet and ResNet.

``efficientnet_b0`` to ``b7`` pad symmetrically; ``tf_efficientnet_b0`` to ``b7`` have the padding and the
normalisation's epsilon of the paper's own code, for its weights. (torchvision's weights of B5 to B7 were trained with
``norm_eps=1e-3`` too.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.errors import ConfigError
from cnnkit.layers.drop import drop_path_rates
from cnnkit.layers.mbconv import DepthwiseSeparable, InvertedResidual
from cnnkit.layers.nd import batch_norm, conv
from cnnkit.layers.same import padded_conv

STAGES = (
    # Expansion, kernel, stride, width and depth of the paper's Table 1.
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""The stages of B0."""


def compound_scaling(phi: float, *, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15) -> tuple[float, float, float]:
    """Return the factors of depth, width and resolution for a compound coefficient.

    Args:
        phi: The coefficient; 0 is the network itself, and each step costs ``alpha * beta^2 * gamma^2`` times as much.
        alpha: Base of the depth.
        beta: Base of the width.
        gamma: Base of the resolution.
    """
    return alpha**phi, beta**phi, gamma**phi


def scale_width(channels: int, factor: float, *, divisor: int = 8) -> int:
    """Return ``channels * factor``, rounded to a multiple of ``divisor``, but not below 90 % of it."""
    scaled = channels * factor
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def scale_depth(depth: int, factor: float) -> int:
    """Return ``depth * factor``, rounded up."""
    return math.ceil(depth * factor)


def scale_arguments(args: Mapping[str, Any], *, depth: float = 1.0, width: float = 1.0) -> dict[str, Any]:
    """Scale the arguments of any backbone: its ``depths`` and ``widths``, the other ones stay.

    ``create_model("resnet50", **scale_arguments(model_entry("resnet50").args, depth=1.2, width=1.1))`` is a larger ResNet.

    Args:
        args: Arguments of a backbone's class, or of a variant as the registry has them.
        depth: Factor of the number of blocks; see :func:`compound_scaling`.
        width: Factor of the number of channels.

    Raises:
        ConfigError: If there is nothing to scale by a factor that is not 1.
    """
    scaled = dict(args)
    for word, factor, scale in (("depths", depth, scale_depth), ("widths", width, scale_width)):
        if factor == 1.0:
            continue
        if word not in args:
            raise ConfigError(f"the arguments have no {word} to scale; they have {', '.join(args) or 'none'}: pass {word}=(...) among them")
        scaled[word] = tuple(scale(number, factor) for number in args[word])
    return scaled


_TORCHVISION = {
    # The parts of a block by their position: without and with a widening convolution.
    False: {"0.0": "conv_dw", "0.1": "bn1", "1.fc1": "se.fc1", "1.fc2": "se.fc2", "2.0": "conv_pw", "2.1": "bn2"},
    True: {
        **{"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2"},
        **{"2.fc1": "se.fc1", "2.fc2": "se.fc2", "3.0": "conv_pwl", "3.1": "bn3"},
    },
}


def _from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of timm, which has other names for squeeze-and-excitation and for the last layer."""
    return rename_keys(state, ((r"\.se\.conv_reduce\.", ".se.fc1."), (r"\.se\.conv_expand\.", ".se.fc2."), (r"^classifier\.", "fc.")))


def _from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of torchvision: stem, stages and head in one list, and the parts of a block by number."""

    def block(found: re.Match[str]) -> str:
        stage = int(found[1]) - 1
        return f"blocks.{stage}.{found[2]}.{_TORCHVISION[stage > 0][found[3]]}."

    renamed = {re.sub(r"^features\.(\d+)\.(\d+)\.block\.(\d+\.\w+)\.", block, key): value for key, value in state.items()}
    return rename_keys(
        renamed,
        (
            (r"^features\.0\.0\.", "conv_stem."),
            (r"^features\.0\.1\.", "bn1."),
            (r"^features\.\d+\.0\.", "conv_head."),
            (r"^features\.\d+\.1\.", "bn2."),
            (r"^classifier\.1\.", "fc."),
        ),
    )


class EfficientNet(Backbone):
    """EfficientNet of any depth and width.

    The last level of the pyramid is the last stage; :meth:`forward_features` goes on through the 1x1 convolution of the head.

    Args:
        depth: Factor of the number of blocks of each stage of B0, see :func:`scale_depth`.
        width: Factor of the number of channels, see :func:`scale_width`.
        padding: ``"symmetric"`` or ``"same"``, that of the paper's code.
        norm_eps: Added to the variances; 1e-3 in the paper's code.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier; the paper has 0.2 for B0 rising to 0.5 for B7.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0; 0.2 in the paper.
    """

    layouts = (
        Layout("timm", has_keys("blocks.0.0.se.conv_reduce.weight"), _from_timm),
        Layout("torchvision", has_keys("features.0.0.weight", "features.1.0.block.0.0.weight"), _from_torchvision),
    )
    head_modules = ("conv_head", "bn2", "act2", "fc")

    def __init__(
        self,
        *,
        depth: float = 1.0,
        width: float = 1.0,
        padding: str = "symmetric",
        norm_eps: float = 1e-5,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        num_features = scale_width(1280, width)
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=num_features, global_pool=global_pool, drop_rate=drop_rate
        )
        channels, reduction = scale_width(32, width), 2
        self.conv_stem = padded_conv(in_chans, channels, 3, dims=dims, stride=2, padding=padding)
        self.bn1 = batch_norm(dims)(channels, eps=norm_eps)
        self.act1 = nn.SiLU(inplace=True)

        self.blocks = nn.Sequential()
        self.feature_info = FeatureInfo()
        rates = drop_path_rates(drop_path_rate, [scale_depth(stage[4], depth) for stage in STAGES])
        for index, ((expansion, kernel_size, stride, base, _), stage_rates) in enumerate(zip(STAGES, rates, strict=True)):
            blocks, out_channels = nn.Sequential(), scale_width(base, width)
            reduction *= stride
            for rate in stage_rates:
                words: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "se_channels": max(1, channels // 4)}
                words |= {"dims": dims, "padding": padding, "norm_eps": norm_eps, "drop_path": rate}
                if expansion == 1:
                    blocks.append(DepthwiseSeparable(channels, out_channels, **words))
                else:
                    blocks.append(InvertedResidual(channels, out_channels, expansion=expansion, **words))
                channels, stride = out_channels, 1
            self.blocks.append(blocks)
            level = {"num_chs": channels, "reduction": reduction, "module": f"blocks.{index}"}
            if self.feature_info and self.feature_info[-1]["reduction"] == reduction:
                self.feature_info.pop()  # The last stage of a resolution is its level.
            self.feature_info.append(level)

        self.conv_head: nn.Module = conv(dims)(channels, num_features, 1, bias=False)
        self.bn2: nn.Module = batch_norm(dims)(num_features, eps=norm_eps)
        self.act2: nn.Module = nn.SiLU(inplace=True)
        self.fc = self.new_classifier(num_classes)
        self.apply(_init)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the paper's code does."""
        return super().new_classifier(num_classes).apply(_init)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the last stage at each resolution."""
        x = self.act1(self.bn1(self.conv_stem(x)))
        levels, ends = [], self.feature_info.module_name()
        for index, stage in enumerate(self.blocks):
            x = self.run_blocks(stage, x)
            if f"blocks.{index}" in ends:
                levels.append(x)
        return levels

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last features, ``(B, num_features, *spatial)``, before pooling."""
        return self.act2(self.bn2(self.conv_head(super().forward_features(x))))

    def drop_levels(self, after: int) -> None:
        """Remove the stages after a level; see :meth:`Backbone.drop_levels`."""
        last = int(self.feature_info[after]["module"].rpartition(".")[2])
        for index in range(last + 1, len(self.blocks)):
            self.blocks[index] = nn.Identity()


def _init(module: nn.Module) -> None:
    """The initialisation of the paper's code: variance ``2 / fan_out`` per group, and a uniform classifier."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear):
        bound = 1.0 / math.sqrt(module.out_features)
        nn.init.uniform_(module.weight, -bound, bound)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


_COUNT = "The paper does not say what it counts; torchvision and timm build and count the same as here."
_SCALES = (
    # Width, depth and the figures of the paper's Table 2.
    (1.0, 1.0, Figures(params_m=5.3, gmacs=0.39, input_size=224, quality="77.1 top-1")),
    (1.0, 1.1, Figures(params_m=7.8, gmacs=0.70, counted_gmacs=0.687, note=_COUNT, input_size=240, quality="79.1 top-1")),
    (1.1, 1.2, Figures(params_m=9.2, counted_params_m=9.11, gmacs=1.0, note=_COUNT, input_size=260, quality="80.1 top-1")),
    (1.2, 1.4, Figures(params_m=12, gmacs=1.8, input_size=300, quality="81.6 top-1")),
    (1.4, 1.8, Figures(params_m=19, gmacs=4.2, counted_gmacs=4.39, note=_COUNT, input_size=380, quality="82.9 top-1")),
    (1.6, 2.2, Figures(params_m=30, gmacs=9.9, counted_gmacs=10.27, note=_COUNT, input_size=456, quality="83.6 top-1")),
    (1.8, 2.6, Figures(params_m=43, gmacs=19, input_size=528, quality="84.0 top-1")),
    (2.0, 3.1, Figures(params_m=66, gmacs=37, counted_gmacs=37.75, note=_COUNT, input_size=600, quality="84.3 top-1")),
)
_TF = {"padding": "same", "norm_eps": 1e-3}
_TF_SUMMARY = "EfficientNet with the padding and epsilon of the paper's own code (Tan and Le, 2019)."

FAMILY = Family(
    name="efficientnet",
    cls=EfficientNet,
    small=("efficientnet_b0", {"width": 0.25, "depth": 0.5}),
    paper="efficientnet",
    summary="Inverted bottlenecks scaled in depth, width and resolution at once (Tan and Le, 2019).",
    variants={
        f"efficientnet_b{phi}": Variant({"width": width, "depth": depth}, figures) for phi, (width, depth, figures) in enumerate(_SCALES)
    }
    | {
        f"tf_efficientnet_b{phi}": Variant({"width": width, "depth": depth, **_TF}, figures, summary=_TF_SUMMARY)
        for phi, (width, depth, figures) in enumerate(_SCALES)
    },
)

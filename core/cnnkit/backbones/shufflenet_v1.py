"""ShuffleNet: Zhang, Zhou, Lin and Sun (2018), "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices".

In a bottleneck round a depthwise convolution nearly all the work is in the 1x1 convolutions. Here they are grouped, which divides it
by the number of groups and pays for more channels, and a shuffle deals every group's channels out to all groups of the next one,
so that information crosses from group to group::

    y = relu(x + group1x1(shuffle(depthwise3(relu(group1x1(x))))))

(each convolution is followed by a normalisation). Where the size is halved, the pooled input is concatenated in place of added.

The paper draws the shuffle before the depthwise convolution; the authors' code has it behind. A depthwise convolution keeps the
channels apart, so both are the same networks, up to the order in which its kernels are stored. A width times ``s`` is ``ShuffleNet
s x``; at equal cost, more groups have more channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.backbones._chain import ChainNet
from cnnkit.errors import ConfigError
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.nd import avg_pool, batch_norm, conv, max_pool
from cnnkit.layers.recalibrate import get_recalibration


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal out the channels of every group to all places: channel ``j`` of group ``i`` becomes channel ``i`` of place ``j``.

    The inverse is a shuffle by ``channels / groups``.

    Args:
        x: ``(B, channels, *spatial)``.
        groups: A divisor of ``channels``.
    """
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """A bottleneck of grouped 1x1 convolutions with a shuffle, round a depthwise convolution.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, a multiple of ``4 * groups``; with stride 2, those of the input among them.
        groups: Groups of the 1x1 convolutions.
        first_groups: Groups of the first one, where they differ.
        dims: Number of spatial dimensions.
        stride: 1 to add the input, or 2 to concatenate it, pooled.
        shuffle: Whether the channels are shuffled; without it no group sees another.
        attention: What reweights the branch's features: a name for :func:`~cnnkit.layers.recalibrate.get_recalibration`.
        drop_path: Probability that the branch is dropped while training, where it is added.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        first_groups: int | None = None,
        dims: int = 2,
        stride: int = 1,
        shuffle: bool = True,
        attention: str = "none",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        inner = out_channels // 4
        branch = out_channels if stride == 1 else out_channels - in_channels
        # The authors' code deals out in the other direction than the paper's text: the inverse shuffle.
        self.shuffle_by = inner // groups if shuffle and groups > 1 else 0
        self.branch_main_1 = nn.Sequential(
            conv(dims)(in_channels, inner, 1, groups=groups if first_groups is None else first_groups, bias=False),
            batch_norm(dims)(inner),
            nn.ReLU(inplace=True),
            conv(dims)(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False),
            batch_norm(dims)(inner),
        )
        self.branch_main_2 = nn.Sequential(conv(dims)(inner, branch, 1, groups=groups, bias=False), batch_norm(dims)(branch))
        self.attention = get_recalibration(attention, dims, branch)
        self.drop_path = DropPath(drop_path)
        self.branch_proj = None
        if stride > 1:
            # The padding of 3-D pooling does not count when it is checked that its kernel fits.
            pool = avg_pool(dims)(3, stride=2, padding=0 if dims == 3 else 1)
            self.branch_proj = nn.Sequential(nn.ConstantPad3d(1, 0.0), pool) if dims == 3 else pool
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit."""
        branch = self.branch_main_1(x)
        if self.shuffle_by:
            branch = channel_shuffle(branch, self.shuffle_by)
        branch = self.attention(self.branch_main_2(branch))
        if self.branch_proj is None:
            return self.act(x + self.drop_path(branch))
        return torch.cat((self.branch_proj(x), self.act(branch)), 1)


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the authors' code."""
    return rename_keys(state, ((r"^classifier\.0\.", "fc."),))


class ShuffleNetV1(ChainNet):
    """ShuffleNet of any width, depth and number of groups.

    Args:
        groups: Groups of the 1x1 convolutions.
        width: Channels of the first stage, a multiple of ``4 * groups``; every stage doubles them.
        stem_channels: Channels of the stem; ``width`` less these is a multiple of ``groups``.
        depths: Number of units of each stage.
        shuffle: Whether the channels are shuffled; ``False`` is the paper's control.
        attention: What reweights the features at the end of each unit's branch: a name for
            :func:`~cnnkit.layers.recalibrate.get_recalibration`; ``"se"`` in the paper's best model.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last unit, rising linearly from 0.

    Raises:
        ConfigError: If the channels cannot be divided into the groups, or the attention is unknown.
    """

    layouts = (Layout("official", has_keys("first_conv.0.weight", "classifier.0.weight"), _from_official),)

    def __init__(
        self,
        *,
        groups: int = 3,
        width: int = 240,
        stem_channels: int = 24,
        depths: Sequence[int] = (4, 8, 4),
        shuffle: bool = True,
        attention: str = "none",
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if width % (4 * groups):
            raise ConfigError(f"width={width} does not fit groups={groups}: use a multiple of {4 * groups}")
        if (width - stem_channels) % groups:
            raise ConfigError(
                f"stem_channels={stem_channels} do not fit: the first unit adds width - stem_channels = {width - stem_channels} "
                f"channels to them, which must be a multiple of groups={groups}"
            )
        channels = width * 2 ** (len(depths) - 1)
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=channels, global_pool=global_pool, drop_rate=drop_rate
        )
        self.first_conv = nn.Sequential(
            conv(dims)(in_chans, stem_channels, 3, stride=2, padding=1, bias=False),
            batch_norm(dims)(stem_channels),
            nn.ReLU(inplace=True),
        )
        self.maxpool = max_pool(dims)(3, stride=2, padding=1)
        self.feature_info = FeatureInfo(
            {"num_chs": stem_channels, "reduction": reduction, "module": module}
            for reduction, module in ((2, "first_conv.2"), (4, "maxpool"))
        )
        self.features = nn.Sequential()
        before = stem_channels
        for stage, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            out = width * 2**stage
            for index, rate in enumerate(rates):
                unit = ShuffleUnit(
                    before,
                    out,
                    groups=groups,
                    # The stem has too few channels to be divided.
                    first_groups=1 if not len(self.features) else None,
                    dims=dims,
                    stride=1 if index else 2,
                    shuffle=shuffle,
                    attention=attention,
                    drop_path=rate if index else 0.0,
                )
                self.features.append(unit)
                before = out
            self.feature_info.append({"num_chs": out, "reduction": 8 * 2**stage, "module": f"features.{len(self.features) - 1}"})
        stem = [f"first_conv.{index}" for index in range(len(self.first_conv))]
        self.chain = (*stem, "maxpool", *[f"features.{index}" for index in range(len(self.features))])
        self.fc = self.new_classifier(num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise as the authors' code does: normal, with a deviation of 0.01 in the stem and one over the inputs elsewhere."""
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                nn.init.normal_(module.weight, std=0.01 if module is self.first_conv[0] else 1 / module.weight.shape[1])
            elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                nn.init.constant_(module.bias, 1e-4)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, without a bias as in the authors' code."""
        if not num_classes:
            return nn.Identity()
        layer = nn.Linear(self.num_features, num_classes, bias=False)
        nn.init.normal_(layer.weight, std=0.01)
        return layer


_TABLE_1 = "The paper's Table 1 leaves the classifier out."
_TABLE_2 = "The paper's Table 2 prints one figure for all numbers of groups."
_WIDTH = (
    "Of 136 channels 144 are made, which four groups divide and which agree with the 576 at the end that the paper names; it names no stem."
)
_SQUEEZE = "The paper does not say what in a unit it recalibrates; the whole branch, as in SE-ResNet, is 0.1 % off its figure."


def _variant(groups: int, width: int, stem_channels: int, error: float, attention: str = "none", **figures: Any) -> Variant:
    args: dict[str, Any] = {"groups": groups, "width": width, "stem_channels": stem_channels}
    if attention != "none":
        args["attention"] = attention
    return Variant(args, Figures(quality=f"{error} % top-1 error", **figures))


# Multiply-adds and errors of the paper's Tables 1, 2 and 5; parameters, and what the tables lack, of the authors' code.
FAMILY = Family(
    name="shufflenet_v1",
    cls=ShuffleNetV1,
    small=("shufflenet_v1_x1_0_g3", {"width": 60, "stem_channels": 24, "depths": (3, 3)}),
    small_size=32,
    paper="shufflenet-v1",
    summary="Grouped 1x1 convolutions, and a shuffle of the channels between them (Zhang et al., 2018).",
    variants={
        "shufflenet_v1_x0_25_g1": _variant(1, 36, 12, 57.1, gmacs=0.013),
        "shufflenet_v1_x0_25_g2": _variant(2, 48, 12, 56.8, gmacs=0.013),
        "shufflenet_v1_x0_25_g3": _variant(3, 60, 12, 55.0, gmacs=0.013),
        "shufflenet_v1_x0_25_g4": _variant(4, 64, 12, 54.2, gmacs=0.013, counted_gmacs=0.0123, note=_TABLE_2),
        "shufflenet_v1_x0_25_g8": _variant(8, 96, 8, 52.7, gmacs=0.013, counted_gmacs=0.0124, note=_TABLE_2),
        "shufflenet_v1_x0_5_g1": _variant(1, 72, 12, 45.1, gmacs=0.038, counted_gmacs=0.0385, note=_TABLE_2),
        "shufflenet_v1_x0_5_g2": _variant(2, 104, 12, 44.4, gmacs=0.038, counted_gmacs=0.0409, note=_TABLE_2),
        "shufflenet_v1_x0_5_g3": _variant(3, 120, 12, 43.2, gmacs=0.038, params_m=0.7),
        "shufflenet_v1_x0_5_g4": _variant(4, 144, 12, 41.6, gmacs=0.038, counted_gmacs=0.0407, note=_WIDTH),
        "shufflenet_v1_x0_5_g8": _variant(8, 192, 16, 42.3, gmacs=0.038, params_m=1.0, counted_gmacs=0.0405, note=_TABLE_2),
        "shufflenet_v1_x1_0_g1": _variant(1, 144, 24, 33.6, gmacs=0.143),
        "shufflenet_v1_x1_0_g2": _variant(2, 200, 24, 32.7, gmacs=0.140, counted_gmacs=0.1408, note=_TABLE_1),
        "shufflenet_v1_x1_0_g3": _variant(3, 240, 24, 32.6, gmacs=0.137, params_m=1.9),
        "shufflenet_v1_x1_0_g4": _variant(4, 272, 24, 32.8, gmacs=0.133, counted_gmacs=0.1343, note=_TABLE_1),
        "shufflenet_v1_x1_0_g8": _variant(8, 384, 24, 32.4, gmacs=0.137, params_m=2.4, counted_gmacs=0.1384, note=_TABLE_1),
        "shufflenet_v1_x1_5_g3": _variant(3, 360, 24, 28.5, gmacs=0.292, params_m=3.4),
        "shufflenet_v1_x1_5_g8": _variant(8, 576, 24, 29.0, gmacs=0.290, params_m=4.3),
        "shufflenet_v1_x2_0_g3": _variant(3, 480, 48, 26.3, gmacs=0.524, params_m=5.4),
        "shufflenet_v1_x2_0_g8": _variant(8, 768, 48, 27.1, gmacs=0.522, params_m=6.5),
        "se_shufflenet_v1_x2_0_g3": _variant(3, 480, 48, 24.7, "se", gmacs=0.527, counted_gmacs=0.5265, note=_SQUEEZE),
    },
)

"""RedNet: Li, Hu, Wang, Li, She, Zhu, Zhang and Chen (2021), "Involution: Inverting the Inherence of Convolution".

A ResNet whose bottlenecks have an involution (:mod:`cnnkit.layers.involution`) of 7x7 in place of the 3x3 convolution,
and whose stem is a 3x3 convolution, an involution of 3x3 and a 3x3 convolution::

    y = relu(x + W3 relu(norm(involution7(relu(norm(W1 x))))))
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from cnnkit.backbones._base import Family, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.backbones.resnet import Bottleneck, ResidualNet
from cnnkit.layers.involution import Involution
from cnnkit.layers.nd import batch_norm, conv


class InvolutionBottleneck(Bottleneck):
    """A bottleneck with an involution between its two 1x1 convolutions.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, 4 * width, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        width: Channels of the involution.
        involution: Makes an involution of so many channels: ``(channels, stride=, dilation=)``.
        dims: Number of spatial dimensions.
        stride: Stride of the involution.
        dilation: Dilation of the stage.
        first_dilation: Dilation of the involution, where it differs from the stage's.
        shortcut: What brings the input to the output's shape; ``None`` for the identity.
        drop_path: Probability that the branch is dropped while training.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        involution: Callable[..., Involution],
        dims: int = 2,
        stride: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        shortcut: nn.Module | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(in_channels, width, dims=dims, shortcut=shortcut, drop_path=drop_path)
        self.conv2 = involution(width, stride=stride, dilation=first_dilation or dilation)


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: a classifier of backbone and head, whose convolutions come with their normalisation."""
    return rename_keys(
        state,
        (
            (r"^backbone\.", ""),
            (r"^stem\.0\.conv\.", "conv1.0."),
            (r"^stem\.0\.bn\.", "conv1.1."),
            (r"^stem\.1\.", "conv1.3."),
            (r"^stem\.2\.", "conv1.4."),
            (r"^stem\.4\.conv\.", "conv1.6."),
            (r"^stem\.4\.bn\.", "bn1."),
            (r"\.(conv[12])\.conv\.", r".\1."),
            (r"\.conv1\.bn\.", ".bn1."),
            (r"^head\.fc\.", "fc."),
        ),
    )


class RedNet(ResidualNet):
    """RedNet of any depth.

    Args:
        depths: Number of blocks of each stage.
        widths: Channels of each stage's involutions.
        kernel_size: Size of the blocks' involutions.
        group_channels: Channels that share a kernel.
        output_stride: Reduction of the last stage: 32, or 16 or 8 with dilation in place of stride.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If ``group_channels`` does not divide the widths and the 32 channels of the stem, or the kernel size is even.
    """

    layouts = (Layout("official", has_keys("backbone.stem.1.conv2.conv.weight"), _from_official),)

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        kernel_size: int = 7,
        group_channels: int = 16,
        output_stride: int = 32,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        involution = functools.partial(Involution, kernel_size=kernel_size, dims=dims, group_channels=group_channels)
        stem = nn.Sequential(
            conv(dims)(in_chans, 32, 3, stride=2, padding=1, bias=False),
            batch_norm(dims)(32),
            nn.ReLU(inplace=True),
            Involution(32, 3, dims=dims, group_channels=group_channels),
            batch_norm(dims)(32),
            nn.ReLU(inplace=True),
            conv(dims)(32, 64, 3, padding=1, bias=False),
        )
        super().__init__(
            stem=stem,
            stem_channels=64,
            block=functools.partial(InvolutionBottleneck, involution=involution, dims=dims),
            expansion=InvolutionBottleneck.expansion,
            depths=depths,
            widths=widths,
            output_stride=output_stride,
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )


_OTHERS = (
    "The paper also counts the involutions' own products, normalisations, activations and pooling; "
    "here only what layers with weights multiply."
)


def _variant(depths: tuple[int, ...], figures: Figures) -> Variant:
    return Variant({"depths": depths}, dataclasses.replace(figures, note=f"{_OTHERS} {figures.note}".strip()))


# Figures as the documentation of the paper's code prints them; the paper has one decimal less.
FAMILY = Family(
    name="rednet",
    cls=RedNet,
    small=("rednet50", {"depths": (1, 1, 1, 1), "widths": (16, 32, 48, 64), "kernel_size": 3, "group_channels": 8}),
    paper="involution",
    summary="A ResNet with involutions in place of its 3x3 convolutions (Li et al., 2021).",
    variants={
        "rednet26": _variant((1, 2, 4, 1), Figures(params_m=9.23, gmacs=1.73, counted_gmacs=1.65, quality="75.96 top-1")),
        "rednet38": _variant((2, 3, 5, 2), Figures(params_m=12.39, gmacs=2.22, counted_gmacs=2.11, quality="77.48 top-1")),
        "rednet50": _variant((3, 4, 6, 3), Figures(params_m=15.54, gmacs=2.71, counted_gmacs=2.58, quality="78.35 top-1")),
        "rednet101": _variant((3, 4, 23, 3), Figures(params_m=25.65, gmacs=4.74, counted_gmacs=4.55, quality="78.92 top-1")),
        "rednet152": _variant(
            (3, 8, 36, 3),
            Figures(
                params_m=33.99,
                counted_params_m=33.98,
                gmacs=6.79,
                counted_gmacs=6.51,
                quality="79.12 top-1",
                note="The 33,984,582 parameters are printed rounded up.",
            ),
        ),
    },
)

"""MONAI's DynUNet and SegResNet under the words of this project.

The networks are MONAI's own modules, so weights that were published for them load untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from cnnkit.layers import nd
from cnnkit.weights import Layout
from monai.networks.nets.dynunet import DynUNet as _MonaiDynUNet
from monai.networks.nets.segresnet import SegResNet as _MonaiSegResNet
from torch import Tensor


class DynUNet(_MonaiDynUNet):
    """MONAI's DynUNet, which in training returns a list of logits, full resolution first, each at its own size.

    MONAI's own class enlarges the deeper logits and stacks them, so a loss could not take the target at their size.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("monai"),)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map ``(B, in_chans, *spatial)`` to logits ``(B, num_classes, *spatial)``, or in training to a list of them."""
        out = self.output_block(self.skip_layers(x))
        if not self.deep_supervision:
            return out
        deeper = list(self.heads)
        # MONAI keeps the last logits on the module, where they would hold the graph and forbid a deep copy.
        self.heads[:] = [torch.empty(0)] * len(deeper)
        return [out, *deeper] if self.training else out


class SegResNet(_MonaiSegResNet):
    """MONAI's SegResNet (Myronenko, 2018), without the variational branch."""

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("monai"),)


def dynunet(
    in_chans: int = 1,
    num_classes: int = 2,
    dims: int = 3,
    *,
    channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
    strides: Sequence[int | Sequence[int]] | None = None,
    kernel_sizes: Sequence[int | Sequence[int]] | None = None,
    dropout: float | None = None,
    residual: bool = False,
    deep_supervision: bool = True,
    transposed_bias: bool = False,
) -> DynUNet:
    """Build MONAI's DynUNet.

    Args:
        in_chans: Input channels.
        num_classes: Channels of the output.
        dims: 2 or 3.
        channels: Features at each resolution, full resolution first; at least three.
        strides: Stride of each stage, one or one per axis; by default 1 and then 2.
        kernel_sizes: Kernel of each stage, one or one per axis; by default 3.
        dropout: Probability of dropout after every convolution.
        residual: Residual blocks in the encoder.
        deep_supervision: Have a head at every resolution but the deepest.
        transposed_bias: Whether transposed convolutions have a bias.

    Raises:
        ValueError: If ``dims`` is neither 2 nor 3, or the numbers of stages differ.
    """
    nd.check_dims(dims, (2, 3))
    strides = tuple(strides) if strides is not None else (1,) + (2,) * (len(channels) - 1)
    kernel_sizes = tuple(kernel_sizes) if kernel_sizes is not None else (3,) * len(channels)
    if not len(strides) == len(kernel_sizes) == len(channels):
        counts = f"{len(channels)}, {len(strides)} and {len(kernel_sizes)}"
        raise ValueError(f"channels, strides and kernel_sizes need one entry per stage; they have {counts}")
    return DynUNet(
        spatial_dims=dims,
        in_channels=in_chans,
        out_channels=num_classes,
        kernel_size=kernel_sizes,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=tuple(channels),
        dropout=dropout,
        res_block=residual,
        deep_supervision=deep_supervision and len(channels) > 2,
        deep_supr_num=max(len(channels) - 2, 1),
        trans_bias=transposed_bias,
    )


def segresnet(
    in_chans: int = 1,
    num_classes: int = 2,
    dims: int = 3,
    *,
    init_channels: int = 8,
    blocks_down: Sequence[int] = (1, 2, 2, 4),
    blocks_up: Sequence[int] = (1, 1, 1),
    norm_groups: int = 8,
    dropout: float | None = None,
    upsample: str = "nontrainable",
) -> SegResNet:
    """Build MONAI's SegResNet, which has no deep supervision.

    Args:
        in_chans: Input channels.
        num_classes: Channels of the output.
        dims: 2 or 3.
        init_channels: Features at full resolution, a multiple of ``norm_groups``; they double at every resolution.
        blocks_down: Residual blocks at each resolution of the encoder.
        blocks_up: Residual blocks at each resolution of the decoder, one entry fewer.
        norm_groups: Groups of the group normalisation.
        dropout: Probability of dropout after the first convolution.
        upsample: ``"nontrainable"`` (linear), ``"deconv"`` or ``"pixelshuffle"``.

    Raises:
        ValueError: If ``dims`` is neither 2 nor 3, or the numbers of blocks do not fit.
    """
    nd.check_dims(dims, (2, 3))
    if len(blocks_up) != len(blocks_down) - 1:
        raise ValueError(f"blocks_up needs one entry fewer than blocks_down: {len(blocks_up)} and {len(blocks_down)}")
    return SegResNet(
        spatial_dims=dims,
        in_channels=in_chans,
        out_channels=num_classes,
        init_filters=init_channels,
        blocks_down=tuple(blocks_down),
        blocks_up=tuple(blocks_up),
        norm=("GROUP", {"num_groups": norm_groups}),
        dropout_prob=dropout,
        upsample_mode=upsample,
    )

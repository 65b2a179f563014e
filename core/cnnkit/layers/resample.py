"""Up-sampling by interpolation and by transposed convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.nd import LINEAR_MODE, check_dims, conv, conv_transpose, tupled

UPSAMPLES = ("linear", "nearest", "transposed")


class Interpolate(nn.Module):
    """Enlarge by a factor, without parameters.

    Shapes:
        x: ``(B, C, *spatial)``; the result is ``(B, C, *(spatial * scale))``.

    Args:
        scale: Factor, one or one per dimension.
        mode: ``"linear"`` (bilinear, trilinear) or ``"nearest"``.
        align_corners: For ``"linear"``: whether the centres of the corner elements coincide; ``False`` aligns their edges.
    """

    def __init__(self, scale: int | Sequence[int] = 2, *, mode: str = "linear", align_corners: bool = False) -> None:
        super().__init__()
        if mode not in ("linear", "nearest"):
            raise ConfigError(unknown("interpolation", mode, ("linear", "nearest")))
        self.scale = scale
        self.mode = mode
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged ``x``."""
        dims = x.ndim - 2
        # A size, not a factor: exported graphs then carry no float arithmetic on shapes.
        size = [n * factor for n, factor in zip(x.shape[2:], tupled(self.scale, dims), strict=True)]
        if self.mode == "nearest":
            return F.interpolate(x, size=size, mode="nearest")
        return F.interpolate(x, size=size, mode=LINEAR_MODE[dims], align_corners=self.align_corners)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.scale}, mode={self.mode!r}, align_corners={self.align_corners}"


class TransposedConv(nn.Module):
    """A transposed convolution whose kernel equals its stride: every input element becomes a patch.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *(spatial * scale))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dims: Number of spatial dimensions: 1, 2 or 3.
        scale: Factor, one or one per dimension.
        bias: Whether a bias is added.
        device: Where the parameters live.
        dtype: Their type.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dims: int = 2,
        scale: int | Sequence[int] = 2,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factor: tuple = tupled(scale, dims)
        self.conv = conv_transpose(dims)(in_channels, out_channels, factor, stride=factor, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged ``x``."""
        return self.conv(x)


def get_upsample(
    name: str,
    dims: int,
    in_channels: int,
    out_channels: int,
    *,
    scale: int | Sequence[int] = 2,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Return an up-sampling that also maps ``in_channels`` to ``out_channels``.

    Args:
        name: ``"transposed"`` (a learned transposed convolution), or ``"linear"`` or ``"nearest"``: a
            1x1 convolution where the channels differ, then interpolation (the two commute, and this order is cheaper).
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        scale: Factor, one or one per dimension.
        bias: Whether the convolution has a bias.
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ConfigError: If the name is unknown.
    """
    check_dims(dims)
    if name not in UPSAMPLES:
        raise ConfigError(unknown("up-sampling", name, UPSAMPLES))
    if name == "transposed":
        return TransposedConv(in_channels, out_channels, dims=dims, scale=scale, bias=bias, device=device, dtype=dtype)
    enlarge = Interpolate(scale, mode=name)
    if in_channels == out_channels:
        return enlarge
    return nn.Sequential(conv(dims)(in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype), enlarge)

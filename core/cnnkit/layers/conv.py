"""Convolution, normalisation and activation as one block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnkit.errors import ConfigError
from cnnkit.layers.act import get_act
from cnnkit.layers.nd import conv, tupled
from cnnkit.layers.norm import get_norm


def same_padding(kernel_size: int | Sequence[int], dilation: int | Sequence[int] = 1, *, dims: int = 2) -> tuple[int, ...]:
    """Return the symmetric padding that keeps the size at stride 1 for odd kernels: ``dilation * (k - 1) // 2``."""
    kernels, dilations = tupled(kernel_size, dims), tupled(dilation, dims)
    return tuple(d * (k - 1) // 2 for k, d in zip(kernels, dilations, strict=True))


class ConvNormAct(nn.Module):
    """A convolution, a normalisation and an activation, in the order that ``order`` spells.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *spatial / stride)``, rounded
        up for odd kernels with the default padding.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: One size, or one per dimension.
        dims: Number of spatial dimensions: 1, 2 or 3.
        stride: Stride, one or one per dimension.
        dilation: Dilation, one or one per dimension.
        groups: Groups of the convolution; ``in_channels`` makes it depthwise.
        padding: Zeros on each side; by default what keeps the size at stride 1.
        bias: Whether the convolution has a bias; by default only if no normalisation follows it directly.
        norm: Name for :func:`~cnnkit.layers.norm.get_norm`.
        norm_groups: Number of groups for ``norm="group"``.
        act: Name for :func:`~cnnkit.layers.act.get_act`.
        order: The letters ``c``, ``n`` and ``a``, each once: ``"cna"`` is the usual one, ``"nac"`` is pre-activation.
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ConfigError: If ``order`` is no permutation of ``cna``, or a name is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        dims: int = 2,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding: int | Sequence[int] | None = None,
        bias: bool | None = None,
        norm: str = "batch",
        norm_groups: int = 32,
        act: str = "relu",
        order: str = "cna",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if sorted(order) != ["a", "c", "n"]:
            raise ConfigError(f"order {order!r} is not a permutation of 'cna' (convolution, normalisation, activation)")
        if bias is None:
            bias = norm == "none" or "cn" not in order
        padded = same_padding(kernel_size, dilation, dims=dims) if padding is None else tupled(padding, dims)
        self.order = order
        self.conv = conv(dims)(
            in_channels,
            out_channels,
            tupled(kernel_size, dims),  # type: ignore[arg-type]
            stride=tupled(stride, dims),  # type: ignore[arg-type]
            padding=padded,  # type: ignore[arg-type]
            dilation=tupled(dilation, dims),  # type: ignore[arg-type]
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        normed = out_channels if order.index("n") > order.index("c") else in_channels
        self.norm = get_norm(norm, dims, normed, groups=norm_groups, device=device, dtype=dtype)
        self.act = get_act(act)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three in order."""
        steps = {"c": self.conv, "n": self.norm, "a": self.act}
        for letter in self.order:
            x = steps[letter](x)
        return x

"""Efficient channel attention: Wang, Wu, Zhu, Li, Zuo and Hu (2020).

"ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks". Squeeze-and-excitation loses
information in its narrow hidden layer. Here the weight of a channel comes from the means of its ``k`` neighbours, by one
convolution along the channels that all of them share::

    y = sigmoid(conv_k(mean(x))) * x,      k = the odd number at |log2(C) / 2 + 1 / 2|

so the whole block has ``k`` parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cnnkit.errors import ConfigError
from cnnkit.registry import Entry


def adaptive_kernel_size(channels: int, *, gamma: float = 2.0, beta: float = 1.0) -> int:
    """Return how many neighbours weigh a channel: ``|log2(C) / gamma + beta / gamma|``, cut to an integer and, if even, one more.

    Args:
        channels: ``C``.
        gamma: The larger it is, the slower the size grows.
        beta: Raises the size.
    """
    size = int(abs((math.log2(channels) + beta) / gamma))
    return max(size if size % 2 else size + 1, 3)


class EfficientChannelAttention(nn.Module):
    """Reweight each channel by a function of its neighbours' global means.

    Shapes:
        x: ``(B, channels, *spatial)`` with 1, 2 or 3 spatial dimensions; the result has the same shape.

    Args:
        channels: Number of channels; it only sets the kernel's size.
        kernel_size: Neighbours that count, an odd number; by default :func:`adaptive_kernel_size`.
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ConfigError: If the kernel's size is even.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kernel_size = adaptive_kernel_size(channels) if kernel_size is None else kernel_size
        if kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size={kernel_size} has no middle; use an odd number, for example {kernel_size + 1}")
        # Along the channels, hence one-dimensional whatever the features are.
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reweighted ``x``."""
        means = x.flatten(2).mean(2)
        weights = self.conv(means.unsqueeze(1)).sigmoid().squeeze(1)
        return x * weights.unflatten(1, (x.shape[1],) + (1,) * (x.ndim - 2))


LAYERS = {
    "eca": Entry(
        "cnnkit.layers.eca:EfficientChannelAttention",
        paper="eca",
        summary="Reweight each channel by a function of its neighbours' means (Wang et al., 2020).",
        dims=(1, 2, 3),
    ),
}

"""Global response normalisation: Woo et al. (2023), "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders".

The response of a channel is its length over all positions. Channels whose response is above the mean are strengthened::

    n = ||x|| / mean_channels(||x||);    y = (weight * n + 1) x + bias

so channels compete, and do not all learn the same feature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GlobalResponseNorm(nn.Module):
    """Normalise the responses of channels that stand last.

    Shapes:
        x: ``(B, *spatial, channels)``; the result has the same shape.

    Args:
        channels: Number of channels.
        bias: Learn a shift per channel.
        eps: Added to the mean response.
    """

    def __init__(self, channels: int, *, bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Strengthen channels by their share of the response."""
        response = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim - 1)), keepdim=True)
        factor = self.weight * (response / (response.mean(-1, keepdim=True) + self.eps)) + 1
        return x * factor if self.bias is None else torch.addcmul(self.bias, x, factor)

"""Squeeze-and-excitation: Hu, Shen and Sun (2018), "Squeeze-and-Excitation Networks".

A channel's weight is computed from the global means of all channels::

    s = gate(W2 act(W1 mean(x)));    y = s * x
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnkit.layers.act import get_act
from cnnkit.layers.nd import conv
from cnnkit.registry import Entry


class SqueezeExcite(nn.Module):
    """Reweight the channels by a function of their global means.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions: 1, 2 or 3.
        reduction: The hidden width is ``channels // reduction``, at least 1.
        hidden: Hidden width, instead of ``reduction``.
        act: Activation of the hidden layer.
        gate: Function that makes the weights, ``"sigmoid"`` or for example ``"hard_sigmoid"``.
        bias: Whether the two layers have biases.
        device: Where the parameters live.
        dtype: Their type.
    """

    def __init__(
        self,
        channels: int,
        *,
        dims: int = 2,
        reduction: int = 16,
        hidden: int | None = None,
        act: str = "relu",
        gate: str = "sigmoid",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1) if hidden is None else hidden
        # 1x1 convolutions on the (B, C, 1, ...) means: the paper's fully connected layers, in the shape of the features.
        self.fc1 = conv(dims)(channels, hidden, 1, bias=bias, device=device, dtype=dtype)
        self.act = get_act(act)
        self.fc2 = conv(dims)(hidden, channels, 1, bias=bias, device=device, dtype=dtype)
        self.gate = get_act(gate)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reweighted ``x``."""
        means = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.fc1(means))))


LAYERS = {
    "squeeze_excite": Entry(
        "cnnkit.layers.squeeze_excite:SqueezeExcite",
        paper="se",
        summary="Reweight channels by a function of their global means (Hu et al., 2018).",
        dims=(1, 2, 3),
    ),
}

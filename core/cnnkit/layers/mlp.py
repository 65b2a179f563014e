"""Two linear maps over the channels with an activation between them, of tokens or of feature maps."""

from __future__ import annotations

from torch import Tensor, nn

from cnnkit.layers.act import get_act
from cnnkit.layers.nd import conv


class Mlp(nn.Module):
    """The feed-forward part of a transformer block: ``W2 act(W1 x)``, at every position alike.

    Shapes:
        x: ``(..., channels)``, or ``(B, channels, *spatial)`` with ``dims``; the result has ``out_channels`` in their place.

    Args:
        channels: Channels of the input.
        hidden: Channels between the two maps.
        out_channels: Channels of the output; by default those of the input.
        dims: Number of spatial dimensions of channels-first feature maps, whose maps are 1x1 convolutions; 0 for channels-last tokens.
        act: Name for :func:`~cnnkit.layers.act.get_act`.
        bias: Whether both maps have a bias.
        drop: Dropout after each map.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        out_channels: int | None = None,
        *,
        dims: int = 0,
        act: str = "gelu",
        bias: bool = True,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        if dims:
            self.fc1: nn.Module = conv(dims)(channels, hidden, 1, bias=bias)
            self.fc2: nn.Module = conv(dims)(hidden, out_channels, 1, bias=bias)
        else:
            self.fc1 = nn.Linear(channels, hidden, bias=bias)
            self.fc2 = nn.Linear(hidden, out_channels, bias=bias)
        self.act = get_act(act, inplace=True)  # Nothing else reads what the first map returns.
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both maps."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))

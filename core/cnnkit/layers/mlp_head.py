"""A classifier of two layers, for pooled features."""

from __future__ import annotations

from torch import Tensor, nn

from cnnkit.layers.act import get_act


class MlpHead(nn.Module):
    """Classify pooled features through a hidden layer: ``W2 norm(act(W1 x))``.

    Shapes:
        x: ``(B, channels)``; the result is ``(B, classes)``.

    Args:
        channels: Features of the input.
        classes: Outputs.
        hidden: Width of the hidden layer.
        act: Name for :func:`~cnnkit.layers.act.get_act`.
        eps: Added to the variance by the layer normalisation.
        drop: Dropout before the last layer.
    """

    def __init__(self, channels: int, classes: int, *, hidden: int, act: str = "gelu", eps: float = 1e-6, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = get_act(act)
        self.norm = nn.LayerNorm(hidden, eps=eps)
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.fc2(self.drop(self.norm(self.act(self.fc1(x)))))

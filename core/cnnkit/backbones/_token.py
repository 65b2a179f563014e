"""What backbones share that classify from a class token: one more token, learned, that attends to those of the image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from cnnkit.backbones._base import Backbone
from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.nd import resize
from cnnkit.layers.pool import GLOBAL_POOLS, GlobalPool, global_pool

TOKEN_POOLS = ("token", *GLOBAL_POOLS)


def fit_positions(table: Tensor, grid: Sequence[int]) -> Tensor:
    """Resample learned positions linearly to another grid of tokens.

    Shapes:
        table: ``(1, *native grid, C)``; the result is ``(1, *grid, C)``, the table itself if the grids are equal.
    """
    if tuple(table.shape[1:-1]) == tuple(grid):
        return table
    return resize(table.movedim(-1, 1), grid).movedim(1, -1)


class TokenPool(GlobalPool):
    """Reduce tokens to one: take the class token, or pool the others.

    Shapes:
        x: ``(B, 1 + N, C)`` with the class token first; the result is ``(B, C)``, or ``x`` itself with ``"none"``.

    Args:
        kind: ``"token"``, or a kind of :class:`~cnnkit.layers.pool.GlobalPool` over the tokens of the image.

    Raises:
        ConfigError: If the kind is unknown.
    """

    def __init__(self, kind: str = "token") -> None:
        if kind not in TOKEN_POOLS:
            raise ConfigError(unknown("global pooling", kind, TOKEN_POOLS))
        super().__init__("avg" if kind == "token" else kind)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Return one vector per image."""
        if self.kind == "token":
            return x[:, 0]
        return x if self.kind == "none" else global_pool(x[:, 1:].mT, self.kind)


class TokenBackbone(Backbone, ABC):
    """A backbone whose last features are tokens, ``(B, 1 + N, num_features)``, the class token first.

    Args:
        dims: Number of spatial dimensions.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        num_features: Channels of the last features.
        global_pool: ``"token"`` classifies from the class token; for the others see :class:`TokenPool`.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self, *, dims: int, in_chans: int, num_classes: int, num_features: int, global_pool: str = "token", drop_rate: float = 0.0
    ) -> None:
        super().__init__(dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=num_features, drop_rate=drop_rate)
        self.global_pool = TokenPool(global_pool)

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last tokens, ``(B, 1 + N, num_features)``, the class token first."""

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; see :meth:`Backbone.reset_classifier`."""
        super().reset_classifier(num_classes)
        if global_pool is not None:
            self.global_pool = TokenPool(global_pool)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer: normal with deviation 0.02 cut off at 2, and no bias."""
        layer = super().new_classifier(num_classes)
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        return layer

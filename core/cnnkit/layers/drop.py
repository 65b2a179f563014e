"""Stochastic depth: Huang et al. (2016), "Deep Networks with Stochastic Depth"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Set whole samples of ``x`` to zero with probability ``rate``, and scale the others by ``1 / (1 - rate)``.

    Applied to the branch of a residual block it skips the block for that sample; the scale keeps the expectation.

    Args:
        x: ``(B, ...)``.
        rate: Probability of a drop, ``0 <= rate < 1``.
        training: Outside of training ``x`` is returned as it is.
    """
    if rate == 0.0 or not training:
        return x
    keep = 1.0 - rate
    mask = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
    return x * mask / keep


class DropPath(nn.Module):
    """:func:`drop_path` as a module.

    Args:
        rate: Probability that a sample's branch is dropped, ``0 <= rate < 1``.

    Raises:
        ValueError: If the rate is outside of this range.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop-path rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with some samples dropped while training."""
        return drop_path(x, self.rate, self.training)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.rate}"


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return the rate of every block by stage, rising linearly from 0 at the first block to ``rate`` at the last.

    Args:
        rate: Rate of the last block.
        depths: Number of blocks of each stage.
    """
    last = max(sum(depths) - 1, 1)
    flat = [rate * i / last for i in range(sum(depths))]
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [flat[start : start + depth] for start, depth in zip(starts, depths, strict=True)]

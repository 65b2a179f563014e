"""The first step of the pipeline: most single weights become zero, by magnitude over the whole network."""

from __future__ import annotations

import torch
from cnnkit.errors import ConfigError
from torch import nn


class Sparsity:
    """Masks over the kernels and matrices of a network; what they hide stays zero while it is trained.

    Args:
        model: Its smallest weights are set to zero at once, over all layers together; norms and biases are left alone.
        share: Share of zeros, from 0 to below 1.
        regrow: Choose anew at each :meth:`apply`, as the official code does: a weight that training has made large comes back.

    Raises:
        ConfigError: If the share is out of range, or would leave no weight.
    """

    def __init__(self, model: nn.Module, share: float, *, regrow: bool = False) -> None:
        self.weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        total = sum(weight.numel() for weight in self.weights)
        self.zeros, self.share, self.regrow = round(share * total), share, regrow
        if not 0 <= share < 1 or self.zeros >= total:
            raise ConfigError(f"a sparsity of {share} leaves nothing, or is no share; accepted: 0 to below 1")
        self.masks = self._choose()
        self.apply()

    @torch.no_grad()
    def _choose(self) -> list[torch.Tensor]:
        magnitudes = torch.cat([weight.abs().flatten() for weight in self.weights])
        mask = torch.ones_like(magnitudes, dtype=torch.bool)
        # By position, not by a threshold: equal weights must not make it more zeros than asked for.
        mask[magnitudes.topk(self.zeros, largest=False, sorted=False).indices] = False
        parts = mask.split([weight.numel() for weight in self.weights])
        return [part.view_as(weight) for part, weight in zip(parts, self.weights, strict=True)]

    @torch.no_grad()
    def apply(self) -> None:
        """Set the hidden weights to zero: to be called after each step of the optimizer."""
        if self.regrow:
            self.masks = self._choose()
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.mul_(mask)

"""Initialisations that several families share."""

from __future__ import annotations

from torch import nn


def init_truncated(module: nn.Module) -> None:
    """Draw the weights of a convolution or linear layer from a normal of deviation 0.02 and set its bias to 0; for :meth:`nn.Module.apply`.

    It is the initialisation of vision transformers, and of the convolutional networks that follow their design.
    """
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

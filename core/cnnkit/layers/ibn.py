"""Instance and batch normalisation in one layer: Pan, Luo, Shi and Tang (2018).

"Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net". Instance normalisation removes
the appearance of each image (its contrast, its colour cast), batch normalisation keeps what tells classes apart. The layer gives
each of them a part of the channels::

    IBN(x) = concat(IN(x[: C r]), BN(x[C r :])),      r = 1/2

In the paper's form a it stands for the first normalisation of a residual branch, at shallow depth only; in form b a whole instance
normalisation follows the sum of a stage's last block. :mod:`cnnkit.backbones.ibn_resnet` has both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnkit.errors import ConfigError
from cnnkit.layers.nd import batch_norm, instance_norm
from cnnkit.registry import Entry


class InstanceBatchNorm(nn.Module):
    """Instance normalisation of the first channels and batch normalisation of the others.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions: 1, 2 or 3.
        ratio: Share of the channels, rounded down, that instance normalisation takes.
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ConfigError: If one of the two parts would be empty.
    """

    def __init__(
        self,
        channels: int,
        *,
        dims: int = 2,
        ratio: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        first = int(channels * ratio)
        if not 0 < first < channels:
            raise ConfigError(f"ratio={ratio} leaves one part of {channels} channels empty; use get_norm('instance') or get_norm('batch')")
        self.split = (first, channels - first)
        # Capital names are those of the authors' files.
        self.IN = instance_norm(dims)(first, affine=True, device=device, dtype=dtype)
        self.BN = batch_norm(dims)(channels - first, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised ``x``."""
        first, rest = x.split(self.split, dim=1)
        return torch.cat([self.IN(first), self.BN(rest)], dim=1)


LAYERS = {
    "ibn": Entry(
        "cnnkit.layers.ibn:InstanceBatchNorm",
        paper="ibn-net",
        summary="Instance normalisation of half of the channels, batch normalisation of the others (Pan et al., 2018).",
        dims=(1, 2, 3),
    ),
}

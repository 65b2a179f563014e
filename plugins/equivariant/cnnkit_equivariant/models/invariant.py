"""A network that sees distances alone: what an equivariant one has to beat at equal size.

Continuous-filter convolutions of SchNet (Schuett et al., 2017): a message is the neighbour's features times a filter of the distance,
summed over the neighbours. Energies are invariant to rotations, reflections and translations by construction, but an atom learns of angles
only through distances between its neighbours, one layer later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from cnnkit.errors import ConfigError
from torch import Tensor, nn
from torch.nn import functional

from cnnkit_equivariant.models._base import AtomicOutput, Potential
from cnnkit_equivariant.models._radial import GaussianBasis, cosine_envelope, envelope, lengths, sum_to_centres


class ShiftedSoftplus(nn.Module):
    """``log(1/2 + exp(x)/2)``: smooth, and 0 at 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return functional.softplus(x) - math.log(2.0)


class Interaction(nn.Module):
    """One round of messages and what an atom makes of their sum.

    Args:
        channels: Features of an atom.
        filters: Features of a message.
        basis: Values by which a distance is given.
    """

    def __init__(self, channels: int, filters: int, basis: int) -> None:
        super().__init__()
        self.filter = nn.Sequential(nn.Linear(basis, filters), ShiftedSoftplus(), nn.Linear(filters, filters))
        self.to_message = nn.Linear(channels, filters, bias=False)
        self.update = nn.Sequential(nn.Linear(filters, channels), ShiftedSoftplus(), nn.Linear(channels, channels))

    def forward(self, x: Tensor, basis: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """Return the change of the features ``x (N, channels)``; ``weights (E, 1)`` end at the cutoff."""
        source, target = edge_index
        messages = self.to_message(x).index_select(0, source) * (self.filter(basis) * weights)
        return self.update(sum_to_centres(messages, target, x.shape[0]))


class Invariant(Potential):
    """A potential of distances.

    Args:
        elements: Symbols that it knows; by default the first 89.
        cutoff: Distance up to which atoms see each other, in A.
        channels: Features of an atom.
        filters: Features of a message; by default as many.
        layers: Rounds of messages.
        gaussians: By which a distance is given.
        taper: How messages end at the cutoff: ``"polynomial"`` with two continuous derivatives, or SchNet's ``"cosine"`` with one.

    Raises:
        ConfigError: If there is no layer, or the taper is not known.
    """

    def __init__(
        self,
        *,
        elements: Sequence[str] | None = None,
        cutoff: float = 5.0,
        channels: int = 128,
        filters: int | None = None,
        layers: int = 3,
        gaussians: int = 32,
        taper: Literal["polynomial", "cosine"] = "polynomial",
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff)
        if layers < 1 or taper not in ("polynomial", "cosine"):
            raise ConfigError(f"layers={layers}, taper={taper}: accepted are 1 layer or more, and polynomial or cosine")
        self.taper = taper
        self.embedding = nn.Embedding(len(self.elements), channels)
        self.basis = GaussianBasis(gaussians, cutoff)
        self.interactions = nn.ModuleList(Interaction(channels, filters or channels, gaussians) for _ in range(layers))
        self.head = nn.Sequential(nn.Linear(channels, channels // 2), ShiftedSoftplus(), nn.Linear(channels // 2, 1))

    def atomwise(self, species: Tensor, vectors: Tensor, edge_index: Tensor) -> AtomicOutput:
        """Return the energies of the atoms."""
        distances, apart = lengths(vectors)
        basis = self.basis(distances)
        falling = envelope(distances, self.cutoff, power=5) if self.taper == "polynomial" else cosine_envelope(distances, self.cutoff)
        weights = torch.where(apart, falling, 0.0)[:, None]
        x = self.embedding(species)
        for interaction in self.interactions:
            x = x + interaction(x, basis, weights, edge_index)
        return AtomicOutput(self.head(x)[:, 0])

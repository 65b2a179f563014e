"""A potential as a function of tensors, which is what can be exported."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from cnnkit_equivariant.models._base import Potential, edge_vectors, sum_of_atoms


class EnergyOfTensors(nn.Module):
    """The energies of structures; forces are their gradient, in the exported program as here.

    ::

        energy = torch.export.load("model.pt2").module()
        energies = energy(positions.requires_grad_(), numbers, edge_index, shifts, cell, batch)
        forces = -torch.autograd.grad(energies.sum(), positions)[0]

    Edges are those of :func:`~cnnkit_equivariant.atoms.neighbors.neighbor_list` up to the network's cutoff. Of a network with direct forces
    the program returns energies and forces.

    Args:
        potential: The network.
    """

    INPUTS: ClassVar[tuple[str, ...]] = ("positions", "numbers", "edge_index", "shifts", "cell", "batch")

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def forward(
        self, positions: Tensor, numbers: Tensor, edge_index: Tensor, shifts: Tensor, cell: Tensor, batch: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the energies ``(G,)`` in eV, in float64, and direct forces ``(N, 3)`` in eV/A.

        Args:
            positions: In A, ``(N, 3)``.
            numbers: Atomic numbers, ``(N,)``.
            edge_index: Neighbour and centre, ``(2, E)``.
            shifts: Whole cells by which the neighbour is moved, ``(E, 3)``.
            cell: Rows are the vectors, ``(G, 3, 3)``.
            batch: Structure of each atom, ``(N,)``.
        """
        species = self.potential.element_index[numbers]
        # Index -1 would take the last element's energy.
        torch._assert_async((species >= 0).all(), "an element is not among those that the network was trained on")
        vectors = edge_vectors(positions, cell.to(positions.dtype), None, edge_index, shifts, batch)
        found = self.potential.in_units(species, vectors, edge_index)
        energy = sum_of_atoms(found.energy, batch, cell.shape[0])
        return energy if found.forces is None else (energy, found.forces)

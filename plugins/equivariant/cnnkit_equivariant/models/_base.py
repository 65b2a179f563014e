"""What the networks of the plugin have in common: the job, and for potentials how energies become forces and stresses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from cnnkit.errors import ConfigError, InputError
from cnnkit.weights import Layout
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Data

MOST_ELEMENTS = 119
"""Atomic numbers are below this."""


class GeometricModel(nn.Module, ABC):
    """A network that knows a symmetry.

    Class attributes:
        job: What it is for, which picks the task: ``"atoms"`` or ``"classification"``.
        not_exported: Why it has no form in a format, by the suffix of its files, such as ``".onnx"``.
    """

    job: ClassVar[str]
    not_exported: ClassVar[Mapping[str, str]] = {}
    layouts: ClassVar[tuple[Layout, ...]] = ()


class Classifier(GeometricModel):
    """A network that says what a field shows.

    Class attributes:
        domain: What it takes, which picks how the data set is presented: ``"picture"`` (B, C, H, W), ``"sphere"`` fields on an
            equiangular grid (B, C, H, W), or ``"outline"`` contours of a drawing as line segments.

    Args:
        num_classes: What it tells apart.
        in_chans: Channels of the input.
    """

    job = "classification"
    domain: ClassVar[str] = "picture"

    def __init__(self, *, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""

    def losses(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return what is minimised by name: the cross-entropy, where a network has no other; ``target`` are classes ``(B,)``."""
        return {"cross_entropy": functional.cross_entropy(self(x).float(), target)}


class AtomicOutput(NamedTuple):
    """What a network says of every atom, before scale and references.

    Args:
        energy: ``(N,)``, in units of the potential's ``scale``.
        forces: ``(N, 3)`` of networks with direct forces, in units of ``scale`` per A; else ``None``.
    """

    energy: Tensor
    forces: Tensor | None = None


class Potential(GeometricModel):
    """A network for energies and forces of atoms.

    The energy of a structure is ``sum_i (reference[element_i] + scale * e_i)``; forces are its negative gradient, and the stress its
    derivative by a strain over the volume. References and scale are buffers: fitted to the training data, they travel with the weights.

    Args:
        elements: Symbols that it knows, in the order of their embedding; by default the first 89 of the periodic table.
        cutoff: Distance up to which atoms see each other, in A.
        direct: Whether it predicts forces by themselves; they cost no backward pass, and are not the gradient of an energy.

    Shapes:
        graph: A batch of torch-geometric with ``pos (N, 3)``, ``z (N,)`` atomic numbers, ``edge_index (2, E)`` from neighbour ``j`` to
            centre ``i``, ``shifts (E, 3)`` whole cells by which ``j`` is moved, ``cell (G, 3, 3)`` with rows as vectors, ``pbc (G, 3)``
            and ``batch (N,)``.
    """

    job = "atoms"
    not_exported: ClassVar[Mapping[str, str]] = {
        ".onnx": "forces and stresses are derivatives of the energy, and a file of ONNX gives none; ASE takes cnnkit_equivariant.Calculator"
    }

    element_index: Tensor
    references: Tensor
    scale: Tensor

    def __init__(self, *, elements: Sequence[str] | None = None, cutoff: float, direct: bool = False) -> None:
        super().__init__()
        from ase.data import atomic_numbers, chemical_symbols

        elements = tuple(chemical_symbols[1:90] if elements is None else elements)
        unknown = [symbol for symbol in elements if symbol not in atomic_numbers or symbol == "X"]
        if unknown or not elements or len(set(elements)) != len(elements):
            raise ConfigError(f"elements={list(elements)} must be different chemical symbols, for example [Cu, O]")
        if not cutoff > 0:
            raise ConfigError(f"cutoff={cutoff} is no distance; accepted: more than 0 A")
        self.elements, self.cutoff, self.direct = elements, float(cutoff), direct
        index = torch.full((MOST_ELEMENTS,), -1)
        index[[atomic_numbers[symbol] for symbol in elements]] = torch.arange(len(elements))
        self.register_buffer("element_index", index, persistent=False)
        self.register_buffer("references", torch.zeros(len(elements), dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    @abstractmethod
    def atomwise(self, species: Tensor, vectors: Tensor, edge_index: Tensor) -> AtomicOutput:
        """Return what is said of every atom.

        Args:
            species: Index into :attr:`elements`, ``(N,)``.
            vectors: From the centre ``edge_index[1]`` to the neighbour ``edge_index[0]``, in A, ``(E, 3)``.
            edge_index: ``(2, E)``.
        """

    def species(self, numbers: Tensor) -> Tensor:
        """Return the indices of atomic numbers ``(N,)``.

        Raises:
            InputError: If an element is not known.
        """
        found = self.element_index[numbers.clamp(0, MOST_ELEMENTS - 1)]
        if bool((found < 0).any()):
            from ase.data import chemical_symbols

            strange = sorted({chemical_symbols[int(z)] if 0 <= z < MOST_ELEMENTS else str(int(z)) for z in numbers[found < 0]})
            raise InputError(
                f"{', '.join(strange)}: not among the elements that the network was trained on ({', '.join(self.elements)}); "
                "train on structures that hold them: cnnkit train equivariant"
            )
        return found

    def in_units(self, species: Tensor, vectors: Tensor, edge_index: Tensor) -> AtomicOutput:
        """Return what :meth:`atomwise` does with references in eV (float64), and direct forces in eV/A in the precision of the vectors."""
        found = self.atomwise(species, vectors.to(self.dtype), edge_index)
        forces = None if found.forces is None else self.scale.to(vectors.dtype) * found.forces.to(vectors.dtype)
        return AtomicOutput(self.references[species] + self.scale * found.energy.double(), forces)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Potential:
        # References of elements are thousands of eV in some data: they stay double when the network becomes single.
        references, scale = self.references, self.scale
        super()._apply(fn, recurse)
        if self.references.dtype != torch.float64:
            self.references, self.scale = references.to(self.references.device), scale.to(self.scale.device)
        return self

    def forward(self, graph: Data, *, forces: bool = True, stress: bool = False, energies: bool = False) -> dict[str, Tensor]:
        """Return ``energy (G,)`` in eV (float64), and if asked for ``forces (N, 3)`` in eV/A and ``stress (G, 3, 3)`` in eV/A^3.

        If asked for, ``energies (N,)`` are those of the atoms, whose sum the energy is. Positions may be of another precision than the
        network: distances are taken in theirs. The stress of a structure without a volume is zero. In training the results can be
        differentiated again; in evaluation those that took derivatives are detached, and an energy alone is not.
        """
        follow = (forces and not self.direct) or stress
        again = self.training and torch.is_grad_enabled()
        graphs = graph.cell.numel() // 9
        batch = graph.batch if graph.batch is not None else torch.zeros_like(graph.z)
        with torch.set_grad_enabled(follow or torch.is_grad_enabled()):
            positions, cell = graph.pos, graph.cell.view(graphs, 3, 3).to(graph.pos.dtype)
            strain = torch.zeros_like(cell)
            if follow:
                positions = positions.detach().requires_grad_()
                strain.requires_grad_(stress)
            vectors = edge_vectors(positions, cell, strain if stress else None, graph.edge_index, graph.shifts, batch)
            found = self.in_units(self.species(graph.z), vectors, graph.edge_index)
            energy = sum_of_atoms(found.energy, batch, graphs)
        result = {"energy": energy} | ({"energies": found.energy} if energies else {})
        if found.forces is not None and forces:
            result["forces"] = found.forces
        if follow:
            result |= self._derivatives(energy, positions, strain, cell, forces=forces and not self.direct, stress=stress, again=again)
        return result if again or not follow else {name: value.detach() for name, value in result.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.parameters()).dtype

    def _derivatives(
        self, energy: Tensor, positions: Tensor, strain: Tensor, cell: Tensor, *, forces: bool, stress: bool, again: bool
    ) -> dict[str, Tensor]:
        wanted = [positions] * forces + [strain] * stress
        if energy.requires_grad:
            # Of the energies themselves: under no_grad their sum would not know where it comes from.
            ones = torch.ones_like(energy)
            slopes = torch.autograd.grad(energy, wanted, ones, create_graph=again, allow_unused=True, materialize_grads=True)
        else:  # Of frozen weights and atoms without neighbours.
            slopes = tuple(torch.zeros_like(each) for each in wanted)
        result = {}
        if forces:
            result["forces"] = -slopes[0]
        if stress:
            volume = torch.linalg.det(cell).abs()
            periodic = (volume > 0)[:, None, None]
            both = 0.5 * (slopes[-1] + slopes[-1].mT)
            result["stress"] = torch.where(periodic, both / torch.where(periodic, volume[:, None, None], 1.0), 0.0)
        return result


def sum_of_atoms(energies: Tensor, batch: Tensor, structures: int) -> Tensor:
    """Return the energies of structures ``(G,)`` from those of their atoms ``(N,)``."""
    return energies.new_zeros(structures).index_add(0, batch, energies)


def edge_vectors(positions: Tensor, cell: Tensor, strain: Tensor | None, edge_index: Tensor, shifts: Tensor, batch: Tensor) -> Tensor:
    """Return the vectors ``(E, 3)`` from centre to neighbour of structures that a strain ``(G, 3, 3)`` deforms."""
    source, target = edge_index
    structure = batch.index_select(0, target)
    offsets = torch.einsum("ec,ecd->ed", shifts.to(cell.dtype), cell.index_select(0, structure))
    vectors = positions.index_select(0, source) - positions.index_select(0, target) + offsets
    if strain is None:
        return vectors
    return vectors + torch.einsum("ec,ecd->ed", vectors, strain.index_select(0, structure))

"""eSCN: message passing whose SO(3) convolutions are cheap linear maps in the frame of each edge.

Passaro and Zitnick, "Reducing SO(3) Convolutions to SO(2) for Efficient Equivariant GNNs" (2023). An atom carries functions on the sphere,
given by coefficients up to degree L. For a message, the functions of both ends of an edge are turned so that the edge points along the
polar axis: there the tensor product with the harmonics of the edge, whose cost grows as L^6, is one linear map per order m, of cost L^3.
The messages are turned back and summed, and an atom makes its new functions from them point by point on a grid. The energy is the mean
over the sphere of a network at its points; direct forces are the mean of another times the direction of the point.

Over the paper: messages end smoothly at the cutoff, so that the energy is continuous; forces and stress may be the energy's own
derivatives, for which the frames are functions of the positions, without a pole; activations of messages may be gates, which are
equivariant without an error; the maps may commute with mirrors, too, so that an enantiomer has the same energy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

import torch
from cnnkit.errors import ConfigError
from cnnkit.weights import Layout
from torch import Tensor, nn
from torch.nn import functional

from cnnkit_equivariant.models._base import AtomicOutput, Potential
from cnnkit_equivariant.models._radial import GaussianBasis, envelope, lengths
from cnnkit_equivariant.models._so2_block import Gate, MessageBlock, SphereAct
from cnnkit_equivariant.so3 import order
from cnnkit_equivariant.so3.grid import SphereGrid
from cnnkit_equivariant.so3.wigner import edge_rotation, wigner_matrix


class LayerBlock(nn.Module):
    """Messages, and what an atom makes of them and of its own functions at every point of the sphere.

    Args:
        message: Sums the messages.
        channels: Functions of an atom.
        grid: Points on the sphere.
    """

    def __init__(self, message: MessageBlock, channels: int, grid: SphereGrid) -> None:
        super().__init__()
        self.message_block, self.grid = message, grid
        self.fc1_sphere = nn.Linear(2 * channels, channels, bias=False)
        self.fc2_sphere = nn.Linear(channels, channels, bias=False)
        self.fc3_sphere = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor, species: Tensor, basis: Tensor, weights: Tensor, edge_index: Tensor, turn: Tensor) -> Tensor:
        """Return what is added to the functions of the atoms; see :meth:`MessageBlock.forward` for the arguments."""
        message = self.message_block(x, species, basis, weights, edge_index, turn)
        # Linear maps of channels commute with the grid, and coefficients are fewer than points.
        own, others = self.fc1_sphere.weight.chunk(2, 1)
        mixed = functional.linear(message, others)
        mixed = functional.pad(functional.linear(x, own), (0, 0, 0, mixed.shape[1] - x.shape[1])) + mixed
        points = functional.silu(self.fc2_sphere(functional.silu(self.grid.to_grid(mixed))))
        return self.fc3_sphere(self.grid.from_grid(points))


class Head(nn.Module):
    """A number at every point of the sphere.

    Args:
        channels: Functions of an atom.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels)
        self.fc2 = nn.Linear(channels, channels)
        self.fc3 = nn.Linear(channels, 1, bias=False)

    def forward(self, points: Tensor) -> Tensor:
        """Return ``(N, points, 1)`` for the values ``(N, points, channels)``."""
        return self.fc3(functional.silu(self.fc2(functional.silu(self.fc1(points)))))


class ESCN(Potential):
    """The network of eSCN. Its parameters have the names of the authors' code.

    Args:
        elements: Symbols that it knows; by default the first 89, which the published weights are for.
        cutoff: Distance up to which atoms see each other, in A.
        direct: Whether forces are predicted by themselves, as in the paper, or are the gradient of the energy.
        lmax: Highest degree of the functions of an atom.
        mmax: Highest order that messages keep; by default all.
        sphere_channels: Functions of an atom.
        hidden_channels: Rank of the map of an order.
        edge_channels: Numbers of an edge: its length and the elements at its ends.
        num_layers: Rounds of messages.
        gaussians: By which a length is given.
        basis_width: Their standard deviation in steps between their centres.
        taper: Power of the envelope at which messages end at the cutoff; ``None`` ends them abruptly, as the paper does.
        neighbors: The sum of messages is divided by this, whatever the number of neighbours is.
        message_act: In the frame of an edge: ``"gate"``, or ``"sphere"`` for the paper's SiLU at the points of a grid.
        mirror: Whether energies are the same for mirror images: O(3) instead of the paper's SO(3).
        resolution: Longitudes of the grid; by default ``4 * lmax + 3``. Colatitudes, at the nodes of Gauss, are half as many. The paper's
            ``2 * lmax + 3`` are the fewest; each 4 more make the error of rotations some 50 times smaller at ``lmax=2``.

    Raises:
        ConfigError: If an argument is out of its range.
    """

    layouts = (Layout("official", lambda keys: any(key.endswith("sphere_points") for key in keys), lambda state: _from_official(state)),)

    def __init__(
        self,
        *,
        elements: Sequence[str] | None = None,
        cutoff: float = 5.0,
        direct: bool = False,
        lmax: int = 2,
        mmax: int | None = None,
        sphere_channels: int = 32,
        hidden_channels: int = 64,
        edge_channels: int = 64,
        num_layers: int = 3,
        gaussians: int = 32,
        basis_width: float = 1.0,
        taper: int | None = 5,
        neighbors: float = 12.0,
        message_act: Literal["gate", "sphere"] = "gate",
        mirror: bool = True,
        resolution: int | None = None,
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff, direct=direct)
        mmax = order.check(lmax, mmax)
        resolution = 4 * lmax + 3 if resolution is None else resolution
        _check(lmax, num_layers, taper, neighbors, message_act, resolution)
        self.lmax, self.mmax, self.taper, self.neighbors = lmax, mmax, taper, float(neighbors)
        self.sphere_embedding = nn.Embedding(len(self.elements), sphere_channels)
        self.distance_expansion = GaussianBasis(gaussians, cutoff, width=basis_width)
        self.grid = SphereGrid(lmax, lmax, (resolution // 2 + 1, resolution))
        layers = []
        for number in range(num_layers):
            top = mmax if number else 0  # Of scalars, nothing of an order above 0 arises.
            longitudes = resolution if top == lmax else resolution - 2 - 2 * (lmax - top)
            message = MessageBlock(
                sphere_channels,
                hidden_channels,
                edge_channels,
                lmax,
                mmax,
                basis=self.distance_expansion,
                elements=len(self.elements),
                act=Gate(sphere_channels, lmax)
                if message_act == "gate"
                else SphereAct(sphere_channels, lmax, top, (resolution // 2 + 1, longitudes)),
                mirror=mirror,
                scalars=number == 0,
            )
            layers.append(LayerBlock(message, sphere_channels, self.grid))
        self.layer_blocks = nn.ModuleList(layers)
        self.energy_block = Head(sphere_channels)
        self.force_block = Head(sphere_channels) if direct else None
        self._draw()

    def _draw(self) -> None:
        """Draw weights that keep the size of what they weigh, so that forces of the first step are not lost beneath the biases.

        The default of linear maps loses a factor of 2 to 4 at every one of them, here five in a row for each layer.
        """
        nn.init.normal_(self.sphere_embedding.weight, std=math.sqrt(4 * math.pi))  # Functions of size 1 at the points.
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            leaf = name.rpartition(".")[2]
            after_act = leaf in ("fc2_sphere", "fc3_sphere", "fc1_edge_attr", "fc2") or leaf.startswith("fc1_dist")
            nn.init.normal_(module.weight, std=(_SILU_GAIN if after_act else 1.0) / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.constant_(module.bias, float("so2_" in name))  # Gates start open.

    def atomwise(self, species: Tensor, vectors: Tensor, edge_index: Tensor) -> AtomicOutput:
        """Return the energies of the atoms, and forces if they are direct."""
        distances, apart = lengths(vectors)
        falling = torch.ones_like(distances) if self.taper is None else envelope(distances, self.cutoff, power=self.taper)
        # Atoms at the same place have no direction between them: no message could turn with the structure.
        weights = torch.where(apart, falling / self.neighbors, 0.0)[:, None]
        basis, turn = self.distance_expansion(distances), self._turn(vectors)
        x = self.sphere_embedding(species)[:, None]
        for layer in self.layer_blocks:
            change = layer(x, species, basis, weights, edge_index, turn)
            x = change if x.shape[1] == 1 else x + change
        points = self.grid.to_grid(x)
        energy = self.grid.from_grid(self.energy_block(points))[:, 0, 0] / math.sqrt(4 * math.pi)
        if self.force_block is None:
            return AtomicOutput(energy)
        return AtomicOutput(energy, self.grid.from_grid(self.force_block(points))[:, 1:4, 0] / math.sqrt(12 * math.pi))

    def _turn(self, vectors: Tensor) -> Tensor:
        """Return what turns coefficients by degree into the frame of each edge, where they stand by order."""
        return wigner_matrix(self.lmax, edge_rotation(vectors), mmax=self.mmax, by_order=True)


def _check(lmax: int, num_layers: int, taper: int | None, neighbors: float, message_act: str, resolution: int) -> None:
    """Refuse arguments that make no network."""
    wrong = [
        *([f"lmax={lmax} must be 1 or more"] if lmax < 1 else []),
        *([f"num_layers={num_layers} must be 1 or more"] if num_layers < 1 else []),
        *([f"taper={taper} must be 2 or more, or None"] if taper is not None and taper < 2 else []),
        *([f"neighbors={neighbors} must be more than 0"] if not neighbors > 0 else []),
        *([f"message_act={message_act} must be gate or sphere"] if message_act not in ("gate", "sphere") else []),
        *([f"resolution={resolution} must be {2 * lmax + 3} or more for lmax={lmax}"] if resolution < 2 * lmax + 3 else []),
    ]
    if wrong:
        raise ConfigError("; ".join(wrong))


_SILU_GAIN = 1.68
"""Keeps the size of a standard normal number after SiLU."""
_CONSTANT = re.compile(r"sphere_points$|sphharm_weights\.|distance_expansion\.offset$|SO3_grid\.")


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights of the authors' code to the names and shapes here.

    Their embeddings have a row for element 0, which is none; their first layer has weights for orders and degrees that are zero there, and
    their energy is a thousandth of what the last layer says.
    """
    state = {re.sub(r"^(module\.)+", "", key): value for key, value in state.items()}
    channels = state["sphere_embedding.weight"].shape[1]
    found = {}
    for key, value in state.items():
        if _CONSTANT.search(key) or re.match(r"layer_blocks\.0\.message_block\.so2_block_\w+\.so2_conv\.", key):
            continue
        if key.endswith("embedding.weight"):
            value = value[1:]
        elif re.match(r"layer_blocks\.0\..*fc1_m0\.weight$", key):
            value = value[:, :channels]
        elif key == "energy_block.fc3.weight":
            value = 0.001 * value
        found[key] = value
    rows = len(found["sphere_embedding.weight"])
    return {**found, "references": torch.zeros(rows, dtype=torch.float64), "scale": torch.ones((), dtype=torch.float64)}

"""eSCN written straightforwardly, with the structure and the key names of its authors' code; rotations and grids are e3nn's.

Frames of edges are random about the edge, as theirs are. Besides what they have, the options of our network: an envelope, a divisor,
gates, no imaginary weights. Heads integrate over the grid instead of over 128 scattered points.
"""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor, nn


def e3nn_grid(lmax: int, resolution: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Matrices to the grid ``(P, K)`` and from it ``(K, P)``, for coefficients of harmonics whose squares integrate to 1."""
    there = o3.ToS2Grid(lmax, resolution, normalization="integral")
    back = o3.FromS2Grid(resolution, lmax, normalization="integral")
    to_grid = torch.einsum("mbi,am->bai", there.shb, there.sha).flatten(0, 1)
    return to_grid, torch.einsum("am,mbi->bai", back.sha, back.shb).flatten(0, 1).t()


def frames(vectors: Tensor, generator: torch.Generator) -> Tensor:
    """Rotations that take each edge to +y, with a random roll about it."""
    y = vectors / vectors.norm(dim=1, keepdim=True)
    other = torch.rand(vectors.shape, generator=generator, dtype=torch.float64).to(vectors) - 0.5
    z = torch.linalg.cross(y, other)
    z = z / z.norm(dim=1, keepdim=True)
    return torch.stack([torch.linalg.cross(y, z), y, z], 1)


def wigner(lmax: int, rotations: Tensor) -> Tensor:
    """Matrices ``(E, K, K)`` that rotate coefficients, from e3nn."""
    angles = o3.matrix_to_angles(rotations)
    blocks = [o3.wigner_D(degree, *angles) for degree in range(lmax + 1)]
    found = torch.zeros(len(rotations), (lmax + 1) ** 2, (lmax + 1) ** 2, dtype=rotations.dtype)
    for degree, block in enumerate(blocks):
        found[:, degree**2 : (degree + 1) ** 2, degree**2 : (degree + 1) ** 2] = block
    return found


class EdgeBlock(nn.Module):
    def __init__(self, basis: int, channels: int, elements: int) -> None:
        super().__init__()
        self.fc1_dist = nn.Linear(basis, channels)
        self.source_embedding = nn.Embedding(elements, channels)
        self.target_embedding = nn.Embedding(elements, channels)
        self.fc1_edge_attr = nn.Linear(channels, channels)
        self.act = nn.SiLU()

    def forward(self, basis: Tensor, source: Tensor, target: Tensor) -> Tensor:
        x = self.act(self.source_embedding(source) + self.target_embedding(target) + self.fc1_dist(basis))
        return self.act(self.fc1_edge_attr(x))


class SO2Conv(nn.Module):
    def __init__(self, n: int, hidden: int, edge: int, mirror: bool) -> None:
        super().__init__()
        self.hidden, self.mirror = hidden, mirror
        self.fc1_dist = nn.Linear(edge, hidden if mirror else 2 * hidden)
        self.fc1_r = nn.Linear(n, hidden, bias=False)
        self.fc2_r = nn.Linear(hidden, n, bias=False)
        if not mirror:
            self.fc1_i = nn.Linear(n, hidden, bias=False)
            self.fc2_i = nn.Linear(hidden, n, bias=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, edge: Tensor) -> Tensor:
        """``(E, 2, n)``: +m and -m."""
        gates = self.act(self.fc1_dist(edge)).view(len(x), -1, self.hidden)
        real = self.fc2_r(self.fc1_r(x) * gates[:, 0:1])
        if self.mirror:
            return real
        imaginary = self.fc2_i(self.fc1_i(x) * gates[:, 1:2])
        return torch.stack([real[:, 0] - imaginary[:, 1], real[:, 1] + imaginary[:, 0]], 1)


class SO2Block(nn.Module):
    def __init__(self, channels: int, hidden: int, edge: int, lmax: int, mmax: int, mirror: bool, extra: int) -> None:
        super().__init__()
        self.channels, self.lmax, self.mmax, self.extra = channels, lmax, mmax, extra
        n = (lmax + 1) * channels
        self.fc1_dist0 = nn.Linear(edge, hidden)
        self.fc1_m0 = nn.Linear(n, hidden, bias=False)
        self.fc2_m0 = nn.Linear(hidden, n + extra, bias=False)
        self.so2_conv = nn.ModuleList(SO2Conv((lmax + 1 - m) * channels, hidden, edge, mirror) for m in range(1, mmax + 1))
        self.act = nn.SiLU()

    def forward(self, x: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients ``(E, K, C)`` by degree."""
        out = torch.zeros_like(x)
        rows = [degree * degree + degree for degree in range(self.lmax + 1)]
        zonal = self.fc2_m0(self.fc1_m0(x[:, rows].flatten(1)) * self.act(self.fc1_dist0(edge)))
        n = len(rows) * self.channels
        out[:, rows] = zonal[:, :n].view(len(x), -1, self.channels)
        for m, conv in enumerate(self.so2_conv, 1):
            plus = [degree * degree + degree + m for degree in range(m, self.lmax + 1)]
            minus = [degree * degree + degree - m for degree in range(m, self.lmax + 1)]
            both = conv(torch.stack([x[:, plus].flatten(1), x[:, minus].flatten(1)], 1), edge)
            out[:, plus] = both[:, 0].view(len(x), -1, self.channels)
            out[:, minus] = both[:, 1].view(len(x), -1, self.channels)
        return out, zonal[:, n:]


class MessageBlock(nn.Module):
    def __init__(self, channels, hidden, edge, lmax, mmax, basis, elements, mirror, act, grid) -> None:
        super().__init__()
        self.lmax, self.mmax, self.channels, self.kind, self.grid = lmax, mmax, channels, act, grid
        self.edge_block = EdgeBlock(basis, edge, elements)
        extra = lmax * channels if act == "gate" else 0
        self.so2_block_source = SO2Block(channels, hidden, edge, lmax, mmax, mirror, extra)
        self.so2_block_target = SO2Block(channels, hidden, edge, lmax, mmax, mirror, extra)
        self.act = nn.SiLU()

    def activate(self, x: Tensor, extra: Tensor) -> Tensor:
        if self.kind == "gate":
            gates = extra.sigmoid().view(len(x), self.lmax, self.channels)
            parts = [self.act(x[:, :1])]
            parts += [x[:, degree**2 : (degree + 1) ** 2] * gates[:, degree - 1 : degree] for degree in range(1, self.lmax + 1)]
            return torch.cat(parts, 1)
        to_grid, from_grid = (matrix.to(x) for matrix in self.grid)
        points = self.act(torch.einsum("pk,ekc->epc", to_grid, x))
        x = torch.einsum("kp,epc->ekc", from_grid, points)
        kept = [
            abs(place - degree * degree - degree) <= self.mmax
            for degree in range(self.lmax + 1)
            for place in range(degree**2, (degree + 1) ** 2)
        ]
        return x * torch.tensor(kept).to(x)[:, None]

    def forward(self, x: Tensor, species: Tensor, basis: Tensor, weights: Tensor, edge_index: Tensor, turn: Tensor) -> Tensor:
        source, target = edge_index
        edge = self.edge_block(basis, species[source], species[target])
        one, extra = self.so2_block_source(torch.bmm(turn, x[source]), edge)
        other, extra_too = self.so2_block_target(torch.bmm(turn, x[target]), edge)
        message = self.activate(one + other, extra + extra_too) * weights[:, None, None]
        message = torch.bmm(turn.transpose(1, 2), message)
        return torch.zeros_like(x).index_add_(0, target, message)


class LayerBlock(nn.Module):
    def __init__(self, message: MessageBlock, channels: int, grid: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.message_block, self.grid = message, grid
        self.fc1_sphere = nn.Linear(2 * channels, channels, bias=False)
        self.fc2_sphere = nn.Linear(channels, channels, bias=False)
        self.fc3_sphere = nn.Linear(channels, channels, bias=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        message = self.message_block(x, *rest)
        to_grid, from_grid = (matrix.to(x) for matrix in self.grid)
        points = torch.cat([torch.einsum("pk,nkc->npc", to_grid, each) for each in (x, message)], 2)
        points = self.fc3_sphere(self.act(self.fc2_sphere(self.act(self.fc1_sphere(points)))))
        return torch.einsum("kp,npc->nkc", from_grid, points)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels)
        self.fc2 = nn.Linear(channels, channels)
        self.fc3 = nn.Linear(channels, 1, bias=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.act(self.fc2(self.act(self.fc1(x)))))


class PlainESCN(nn.Module):
    """Energies and direct forces of atoms, from species (index + 1, as an atomic number), vectors and edges."""

    def __init__(
        self, *, num_layers: int, lmax: int, mmax: int, sphere_channels: int, hidden_channels: int, edge_channels: int, cutoff: float,
        num_gaussians: int, basis_width_scalar: float, max_num_elements: int, grid: tuple[Tensor, Tensor], taper: int | None = None,
        neighbors: float = 1.0, message_act: str = "sphere", mirror: bool = False, regress_forces: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.lmax, self.cutoff, self.taper, self.neighbors, self.grid = lmax, cutoff, taper, neighbors, grid
        self.generator = torch.Generator().manual_seed(0)
        self.offset = torch.linspace(0, cutoff, num_gaussians, dtype=torch.float64)
        self.coeff = -0.5 / (basis_width_scalar * cutoff / (num_gaussians - 1)) ** 2
        self.sphere_embedding = nn.Embedding(max_num_elements, sphere_channels)
        self.layer_blocks = nn.ModuleList()
        for _ in range(num_layers):
            message = MessageBlock(
                sphere_channels, hidden_channels, edge_channels, lmax, mmax, num_gaussians, max_num_elements, mirror, message_act, grid
            )
            self.layer_blocks.append(LayerBlock(message, sphere_channels, grid))
        self.energy_block = Block(sphere_channels)
        self.force_block = Block(sphere_channels) if regress_forces else None
        self.sphere_points = nn.Parameter(torch.zeros(128, 3), requires_grad=False)  # Theirs are in the file, too.
        self.sphharm_weights = nn.ParameterList([nn.Parameter(torch.zeros(128, (lmax + 1) ** 2), requires_grad=False)])

    def forward(self, numbers: Tensor, vectors: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor | None]:
        distances = vectors.norm(dim=1)
        basis = torch.exp(self.coeff * (distances[:, None] - self.offset.to(vectors)) ** 2)
        weights = torch.ones_like(distances)
        if self.taper is not None:
            p, u = self.taper, distances / self.cutoff
            weights = 1 - (p + 1) * (p + 2) / 2 * u**p + p * (p + 2) * u ** (p + 1) - p * (p + 1) / 2 * u ** (p + 2)
        weights = weights / self.neighbors
        turn = wigner(self.lmax, frames(vectors, self.generator))
        x = vectors.new_zeros(len(numbers), (self.lmax + 1) ** 2, self.sphere_embedding.embedding_dim)
        x[:, 0] = self.sphere_embedding(numbers)
        for number, layer in enumerate(self.layer_blocks):
            change = layer(x, numbers, basis, weights, edge_index, turn)
            x = x + change if number else change
        to_grid, from_grid = (matrix.to(x) for matrix in self.grid)
        points = torch.einsum("pk,nkc->npc", to_grid, x)
        energy = 0.001 * (self.energy_block(points)[..., 0] @ from_grid[0]) / math.sqrt(4 * math.pi)
        if self.force_block is None:
            return energy, None
        return energy, self.force_block(points)[..., 0] @ from_grid[1:4].t() / math.sqrt(12 * math.pi)

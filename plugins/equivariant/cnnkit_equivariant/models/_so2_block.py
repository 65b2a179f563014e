"""The message of eSCN: features of both atoms of an edge, turned into its frame, mixed order by order, and turned back.

A rotation about the edge turns the coefficients (l, +m) and (l, -m) of one ``m`` into each other as the real and the imaginary part of a
number that is multiplied by ``exp(i m angle)``. What commutes with that is a complex linear map per ``m``, over degrees and channels
together: ``y_m = Wr x_m - Wi x_-m``, ``y_-m = Wi x_m + Wr x_-m``. A mirror that holds the edge conjugates; what commutes with it, too, has
no imaginary weights. The maps are of low rank here, and between their two factors stand gates, functions of the distance and the elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnkit_equivariant.models._radial import GaussianBasis, sum_to_centres
from cnnkit_equivariant.so3 import order
from cnnkit_equivariant.so3.grid import SphereGrid


class EdgeBlock(nn.Module):
    """Numbers of an edge that no rotation changes: from its length and the elements at its ends.

    Args:
        basis: Values by which the length is given.
        channels: How many there are.
        elements: How many elements there are.
    """

    def __init__(self, basis: int, channels: int, elements: int) -> None:
        super().__init__()
        self.fc1_dist = nn.Linear(basis, channels)
        self.source_embedding = nn.Embedding(elements, channels)
        self.target_embedding = nn.Embedding(elements, channels)
        self.fc1_edge_attr = nn.Linear(channels, channels)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.uniform_(embedding.weight, -0.001, 0.001)

    def forward(self, basis: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return ``(E, channels)`` for the values of the basis and the species at both ends."""
        elements = self.source_embedding(source) + self.target_embedding(target)
        return functional.silu(self.fc1_edge_attr(functional.silu(elements + self.fc1_dist(basis))))


class OrderConv(nn.Module):
    """The two factors for one ``m > 0``.

    Args:
        channels: Degrees times channels on either side.
        hidden: Rank.
        edge_channels: Numbers of an edge.
        mirror: Whether the map commutes with mirrors, which leaves out the imaginary weights.
    """

    def __init__(self, channels: int, hidden: int, edge_channels: int, *, mirror: bool) -> None:
        super().__init__()
        self.mirror = mirror
        self.fc1_dist = nn.Linear(edge_channels, hidden if mirror else 2 * hidden)
        self.fc1_r = nn.Linear(channels, hidden, bias=False)
        self.fc2_r = nn.Linear(hidden, channels, bias=False)
        if not mirror:
            self.fc1_i = nn.Linear(channels, hidden, bias=False)
            self.fc2_i = nn.Linear(hidden, channels, bias=False)

    def forward(self, plus: Tensor, minus: Tensor, gates: Tensor, so_far: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return what ``+m`` and ``-m`` become, ``(E, channels)`` each, added to what is there so far."""
        one, other = so_far or (None, None)
        if self.mirror:
            return (
                _add_linear(one, self.fc1_r(plus) * gates, self.fc2_r.weight),
                _add_linear(other, self.fc1_r(minus) * gates, self.fc2_r.weight),
            )
        first = torch.cat([self.fc1_r.weight, self.fc1_i.weight])
        plus_r, plus_i = (functional.linear(plus, first) * gates).chunk(2, 1)
        minus_r, minus_i = (functional.linear(minus, first) * gates).chunk(2, 1)
        one = _add_linear(_add_linear(one, plus_r, self.fc2_r.weight), minus_i, self.fc2_i.weight, sign=-1)
        other = _add_linear(_add_linear(other, minus_r, self.fc2_r.weight), plus_i, self.fc2_i.weight)
        return one, other


def _add_linear(so_far: Tensor | None, x: Tensor, weight: Tensor, *, sign: int = 1) -> Tensor:
    """Return ``so_far + sign * x @ weight.T`` without a product of its own."""
    return x @ weight.t() if so_far is None else torch.addmm(so_far, x, weight.t(), alpha=sign)


class SO2Block(nn.Module):
    """The maps for all orders of the features of one end of an edge; called for both ends by :class:`MessageBlock`.

    Args:
        channels: Channels of a feature.
        hidden: Rank of the map of an order.
        edge_channels: Numbers of an edge.
        lmax: Highest degree.
        mmax: Highest order.
        mirror: Whether the maps commute with mirrors.
        extra: Scalars that are made beside the coefficients.
        scalars: Whether all that comes in are scalars: then nothing of an order above 0 goes out.
    """

    def __init__(
        self, channels: int, hidden: int, edge_channels: int, lmax: int, mmax: int, *, mirror: bool, extra: int = 0, scalars: bool = False
    ) -> None:
        super().__init__()
        width = (lmax + 1) * channels
        self.fc1_dist0 = nn.Linear(edge_channels, hidden)
        self.fc1_m0 = nn.Linear(channels if scalars else width, hidden, bias=False)
        self.fc2_m0 = nn.Linear(hidden, width + extra, bias=False)
        orders = () if scalars else range(1, mmax + 1)
        self.so2_conv = nn.ModuleList(OrderConv((lmax + 1 - m) * channels, hidden, edge_channels, mirror=mirror) for m in orders)

    @property
    def convs(self) -> list[OrderConv]:
        """The maps of the orders above 0."""
        return [conv for conv in self.so2_conv if isinstance(conv, OrderConv)]

    @property
    def gates(self) -> list[nn.Linear]:
        """What makes the gates, order by order."""
        return [self.fc1_dist0, *(conv.fc1_dist for conv in self.convs)]


class Gate(nn.Module):
    """SiLU for scalars, and for the rest a sigmoid of further scalars per degree: equivariant without an error.

    Args:
        channels: Channels of a feature.
        lmax: Highest degree.
    """

    def __init__(self, channels: int, lmax: int) -> None:
        super().__init__()
        self.channels, self.extra = channels, lmax * channels

    def forward(self, parts: Sequence[Tensor], extra: Tensor, weights: Tensor) -> Tensor:
        """Return the coefficients after the gates, ``(E, kept, channels)``.

        Args:
            parts: Coefficients by order, ``(E, degrees * channels)`` each: of 0, +1, -1, +2, ...
            extra: ``(E, lmax * channels)``.
            weights: What the result is multiplied by, ``(E, 1)``.
        """
        scalars = parts[0].narrow(1, 0, self.channels)
        gates = torch.cat([scalars, extra], 1).sigmoid() * weights  # SiLU is a gate, too: of a scalar by itself.
        width = gates.shape[1]
        gated = [part * gates.narrow(1, width - part.shape[1], part.shape[1]) for part in parts]
        return torch.cat(gated, 1).unflatten(1, (-1, self.channels))


class SphereAct(nn.Module):
    """SiLU at the points of a grid on the sphere, as the paper has it: equivariant as far as the grid resolves the result.

    Args:
        channels: Channels of a feature.
        lmax: Highest degree.
        mmax: Highest order.
        resolution: Points along colatitude and longitude.
    """

    extra = 0

    def __init__(self, channels: int, lmax: int, mmax: int, resolution: tuple[int, int]) -> None:
        super().__init__()
        self.channels = channels
        self.grid = SphereGrid(lmax, mmax, resolution, by_order=True)

    def forward(self, parts: Sequence[Tensor], extra: Tensor, weights: Tensor) -> Tensor:
        """Return the coefficients of the function after SiLU; see :meth:`Gate.forward`, but for ``extra``, of which there is none."""
        x = torch.cat(list(parts), 1).unflatten(1, (-1, self.channels))
        return self.grid.from_grid(functional.silu(self.grid.to_grid(x))) * weights[:, None]


class MessageBlock(nn.Module):
    """What the neighbours of an atom tell it.

    Args:
        channels: Channels of a feature.
        hidden: Rank of the map of an order.
        edge_channels: Numbers of an edge.
        lmax: Highest degree.
        mmax: Highest order in the frame of an edge.
        basis: Values by which a length is given.
        elements: How many elements there are.
        act: Acts on messages in the frame of the edge.
        mirror: Whether the maps commute with mirrors.
        scalars: Whether all features that come in are scalars, as in the first layer.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        edge_channels: int,
        lmax: int,
        mmax: int,
        *,
        basis: GaussianBasis,
        elements: int,
        act: Gate | SphereAct,
        mirror: bool,
        scalars: bool,
    ) -> None:
        super().__init__()
        self.channels, self.act, self.scalars = channels, act, scalars
        self.mmax = 0 if scalars else mmax
        self.rows = order.order_sizes(lmax, self.mmax)
        self.edge_block = EdgeBlock(basis.count, edge_channels, elements)
        self.so2_block_source, self.so2_block_target = (
            SO2Block(channels, hidden, edge_channels, lmax, mmax, mirror=mirror, extra=act.extra, scalars=scalars) for _ in range(2)
        )

    def forward(self, x: Tensor, species: Tensor, basis: Tensor, weights: Tensor, edge_index: Tensor, turn: Tensor) -> Tensor:
        """Return the sums of the messages at every atom, ``(N, (lmax + 1) ** 2, channels)``.

        Args:
            x: Coefficients of the atoms by degree, ``(N, (lmax + 1) ** 2, channels)``, or ``(N, 1, channels)`` if all are scalars.
            species: Elements of the atoms, ``(N,)``.
            basis: Of the length of the edges, ``(E, count)``.
            weights: Of the edges, ``(E, 1)``.
            edge_index: ``(2, E)``.
            turn: Into the frame of each edge, from coefficients by degree to such by order, ``(E, kept, (lmax + 1) ** 2)``.
        """
        source, target = edge_index
        edge = self.edge_block(basis, species.index_select(0, source), species.index_select(0, target))
        turn = turn[:, : self.rows[0]] if self.scalars else turn
        parts, extra = self._mix([x.index_select(0, end) if self.scalars else turn @ x.index_select(0, end) for end in edge_index], edge)
        return sum_to_centres(turn.mT @ self.act(parts, extra, weights), target, x.shape[0])

    def _mix(self, ends: Sequence[Tensor], edge: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what both ends ``(E, kept, channels)`` make together, order by order, and the extra scalars."""
        blocks = (self.so2_block_source, self.so2_block_target)
        makers = [maker for block in blocks for maker in block.gates]
        gates = functional.silu(
            functional.linear(edge, torch.cat([each.weight for each in makers]), torch.cat([each.bias for each in makers]))
        )
        parts = iter(gates.split([maker.out_features for maker in makers], 1))
        middle: Tensor | None = None
        pairs: list[tuple[Tensor, Tensor] | None] = [None] * self.mmax
        signed = [rows // 2 for rows in self.rows[1:] for _ in range(2)]
        for block, x in zip(blocks, ends, strict=True):
            first, *rest = x.split([1 if self.scalars else self.rows[0], *signed], 1)
            middle = _add_linear(middle, block.fc1_m0(first.flatten(1)) * next(parts), block.fc2_m0.weight)
            for at, conv in enumerate(block.convs):
                pairs[at] = conv(rest[2 * at].flatten(1), rest[2 * at + 1].flatten(1), next(parts), pairs[at])
        assert middle is not None
        zonal, extra = middle.split([self.rows[0] * self.channels, self.act.extra], 1)
        return [zonal, *(part for pair in pairs if pair is not None for part in pair)], extra

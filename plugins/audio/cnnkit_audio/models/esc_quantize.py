"""Product vector quantisation of ESC: what all frequencies hold at some times is one vector, split into groups, each coded by itself.

A group ``x`` is projected to a few dimensions, and the entry that is nearest in direction stands for it at the entry's own length:

    ``z = D x,   c = argmax_k <z, e_k / |e_k|>,   x' = U e_c``

The gradient passes the choice unchanged (``z`` in place of ``e_c``); the codebook loss draws ``e_c`` to ``z``, the commitment ``z`` to
``e_c``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from torch import Tensor, nn


class Quantised(NamedTuple):
    """What quantisation made of a map, by item of the batch.

    Attributes:
        features: The map that the codes stand for.
        commitment: How far what was coded lies from its codes, ``(B,)``; it moves the network.
        codebook: The same for the codes, ``(B,)``; it moves the entries.
    """

    features: Tensor
    commitment: Tensor
    codebook: Tensor


class Codebook(nn.Module):
    """Entries of which the nearest in direction stands for a vector.

    Args:
        size: Number of entries.
        channels: Dimensions.
    """

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, channels)
        nn.init.kaiming_normal_(self.embedding.weight)

    def encode(self, z: Tensor) -> Tensor:
        """Return the numbers of the entries ``(...)`` for vectors ``(..., channels)``."""
        # Neither the length of z nor those of the unit entries matter for which distance is the smallest.
        return (z @ F.normalize(self.embedding.weight, dim=-1).T).argmax(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the entries ``(..., channels)`` of numbers ``(...)``."""
        return self.embedding(codes)


class ProductQuantiser(nn.Module):
    """Codes for a map: a number for each group of each code frame.

    Args:
        channels: Channels of the map.
        frequencies: Its frequencies.
        overlap: Times that are coded together, one code frame.
        groups: Groups that the vector of a code frame is split into; the last takes the rest.
        size: Entries of a codebook.
        code_channels: Dimensions of an entry.

    Shapes:
        x: ``(B, frequencies, W, channels)`` with ``W`` a multiple of ``overlap``; codes are ``(B, groups, W / overlap)``.
    """

    def __init__(self, channels: int, frequencies: int, *, overlap: int, groups: int, size: int, code_channels: int) -> None:
        super().__init__()
        whole = channels * frequencies * overlap
        if not 1 <= groups <= whole:
            raise ConfigError(f"groups={groups} cannot split vectors of {whole} numbers; accepted: 1 to {whole}")
        self.channels, self.frequencies, self.overlap = channels, frequencies, overlap
        self.widths = [whole // groups] * (groups - 1) + [whole - whole // groups * (groups - 1)]
        self.vqs = nn.ModuleList(Codebook(size, code_channels) for _ in self.widths)
        self.down_projs = nn.ModuleList(nn.Linear(width, code_channels, bias=False) for width in self.widths)
        self.up_projs = nn.ModuleList(nn.Linear(code_channels, width, bias=False) for width in self.widths)

    @property
    def codebooks(self) -> list[Codebook]:
        """The codebook of each group."""
        return list(self.vqs)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *, quantise: bool = True) -> Quantised:
        """Quantise a map, with the gradient passed on; without ``quantise`` it only goes through the projections."""
        made: list[Tensor] = []
        commitments: list[Tensor] = []
        codebooks: list[Tensor] = []
        for z, up, vq in zip(self.project(x), self.up_projs, self.codebooks, strict=True):
            if quantise:
                entry = vq.decode(vq.encode(z))
                commitments.append((z - entry.detach()).square().mean((1, 2)))
                codebooks.append((entry - z.detach()).square().mean((1, 2)))
                made.append(up(z + (entry - z).detach()))
            else:
                # The entries take part with no weight, so that every process of a training has a gradient for them.
                codebooks.append((0.0 * vq.embedding.weight.sum()).expand(len(z)))
                commitments.append(torch.zeros_like(codebooks[-1]))
                made.append(up(z))
        return Quantised(self.spread(made), torch.stack(commitments).mean(0), torch.stack(codebooks).mean(0))

    def encode(self, x: Tensor) -> Tensor:
        """Return codes ``(B, groups, code frames)`` of a map."""
        return torch.stack([vq.encode(z) for z, vq in zip(self.project(x), self.codebooks, strict=True)], 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the map that codes ``(B, groups, code frames)`` stand for."""
        return self.spread(
            [up(vq.decode(codes[:, group])) for group, (up, vq) in enumerate(zip(self.up_projs, self.codebooks, strict=True))]
        )

    def project(self, x: Tensor) -> list[Tensor]:
        """Return what is quantised of each group, ``(B, code frames, code_channels)``."""
        x = x.permute(0, 2, 3, 1).flatten(2)  # By time, then channel, then frequency.
        x = x.unflatten(1, (-1, self.overlap)).flatten(2)
        return [down(part) for part, down in zip(x.split(self.widths, -1), self.down_projs, strict=True)]

    def spread(self, parts: list[Tensor]) -> Tensor:
        """Join groups ``(B, code frames, width)`` to a map."""
        x = torch.cat(parts, -1).unflatten(2, (self.overlap, self.channels, self.frequencies))
        return x.flatten(1, 2).permute(0, 3, 1, 2)


def fit_codebook(vectors: Tensor, size: int, *, iterations: int = 20, generator: torch.Generator | None = None) -> Tensor:
    """Return entries for vectors, by k-means whose choice is the quantiser's: the nearest in direction.

    The first entries are drawn as k-means++ does, far from those that there are; an entry that nothing is nearest to moves to the vector
    that is stood for worst.

    Args:
        vectors: ``(N, channels)``.
        size: Number of entries. If there are fewer vectors, the entries are the vectors, repeated and slightly moved.
        iterations: Rounds of choosing and averaging.
        generator: Of the draws, on the CPU.

    Shapes:
        result: ``(size, channels)``.
    """
    number = len(vectors)
    if number <= size:
        tiled = vectors.repeat(-(-size // number), 1)[:size]
        noise = torch.randn(tiled.shape, generator=generator).to(tiled)
        return tiled + 1e-2 * vectors.std() * noise
    directions = F.normalize(vectors, dim=-1)
    entries = _spread_out(directions, vectors, size, generator)
    for _ in range(iterations):
        closeness, chosen = (directions @ F.normalize(entries, dim=-1).T).max(-1)
        counts = torch.bincount(chosen, minlength=size)
        sums = torch.zeros_like(entries).index_add_(0, chosen, vectors)
        entries = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], entries)
        unused = (counts == 0).nonzero()[:, 0]
        entries[unused] = vectors[closeness.topk(len(unused), largest=False).indices]
    return entries


def _spread_out(directions: Tensor, vectors: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Draw vectors one after the other, each with the probability of its squared distance in direction from those before."""
    draws = torch.rand(size, generator=generator).tolist()
    picked = [int(draws[0] * len(vectors))]
    distance = (1 - directions @ directions[picked[0]]).clamp_min(0)
    for draw in draws[1:]:
        total = distance.cumsum(0)
        picked.append(min(int(torch.searchsorted(total, draw * total[-1])), len(vectors) - 1))
        distance = torch.minimum(distance, (1 - directions @ directions[picked[-1]]).clamp_min(0))
    return vectors[picked].clone()

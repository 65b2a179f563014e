"""Which networks a TDNN supernet holds: the description of one, and the space of all. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cnnkit.errors import ConfigError

SCALE = 8
"""Parts into which the Res2 convolution of a block splits its channels."""
SQUEEZE = 4
"""Reduction of the squeeze-and-excitation."""
BOTTLENECK = 128
"""Channels inside the attention of the pooling."""
BANDS, EMBEDDING = 80, 192


@dataclass(frozen=True)
class SubNet:
    """One TDNN: its widths, its kernels, and with their number its depth.

    Args:
        channels: Channels between blocks, then those inside each block, which eight divides.
        kernels: Kernel of the first layer, then that of each block.
        cat: Channels after the outputs of all blocks are joined.

    Raises:
        ConfigError: If the lengths differ, a width is no multiple of eight, or a kernel is even.
    """

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    cat: int

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.kernels) or len(self.channels) < 2:
            raise ConfigError(f"{self} needs as many kernels as channels, one for the first layer and one for each block")
        if wrong := [width for width in (*self.channels, self.cat) if width < 1 or width % SCALE]:
            raise ConfigError(f"channels {wrong[0]} of {self} cannot be split; accepted: multiples of {SCALE}")
        if wrong := [kernel for kernel in self.kernels if kernel < 1 or kernel % 2 == 0]:
            raise ConfigError(f"kernel {wrong[0]} of {self} has no centre; accepted: odd numbers")

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.channels) - 1

    def __str__(self) -> str:
        return "-".join(map(str, (self.depth, *self.channels, *self.kernels, self.cat)))

    @classmethod
    def parse(cls, text: str) -> SubNet:
        """Read ``DEPTH-CHANNELS-KERNELS-CAT``, as :meth:`__str__` and the authors' training script write it.

        Raises:
            ConfigError: If it is not of that form.
        """
        try:
            depth, *rest = (int(part) for part in text.split("-"))
        except ValueError:
            depth, rest = 0, []
        if depth < 1 or len(rest) != 2 * (depth + 1) + 1:
            raise ConfigError(f"{text!r} is no TDNN; accepted: depth, channels, kernels and cat, as 3-512-512-512-512-5-3-3-3-1536")
        return cls(tuple(rest[: depth + 1]), tuple(rest[depth + 1 : -1]), rest[-1])

    def macs(self, frames: int = 300) -> int:
        """Return the multiply-adds of convolutions and linear layers for so many frames; three seconds by default."""
        return frames * self._weights_per_frame() + self._weights_per_clip()

    def params(self) -> int:
        """Return the number of parameters: weights, those of the normalisations, and the biases of linear layers."""
        first, *inner = self.channels
        part = [width // SCALE for width in inner]
        norms = (
            first + sum(width + (SCALE - 1) * piece + first for width, piece in zip(inner, part, strict=True)) + 2 * self.cat + EMBEDDING
        )
        biases = self.depth * (first // SQUEEZE + first) + EMBEDDING
        return self._weights_per_frame() + self._weights_per_clip() + 2 * norms + biases

    def _weights_per_frame(self) -> int:
        first, *inner = self.channels
        total = BANDS * first * self.kernels[0]
        for width, kernel in zip(inner, self.kernels[1:], strict=True):
            total += 2 * first * width + (SCALE - 1) * (width // SCALE) ** 2 * kernel
        return total + self.depth * first * self.cat + 2 * self.cat * BOTTLENECK

    def _weights_per_clip(self) -> int:
        first = self.channels[0]
        return self.depth * 2 * first * (first // SQUEEZE) + 2 * self.cat * EMBEDDING


SMALL = SubNet((256, 256, 256), (3, 3, 3), 400)
MOBILE = SubNet((384, 256, 256, 256), (5, 3, 3, 3), 768)
BASE = SubNet((512, 512, 512, 512), (5, 3, 3, 3), 1536)
LARGEST = SubNet((512,) * 5, (5,) * 5, 1536)


@dataclass(frozen=True)
class Space:
    """All sub-networks that a search, or a stage of the training, chooses from.

    Args:
        depths: Numbers of blocks.
        channels: Widths, of each layer by itself.
        kernels: Kernels, of each layer by itself.
        cats: Widths after the outputs of the blocks are joined.
    """

    depths: tuple[int, ...]
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    cats: tuple[int, ...]

    @classmethod
    def within(
        cls,
        largest: SubNet,
        *,
        depths: Sequence[int] = (-2, -1, 0),
        kernels: Sequence[int] = (1, 3, 5),
        widths: Sequence[float] = (0.25, 0.35, 0.5, 0.75, 1.0),
    ) -> Space:
        """Return the space under a largest network, whose layers all have the same width and kernel.

        Args:
            largest: The supernet.
            depths: Blocks more (less) than it has.
            kernels: Kernels; those that it does not reach are left out.
            widths: Shares of its channels, which are rounded to multiples of eight as the authors do.
        """
        return cls(
            depths=tuple(sorted({largest.depth + min(0, step) for step in depths if largest.depth + step >= 1})),
            channels=tuple(sorted({_divisible(share * max(largest.channels)) for share in widths})),
            kernels=tuple(sorted({min(kernel, max(largest.kernels)) for kernel in kernels})),
            cats=tuple(sorted({_divisible(share * largest.cat) for share in widths})),
        )

    @property
    def size(self) -> int:
        """Number of different sub-networks."""
        return sum((len(self.channels) * len(self.kernels)) ** (depth + 1) for depth in self.depths) * len(self.cats)

    def __iter__(self) -> Iterator[SubNet]:
        """Yield every sub-network; the order is that of depth, channels, kernels and cat."""
        from itertools import product

        for depth in self.depths:
            for channels in product(self.channels, repeat=depth + 1):
                for kernels in product(self.kernels, repeat=depth + 1):
                    for cat in self.cats:
                        yield SubNet(channels, kernels, cat)

    def sample(self, rng: random.Random) -> SubNet:
        """Draw a depth, and then every other choice, with equal chances."""
        layers = rng.choice(self.depths) + 1
        return SubNet(
            tuple(rng.choice(self.channels) for _ in range(layers)),
            tuple(rng.choice(self.kernels) for _ in range(layers)),
            rng.choice(self.cats),
        )

    def mutate(self, subnet: SubNet, rng: random.Random, rate: float = 0.1) -> SubNet:
        """Draw each choice anew with a chance of ``rate``; blocks that come with a greater depth are drawn."""
        other = self.sample(rng)
        depth = other.depth if rng.random() < rate else subnet.depth
        channels, kernels = [], []
        for layer in range(depth + 1):
            kept = layer <= subnet.depth
            channels.append(subnet.channels[layer] if kept and rng.random() >= rate else rng.choice(self.channels))
            kernels.append(subnet.kernels[layer] if kept and rng.random() >= rate else rng.choice(self.kernels))
        return SubNet(tuple(channels), tuple(kernels), other.cat if rng.random() < rate else subnet.cat)

    def cross(self, one: SubNet, other: SubNet, rng: random.Random) -> SubNet:
        """Take each choice from one of two parents."""
        depth = rng.choice((one.depth, other.depth))
        channels, kernels = [], []
        for layer in range(depth + 1):
            having = [parent for parent in (one, other) if layer <= parent.depth]
            channels.append(rng.choice(having).channels[layer])
            kernels.append(rng.choice(having).kernels[layer])
        return SubNet(tuple(channels), tuple(kernels), rng.choice((one, other)).cat)

    def encode(self, subnet: SubNet) -> list[float]:
        """Return the choices as ones in a row of zeros; layers that a sub-network has not are zero throughout."""
        layers = max(self.depths) + 1
        row = [float(depth == subnet.depth) for depth in self.depths]
        for layer in range(layers):
            width = subnet.channels[layer] if layer <= subnet.depth else None
            row += [float(choice == width) for choice in self.channels]
        for layer in range(layers):
            kernel = subnet.kernels[layer] if layer <= subnet.depth else None
            row += [float(choice == kernel) for choice in self.kernels]
        return row + [float(choice == subnet.cat) for choice in self.cats]


def _divisible(width: float) -> int:
    """Return the multiple of eight nearest to a width, and not more than a tenth below it."""
    rounded = max(SCALE, int(width + SCALE / 2) // SCALE * SCALE)
    return rounded + SCALE if rounded < 0.9 * width else rounded

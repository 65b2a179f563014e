"""What a classification experiment is made of. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cnnkit.errors import ConfigError

Turns = Literal["none", "axis", "any"]


@dataclass(frozen=True)
class ClassificationConfig:
    """Data set and presentation.

    Args:
        data: ``"digits"``, the handwritten digits of scikit-learn, or a folder that has one of npy or png files for each class,
            either in folders ``train``, ``val`` and ``test`` or to be divided.
        labels: Names of the classes in the order of the network's outputs; the data set's own if there are none.
        channels: Channels of the pictures or fields; a training sets it.
        size: Side of the pictures, or rings of the sphere's grid.
        sizes: Other sides that the validation and the test show, each measured by itself; for networks that know scales.
        train_turns: How training samples are turned: not, about the axis, or by any rotation of the sphere.
        test_turns: How validation and test samples are turned.
        batch_size: Samples per step.
        workers: Processes that load.
    """

    data: str = "digits"
    labels: tuple[str, ...] = ()
    channels: int = 1
    size: int = 28
    sizes: tuple[int, ...] = ()
    train_turns: Turns = "none"
    test_turns: Turns = "none"
    batch_size: int = 64
    workers: int = 0

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ConfigError(f"classification.channels={self.channels} is no picture; accepted: 1 or more")
        if small := [size for size in (self.size, *self.sizes) if size < 4]:
            raise ConfigError(f"classification.size and sizes: {small[0]} shows nothing; accepted: 4 or more")
        if self.size in self.sizes:
            raise ConfigError(f"classification.sizes names {self.size}, which classification.size shows already; leave it out")
        if self.batch_size < 1:
            raise ConfigError(f"classification.batch_size={self.batch_size} is no batch; accepted: 1 or more")

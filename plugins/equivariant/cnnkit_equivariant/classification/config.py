"""What a classification experiment is made of. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Turns = Literal["none", "axis", "any"]


@dataclass(frozen=True)
class ClassificationConfig:
    """Data set and presentation.

    Args:
        data: ``"digits"``, the handwritten digits of scikit-learn, or a folder that has one of npy or png files for each class.
        labels: Names of the classes in the order of the network's outputs; the data set's own if there are none.
        size: Side of the pictures, or rings of the sphere's grid.
        sizes: Other sides that the validation and the test show, each measured by itself; for networks that know scales.
        train_turns: How training samples are turned: not, about the axis, or by any rotation of the sphere.
        test_turns: How validation and test samples are turned.
        batch_size: Samples per step.
        workers: Processes that load.
    """

    data: str = "digits"
    labels: tuple[str, ...] = ()
    size: int = 28
    sizes: tuple[int, ...] = ()
    train_turns: Turns = "none"
    test_turns: Turns = "none"
    batch_size: int = 64
    workers: int = 0

"""The task of the plugin: a network decides by itself which job it does, and each job is a task of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from cnnkit.jobs import ByJob

from cnnkit_equivariant import args, config
from cnnkit_equivariant.models._base import GeometricModel

Batch = Any


class Equivariant(ByJob):
    """Work on geometry.

    Args:
        cfg: The experiment.
    """

    Config = config.Config
    Run = args.Run
    kind = GeometricModel
    takes = "atoms, fields or outlines"
    jobs: ClassVar[dict[str, str]] = {
        "atoms": "cnnkit_equivariant.atoms.task:Atomistic",
        "classification": "cnnkit_equivariant.classification.task:Classification",
    }

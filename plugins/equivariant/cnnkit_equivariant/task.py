"""The task of the plugin: a network decides by itself which job it does, and each job is a task of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from cnnkit.errors import UsageError
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

    def check_export(self, suffix: str) -> None:
        """Refuse a format that the network has no form in.

        Raises:
            UsageError: With the cause, and the format that is accepted.
        """
        assert isinstance(self.shape, GeometricModel)
        if cause := self.shape.not_exported.get(suffix):
            raise UsageError(
                f"{self.cfg.network.name} cannot be exported as {suffix}: {cause}; "
                "accepted: .pt2 (torch.export), for example: cnnkit export equivariant -o model.pt2"
            )

"""The task of the plugin: a network decides by itself which job it does, and each job is a task of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from cnnkit.backbones import create_model, model_entry
from cnnkit.errors import ConfigError
from cnnkit.registry import resolve
from torch import nn

from cnnkit_equivariant import args, config
from cnnkit_equivariant.models._base import GeometricModel

Batch = Any

JOBS = {
    "atoms": "cnnkit_equivariant.atoms.task:Atomistic",
    "classification": "cnnkit_equivariant.classification.task:Classification",
}
"""The task class of each job."""


class Equivariant:
    """Work on geometry. ``Equivariant(cfg)`` is an instance of the job's own class, as a path is one of its system's.

    Args:
        cfg: The experiment.
    """

    Config = config.Config
    Run = args.Run
    monitor: tuple[str, str] = ("loss", "min")
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __new__(cls, cfg: config.Config) -> Equivariant:
        """Return an instance of the class for the network's job."""
        if cls is Equivariant:
            cls = resolve(JOBS[_kind(cfg.network.name).job])
        return super().__new__(cls)

    def __init__(self, cfg: config.Config) -> None:
        self.cfg = cfg

    def model(self) -> GeometricModel:
        """Build the network."""
        name = self.cfg.network.name
        return create_model(name, dims=model_entry(name).dims[0], **{**self.network_args(), **self.cfg.network.args})  # type: ignore[return-value]

    def network_args(self) -> Mapping[str, Any]:
        """Return arguments of the network that the job decides, such as the elements or the number of classes."""
        return {}

    @cached_property
    def shape(self) -> GeometricModel:
        """The network without its weights, to ask for its cutoff or its input."""
        from cnnkit.count import on_meta

        with on_meta():
            return self.model()


def _kind(name: str) -> type[GeometricModel]:
    kind: type[nn.Module] = model_entry(name).load()
    if not (isinstance(kind, type) and issubclass(kind, GeometricModel)):
        raise ConfigError(f"network.name={name} is not an equivariant network; cnnkit list models shows those of equivariant")
    return kind

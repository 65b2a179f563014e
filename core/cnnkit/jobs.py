"""A task of several jobs: the network decides which one an experiment does, and each job is a task class of its own.

So a plugin needs one name on the command line for networks that take the same input and say different things about it. Such a task is ::

    class Audio(ByJob):
        Config, Run = config.Config, args.Run
        kind = SoundModel  # What every network of the plugin is.
        jobs = {"tagging": "cnnkit_audio.tagging.task:Tagging", ...}


    class Tagging(Audio): ...
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

from torch import nn

from cnnkit.backbones import create_model, model_entry
from cnnkit.count import on_meta
from cnnkit.errors import ConfigError
from cnnkit.registry import resolve


class ByJob:
    """``Subclass(cfg)`` is an instance of the job's own class, as a path is one of its system's.

    Class attributes:
        kind: What every network of the plugin is; its class attribute ``job`` is one of :attr:`jobs`.
        takes: What such a network takes, for the message about another one.
        jobs: The task class of each job, as ``"module:Class"``.

    Args:
        cfg: The experiment, with a section ``network`` that has ``name`` and ``args``.

    Raises:
        ConfigError: If the network is not of this kind.
    """

    kind: ClassVar[type[nn.Module]]
    takes: ClassVar[str]
    jobs: ClassVar[Mapping[str, str]]
    monitor: tuple[str, str] = ("loss", "min")
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __new__(cls, cfg: Any) -> Self:
        """Return an instance of the class for the network's job."""
        if "jobs" in vars(cls):
            cls = resolve(cls.jobs[cls._network(cfg).job])
        return super().__new__(cls)

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    @classmethod
    def _network(cls, cfg: Any) -> Any:
        """Return the class of the network."""
        name = cfg.network.name
        found = model_entry(name).load()
        if not (isinstance(found, type) and issubclass(found, cls.kind)):
            raise ConfigError(f"network.name={name} does not take {cls.takes}; cnnkit list models shows what does")
        return found

    def model(self) -> nn.Module:
        """Build the network."""
        name, words = self.cfg.network.name, {**self.network_args(), **self.cfg.network.args}
        return create_model(name, dims=model_entry(name).dims[0], **words)

    def network_args(self) -> Mapping[str, Any]:
        """Return arguments of the network that the job decides, such as the number of classes."""
        return {}

    @cached_property
    def shape(self) -> Any:
        """The network without its weights, to ask for what it takes."""
        with on_meta():
            return self.model()

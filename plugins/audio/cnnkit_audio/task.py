"""The task of the plugin: a network for sound decides by itself which job it does, and each job is a task of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cnnkit.backbones import create_model, model_entry
from cnnkit.errors import ConfigError, InputError, UsageError
from cnnkit.options import RunOptions
from cnnkit.registry import resolve
from torch import Tensor, nn

from cnnkit_audio import args, config
from cnnkit_audio.models._base import SoundModel
from cnnkit_audio.sound import Sound, open_sound

Batch = dict[str, Any]
Item = TypeVar("Item")

JOBS = {
    "tagging": "cnnkit_audio.tagging.task:Tagging",
    "embedding": "cnnkit_audio.embedding.task:Embedding",
    "effect": "cnnkit_audio.effect.task:EffectModelling",
    "codec": "cnnkit_audio.codec.task:Coding",
    "recognition": "cnnkit_audio.recognition.task:Recognition",
}
"""The task class of each job."""


class Audio:
    """Work on sound. ``Audio(cfg)`` is an instance of the job's own class, as a path is one of its system's.

    Args:
        cfg: The experiment.
    """

    Config = config.Config
    Run = args.Run
    monitor: tuple[str, str] = ("loss", "min")
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __new__(cls, cfg: config.Config) -> Audio:
        """Return an instance of the class for the network's job."""
        if cls is Audio:
            cls = resolve(JOBS[_kind(cfg.network.name).job])
        return super().__new__(cls)

    def __init__(self, cfg: config.Config) -> None:
        self.cfg = cfg

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor], source: str) -> Mapping[str, Any]:
        """Return the configuration for bare weights in a layout of the papers."""
        from cnnkit_audio.published import recognise

        return recognise(state, source)

    def model(self) -> SoundModel:
        """Build the network."""
        return create_model(self.cfg.network.name, dims=1, **{**self.network_args(), **self.cfg.network.args})  # type: ignore[return-value]

    def network_args(self) -> Mapping[str, Any]:
        """Return arguments of the network that the job decides, such as the number of classes."""
        return {}

    @cached_property
    def shape(self) -> SoundModel:
        """The network without its weights, to ask for its rate and window."""
        from cnnkit.count import on_meta

        with on_meta():
            return self.model()

    def read(self, run: RunOptions) -> Iterable[Batch]:
        """Open each file, or the stream."""
        assert isinstance(run, args.Run)
        if run.stream:
            from cnnkit_audio.stream import open_stream

            yield {"name": run.name, "sound": open_stream(str(run.inputs[0]), **run.raw_samples()), "run": run}
            return
        if len(run.inputs) > 1:
            raise UsageError(f"--array {run.array} joins files for networks that recognise speech; leave it out with this one")
        for path in run.inputs:
            yield {"name": run.name, "sound": open_input(path, run), "run": run}


def open_input(path: Path, run: args.Run) -> Sound:
    """Open a file of a run as its options say.

    Raises:
        InputError: If it cannot be read, or holds the bits of a codec.
    """
    if path.suffix.lower() == args.BITS:
        raise InputError(
            f"{path.name} holds the bits of a codec and no samples; decode it first: cnnkit run audio {path.name} --ckpt CODEC.ckpt"
        )
    return open_sound(path, nonfinite=run.nonfinite)


def until_interrupted(items: Iterable[Item]) -> Iterator[Item]:
    """Yield what comes until the user types Ctrl-C, which ends a stream as silence would not."""
    try:
        yield from items
    except KeyboardInterrupt:
        return


def _kind(name: str) -> type[SoundModel]:
    kind: type[nn.Module] = model_entry(name).load()
    if not (isinstance(kind, type) and issubclass(kind, SoundModel)):
        raise ConfigError(f"network.name={name} does not take sound; cnnkit list models shows those of audio")
    return kind

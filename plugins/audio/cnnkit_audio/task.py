"""The task of the plugin: a network for sound decides by itself which job it does, and each job is a task of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cnnkit.errors import InputError, UsageError
from cnnkit.jobs import ByJob
from cnnkit.options import RunOptions
from torch import Tensor

from cnnkit_audio import args, config
from cnnkit_audio.models._base import SoundModel
from cnnkit_audio.sound import Sound, open_sound

Batch = dict[str, Any]
Item = TypeVar("Item")


class Audio(ByJob):
    """Work on sound.

    Args:
        cfg: The experiment.
    """

    Config = config.Config
    Run = args.Run
    kind = SoundModel
    takes = "sound"
    jobs: ClassVar[dict[str, str]] = {
        "tagging": "cnnkit_audio.tagging.task:Tagging",
        "embedding": "cnnkit_audio.embedding.task:Embedding",
        "effect": "cnnkit_audio.effect.task:EffectModelling",
        "codec": "cnnkit_audio.codec.task:Coding",
        "recognition": "cnnkit_audio.recognition.task:Recognition",
    }

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor], source: str) -> Mapping[str, Any]:
        """Return the configuration for bare weights in a layout of the papers."""
        from cnnkit_audio.published import recognise

        return recognise(state, source)

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

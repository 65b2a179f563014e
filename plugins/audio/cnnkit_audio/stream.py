"""Sound that is still being made: from standard input, or from a microphone."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from cnnkit.errors import InputError, InputWarning, UsageError, unknown

from cnnkit_audio.containers import RAW_FORMATS, Container, read_header, read_samples
from cnnkit_audio.decoding import Header
from cnnkit_audio.sound import Channels, Sound, check_blocks

LATENCY = 0.05
"""Seconds of sound that are waited for before they are handed on."""
MICROPHONE = "mic"
STDIN = "-"


@dataclass(frozen=True)
class Stream(Sound):
    """Sound as it arrives, to be heard once.

    Args:
        source: Yields arrays ``(n, C)`` of a given number of frames as they arrive.
    """

    source: Any = field(default=None, repr=False, compare=False)
    _heard: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    def blocks(self, rate: int, *, channels: Channels = "mono", seconds: float = LATENCY) -> Iterator[np.ndarray]:
        """Return the sound as float32 arrays ``(C, n)`` at ``rate`` while it arrives.

        A block leaves when ``seconds`` have arrived; only the resampler's filter, 2 ms where the lower rate is 16 kHz, keeps samples
        back. Warnings are as for a file; those that need the whole sound come at its end.

        Args:
            rate: Samples per second of the result.
            channels: ``"mono"`` for the mean of the channels, ``"all"`` for each.
            seconds: Sound that is waited for, at most 0.1 for the latency that a person does not notice.

        Raises:
            UsageError: If it was heard before.
            InputError: While it is read: samples that are not finite.
        """
        check_blocks(rate, channels, seconds)
        if self._heard:
            raise UsageError(f"{self.name} can be heard once; keep what is needed again")
        self._heard.append(True)
        size = max(1, round(seconds * self.sample_rate))
        return self._pieces(int(rate), channels == "mono" and self.channels > 1, size * self.channels)

    def _decode(self, size: int) -> Iterator[np.ndarray]:
        yield from self.source(size)

    @property
    def name(self) -> str:
        """What messages call it."""
        return "standard input" if str(self.path) == STDIN else "the microphone" if str(self.path) == MICROPHONE else self.path.name


def open_stream(
    source: str | Path | BinaryIO = STDIN,
    *,
    rate: int | None = None,
    channels: int | None = None,
    format: str | None = None,
    device: str | int | None = None,
) -> Stream:
    """Open a stream of sound.

    Args:
        source: ``"-"`` for standard input, ``"mic"`` for the microphone, the path of a pipe, or an opened binary stream. What comes out
            of a pipe is WAV or AU, as its first bytes say, or raw samples if ``format`` is given.
        rate: Samples per second of raw samples, or wanted from the microphone (its own by default).
        channels: Channels of raw samples, or of the microphone; 1 by default.
        format: Kind of raw samples by ffmpeg's name, for example ``"s16le"`` or ``"f32le"``.
        device: Which microphone, by its number or a part of its name; the system's choice by default.

    Raises:
        UsageError: If the options do not fit the source, or the microphone cannot be opened.
        InputError: If nothing comes, or it is no sound.
    """
    if (rate is not None and rate < 1) or (channels is not None and channels < 1):
        raise UsageError(f"rate={rate}, channels={channels}: accepted are positive whole numbers")
    if source == MICROPHONE:
        if format is not None:
            raise UsageError("the microphone has no format to choose; leave it out")
        return _microphone(rate, channels or 1, device)
    path = Path(source) if isinstance(source, (str, Path)) else Path(STDIN)
    stream = _opened(source)
    if format is None:
        if rate is not None or channels is not None:
            raise UsageError("a rate and channels are for raw samples; say their format too, for example s16le, or leave them out")
        container = read_header(stream, "standard input" if str(path) == STDIN else path.name)
    else:
        if format not in RAW_FORMATS:
            raise UsageError(unknown("format of raw samples:", format, RAW_FORMATS))
        if rate is None:
            raise UsageError(f"raw samples of format {format} need their rate, for example 16000")
        container = Container(rate, channels or 1, format, None, format="RAW")
    return _from_pipe(path, stream, container)


def _from_pipe(path: Path, stream: BinaryIO, container: Container) -> Stream:
    header = Header(container.sample_rate, container.channels, None, container.format, container.subtype, container=container)

    def arriving(size: int) -> Iterator[np.ndarray]:
        frames = 0
        try:
            for block in read_samples(stream, container, size):
                frames += len(block)
                yield block
        except OSError as error:
            raise InputError(f"{path}: broke off after {frames / container.sample_rate:.2f} s: {error.strerror or error}") from error
        if not frames:
            raise InputError(f"{'standard input' if str(path) == STDIN else path.name}: holds no samples")

    return Stream(path, container.sample_rate, container.channels, None, header, source=arriving)


def _opened(source: str | Path | BinaryIO) -> BinaryIO:
    if not isinstance(source, (str, Path)):
        return source
    if str(source) != STDIN:
        try:
            return open(source, "rb", buffering=0)
        except OSError as error:
            raise InputError(f"{source} cannot be opened: {error.strerror or error}") from error
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UsageError("nothing is piped in; type for example: arecord -f S16_LE -r 16000 -t wav - | cnnkit run audio - --stream")
    try:
        # Not sys.stdin.buffer: it would read ahead, and wait for it.
        return io.FileIO(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, ValueError):
        return sys.stdin.buffer  # Somebody put another stream in its place.


def _microphone(rate: int | None, channels: int, device: str | int | None) -> Stream:
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise UsageError("the microphone needs the package sounddevice; type: pip install cnnkit-audio[microphone]") from None
    except OSError as error:  # The package is there, and the library PortAudio is not.
        raise UsageError(f"the microphone needs the library PortAudio ({error}); install it, for example libportaudio2") from error
    try:
        chosen = rate or int(sounddevice.query_devices(device, "input")["default_samplerate"])
        sounddevice.check_input_settings(device=device, channels=channels, samplerate=chosen, dtype="float32")
    except (sounddevice.PortAudioError, ValueError) as error:
        raise UsageError(f"the microphone cannot be opened: {error}; python -m sounddevice lists what there is") from error

    def arriving(size: int) -> Iterator[np.ndarray]:
        lost = 0
        try:
            with sounddevice.InputStream(
                samplerate=chosen, channels=channels, device=device, dtype="float32", blocksize=size
            ) as microphone:
                while True:
                    block, overflowed = microphone.read(size)
                    lost += overflowed
                    if overflowed and lost == 1:
                        text = "the microphone: sound was lost, because the network does not keep up; choose a smaller one"
                        warnings.warn(text, InputWarning, stacklevel=2)
                    yield block
        except sounddevice.PortAudioError as error:
            raise InputError(f"the microphone broke off: {error}") from error

    header = Header(chosen, channels, None, "RAW", "FLOAT")
    return Stream(Path(MICROPHONE), chosen, channels, None, header, source=arriving)

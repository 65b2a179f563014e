"""Sound from pipes and microphones: the same as from a file, and there as soon as it was made."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from cnnkit.errors import InputError, InputWarning, UsageError
from cnnkit_audio.sound import open_sound
from cnnkit_audio.stream import Stream, open_stream

RATE = 16000


def noise(seconds: float = 0.5, channels: int = 2) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((round(seconds * RATE), channels))).astype(np.float32)


def encoded(x: np.ndarray, kind: str = "WAV", subtype: str = "PCM_16", **more: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, x, RATE, format=kind, subtype=subtype, **more)
    return buffer.getvalue()


class Dribble(io.RawIOBase):
    """A stream that gives a few bytes at a time, as pipes do."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def read(self, size: int = -1, /) -> bytes:
        piece = self.data[self.place : self.place + min(size, 1 + self.place % 700)]
        self.place += len(piece)
        return piece


@pytest.fixture
def pipe() -> Iterator[tuple[Any, Any]]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as source, os.fdopen(writing, "wb", buffering=0) as sink:
        yield source, sink


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_16"), ("WAVEX", "PCM_24"), ("WAV", "FLOAT"), ("AU", "PCM_16"), ("AU", "ULAW"), ("RF64", "PCM_16")]
)
@pytest.mark.parametrize(("rate", "channels"), [(16000, "all"), (8000, "mono"), (44100, "all")])
@pytest.mark.filterwarnings("ignore::cnnkit.errors.InputWarning")
def test_a_stream_equals_the_file(tmp_path: Path, kind: str, subtype: str, rate: int, channels: Any) -> None:
    data = encoded(noise(), kind, subtype)
    (tmp_path / "a").write_bytes(data)
    stream = open_stream(Dribble(data))
    assert (stream.sample_rate, stream.channels, stream.frames, str(stream.path)) == (RATE, 2, None, "-")
    blocks = list(stream.blocks(rate, channels=channels))
    assert all(0 < block.shape[1] <= 0.06 * rate for block in blocks)
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), open_sound(tmp_path / "a").read(rate, channels=channels), atol=1e-6)


@pytest.mark.parametrize(
    ("format", "dtype"),
    [("s16le", "<i2"), ("s16be", ">i2"), ("s32le", "<i4"), ("f32le", "<f4"), ("f64be", ">f8"), ("u8", "u1"), ("s24le", None)],
)
def test_raw_samples(format: str, dtype: str | None) -> None:
    x = noise(0.1)
    if format == "u8":
        data, step = np.rint(x * 127 + 128).astype("u1").tobytes(), 1 / 64
    elif dtype is None:
        data, step = np.rint(x * 2**23).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes(), 2**-22
    elif "f" in format:
        data, step = x.astype(dtype).tobytes(), 0
    else:
        bits = int(format[1:3])
        data, step = np.rint(x.astype(np.float64) * 2.0 ** (bits - 1)).astype(dtype).tobytes(), 2**-15
    stream = open_stream(Dribble(data + b"\x01"), rate=RATE, channels=2, format=format)  # The byte more is no sample.
    assert np.abs(stream.read(RATE, channels="all") - x.T).max() <= step


def test_blocks_come_while_sound_is_made(pipe: tuple[Any, Any]) -> None:
    source, sink = pipe
    x = (noise(1.0, 1) * 2**15).astype("<i2")
    blocks = open_stream(source, rate=RATE, format="s16le").blocks(8000)
    given = 0
    with pytest.warns(InputWarning, match="standard input: resampled from 16000 to 8000 Hz"):
        for first in range(0, RATE, 800):  # 50 ms at a time; nothing more is written before the block is there.
            sink.write(x[first : first + 800].tobytes())
            given += next(blocks).shape[1]
            made = (first + 800) / RATE
            assert made - 0.006 <= given / 8000 <= made
        sink.close()
        assert given + sum(block.shape[1] for block in blocks) == 8000


def test_memory_does_not_grow_with_time(pipe: tuple[Any, Any]) -> None:
    source, sink = pipe

    def talk() -> None:
        for _ in range(60):
            sink.write(bytes(2 * RATE))
        sink.close()

    thread = threading.Thread(target=talk)
    thread.start()
    total = 0
    with pytest.warns(InputWarning):
        for block in open_stream(source, rate=RATE, format="s16le").blocks(8000):
            total += block.shape[1]
            assert block.base is None or block.base.nbytes < 50000
    thread.join()
    assert total == 60 * 8000


def test_standard_input_of_a_process(tmp_path: Path) -> None:
    code = (
        "import sys; from cnnkit_audio.stream import open_stream; s = open_stream('-'); "
        "print(s.sample_rate, s.channels, sum(b.shape[1] for b in s.blocks(16000, channels='all')))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=encoded(noise()), capture_output=True, check=True)
    assert done.stdout.split() == [b"16000", b"2", b"8000"]


@pytest.mark.filterwarnings("ignore::cnnkit.errors.InputWarning")
def test_a_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe.wav").write_bytes(encoded(noise())))
    thread.start()
    assert open_stream(tmp_path / "pipe.wav").read(RATE, channels="all").shape == (2, 8000)
    thread.join()


def test_it_is_heard_once() -> None:
    stream = open_stream(Dribble(encoded(noise())))
    stream.read(RATE, channels="all")
    with pytest.raises(UsageError, match="standard input can be heard once"):
        stream.read(RATE)
    with pytest.raises(ValueError, match="whole rates"):
        open_stream(Dribble(encoded(noise()))).blocks(0)


def test_what_is_odd_is_said_at_the_end() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_stream(Dribble(encoded(np.zeros((RATE, 1), np.float32)))).read(RATE)
    assert [str(item.message) for item in caught] == ["standard input: every sample is zero"]
    x = noise()
    x[100] = np.nan
    with pytest.raises(InputError, match=r"standard input: holds NaN or infinite samples, the first at 0.006 s"):
        open_stream(Dribble(encoded(x, subtype="FLOAT"))).read(RATE, channels="all")


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_wav_of_unknown_length_goes_on_to_the_end(size: int) -> None:
    data = bytearray(encoded(noise()))
    data[40:44] = size.to_bytes(4, "little")
    assert open_stream(Dribble(bytes(data))).read(RATE, channels="all").shape == (2, 8000)


def test_what_follows_the_sound_is_left_alone() -> None:
    stream = Dribble(encoded(noise()) + b"LIST\x10\0\0\0" + bytes(16))
    assert open_stream(stream).read(RATE, channels="all").shape == (2, 8000)


@pytest.mark.filterwarnings("ignore::cnnkit.errors.InputWarning")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends within its header, after 0 bytes"),
        (b"RIF", "ends within its header"),
        (b"fLaC" + bytes(100), "neither WAV nor AU .*say their kind, rate and channels"),
        (b"RIFF\0\0\0\0AVI " + bytes(100), "a RIFF file that is not WAV"),
        (encoded(noise())[:30], "ends within its header, after 30 bytes"),
        (encoded(noise())[:44], "holds no samples"),
        (b"RIFF\0\0\0\0WAVEdata\x08\0\0\0" + bytes(8), "samples come before their description"),
        (b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\x7f", "holds a part of 2147483648 bytes"),
        (b"RF64\xff\xff\xff\xffWAVEds64\x04\0\0\0" + bytes(4), "ends within its header, after 24 bytes"),
        (b"RIFF\0\0\0\0WAVEfmt \x08\0\0\0" + bytes(8), "'fmt ' chunk has 8 bytes"),
        (encoded(noise(), "WAV", "IMA_ADPCM"), "WAV of format 17, .* cannot be read; accepted: PCM of 8 to 64 bits"),
        (b".snd" + struct.pack(">5I", 24, 8, 23, RATE, 1) + bytes(8), "AU of encoding 23"),
    ],
)
def test_what_is_no_sound_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_stream(Dribble(data)).read(RATE)


def test_options_that_do_not_fit() -> None:
    wav = encoded(noise())
    for options, message in (
        ({"rate": RATE}, "say their format too"),
        ({"channels": 2}, "say their format too"),
        ({"format": "s16le"}, "need their rate"),
        ({"format": "s16", "rate": RATE}, "unknown format of raw samples: 's16'; did you mean"),
        ({"format": "s16le", "rate": 0}, "accepted are positive"),
        ({"format": "s16le", "rate": RATE, "channels": 0}, "accepted are positive"),
    ):
        with pytest.raises(UsageError, match=message):
            open_stream(Dribble(wav), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot be opened"):
        open_stream("/nowhere/pipe")
    with pytest.raises(UsageError, match="no format to choose"):
        open_stream("mic", format="s16le")


def test_nothing_is_piped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(closed=False, isatty=lambda: True))
    with pytest.raises(UsageError, match="nothing is piped in"):
        open_stream("-")


@pytest.mark.filterwarnings("ignore::cnnkit.errors.InputWarning")
def test_a_pipe_that_breaks() -> None:
    class Broken(Dribble):
        def read(self, size: int = -1, /) -> bytes:
            if self.place > 20000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(InputError, match=r"broke off after 0\.\d\d s: Input/output error"):
        open_stream(Broken(encoded(noise()))).read(RATE, channels="all")


# The microphone, in whose place a module stands that has one.


class Failure(Exception):
    pass


def fake_sounddevice(monkeypatch: pytest.MonkeyPatch, x: np.ndarray, *, overflow_at: int = -1) -> list[dict[str, Any]]:
    opened: list[dict[str, Any]] = []

    class InputStream:
        def __init__(self, **options: Any) -> None:
            opened.append(options)
            self.place = self.reads = 0

        def __enter__(self) -> InputStream:
            return self

        def __exit__(self, *_: object) -> None:
            opened[-1]["closed"] = True

        def read(self, size: int) -> tuple[np.ndarray, bool]:
            if self.place >= len(x):
                raise Failure("unplugged")
            block = x[self.place : self.place + size]
            self.place, self.reads = self.place + size, self.reads + 1
            return block, self.reads - 1 == overflow_at

    def check_input_settings(*, device: Any, channels: int, samplerate: int, dtype: str) -> None:
        if channels > 2:
            raise Failure("Invalid number of channels")

    module = ModuleType("sounddevice")
    module.__dict__.update(
        InputStream=InputStream,
        PortAudioError=Failure,
        check_input_settings=check_input_settings,
        query_devices=lambda device, kind: {"default_samplerate": 48000.0},
    )
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return opened


def test_the_microphone(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise()
    opened = fake_sounddevice(monkeypatch, x, overflow_at=1)
    stream = open_stream("mic", rate=RATE, channels=2, device="USB")
    assert isinstance(stream, Stream) and (stream.sample_rate, stream.channels, stream.frames) == (RATE, 2, None)
    parts = []
    with (
        pytest.warns(InputWarning, match="the microphone: sound was lost"),
        pytest.raises(InputError, match="the microphone broke off: unplugged"),
    ):
        for block in stream.blocks(RATE, channels="all"):
            parts.append(block)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), x.T)
    assert opened == [{"samplerate": RATE, "channels": 2, "device": "USB", "dtype": "float32", "blocksize": 800, "closed": True}]
    assert open_stream("mic").sample_rate == 48000
    with pytest.raises(UsageError, match="cannot be opened: Invalid number of channels; python -m sounddevice"):
        open_stream("mic", channels=5)


def test_the_microphone_is_closed_when_nobody_listens_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = fake_sounddevice(monkeypatch, noise())
    blocks = open_stream("mic", rate=RATE, channels=2).blocks(RATE, channels="all")
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert opened[0]["closed"]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UsageError, match=r"pip install cnnkit-audio\[microphone\]"):
        open_stream("mic")

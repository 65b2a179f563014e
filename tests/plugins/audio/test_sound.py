"""Sound files of every kind: what libsndfile writes is read back, whole and in blocks, and what it cannot read by our own reader."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cnnkit.errors import InputError, InputWarning
from cnnkit_audio import decoding
from cnnkit_audio.containers import RAW_FORMATS, read_header, read_samples, to_float
from cnnkit_audio.resample import resample
from cnnkit_audio.sound import Sound, open_sound
from scipy.io import wavfile

LOSSLESS = [
    ("a.wav", "WAV", "PCM_U8", 1 / 128),
    ("a.wav", "WAV", "PCM_16", 2**-15),
    ("a.wav", "WAV", "PCM_24", 2**-23),
    ("a.wav", "WAV", "PCM_32", 1e-7),
    ("a.wav", "WAV", "FLOAT", 0),
    ("a.wav", "WAV", "DOUBLE", 1e-7),
    ("a.wav", "WAVEX", "PCM_24", 2**-23),
    ("a.wav", "RF64", "PCM_16", 2**-15),
    ("a.wav", "WAV", "ULAW", 0.02),
    ("a.wav", "WAV", "ALAW", 0.02),
    ("a.flac", "FLAC", "PCM_16", 2**-15),
    ("a.flac", "FLAC", "PCM_24", 2**-23),
    ("a.aiff", "AIFF", "PCM_24", 2**-23),
    ("a.au", "AU", "PCM_16", 2**-15),
    ("a.caf", "CAF", "ALAC_16", 2**-15),
    ("a.w64", "W64", "FLOAT", 0),
]
LOSSY = [("a.ogg", "OGG", "VORBIS"), ("a.opus", "OGG", "OPUS"), ("a.mp3", "MP3", "MPEG_LAYER_III")]


def voices(rate: int, seconds: float, channels: int = 2) -> np.ndarray:
    """Tones that differ from channel to channel, ``(n, C)``."""
    time = np.arange(int(rate * seconds)) / rate
    return np.stack([0.4 * np.sin(2 * np.pi * 220 * (k + 1) * time + k) for k in range(channels)], axis=1).astype(np.float32)


def quiet(path: Path, **options: object) -> Sound:
    return open_sound(path, quiet=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "kind", "subtype", "step"), LOSSLESS)
def test_every_width_is_read(tmp_path: Path, name: str, kind: str, subtype: str, step: float) -> None:
    x = voices(22050, 0.5)
    soundfile.write(tmp_path / name, x, 22050, subtype=subtype, format=kind)
    sound = quiet(tmp_path / name)
    assert (sound.sample_rate, sound.channels, sound.frames) == (22050, 2, len(x))
    assert sound.header is not None and sound.header.subtype == subtype
    both = sound.read(22050, channels="all")
    assert both.dtype == np.float32 and both.shape == (2, len(x))
    assert np.abs(both - x.T).max() <= step
    np.testing.assert_allclose(sound.read(22050), both.mean(0, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(("name", "kind", "subtype"), LOSSY)
def test_compressed_files_are_read(tmp_path: Path, name: str, kind: str, subtype: str) -> None:
    x = voices(48000, 1.0)
    soundfile.write(tmp_path / name, x[:40000], 48000, subtype=subtype, format=kind)
    read = quiet(tmp_path / name).read(48000, channels="all")
    assert abs(read.shape[1] - 40000) < 0.05 * 48000
    spectrum = np.abs(np.fft.rfft(read[:, :32768] * np.hanning(32768)))
    np.testing.assert_allclose(spectrum.argmax(1) * 48000 / 32768, [220, 440], atol=2)


@pytest.mark.parametrize("seconds", [0.01, 0.37, 10.0])
@pytest.mark.parametrize(("rate_in", "rate_out", "channels"), [(44100, 32000, 2), (8000, 32000, 1), (192000, 32000, 6), (16000, 16000, 3)])
def test_blocks_put_together_are_the_sound(tmp_path: Path, rate_in: int, rate_out: int, channels: int, seconds: float) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, voices(rate_in, 1.3, channels), rate_in, subtype="FLOAT")
    for which in ("mono", "all"):
        blocks = list(quiet(path).blocks(rate_out, channels=which, seconds=seconds))  # type: ignore[arg-type]
        whole = quiet(path).read(rate_out, channels=which)  # type: ignore[arg-type]
        assert {block.shape[1] for block in blocks[:-1]} <= {round(seconds * rate_out)}
        np.testing.assert_allclose(np.concatenate(blocks, axis=1), whole, atol=1e-6)
        x = soundfile.read(path, dtype="float32", always_2d=True)[0].T
        x = x.mean(0, keepdims=True) if which == "mono" else x
        np.testing.assert_allclose(whole, resample(x, rate_in, rate_out), atol=2e-6)
        assert whole.flags.c_contiguous or len(blocks) == 1


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for seconds in (20, 80):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, voices(16000, seconds, 1), 16000)
        for _ in quiet(path).blocks(8000, seconds=1):  # The filter is made once.
            break
        tracemalloc.start()
        assert sum(block.shape[1] for block in quiet(path).blocks(8000, seconds=1)) == seconds * 8000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 3e6


def test_a_part_is_read_by_its_times(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac"):
        x = voices(8000, 4.0)
        soundfile.write(tmp_path / name, x, 8000, subtype="PCM_16")
        part = quiet(tmp_path / name, start=1.25, end=2.5)
        assert part.frames == 10000
        np.testing.assert_allclose(part.read(8000, channels="all"), x[10000:20000].T, atol=1e-4)
        assert quiet(tmp_path / name, start=3.5, end=100.0).read(8000).shape == (1, 4000)
        with pytest.raises(InputError, match=r"nothing lies between 4 s and 5 s; it is 4.00 s long"):
            open_sound(tmp_path / name, start=4, end=5)
    with pytest.raises(ValueError, match="no time"):
        open_sound(tmp_path / "a.wav", start=2, end=1)


def test_wrong_arguments_are_named_at_once(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", voices(8000, 0.1), 8000)
    for arguments in ({"rate": 0}, {"rate": 8000.5}, {"rate": 8000, "channels": "left"}, {"rate": 8000, "seconds": 0}):
        with pytest.raises(ValueError, match="accepted are whole rates"):
            quiet(tmp_path / "a.wav").blocks(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nonfinite"):
        open_sound(tmp_path / "a.wav", nonfinite="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64", "AU", "RIFX"])
def test_our_own_reader_equals_libsndfile(tmp_path: Path, kind: str, subtype: str) -> None:
    if (kind, subtype) == ("AU", "PCM_U8"):
        subtype = "PCM_S8"
    path = tmp_path / "a.snd"
    endian = "BIG" if kind in ("RIFX", "AU") else None
    soundfile.write(path, voices(11025, 0.2, 3), 11025, subtype=subtype, format="WAV" if kind == "RIFX" else kind, endian=endian)
    with open(path, "rb") as stream:
        container = read_header(stream, "a")
        blocks = list(read_samples(stream, container, 100))
    assert (container.sample_rate, container.channels, container.frames) == (11025, 3, 2205)
    assert container.subtype == subtype
    np.testing.assert_allclose(np.concatenate(blocks), soundfile.read(path, dtype="float32")[0], atol=1e-7)


def test_all_codes_of_companded_and_whole_samples() -> None:
    for kind, subtype, width in (
        ("mulaw", "ULAW", 1),
        ("alaw", "ALAW", 1),
        ("s16le", "PCM_16", 2),
        ("s16be", "PCM_16", 2),
        ("u8", "PCM_U8", 1),
    ):
        data = bytes(range(256)) if width == 1 else np.arange(65536).astype("<u2").tobytes()
        endian = "BIG" if kind.endswith("be") else "LITTLE"
        raw = soundfile.read(io.BytesIO(data), dtype="float32", samplerate=8000, channels=1, format="RAW", subtype=subtype, endian=endian)[
            0
        ]
        np.testing.assert_array_equal(to_float(data, kind), raw)
    for kind in RAW_FORMATS:
        assert to_float(bytes(48), kind).dtype == np.float32


def test_integers_of_64_bits_are_read_as_scipy_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    x = (voices(8000, 0.1) * 2.0**63).astype(np.int64)
    fmt = struct.pack("<HHIIHH", 1, 2, 8000, 8000 * 16, 16, 64)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", x.nbytes) + x.tobytes()
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    rate, theirs = wavfile.read(path)
    assert rate == 8000
    np.testing.assert_allclose(quiet(path).read(8000, channels="all"), theirs.T / 2.0**63, atol=1e-7)


def test_without_the_library_wav_is_read_and_others_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = voices(8000, 0.2)
    soundfile.write(tmp_path / "a.wav", x, 8000)
    soundfile.write(tmp_path / "a.flac", x, 8000)
    monkeypatch.setattr(decoding, "soundfile", None)
    np.testing.assert_allclose(quiet(tmp_path / "a.wav").read(8000, channels="all"), x.T, atol=1e-4)
    assert quiet(tmp_path / "a.wav", start=0.1).read(8000).shape == (1, 800)
    with pytest.raises(InputError, match="install it"):
        open_sound(tmp_path / "a.flac")


def test_an_ordinary_file_is_read_without_a_word(tmp_path: Path) -> None:
    for name, subtype in (("a.wav", "PCM_16"), ("a.wav", "FLOAT"), ("a.flac", "PCM_24"), ("a.ogg", "VORBIS"), ("a.mp3", "MPEG_LAYER_III")):
        soundfile.write(tmp_path / name, 2.4 * voices(16000, 1.0, 1), 16000, subtype=subtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error", InputWarning)
            assert open_sound(tmp_path / name).read(16000).shape[0] == 1

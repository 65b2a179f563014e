"""Written sounds: read back as they were, in every format, whole or not at all."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cnnkit.errors import InputError, InputWarning, UsageError
from cnnkit_audio import writing
from cnnkit_audio.sound import open_sound, write_sound
from cnnkit_audio.writing import FORMATS, SoundWriter, fitting_subtype

RATE = 16000


def tones(seconds: float = 0.5, channels: int = 2, *, level: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return np.stack([level * np.sin(2 * np.pi * 200 * (k + 1) * time) for k in range(channels)]).astype(np.float32)


def back(path: Path) -> np.ndarray:
    return open_sound(path, quiet=True).read(RATE, channels="all")


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_every_format_is_read_back(tmp_path: Path, suffix: str) -> None:
    x = tones()
    path = write_sound(tmp_path / f"a{suffix}", x, RATE)
    read = back(path)
    lossy = suffix in (".ogg", ".oga", ".opus", ".mp3")
    assert read.shape[0] == 2 and abs(read.shape[1] - x.shape[1]) <= (1200 if lossy else 0)
    if lossy:
        spectrum = np.abs(np.fft.rfft(read[:, :6400]))
        assert (spectrum.argmax(1) == [80, 160]).all()
    else:
        np.testing.assert_allclose(read, x, atol=2**-15)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "subtype", "step"),
    [
        ("a.wav", "PCM_U8", 2**-6),
        ("a.wav", "PCM_24", 2**-22),
        ("a.wav", "PCM_32", 1e-7),
        ("a.wav", "FLOAT", 0),
        ("a.wav", "DOUBLE", 0),
        ("a.wav", "ULAW", 0.02),
        ("a.flac", "PCM_24", 2**-22),
        ("a.flac", "PCM_S8", 2**-6),
        ("a.caf", "ALAC_24", 2**-22),
    ],
)
def test_kinds_of_samples_are_chosen(tmp_path: Path, name: str, subtype: str, step: float) -> None:
    path = write_sound(tmp_path / name, tones(), RATE, subtype=subtype)
    assert soundfile.info(path).subtype == subtype
    assert np.abs(back(path) - tones()).max() <= step


def test_kinds_of_samples_are_kept_where_a_format_has_them() -> None:
    kept = {
        ("a.wav", "PCM_24"): "PCM_24",
        ("a.flac", "PCM_24"): "PCM_24",
        ("a.flac", "FLOAT"): "PCM_24",
        ("a.flac", "PCM_U8"): "PCM_S8",
        ("a.aiff", "DOUBLE"): "DOUBLE",
        ("a.wav", "VORBIS"): "PCM_16",
        ("a.ogg", "PCM_24"): "VORBIS",
        ("a.ogg", "OPUS"): "OPUS",
        ("a.opus", "VORBIS"): "OPUS",
        ("a.mp3", "FLOAT"): "MPEG_LAYER_III",
        ("a.wav", "MPEG_LAYER_III"): "PCM_16",
        ("a.caf", "ALAC_16"): "ALAC_16",
    }
    for (name, subtype), wanted in kept.items():
        assert fitting_subtype(Path(name), subtype) == wanted


def test_blocks_give_the_same_file_as_the_whole(tmp_path: Path) -> None:
    x = tones(3.0)
    for suffix in (".wav", ".flac", ".ogg", ".mp3"):
        whole = write_sound(tmp_path / f"whole{suffix}", x, RATE)
        with SoundWriter(tmp_path / f"blocks{suffix}", RATE, 2) as out:
            for block in np.split(x, [1, 700, 701, 20000], axis=1):
                out.write(block)
            out.write(x[:, :0])
        assert out.written == x.shape[1]
        lossy = suffix in (".ogg", ".mp3")  # What such an encoder makes of a sound depends on the pieces a little.
        np.testing.assert_allclose(back(tmp_path / f"blocks{suffix}"), back(whole), atol=0.05 if lossy else 0)


def test_long_blocks_of_vorbis_do_not_overflow(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.ogg", tones(60.0, 2), RATE)
    assert soundfile.info(tmp_path / "a.ogg").frames == 60 * RATE


def test_clipping_is_counted_and_said_once(tmp_path: Path) -> None:
    x = np.zeros((2, 1000), np.float32)
    x[0, :5], x[1, 990:], x[0, 500] = 1.5, -1.001, 1.0
    with pytest.warns(InputWarning) as caught:
        write_sound(tmp_path / "a.wav", x, RATE)
    assert [str(item.message) for item in caught] == ["a.wav: 15 samples (0.75 %) were beyond full scale and are clipped"]
    np.testing.assert_allclose(back(tmp_path / "a.wav"), np.clip(x, -1, 1), atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_sound(tmp_path / "b.wav", x, RATE, subtype="FLOAT")
        write_sound(tmp_path / "c.wav", tones(level=1.0), RATE)
    np.testing.assert_array_equal(back(tmp_path / "b.wav"), x)


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", tones(), RATE)
    before = path.read_bytes()

    def fail(out: SoundWriter) -> None:
        out.write(tones())
        raise KeyError("in the middle")

    with pytest.raises(KeyError), SoundWriter(path, RATE, 2) as out:
        fail(out)
    with pytest.raises(InputError, match=r"NaN or infinite samples near 0.00 s"):
        write_sound(path, np.full((2, 10), np.nan, np.float32), RATE)
    with pytest.raises(ValueError, match="2 channels"), SoundWriter(path, RATE, 2) as out:
        out.write(tones(channels=1))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_it_is_not_there_before_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.flac"
    with SoundWriter(path, RATE, 2) as out:
        out.write(tones())
        assert not path.exists()
    assert path.exists()


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype", "message"),
    [
        ("a.xyz", RATE, 1, None, r"unknown kind of sound file '.xyz'"),
        ("a", RATE, 1, None, "unknown kind of sound file 'a'"),
        ("a.wav", RATE, 1, "PCM_17", r"a.wav: unknown kind of samples of WAV 'PCM_17'; did you mean"),
        ("a.wav", RATE, 1, "VORBIS", "unknown kind of samples of WAV"),
        ("a.flac", RATE, 9, None, "FLAC cannot hold 9 channels at 16000 Hz .*; accepted: at most 8 channels"),
        ("a.mp3", 96000, 1, None, "MP3 cannot hold 1 channels at 96000 Hz"),
        ("a.mp3", RATE, 3, None, "at most 2 channels"),
        ("a.opus", 44100, 1, None, "OGG cannot hold 1 channels at 44100 Hz as OPUS; accepted: 8, 12, 16, 24 or 48 kHz"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_first(
    tmp_path: Path, name: str, rate: int, channels: int, subtype: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message), SoundWriter(tmp_path / name, rate, channels, subtype):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="positive"):
        SoundWriter(tmp_path / "a.wav", 0, 1)


def test_wav_beyond_32_bits_of_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_LARGEST_WAV", 10000)
    write_sound(tmp_path / "known.wav", tones(), RATE)
    assert soundfile.info(tmp_path / "known.wav").format == "RF64"
    np.testing.assert_allclose(back(tmp_path / "known.wav"), tones(), atol=2**-15)
    with pytest.raises(UsageError, match=r"no more than 4 GiB; write unknown.flac"), SoundWriter(tmp_path / "unknown.wav", RATE, 2) as out:
        out.write(tones())
    assert not (tmp_path / "unknown.wav").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, frames: np.ndarray) -> None:
            with open("/dev/full", "wb", buffering=0) as device:
                device.write(frames.tobytes())

    with pytest.raises(UsageError, match=r"a.wav cannot be written .*is the disk full"), SoundWriter(tmp_path / "a.wav", RATE, 2) as out:
        monkeypatch.setattr(out, "_file", Full())
        out.write(tones())
    assert list(tmp_path.iterdir()) == []

"""Broken, odd and misleading sound files: each is read, or refused in a sentence; none ends in a traceback."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cnnkit.errors import InputError, InputWarning
from cnnkit_audio.sound import Sound, open_sound

RATE = 16000


def tone(seconds: float = 1.0, rate: int = RATE, *, level: float = 0.5, frequency: float = 440.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def save(path: Path, x: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, x, rate, subtype=subtype)
    return path


def hear(path: Path, rate: int = RATE, **options: object) -> tuple[np.ndarray, list[str]]:
    """Return the sound and what was said about it."""
    channels = options.pop("channels", "mono")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        signal = open_sound(path, **options).read(rate, channels=channels)  # type: ignore[arg-type]
    assert all(issubclass(item.category, InputWarning) for item in caught)
    return signal, [str(item.message) for item in caught]


# What cannot be read is refused.


def test_no_samples(tmp_path: Path) -> None:
    for suffix in (".wav", ".flac", ".ogg", ".aiff"):
        with pytest.raises(InputError, match=rf"a{suffix}: (holds no samples|an empty file)"):
            open_sound(save(tmp_path / f"a{suffix}", np.zeros(0, np.float32), subtype="VORBIS" if suffix == ".ogg" else "PCM_16"))


@pytest.mark.parametrize("name", ["notes.wav", "notes.mp3", "notes.flac", "notes.ogg"])
@pytest.mark.parametrize(
    "content", [b"Dear diary, " * 500, b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, b"PK\x03\x04" * 300, b"RIFF\x10\0\0\0AVI LIST"]
)
def test_no_sound_at_all(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="notes"):
        open_sound(tmp_path / name)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    for name, message in (("empty", "an empty file"), ("folder", "is a folder"), ("absent", "does not exist"), ("loop", "cannot be read")):
        with pytest.raises(InputError, match=message):
            open_sound(tmp_path / f"{name}.wav")


def test_formats_of_other_programs_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(200))
    with pytest.raises(InputError, match=r"song.wav is MPEG-4 .*ffmpeg -i song.wav"):
        open_sound(tmp_path / "song.wav")
    (tmp_path / "samples.raw").write_bytes(bytes(1000))
    with pytest.raises(InputError, match="raw samples have no header"):
        open_sound(tmp_path / "samples.raw")


def test_a_header_and_nothing_else(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.wav", tone()).read_bytes()
    for length in (1, 3, 11, 20, 30, 43, 44):
        (tmp_path / "cut.wav").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut.wav"):
            open_sound(tmp_path / "cut.wav")
    for name in ("a.flac", "a.mp3", "a.ogg", "a.aiff"):
        soundfile.write(tmp_path / name, tone(), RATE)
        for length in (4, 40):
            (tmp_path / ("cut_" + name)).write_bytes((tmp_path / name).read_bytes()[:length])
            with pytest.raises(InputError, match=r"cut_"):
                open_sound(tmp_path / ("cut_" + name)).read(RATE)


def test_random_damage_never_ends_in_a_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.wav", "a.flac", "a.mp3", "a.ogg", "a.aiff", "a.au"):
        soundfile.write(tmp_path / name, tone(0.5), RATE)
        whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(15):
            damaged = whole.copy()
            places = rng.integers(0, min(len(whole), 400), 8)
            damaged[places] = rng.integers(0, 256, 8)
            (tmp_path / ("d_" + name)).write_bytes(damaged.tobytes())
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", InputWarning)
                    blocks = open_sound(tmp_path / ("d_" + name)).blocks(RATE)
                    assert all(np.isfinite(block).all() for block in blocks)
            except InputError as error:
                assert "d_a" in str(error) or "resampled" in str(error)


@pytest.mark.filterwarnings("ignore::cnnkit.errors.InputWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    x = np.stack([tone(), tone()], axis=1)
    x[4000:4003, 1] = value
    path = save(tmp_path / "a.wav", x, subtype="FLOAT")
    with pytest.raises(InputError, match=r'a.wav: holds NaN or infinite samples, the first at 0.250 s; .*nonfinite="zero"'):
        open_sound(path).read(RATE)
    signal, said = hear(path, nonfinite="zero", channels="all")
    assert said == ["a.wav: 3 NaN or infinite samples; taken as zero"]
    assert np.isfinite(signal).all() and not signal[1, 4000:4003].any()
    np.testing.assert_array_equal(signal[0], x[:, 0])


def test_samples_beyond_single_precision(tmp_path: Path) -> None:
    x = tone().astype(np.float64)
    x[5] = 1e300
    with pytest.raises(InputError, match="infinite samples"):
        open_sound(save(tmp_path / "a.wav", x, subtype="DOUBLE")).read(RATE)
    x[5] = 1e30  # Its power overflows, and it is a number.
    assert "samples reach 1e+30 times full scale" in hear(save(tmp_path / "b.wav", x, subtype="DOUBLE"))[1][0]


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac"):
        path = save(tmp_path / name, tone())
        sound = open_sound(path)
        path.unlink()
        with pytest.raises(InputError, match="went away"):
            sound.read(RATE)
        path.mkdir()
        with pytest.raises(InputError, match=r"can(not)? be read"):
            sound.read(RATE)


@pytest.mark.filterwarnings("ignore::cnnkit.errors.InputWarning")
def test_a_file_that_another_one_replaces(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone())
    sound = open_sound(path)
    save(path, np.stack([tone()] * 3, axis=1))
    with pytest.raises(InputError, match="another file took its place"):
        sound.read(RATE)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone(20))
    with pytest.warns(InputWarning, match=r"a.wav: ends after .* s of the 20.00 s that its header claims"):
        parts = []
        for block in open_sound(path).blocks(RATE, seconds=0.1):
            if not parts:
                with open(path, "r+b") as stream:
                    stream.truncate(10 * RATE * 2)
            parts.append(block)
    assert 4 * RATE < sum(part.shape[1] for part in parts) < 11 * RATE


@pytest.mark.filterwarnings("ignore::cnnkit.errors.InputWarning")
def test_rates_that_no_recorder_takes(tmp_path: Path) -> None:
    whole = bytearray(save(tmp_path / "a.wav", tone()).read_bytes())
    whole[24:28] = struct.pack("<I", 2_000_000_011)
    (tmp_path / "a.wav").write_bytes(whole)
    with pytest.raises(InputError, match="claims 2000000011 samples per second"):
        open_sound(tmp_path / "a.wav")
    whole[24:28] = struct.pack("<I", 9_999_991)
    (tmp_path / "a.wav").write_bytes(whole)
    with pytest.raises(InputError, match="too small a common divisor"):
        open_sound(tmp_path / "a.wav").read(RATE)


# What can be read is read, and what is odd about it is said.


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.opus", "a.aiff", "a.au", "a.w64", "a.rf64"])
def test_shorter_than_its_header_claims(tmp_path: Path, name: str) -> None:
    noise = (0.1 * np.random.default_rng(0).standard_normal(10 * RATE)).astype(np.float32)
    kind = {"a.opus": {"format": "OGG", "subtype": "OPUS"}, "a.rf64": {"format": "RF64"}}.get(name, {})
    with soundfile.SoundFile(tmp_path / "whole", "w", RATE, 1, **(kind or {"format": name[2:].upper()})) as out:
        for first in range(0, len(noise), 2**15):
            out.write(noise[first : first + 2**15])
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 6 // 10])
    signal, said = hear(tmp_path / name)
    assert 4.5 * RATE < signal.shape[1] < 6.6 * RATE
    assert len(said) == 1 and said[0].startswith(f"{name}: ") and ("claims" in said[0] or "damaged" in said[0] or "its end" in said[0])


def test_damaged_in_the_middle_gives_what_comes_before(tmp_path: Path) -> None:
    noise = (0.1 * np.random.default_rng(0).standard_normal(20 * RATE)).astype(np.float32)
    data = bytearray(save(tmp_path / "a.flac", noise).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 9000] = bytes(9000)
    (tmp_path / "a.flac").write_bytes(data)
    signal, said = hear(tmp_path / "a.flac")
    assert 9.4 * RATE < signal.shape[1] < 10.1 * RATE
    np.testing.assert_allclose(signal[0], noise[: signal.shape[1]], atol=1e-4)
    assert len(said) == 1 and "damaged after" in said[0]


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_recorder_that_was_cut_off(tmp_path: Path, size: int) -> None:
    data = bytearray(save(tmp_path / "a.wav", tone()).read_bytes())
    data[40:44] = struct.pack("<I", size)
    data[4:8] = struct.pack("<I", 0)
    (tmp_path / "a.wav").write_bytes(data)
    signal, said = hear(tmp_path / "a.wav")
    np.testing.assert_allclose(signal[0], tone(), atol=1e-4)
    assert said == ([] if size else ["a.wav: its header does not say how long it is, as after a recorder was cut off; read to its end"])


@pytest.mark.parametrize(("rate", "channels"), [(44100, 1), (48000, 2), (22050, 1), (16000, 2), (8000, 1)])
def test_mp3_that_does_not_tell_its_length(tmp_path: Path, rate: int, channels: int) -> None:
    loud_first = np.concatenate([(0.3 * np.random.default_rng(0).standard_normal(5 * rate)).astype(np.float32), tone(15, rate, level=0.1)])
    with soundfile.SoundFile(
        tmp_path / "a.mp3", "w", rate, channels, "MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.5
    ) as out:
        out.write(np.stack([loud_first] * channels, axis=1))
    data = (tmp_path / "a.mp3").read_bytes()
    tag = data.index(b"Xing")
    first = data.rindex(b"\xff", 0, tag)
    for before in (b"", b"ID3\x04\0\0\0\0\x01\x00" + bytes(128)):
        (tmp_path / "b.mp3").write_bytes(before + data[data.index(data[first : first + 2], tag) :])  # Without the frame of the tag.
        sound = open_sound(tmp_path / "b.mp3")
        assert sound.frames is not None and abs(sound.frames / rate - 20) < 0.2
        signal, said = hear(tmp_path / "b.mp3", rate)
        assert said == (["b.mp3: its 2 channels mixed to one"] if channels == 2 else []) and abs(signal.shape[1] / rate - 20) < 0.2
        spectrum = np.abs(np.fft.rfft(signal[0, -3 * rate : -rate]))
        assert abs(spectrum.argmax() / 2 - 440) <= 1
    part = open_sound(tmp_path / "b.mp3", start=15, end=16).read(rate) if channels == 1 else None
    assert part is None or (part.shape == (1, rate) and 0.05 < np.abs(part).max() < 0.2)


def test_a_name_in_no_encoding(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.wav", tone())
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        whole.rename(tmp_path / name)
    except OSError:
        pytest.skip("a file system that takes no such names")
    assert hear(tmp_path / name)[0].shape == (1, RATE)


def test_half_a_frame_at_the_end(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", np.stack([tone(), tone()], axis=1))
    path.write_bytes(path.read_bytes()[:-3])
    assert hear(path, channels="all")[0].shape == (2, RATE - 1)


def test_one_sample(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", np.full(1, 0.5, np.float32), 192000)
    assert hear(path, 192000)[0].tolist() == [[0.5]]
    assert hear(path, 8000)[0].shape == (1, 1)


def test_silence(tmp_path: Path) -> None:
    signal, said = hear(save(tmp_path / "a.wav", np.zeros((RATE, 2), np.float32)), channels="all")
    assert said == ["a.wav: every sample is zero"] and not signal.any()


def test_clipped(tmp_path: Path) -> None:
    loud = np.clip(3 * tone(level=1.0), -1, 1)
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"):
        said = hear(save(tmp_path / "a.wav", loud, subtype=subtype))[1]
        assert len(said) == 1 and "clipped: " in said[0] and "at full scale in a row" in said[0]
    for frequency in (50.0, 440.0, 3000.0):  # A tone that just reaches full scale is not clipped.
        assert hear(save(tmp_path / "b.wav", tone(level=1.0, frequency=frequency)))[1] == []


def test_runs_at_full_scale_count_across_blocks(tmp_path: Path) -> None:
    x = np.zeros(200000, np.float32)
    for place in (65530, 131066, 196604):  # Around the borders of what is decoded at once.
        x[place : place + 12] = 1.0
    assert len(hear(save(tmp_path / "a.wav", x))[1]) == 1


def test_offset(tmp_path: Path) -> None:
    both = np.stack([tone(), tone() - 0.3], axis=1)
    assert hear(save(tmp_path / "a.wav", both), channels="all")[1] == [
        "a.wav: a large DC offset: the mean of its samples is -0.300 of full scale"
    ]
    assert hear(save(tmp_path / "b.wav", tone() + 0.005))[1] == []


def test_opposite_phases(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", np.stack([tone(), -tone()], axis=1))
    signal, said = hear(path)
    assert np.abs(signal).max() < 1e-4
    assert said[0] == "a.wav: its 2 channels mixed to one"
    assert "cancel each other (opposite phases)" in said[1] and len(said) == 2
    assert hear(path, channels="all")[1] == []
    quarter = np.stack([tone(), tone(frequency=441.0)], axis=1)
    assert len(hear(save(tmp_path / "b.wav", quarter))[1]) == 1


def test_integers_saved_as_float(tmp_path: Path) -> None:
    assert "reach 1.638e+04 times full scale" in hear(save(tmp_path / "a.wav", 32767 * tone(), subtype="FLOAT"))[1][0]


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (192000, 1), (44100, 6), (11025, 2)])
def test_other_rates_and_channels_are_said_once(tmp_path: Path, rate: int, channels: int) -> None:
    path = save(tmp_path / "a.wav", np.stack([tone(rate=rate)] * channels, axis=1), rate)
    sound = open_sound(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        signal = sound.read(32000)
        sound.read(32000)
        list(sound.blocks(32000))
    assert signal.shape == (1, 32000)
    mixed = f", its {channels} channels mixed to one" if channels > 1 else ""
    assert [str(item.message) for item in caught] == [f"a.wav: resampled from {rate} to 32000 Hz{mixed}"]


def test_quiet_says_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", np.zeros((100, 2), np.float32), 8000)
    assert hear(path, quiet=True)[1] == []


@pytest.mark.parametrize("name", ["größe 音声 🎧.wav", "a b'c\"d%s{x}.flac", "." + "x" * 200 + ".wav", "noending"])
def test_names_of_all_kinds(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "Übung 録音"
    folder.mkdir()
    soundfile.write(str(tmp_path / "a.wav"), tone(), RATE)
    (tmp_path / "a.wav").rename(folder / name)  # The content decides, not the name.
    assert hear(folder / name)[0].shape == (1, RATE)


def test_a_sound_may_be_made_by_hand(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone())
    assert Sound(path, RATE, 1, RATE).read(RATE).shape == (1, RATE)

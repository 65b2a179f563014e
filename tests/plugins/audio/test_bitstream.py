"""Bit files: not a bit too many, read back as written, and refused with a reason when they are not whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from cnnkit.errors import InputError
from cnnkit_audio.codec.bitstream import HEADER_BYTES, BitHeader, BitWriter, network_digest, open_bits, pack, unpack

pytestmark = pytest.mark.paper("esc-codec")

HEADER = BitHeader(levels=2, groups=3, bits=10, rate=16000, frame=320, network=bytes(range(16)))


def numbers(frames: int, levels: int = 2, groups: int = 3, bits: int = 10) -> np.ndarray:
    """Random codes."""
    return np.random.default_rng(0).integers(0, 2**bits, (levels, groups, frames))


def write(path: Path, codes: np.ndarray, samples: int, header: BitHeader = HEADER, step: int = 7) -> Path:
    """Write codes in blocks of ``step`` frames."""
    with BitWriter(path, header) as out:
        for first in range(0, codes.shape[2], step):
            out.write(codes[..., first : first + step])
        out.finish(samples)
    return path


def test_pack_by_hand() -> None:
    """Frames, then levels, then groups, the highest bit first: 1, 2, 3 of ten bits each, and two bits of the last byte filled up."""
    codes = np.array([[[1]], [[2]], [[3]]])
    assert pack(codes, 10) == bytes([0b00000000, 0b01000000, 0b00100000, 0b00001100])
    assert pack(np.array([[[5, 6]], [[1, 0]]]), 3) == bytes([0b10100111, 0b00000000])


@pytest.mark.parametrize(
    ("frames", "levels", "groups", "bits"), [(1, 1, 1, 10), (7, 6, 3, 10), (13, 2, 2, 1), (5, 1, 3, 16), (0, 2, 3, 10)]
)
def test_unpack_is_pack_backwards(frames: int, levels: int, groups: int, bits: int) -> None:
    """Any number of anything; and the bytes are as few as can be."""
    codes = numbers(frames, levels, groups, bits)
    data = pack(codes, bits)
    assert len(data) == -(-frames * levels * groups * bits // 8)
    assert np.array_equal(unpack(data, frames=frames, levels=levels, groups=groups, bits=bits), codes)


@pytest.mark.parametrize("seconds", [0.01, 1.0, 2.5, 100.0])
def test_size_is_the_stated_rate(tmp_path: Path, seconds: float) -> None:
    """1.5 kbit/s for each level, over whole code frames, and nothing beyond the header and the last byte."""
    samples = round(16000 * seconds)
    frames = -(-samples // 320)
    path = write(tmp_path / "a.esc", numbers(frames), samples)
    bits = frames / 50 * 2 * 1500  # 50 code frames a second, two levels.
    assert path.stat().st_size == HEADER_BYTES + int(np.ceil(bits / 8))
    assert open_bits(path).header.bits_per_second == 3000
    if frames * 320 == samples and seconds * 3000 % 8 == 0:
        assert 8 * (path.stat().st_size - HEADER_BYTES) == seconds * 3000


@pytest.mark.parametrize("step", [1, 5, 9000])
def test_file_gives_back_what_was_written(tmp_path: Path, step: int) -> None:
    """However it was cut into blocks; across more than one block of reading."""
    codes = numbers(9000 if step > 1 else 40)
    samples = codes.shape[2] * 320 - 5
    found = open_bits(write(tmp_path / "a.esc", codes, samples, step=step))
    assert found.header == dataclasses.replace(HEADER, samples=samples, check=found.header.check)
    assert found.header.frames == codes.shape[2]
    assert np.array_equal(np.concatenate(list(found.blocks()), axis=2), codes)
    assert path_bytes(found.path)[HEADER_BYTES:] == pack(codes, 10)


def path_bytes(path: Path) -> bytes:
    """Return what a file holds."""
    return path.read_bytes()


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path: Path) -> None:
    """Header and codes are held by checksums; whatever is wrong is an InputError that names the file."""
    whole = path_bytes(write(tmp_path / "a.esc", numbers(6), 6 * 320))
    bad = tmp_path / "bad.esc"
    for place in range(len(whole)):
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"bad\.esc"):
            open_bits(bad)
    for length in range(len(whole)):
        bad.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"bad\.esc"):
            open_bits(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"RIFF" + data[4:], "no bit file of this codec: it does not begin with CNKB"),
        (lambda data: b"", "no bit file"),
        (lambda data: data[:20], "cut off in its header: 20 of 48 bytes"),
        (lambda data: data[:-3], r"cut off: 0.12 s of sound at 3 kbit/s take 45 bytes behind the header, and 42 are there"),
        (lambda data: data + b"x", "too long: .* and 46 are there"),
        (lambda data: data[:4] + b"\x09" + data[5:], "version 9, and this program reads 1; install a newer"),
        (lambda data: data[:30] + b"\xff" + data[31:], "its header does not fit its checksum"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 128]), "its codes do not fit their checksum"),
    ],
)
def test_messages(tmp_path: Path, change: object, message: str) -> None:
    """What is wrong, and what to do."""
    path = write(tmp_path / "a.esc", numbers(6), 6 * 320)
    path.write_bytes(change(path_bytes(path)))  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        open_bits(path)


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    """A file is whole under its name, or not there."""
    with pytest.raises(RuntimeError), BitWriter(tmp_path / "a.esc", HEADER) as out:
        out.write(numbers(3))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_digest_tells_networks_apart() -> None:
    """By any weight, by a name, and by nothing else."""
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert network_digest(one) != network_digest(other)
    other.load_state_dict(one.state_dict())
    assert network_digest(one.train()) == network_digest(other.eval())
    with torch.no_grad():
        other.bias[0] += 1e-6
    assert network_digest(one) != network_digest(other)
    assert network_digest(torch.nn.Sequential(one)) != network_digest(one)

"""Rooms: responses of shoebox rooms by the image-source method, and microphones in arrays of any geometry.

Allen & Berkley, "Image method for efficiently simulating small-room acoustics" (1979): each wall mirrors the source, and mirrors the
mirrored ones again; an image at distance r arrives after r / c with the amplitude of its reflections divided by 4 pi r. Their rounding of
delays to whole samples is replaced by a band-limited delay, since phase differences between microphones are what arrays live on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy import signal

SPEED = 343.0
"""Metres per second of sound in air at 20 degrees."""

GRID, TAPS = 32, 40
"""Impulses are laid down between points of a grid this much finer than the samples, then low-passed by twice so many samples."""

ARRAYS = ("linear", "circular", "scattered", "devices")
"""Geometries of :func:`draw_array`."""


def absorption_for(room: Sequence[float], rt60: float) -> float:
    """Return the absorption of all walls with which the energy falls by 60 dB in ``rt60`` seconds, after Eyring (1930).

    Args:
        room: Length, width and height in metres.
        rt60: Seconds.

    Raises:
        ValueError: If a side or the time is not positive.
    """
    volume, surface = _volume_and_surface(room)
    if rt60 <= 0:
        raise ValueError(f"rt60={rt60} is no time; accepted: more than 0 seconds")
    return 1 - math.exp(-24 * math.log(10) * volume / (SPEED * surface * rt60))


def reverberation_time(room: Sequence[float], absorption: float) -> float:
    """Return the seconds in which the energy falls by 60 dB after Eyring: the inverse of :func:`absorption_for`."""
    volume, surface = _volume_and_surface(room)
    return -24 * math.log(10) * volume / (SPEED * surface * math.log1p(-absorption))


def _volume_and_surface(room: Sequence[float]) -> tuple[float, float]:
    length, width, height = map(float, room)
    if min(length, width, height) <= 0:
        raise ValueError(f"a room of {tuple(room)} metres has no inside")
    return length * width * height, 2 * (length * width + width * height + height * length)


def image_sources(
    room: Sequence[float], source: Sequence[float], *, reach: float, max_order: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a source.

    Args:
        room: Length, width and height in metres.
        source: Place of the source in metres, inside the room.
        reach: Metres along each axis beyond which images are left out.
        max_order: Reflections at most; no limit by default.

    Returns:
        Places ``(I, 3)`` in metres and number of reflections ``(I,)``; the source itself is among them, with none.
    """
    sides, place = np.asarray(room, float), np.asarray(source, float)
    if not ((place > 0) & (place < sides)).all():
        raise ValueError(f"the source at {tuple(place)} is not inside the room of {tuple(sides)} metres")
    axes = []
    for side, at in zip(sides, place, strict=True):
        turns = int(reach // (2 * side)) + 1
        if max_order is not None:
            turns = min(turns, max_order // 2 + 1)
        copies = np.arange(-turns, turns + 1)
        # The source moved by whole periods of two sides, and its mirror image at the wall through the origin likewise.
        axes.append(
            (np.concatenate((2 * copies * side + at, 2 * copies * side - at)), np.abs(np.concatenate((2 * copies, 2 * copies - 1))))
        )
    orders = axes[0][1][:, None, None] + axes[1][1][:, None] + axes[2][1]
    places = np.stack(np.broadcast_arrays(axes[0][0][:, None, None], axes[1][0][:, None], axes[2][0]), -1)
    kept = slice(None) if max_order is None else orders.reshape(-1) <= max_order
    return places.reshape(-1, 3)[kept], orders.reshape(-1)[kept]


def room_response(
    room: Sequence[float],
    source: Sequence[float],
    microphones: np.ndarray,
    *,
    rate: int,
    rt60: float | None = None,
    absorption: float | None = None,
    seconds: float | None = None,
    max_order: int | None = None,
) -> np.ndarray:
    """Return what each microphone receives from an impulse at the source.

    The images of all microphones are laid on a grid of :data:`GRID` points per sample in one pass, each between its two nearest points,
    and one low-pass filter at half the rate brings the grid to samples: the work per image does not grow with the filter's length. Its
    phase is exact up to a part of 1e-3 below 0.9 of half the rate. What a band-limited impulse has before time 0 is cut off.

    Args:
        room: Length, width and height in metres.
        source: Place of the source, metres.
        microphones: Places, ``(M, 3)`` metres, inside the room.
        rate: Samples per second.
        rt60: Seconds in which the energy falls by 60 dB; or
        absorption: Share of the energy that a wall takes, ``0 < absorption <= 1``; 1 leaves the direct path.
        seconds: Length; by default until the last image of ``rt60`` has arrived.
        max_order: Reflections at most; no limit by default.

    Returns:
        ``(M, T)`` float64. The direct sound at a distance of 1 m is an impulse of the area 1 / (4 pi), 1 / 343 seconds late.

    Raises:
        ValueError: If a place is outside of the room, or not exactly one of ``rt60`` and ``absorption`` is given.
    """
    if (rt60 is None) == (absorption is None):
        raise ValueError("give either rt60 or absorption")
    microphones = np.atleast_2d(np.asarray(microphones, float))
    if not ((microphones > 0) & (microphones < np.asarray(room))).all():
        raise ValueError(f"a microphone is not inside the room of {tuple(room)} metres")
    absorbed = absorption_for(room, rt60) if absorption is None else absorption  # type: ignore[arg-type]
    if not 0 < absorbed <= 1:
        raise ValueError(f"absorption={absorbed} is no share; accepted: above 0, up to 1")
    if seconds is None:
        seconds = math.dist((0, 0, 0), room) / SPEED if absorbed == 1 else reverberation_time(room, absorbed)
    samples = round(seconds * rate) + 2 * TAPS
    order = 0 if absorbed == 1 else max_order
    places, orders = image_sources(room, source, reach=seconds * SPEED + max(room), max_order=order)
    distance = np.sqrt(((microphones[:, None] - places) ** 2).sum(-1))
    amplitude = (1 - absorbed) ** (orders / 2) / (4 * math.pi * np.maximum(distance, 1e-2))
    return _delayed(distance / SPEED * rate, amplitude, samples)


def _delayed(delays: np.ndarray, amplitudes: np.ndarray, samples: int) -> np.ndarray:
    """Return the sum of band-limited impulses for each row: delays in samples and amplitudes ``(M, I)``; the result is ``(M, samples)``."""
    count, length = len(delays), (samples + 2 * TAPS) * GRID
    at = (delays + TAPS) * GRID
    point = np.floor(at).astype(np.int64)
    share = at - point
    heard = point < length - 1
    start = (np.arange(count)[:, None] * length + point)[heard]
    weights = np.stack(((amplitudes * (1 - share))[heard], (amplitudes * share)[heard]))
    grid = np.bincount(np.concatenate((start, start + 1)), weights.reshape(-1), count * length).reshape(count, length)
    # The filter's middle comes TAPS samples late, and the grid began TAPS samples early.
    return signal.upfirdn(_lowpass(), grid, down=GRID, axis=-1)[:, 2 * TAPS : 2 * TAPS + samples]


@functools.cache
def _lowpass() -> np.ndarray:
    return GRID * signal.firwin(2 * TAPS * GRID + 1, 1 / GRID, window=("kaiser", 8.0))


def decay_time(response: np.ndarray, rate: int, *, start: float = -5.0, stop: float = -35.0) -> float:
    """Return the reverberation time that a response shows: the slope of its backward-integrated energy (Schroeder 1965) in decibels.

    Args:
        response: ``(T,)``.
        rate: Samples per second.
        start: Decibels where the straight line begins.
        stop: Decibels where it ends.
    """
    energy = np.cumsum(response[::-1] ** 2)[::-1]
    level = 10 * np.log10(np.maximum(energy / energy[0], 1e-30))
    inside = np.flatnonzero((level <= start) & (level >= stop))
    slope = np.polyfit(inside / rate, level[inside], 1)[0]
    return -60 / slope


@dataclass(frozen=True)
class Room:
    """A room with its walls.

    Args:
        sides: Length, width and height in metres.
        rt60: Seconds in which the energy falls by 60 dB.
    """

    sides: tuple[float, float, float]
    rt60: float

    @classmethod
    def draw(cls, rng: Generator, *, rt60: tuple[float, float] = (0.15, 0.4)) -> Room:
        """Draw a room between a chamber and a hall, with a reverberation time that its size admits."""
        sides = tuple(rng.uniform((3.0, 3.0, 2.3), (8.0, 6.0, 3.5)).tolist())
        return cls(sides, float(rng.uniform(*rt60)))

    def place(self, rng: Generator, count: int, *, margin: float = 0.3) -> np.ndarray:
        """Draw places ``(count, 3)`` that keep ``margin`` metres from the walls."""
        return rng.uniform(margin, np.asarray(self.sides) - margin, (count, 3))

    def inside(self, places: np.ndarray, *, margin: float = 0.05) -> np.ndarray:
        """Return places moved to the nearest point that keeps ``margin`` metres from the walls."""
        return np.clip(places, margin, np.asarray(self.sides) - margin)

    def response(self, source: Sequence[float], microphones: np.ndarray, *, rate: int, max_order: int | None = None) -> np.ndarray:
        """Return :func:`room_response` in this room."""
        return room_response(self.sides, source, microphones, rate=rate, rt60=self.rt60, max_order=max_order)


def draw_array(rng: Generator, room: Room, microphones: int, kind: str) -> np.ndarray:
    """Draw the places of an array in a room.

    Args:
        rng: Random generator.
        room: The room.
        microphones: How many.
        kind: ``"linear"`` or ``"circular"`` (centimetres apart), ``"scattered"`` (all over the room) or ``"devices"`` (several small
            arrays, as in CHiME).

    Returns:
        ``(microphones, 3)`` metres.
    """
    if kind not in ARRAYS:
        raise ValueError(f"kind={kind!r} is no array; accepted: {', '.join(ARRAYS)}")
    if kind == "scattered":
        return room.place(rng, microphones)
    if kind == "devices":
        count = max(1, min(int(rng.integers(2, 5)), microphones // 2))
        sizes = [len(part) for part in np.array_split(np.arange(microphones), count)]
        return np.concatenate([draw_array(rng, room, size, str(rng.choice(ARRAYS[:2]))) for size in sizes])
    angle = rng.uniform(0, 2 * np.pi)
    if kind == "linear":
        along = (np.arange(microphones) - (microphones - 1) / 2) * rng.uniform(0.03, 0.1)
        flat = along[:, None] * np.array([np.cos(angle), np.sin(angle)])
    else:
        turns = angle + 2 * np.pi * np.arange(microphones) / microphones
        flat = rng.uniform(0.04, 0.1) * np.stack((np.cos(turns), np.sin(turns)), -1)
    centre = room.place(rng, 1, margin=0.8)[0]
    return room.inside(centre + np.concatenate((flat, np.zeros((microphones, 1))), 1))

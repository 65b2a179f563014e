"""Change of sample rate by a windowed sinc, of whole sounds and of streams.

The filter is that of :func:`torchaudio.functional.resample`: a sinc under a Hann window, cut off at 0.99 of the lower Nyquist
frequency. Three things differ. A sound may come in blocks of any length, with the context carried from one to the next. Of the filter's
matrix, which is nearly all zeros for rates such as 44100 and 32000 Hz, only the band around its diagonal is multiplied. And the sinc has
32 zero crossings to each side: with torchaudio's default of 6, what lies a quarter above the Nyquist frequency comes back as an alias
only 45 dB down; with 32 it is 79 dB down from a fifth above, and the error of a tone that stays is below -105 dB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from cnnkit.errors import InputError
from numpy.lib.stride_tricks import as_strided

ZERO_CROSSINGS = 32
ROLLOFF = 0.99
LARGEST_FILTER = 10**8
"""Most coefficients that are worth keeping: rates in the megahertz without a common divisor would want gigabytes."""


class Resampler:
    """Resample a sound that comes block by block.

    The outputs of :meth:`push` and of :meth:`finish`, put together, are the resampled whole, ``ceil(n * rate_out / rate_in)`` samples
    for ``n``. An output leaves as soon as the last input it depends on is there, after the zero crossings of one side of the filter:
    2 ms where the lower rate is 16 kHz.

    Args:
        rate_in: Samples per second of what is pushed.
        rate_out: Samples per second of the result.
        zeros: Zero crossings of the filter to each side; torchaudio calls it ``lowpass_filter_width`` and takes 6.
        dtype: Floating type of both; coefficients are computed in double precision either way.

    Raises:
        InputError: If the rates have no common divisor that makes the filter a reasonable size.
    """

    def __init__(self, rate_in: int, rate_out: int, *, zeros: int = ZERO_CROSSINGS, dtype: type = np.float32) -> None:
        if rate_in < 1 or rate_out < 1:
            raise ValueError(f"rates are positive; got {rate_in} and {rate_out}")
        self.dtype = np.dtype(dtype)
        self._filter = None if rate_in == rate_out else _bank(rate_in, rate_out, zeros, self.dtype.str)
        self._held: np.ndarray | None = None  # From the first input that any later output needs, zeros before the start included.
        self._taken = 0
        self._given = 0

    def push(self, block: np.ndarray) -> np.ndarray:
        """Take the next inputs ``(C, n)`` and return the outputs ``(C, m)`` that they complete; ``m`` may be 0."""
        if self._filter is None:
            return block
        if self._held is None:
            self._held = np.zeros((len(block), self._filter.reach), self.dtype)
        self._held = np.concatenate([self._held, block], axis=1)
        self._taken += block.shape[1]
        return self._give(self._filter.complete(self._taken))

    def finish(self) -> np.ndarray:
        """Return the last outputs ``(C, m)``: silence follows what was pushed. Nothing may be pushed afterwards."""
        if self._filter is None or self._held is None:
            return np.zeros((1 if self._held is None else len(self._held), 0), self.dtype)
        return self._give(-(-self._taken * self._filter.new // self._filter.orig))

    def _give(self, upto: int) -> np.ndarray:
        """Return the outputs from the last given one to ``upto``, and drop the inputs that none after them needs."""
        bank, held = self._filter, self._held
        assert bank is not None and held is not None
        if upto <= self._given:
            return np.zeros((len(held), 0), self.dtype)
        period = self._given // bank.new
        count = -(-upto // bank.new) - period
        outputs = bank.apply(held, count, self._given - period * bank.new, upto - period * bank.new)
        self._given = upto
        self._held = held[:, (upto // bank.new - period) * bank.orig :]
        return outputs


def resample(signal: np.ndarray, rate_in: int, rate_out: int, *, zeros: int = ZERO_CROSSINGS) -> np.ndarray:
    """Return a whole sound ``(C, T)`` at another rate, as ``(C, ceil(T * rate_out / rate_in))`` of the same floating type."""
    resampler = Resampler(rate_in, rate_out, zeros=zeros, dtype=signal.dtype.type)
    return np.concatenate([resampler.push(signal), resampler.finish()], axis=1) if rate_in != rate_out else signal


@dataclass(frozen=True)
class _Bank:
    """The filter as a band matrix: ``new`` outputs from every ``orig`` inputs and their surroundings.

    Args:
        orig: Inputs per period.
        new: Outputs per period.
        reach: Inputs before and after an output that it depends on, at most.
        groups: For neighbouring outputs ``first, first + 1, ...`` of a period: ``first``, the place of their first input (counted
            from ``reach`` before the period), and their coefficients ``(inputs, outputs)``.
    """

    orig: int
    new: int
    reach: int
    groups: tuple[tuple[int, int, np.ndarray], ...]

    def complete(self, taken: int) -> int:
        """Return how many outputs depend on none but the first ``taken`` inputs."""
        return max(0, -(-(taken - self.reach - 1) * self.new // self.orig))

    def apply(self, held: np.ndarray, periods: int, first: int, last: int) -> np.ndarray:
        """Return the outputs ``first`` to ``last`` of some periods, ``(C, last - first)``.

        The inputs begin ``reach`` before the first period; missing ones at the end are zero.
        """
        width = periods * self.orig + 2 * self.reach + 2
        source = np.zeros((len(held), width), held.dtype)
        source[:, : held.shape[1]] = held[:, :width]
        outputs = np.empty((len(held), periods, self.new), held.dtype)
        channel, sample = source.strides
        for begin, place, weights in self.groups:
            end = begin + weights.shape[1]
            if periods == 1 and (end <= first or begin >= last):  # A period of rates like 44100 and 44099 Hz is a second long.
                continue
            # A view of overlapping windows, one per period, that BLAS reads in place.
            windows = as_strided(source[:, place:], (len(held), periods, len(weights)), (channel, self.orig * sample, sample))
            outputs[:, :, begin:end] = windows @ weights
        return outputs.reshape(len(held), -1)[:, first:last]


@lru_cache(maxsize=16)
def _bank(rate_in: int, rate_out: int, zeros: int, dtype: str) -> _Bank:
    divisor = math.gcd(rate_in, rate_out)
    orig, new = rate_in // divisor, rate_out // divisor
    cutoff = min(orig, new) * ROLLOFF
    reach = math.ceil(zeros * orig / cutoff)
    taps = 2 * reach + 2
    if new * 2 * taps > LARGEST_FILTER:
        raise InputError(f"{rate_in} Hz cannot be resampled to {rate_out} Hz: the two rates have too small a common divisor ({divisor})")
    # Several periods as one where a period is short, so that a window is no longer than the step to the next.
    several = -(-2 * taps // orig)
    size = max(1, round(taps * new / orig))  # Outputs whose inputs spread twice as far as those of one: half the products are with zeros.
    groups = []
    for outputs in np.array_split(np.arange(several * new), -(-several * new // size)):
        first = int(outputs[0])
        begin, end = first * orig // new - reach, int(outputs[-1]) * orig // new + reach + 2
        # Each output's place and its inputs' in units of the inputs; integers first, since their difference is what matters.
        numerator = np.arange(begin, end)[:, None] * new - outputs[None] * orig
        time = np.clip(numerator * (cutoff / (orig * new)), -zeros, zeros)
        weights = np.sinc(time) * np.cos(time * (math.pi / zeros / 2)) ** 2 * (cutoff / orig)
        groups.append((first, begin + reach, np.ascontiguousarray(weights, dtype=dtype)))
    return _Bank(several * orig, several * new, reach, tuple(groups))

"""Eight bits: weights and activations of a chain as small integers, and the factors between them.

A real number is ``scale (q - zero)``. Weights are symmetric with a scale per output channel, activations have one scale and zero for a
whole map, found on calibration data; batch normalisations are folded first (Jacob et al., CVPR 2018; the specification of TFLite).
What :class:`Quantised` computes is integer arithmetic alone, and equals the exported C code bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.errors import UsageError
from cnnkit.layers.fuse import fold_batch_norm
from torch import Tensor, nn

from cnnkit_audio.compress.chain import Chain, Link, links
from cnnkit_audio.compress.fixed_point import INT8_MAX, INT8_MIN, INT32_MAX, multiply, quantise_multiplier, rounded_mean

PCM = 32768
"""Amplitude 1 in 16-bit samples."""


@dataclass(frozen=True)
class Scale:
    """How integers stand for real numbers: ``scale (q - zero)``."""

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Scale:
        """Return the scale that covers a range, widened to hold zero exactly.

        Raises:
            UsageError: If the range is not finite.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        if not np.isfinite(high - low):
            raise UsageError("activations on the calibration data are not finite; look at the data, or at the training")
        scale = (high - low) / (INT8_MAX - INT8_MIN) or 1.0 / PCM
        return cls(scale, int(np.clip(round(INT8_MIN - low / scale), INT8_MIN, INT8_MAX)))


@dataclass(frozen=True)
class Layer:
    """One layer of integers: a convolution with rectifier and max pooling, or an average pooling.

    Args:
        weights: ``(out, in, kh, kw)`` int8; ``None`` for an average pooling.
        bias: ``(out,)`` int32, at the scale of the accumulator.
        mantissas: ``(out,)`` int32 of the factors from the accumulator to the output.
        exponents: ``(out,)`` of the same.
        stride: Steps of the kernel.
        padding: Zeros around the input.
        pool: Window of the max pooling, or of the average.
        source: Scale of the input.
        target: Scale of the output.
        relu: Whether negative values become zero.
        input: Shape of the input, ``(C, H, W)``.
        output: Shape of the output.
    """

    weights: np.ndarray[Any, Any] | None
    bias: np.ndarray[Any, Any]
    mantissas: np.ndarray[Any, Any]
    exponents: np.ndarray[Any, Any]
    stride: tuple[int, int]
    padding: tuple[int, int]
    pool: tuple[int, int]
    source: Scale
    target: Scale
    relu: bool
    input: tuple[int, int, int]
    output: tuple[int, int, int]

    @property
    def least(self) -> int:
        """Smallest output: real zero behind a rectifier."""
        return max(self.target.zero, INT8_MIN) if self.relu else INT8_MIN

    @property
    def bytes(self) -> int:
        """Bytes of its constants: weights of one byte, bias and mantissa of four, exponent of one."""
        return 0 if self.weights is None else self.weights.size + 9 * self.bias.size

    @property
    def macs(self) -> int:
        """Multiply-adds for one clip, without the positions that pooling leaves out."""
        if self.weights is None:
            return 0
        return int(np.prod(self.output)) * int(np.prod(self.pool)) * int(np.prod(self.weights.shape[1:]))

    def __call__(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return int8 ``(B, *output)`` for int8 ``(B, *input)``."""
        x = x.reshape(len(x), *self.input)
        if self.weights is None:
            return self._mean(x)
        # Sums of integers far below 2^53 are exact in double precision.
        shifted = torch.from_numpy(x.astype(np.float64) - self.source.zero)
        sums = F.conv2d(shifted, torch.from_numpy(self.weights.astype(np.float64)), stride=self.stride, padding=self.padding)
        if self.pool != (1, 1):
            sums = F.max_pool2d(sums, self.pool)
        accumulators = sums.numpy().astype(np.int64) + self.bias[:, None, None]
        found = multiply(accumulators, self.mantissas[:, None, None], self.exponents[:, None, None]) + self.target.zero
        return np.clip(found, self.least, INT8_MAX).astype(np.int8)

    def _mean(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        (height, width), (_, rows, columns) = self.pool, self.output
        cut = x[:, :, : rows * height, : columns * width].astype(np.int64)
        total = cut.reshape(len(x), -1, rows, height, columns, width).sum((3, 5))
        return rounded_mean(total, height * width).astype(np.int8)


@dataclass(frozen=True)
class Quantised:
    """A network of integers.

    Args:
        layers: From the waveform to the logits.
    """

    layers: tuple[Layer, ...]

    @property
    def source(self) -> Scale:
        """Scale of the input."""
        return self.layers[0].source

    @property
    def target(self) -> Scale:
        """Scale of the logits."""
        return self.layers[-1].target

    @property
    def pcm_factor(self) -> tuple[int, int]:
        """Mantissa and exponent of the factor from 16-bit samples to the input."""
        return quantise_multiplier(1 / (PCM * self.source.scale))

    @property
    def bytes(self) -> int:
        """Bytes of all constants."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def arena(self) -> int:
        """Bytes of working memory: the largest sum of a layer's input and output, those of the caller left out."""
        sizes = [0, *(int(np.prod(layer.output)) for layer in self.layers[:-1]), 0]
        return max(1, *(one + other for one, other in itertools.pairwise(sizes)))

    def from_pcm(self, samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the network's input for 16-bit samples: int8 of the same shape."""
        scaled = multiply(samples.astype(np.int64), *map(np.int64, self.pcm_factor)) + self.source.zero  # type: ignore[arg-type]
        return np.clip(scaled, INT8_MIN, INT8_MAX).astype(np.int8)

    def __call__(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return int8 logits ``(B, classes)`` for int8 input ``(B, 1, T)``."""
        for layer in self.layers:
            x = layer(x)
        return x.reshape(len(x), -1)


def to_pcm(waveform: Tensor) -> np.ndarray[Any, Any]:
    """Return 16-bit samples for waveforms in [-1, 1]; what is beyond is clipped."""
    return (waveform.detach().cpu().double() * PCM).round().clamp(-PCM, PCM - 1).numpy().astype(np.int16)


def quantise(model: nn.Module, waveforms: Iterable[Tensor]) -> Quantised:
    """Quantise a trained chain after training.

    Args:
        model: The network (see :class:`~cnnkit_audio.compress.chain.Chain`).
        waveforms: Calibration data, batches ``(B, 1, T)`` such as it was trained on; a hundred clips are plenty.

    Raises:
        UsageError: If the chain cannot be written in integers, or there are no data.
    """
    from cnnkit_audio.compress.chain import as_chain

    chain = as_chain(model)
    found = links(chain)
    ranges = _calibrate(chain, found, waveforms)
    source, shape = Scale.of(*ranges[0]), (1, 1, chain.length)
    layers: list[Layer] = []
    for link, seen in zip(found, ranges[1:], strict=True):
        if link.swapped:
            shape = _swap(shape)
        layers.append(_layer(link, source, Scale.of(*seen), shape))
        source, shape = layers[-1].target, layers[-1].output
        if link.mean != (1, 1):
            layers.append(_average(link.mean, source, shape))
            shape = layers[-1].output
    return Quantised(tuple(layers))


@torch.no_grad()
def _calibrate(chain: Chain, found: Sequence[Link], waveforms: Iterable[Tensor]) -> list[tuple[float, float]]:
    """Return the least and the largest value of the input and behind each link, in evaluation mode."""
    assert isinstance(chain, nn.Module)
    lows, highs = [np.inf] * (len(found) + 1), [-np.inf] * (len(found) + 1)
    training, modules = chain.training, chain.chain()
    chain.eval()
    for batch in waveforms:
        x, at = batch[..., : chain.length][:, :, None], 0
        for module in (None, *modules):
            x = x if module is None else module(x)
            at += isinstance(module, (nn.Conv2d, nn.Linear))
            if module is None or _closes(module, found[at - 1]):
                lows[at], highs[at] = min(lows[at], float(x.min())), max(highs[at], float(x.max()))
    chain.train(training)
    if not np.isfinite(lows[0]):
        raise UsageError("there are no calibration data: give at least one batch of finite waveforms")
    return list(zip(lows, highs, strict=True))


def _closes(module: nn.Module, link: Link) -> bool:
    """Whether a module is the last of a link before pooling."""
    if link.relu:
        return isinstance(module, nn.ReLU)
    return module is (link.layer if link.norm is None else link.norm)


def _layer(link: Link, source: Scale, target: Scale, shape: tuple[int, int, int]) -> Layer:
    """Return a convolution or linear layer in integers."""
    weight, bias = _real(link)
    stride, padding = _steps(link.layer)
    if weight.ndim == 2:
        shape, weight = (int(np.prod(shape)), 1, 1), weight[:, :, None, None]
    peaks = np.abs(weight).max((1, 2, 3)) / INT8_MAX
    # A channel whose weights are next to nothing beside its bias gets a coarser scale, or the bias would not fit 32 bits.
    scales = np.maximum(np.maximum(peaks, np.abs(bias) / (source.scale * 2**30)), np.finfo(np.float32).tiny)
    integers = np.clip(np.rint(weight / scales[:, None, None, None]), -INT8_MAX, INT8_MAX).astype(np.int8)
    biases = np.rint(bias / (source.scale * scales)).astype(np.int64)
    bound = np.abs(biases) + 255 * np.abs(integers.astype(np.int64)).sum((1, 2, 3))
    if bound.max() > INT32_MAX:
        raise UsageError(f"{link.layer} sums more than 32 bits hold; it is too wide for 8-bit arithmetic")
    factors = [quantise_multiplier(source.scale * scale / target.scale) for scale in scales]
    size = [
        (side + 2 * pad - kernel) // step + 1 for side, pad, kernel, step in zip(shape[1:], padding, weight.shape[2:], stride, strict=True)
    ]
    rows, columns = (side // window for side, window in zip(size, link.pool, strict=True))
    return Layer(
        weights=integers,
        bias=biases.astype(np.int32),
        mantissas=np.array([mantissa for mantissa, _ in factors], np.int32),
        exponents=np.array([exponent for _, exponent in factors], np.int8),
        stride=stride,
        padding=padding,
        pool=link.pool,
        source=source,
        target=target,
        relu=link.relu,
        input=shape,
        output=(len(weight), rows, columns),
    )


def _steps(layer: nn.Conv2d | nn.Linear) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return stride and padding."""
    if isinstance(layer, nn.Linear):
        return (1, 1), (0, 0)
    assert not isinstance(layer.padding, str)
    return (layer.stride[0], layer.stride[1]), (layer.padding[0], layer.padding[1])


def _real(link: Link) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return weight and bias with the normalisation in them, in double precision."""
    with torch.no_grad():
        if link.norm is not None:
            weight, bias = fold_batch_norm(link.layer, link.norm)
        else:
            weight = link.layer.weight
            bias = weight.new_zeros(len(weight)) if link.layer.bias is None else link.layer.bias
    return weight.detach().double().cpu().numpy(), bias.detach().double().cpu().numpy()


def _average(window: tuple[int, int], scale: Scale, shape: tuple[int, int, int]) -> Layer:
    none = np.zeros(0, np.int32)
    output = (shape[0], shape[1] // window[0], shape[2] // window[1])
    return Layer(None, none, none, none.astype(np.int8), window, (0, 0), window, scale, scale, False, shape, output)


def _swap(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape behind a swap, which costs nothing in memory if one of the two sides is 1."""
    channels, height, width = shape
    if 1 not in (channels, height):
        raise UsageError(f"channels and rows of a map {shape} cannot be exchanged without moving it in memory; one of them must be 1")
    return height, channels, width

"""How LR patches are made from HR patches for blind super-resolution: blur, change of size, noise and JPEG, drawn at random.

One round of these is the classical degradation. Two rounds, with a sinc filter at the end, are Real-ESRGAN's (Wang et al., "Training
Real-World Blind Super-Resolution with Pure Synthetic Data", ICCVW 2021), and the two are configurations of the same parts, see
:mod:`cnnkit_superres.data_config`. Everything random is drawn from one numpy generator: the same generator, the same patch.

Differences from Real-ESRGAN's training code: a patch is degraded with a margin of its picture instead of one of reflected pixels; every
patch of a batch has its own factor, so that no pool of old pairs is needed; JPEG is that of a real encoder with its chroma at half
resolution, which on a CPU is fifteen times as fast as the differentiable one; the target is not sharpened.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from cnnkit_superres.data_config import DegradeConfig, StageConfig

Step = Callable[[Tensor], Tensor]

_MODES = ("area", "bilinear", "bicubic")
_LUMA = (0.2989, 0.587, 0.114)  # Of the grey picture that has the same Poisson noise for all channels.
_PHOTONS = 256.0  # Of white in Poisson noise of the scale 1.
_FOURIER = 15  # Side of a kernel from which a product of Fourier transforms is faster.
_SMALL_KERNEL = 13  # Sides from which a sinc filter may cut off lower frequencies.


def degrade(hr: Tensor, cfg: DegradeConfig, *, scale: int, rng: Generator) -> Tensor:
    """Make an LR patch by the stages of a blind degradation.

    Args:
        hr: Values in [0, 1].
        cfg: Its :attr:`~cnnkit_superres.data_config.DegradeConfig.recipe` and probability of a sinc filter.
        scale: Factor between the two.
        rng: Source of all randomness.

    Shapes:
        hr: ``(C, s H, s W)``, ``C`` 1 or 3; the result is ``(C, H, W)``, rounded to 8 bits in [0, 1].

    Raises:
        ValueError: If the configuration has no stages, as ``bicubic``, or the sides are no multiples of ``scale``.
    """
    if not cfg.recipe:
        raise ValueError(f"the degradation {cfg.kind!r} has no stages; reduce the picture with imresize")
    height, width = hr.shape[1:]
    if height % scale or width % scale:
        raise ValueError(f"a patch of {height} x {width} pixels cannot be reduced by {scale}: its sides must be multiples of it")
    target = (height // scale, width // scale)
    x = hr[None].clamp(0, 1)
    *stages, last = cfg.recipe
    for stage in stages:
        x = _blur_resize_noise(x, stage, tuple(x.shape[2:]), rng)
        x = _compress(x, stage, rng)
    x = _blur_resize_noise(x, last, target, rng)

    def finish(x: Tensor) -> Tensor:
        x = resize(x, target, rng)
        if rng.random() < cfg.sinc:
            x = filter2d(x, sinc_kernel(_odd(last.kernel_size, rng), rng.uniform(math.pi / 3, math.pi)))
        return x.clamp(0, 1)

    steps: list[Step] = [finish, lambda x: _compress(x, last, rng)]
    for step in steps if rng.random() < 0.5 else steps[::-1]:
        x = step(x)
    return (x[0] * 255).round().clamp(0, 255) / 255


def _blur_resize_noise(x: Tensor, stage: StageConfig, base: tuple[int, ...], rng: Generator) -> Tensor:
    """Run a stage without its JPEG; a factor of 1 makes the size ``base``."""
    if rng.random() < stage.blur:
        x = filter2d(x, draw_kernel(stage, rng))
    factor = _factor(stage, rng)
    x = resize(x, (max(1, int(base[0] * factor)), max(1, int(base[1] * factor))), rng).clamp(0, 1)
    if rng.random() < stage.noise:
        gray = rng.random() < stage.gray
        if rng.random() < stage.gaussian:
            x = x + gaussian_noise(x, rng.uniform(*stage.gaussian_sigma) / 255, gray, rng)
        else:
            x = x + rng.uniform(*stage.poisson_scale) * poisson_noise(x, gray, rng)
    return x.clamp(0, 1)


def _factor(stage: StageConfig, rng: Generator) -> float:
    low, high = stage.resize_range
    weights = np.asarray(stage.resize, dtype=np.float64)
    which = int(rng.choice(3, p=weights / weights.sum()))
    return (rng.uniform(min(1, high), high), rng.uniform(low, max(1, low)), 1.0)[which]


def _compress(x: Tensor, stage: StageConfig, rng: Generator) -> Tensor:
    return jpeg(x[0], round(rng.uniform(*stage.jpeg_quality)))[None] if rng.random() < stage.jpeg else x


def resize(x: Tensor, size: tuple[int, int], rng: Generator) -> Tensor:
    """Resize by area, bilinear or bicubic interpolation, drawn evenly, without a filter against aliasing.

    Shapes:
        x: ``(B, C, H, W)``; the result is ``(B, C, *size)``.
    """
    mode = _MODES[int(rng.integers(len(_MODES)))]  # Drawn in any case, so that what follows does not depend on the size.
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode=mode)


def filter2d(x: Tensor, kernel: NDArray[np.float64]) -> Tensor:
    """Correlate every channel with a kernel; beyond the border the picture is reflected, or repeated where it is too small.

    Shapes:
        x: ``(B, C, H, W)``. kernel: ``(K, K)``, ``K`` odd. The result has the shape of ``x``.
    """
    reach = kernel.shape[0] // 2
    border = "reflect" if min(x.shape[2:]) > reach else "replicate"
    weights = torch.from_numpy(kernel).to(x)
    if kernel.shape[0] < _FOURIER:
        from kornia.filters import filter2d as correlate  # On use: kornia takes half a second to import.

        return correlate(x, weights[None], border_type=border)
    from scipy.fft import next_fast_len

    padded = F.pad(x, (reach, reach, reach, reach), mode=border)
    sides = [next_fast_len(side, real=True) for side in padded.shape[2:]]
    spectrum = torch.fft.rfft2(padded, sides) * torch.fft.rfft2(weights.flip(0, 1), sides)
    return torch.fft.irfft2(spectrum, sides)[..., 2 * reach : padded.shape[2], 2 * reach : padded.shape[3]]


def draw_kernel(stage: StageConfig, rng: Generator) -> NDArray[np.float64]:
    """Draw a blur kernel ``(K, K)``; its values sum to 1."""
    names = list(stage.kernels)
    weights = np.array([stage.kernels[name] for name in names])
    name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    size = _odd(stage.kernel_size, rng)
    if name == "sinc":
        return sinc_kernel(size, rng.uniform(math.pi / (3 if size < _SMALL_KERNEL else 5), math.pi))
    first = rng.uniform(*stage.sigma)
    isotropic = name.endswith("iso") and not name.endswith("aniso")
    second, angle = (first, 0.0) if isotropic else (rng.uniform(*stage.sigma), rng.uniform(-math.pi, math.pi))
    shape = name.split("_")[0]
    beta = 1.0
    if shape in ("generalized", "plateau"):
        low, high = stage.generalized_beta if shape == "generalized" else stage.plateau_beta
        beta = rng.uniform(low, 1) if low < 1 and rng.random() < 0.5 else rng.uniform(max(low, 1), max(high, 1))
    return gaussian_kernel(size, (first, second), angle, beta=beta, plateau=shape == "plateau")


def gaussian_kernel(
    size: int, sigma: tuple[float, float], angle: float = 0.0, *, beta: float = 1.0, plateau: bool = False
) -> NDArray[np.float64]:
    """Return a bivariate kernel whose values sum to 1.

    With ``q`` the squared distance from the centre in units of the standard deviations, it is ``exp(-q^beta / 2)`` (a Gaussian for
    1, otherwise a generalised one), or ``1 / (1 + q^beta)`` for a plateau.

    Args:
        size: Side, odd.
        sigma: Standard deviations along the kernel's two axes.
        angle: From the columns' direction to the first axis, towards the rows' direction, in radians.
        beta: Exponent.
        plateau: Whether it is a plateau.
    """
    offset = np.arange(size) - (size - 1) / 2
    x, y = offset[None, :], offset[:, None]
    along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    q = ((along / sigma[0]) ** 2 + (across / sigma[1]) ** 2) ** beta
    kernel = 1 / (1 + q) if plateau else np.exp(-q / 2)
    return kernel / kernel.sum()


def sinc_kernel(size: int, cutoff: float) -> NDArray[np.float64]:
    """Return the circular low-pass filter, whose ringing looks like that of over-sharpened pictures; its values sum to 1.

    Args:
        size: Side, odd.
        cutoff: Highest angular frequency that passes, up to pi.
    """
    from scipy.special import j1

    offset = np.arange(size) - (size - 1) / 2
    radius = np.hypot(offset[None, :], offset[:, None])
    inner = np.where(radius == 0, 1.0, radius)
    kernel = np.where(radius == 0, cutoff**2 / (4 * math.pi), cutoff * j1(cutoff * inner) / (2 * math.pi * inner))
    return kernel / kernel.sum()


def gaussian_noise(x: Tensor, sigma: float, gray: bool, rng: Generator) -> Tensor:
    """Return normal noise of the standard deviation ``sigma``, the same for all channels if ``gray``; shaped as ``x``."""
    shape = (x.shape[0], 1, *x.shape[2:]) if gray else tuple(x.shape)
    return sigma * torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).expand(x.shape)


def poisson_noise(x: Tensor, gray: bool, rng: Generator) -> Tensor:
    """Return the difference between a picture and a count of photons with that mean, in units of the picture; shaped as ``x``.

    White is 256 photons. (Real-ESRGAN's code takes the number of values that the patch has, which is about that for its patches of
    400 pixels; a smooth small patch would drown in noise.)

    Args:
        x: Values in [0, 1].
        gray: Count photons of the grey picture, and give all channels the same noise.
        rng: Source of the counts.
    """
    luma = torch.tensor(_LUMA, dtype=x.dtype)[:, None, None]
    light = (x * luma).sum(1, keepdim=True) if gray and x.shape[1] == 3 else x
    counts = torch.from_numpy(rng.poisson(light.double().numpy() * _PHOTONS) / _PHOTONS)
    return (counts.to(x.dtype) - light).expand(x.shape)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Compress a picture to JPEG and read it again.

    Args:
        x: Values in [0, 1].
        quality: 1 to 100.

    Shapes:
        x: ``(C, H, W)``, ``C`` 1 or 3; the result has the same.
    """
    from PIL import Image

    pixels = (x * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as picture:
        decoded = np.array(picture)
    return torch.from_numpy(decoded.reshape(pixels.shape)).permute(2, 0, 1).to(x.dtype) / 255


def _odd(between: tuple[int, int], rng: Generator) -> int:
    """Draw an odd number between two odd numbers, both included."""
    return between[0] + 2 * int(rng.integers((between[1] - between[0]) // 2 + 1))

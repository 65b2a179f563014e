"""The configuration of training data, degradations and losses. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Range = tuple[float, float]

KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc")
"""The shapes of blur kernels that a degradation may draw."""


@dataclass(frozen=True)
class InformativeConfig:
    """Which patches of a picture SamplingAug trains on.

    Args:
        portion: Share of a picture's patches, the worst enlarged by bicubic interpolation first, that are trained on.
        choice: ``top`` draws evenly from that share, ``nms`` first thins it until no two patches overlap by more than ``overlap``,
            ``darts`` takes the share of ``darts`` places that are thrown evenly over the picture, and ``rank`` draws every patch,
            with a probability that falls linearly with its rank (``portion`` does not count then).
        overlap: Largest intersection over union of two patches for ``nms``.
        darts: Places thrown for ``darts``.
        shave: Border of a patch, in LR pixels, that does not count in its score; -1 for the paper's code's
            ``(scale + 6) / scale``, rounded up.
    """

    portion: float = 0.1
    choice: Literal["top", "nms", "darts", "rank"] = "top"
    overlap: float = 0.5
    darts: int = 1000
    shave: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.portion <= 1:
            raise ValueError(f"portion is {self.portion}; a share above 0, up to 1, is expected")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is {self.overlap}; an intersection over union from 0 to below 1 is expected")
        if self.darts < 1 or self.shave < -1:
            raise ValueError(f"darts is {self.darts} and shave {self.shave}; at least 1, and at least -1, are expected")


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures lie and how patches are drawn from them.

    Args:
        train: Folders of pictures to train on: plain folders, datasets in the field's layouts (``DIV2K_train_HR``,
            ``Set5/GTmod4``, ``image_SRF_4`` ...), or a ``meta_info.txt``.
        val: Folders to validate on.
        test: Folders to test on.
        lr_folders: Folder of the LR pictures of each training folder, in the order of ``train``; empty to find them beside the
            HR pictures, and to make them by bicubic interpolation where there are none.
        scales: Factors of the training batches, for a network whose weights serve several (CARN): each step has one of them, drawn
            evenly. Empty for the network's own factor alone. A step leaves the branches of other factors out, so several processes want
            ``train.strategy: ddp_find_unused_parameters_true``.
        patch: Side of a patch in LR pixels.
        batch_size: Patches per step, of all processes together.
        steps_per_epoch: Batches that make an epoch.
        augment: Flip and rotate patches by quarter turns.
        sampler: ``uniform`` places patches anywhere, ``informative`` where bicubic interpolation fails (SamplingAug).
        informative: How ``informative`` chooses.
        workers: Processes that load and degrade; 0 for the training process itself.
        cache_mb: Memory for decoded pictures in megabytes, per process of the job; what does not fit is decoded anew for every patch.
    """

    train: tuple[Path, ...] = ()
    val: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    lr_folders: tuple[Path, ...] = ()
    scales: tuple[int, ...] = ()
    patch: int = 48
    batch_size: int = 16
    steps_per_epoch: int = 1000
    augment: bool = True
    sampler: Literal["uniform", "informative"] = "uniform"
    informative: InformativeConfig = field(default_factory=InformativeConfig)
    workers: int = 0
    cache_mb: int = 4096

    def __post_init__(self) -> None:
        for name in ("patch", "batch_size", "steps_per_epoch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; 1 or more is expected")
        for name in ("workers", "cache_mb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 or more is expected")
        if self.scales and (min(self.scales) < 1 or len(set(self.scales)) < len(self.scales)):
            raise ValueError(f"scales is {', '.join(map(str, self.scales))}; different factors from 1 are expected")
        if self.lr_folders and len(self.scales) > 1:
            raise ValueError("lr_folders names pictures of one scale, scales several; leave lr_folders empty, and LR is found or made")
        if self.lr_folders and len(self.lr_folders) != len(self.train):
            raise ValueError(f"lr_folders names {len(self.lr_folders)} folders for {len(self.train)} in train; one for each is expected")


@dataclass(frozen=True)
class StageConfig:
    """One round of blur, change of size, noise and JPEG; the defaults are the first of Real-ESRGAN's two.

    Args:
        blur: Probability of a blur.
        kernels: Weight of each shape of kernel in the draw; those of :data:`KERNELS` that are not named are not drawn.
        kernel_size: Smallest and largest side of a kernel; odd.
        sigma: Standard deviation along each axis, in pixels.
        generalized_beta: Exponent of generalised Gaussians; below and above 1 are equally likely.
        plateau_beta: Exponent of plateaus.
        resize: Weights of enlarging, reducing, and keeping the size.
        resize_range: Smallest and largest factor. In the last stage it is relative to the size of the result.
        gaussian: Probability that the noise is Gaussian; otherwise it is Poisson.
        gaussian_sigma: Standard deviation in units of 1/255.
        poisson_scale: Factor on the Poisson noise that 8-bit light would have.
        gray: Probability that all channels have the same noise.
        noise: Probability of any noise.
        jpeg: Probability of a JPEG compression.
        jpeg_quality: Range of its quality.
    """

    blur: float = 1.0
    kernels: Mapping[str, float] = field(
        default_factory=lambda: {
            "iso": 0.405,
            "aniso": 0.225,
            "generalized_iso": 0.108,
            "generalized_aniso": 0.027,
            "plateau_iso": 0.108,
            "plateau_aniso": 0.027,
            "sinc": 0.1,
        }
    )
    kernel_size: tuple[int, int] = (7, 21)
    sigma: Range = (0.2, 3.0)
    generalized_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    resize: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Range = (0.15, 1.5)
    noise: float = 1.0
    gaussian: float = 0.5
    gaussian_sigma: Range = (1.0, 30.0)
    poisson_scale: Range = (0.05, 3.0)
    gray: float = 0.4
    jpeg: float = 1.0
    jpeg_quality: Range = (30.0, 95.0)

    def __post_init__(self) -> None:
        for name in ("blur", "noise", "gaussian", "gray", "jpeg"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a probability from 0 to 1 is expected")
        unknown = sorted(set(self.kernels) - set(KERNELS))
        if unknown:
            raise ValueError(f"kernels has {', '.join(unknown)}; accepted: {', '.join(KERNELS)}")
        for name, weights in (("kernels", tuple(self.kernels.values())), ("resize", self.resize)):
            if min(weights, default=0) < 0 or not sum(weights) > 0:
                raise ValueError(f"{name} has the weights {weights}; none may be below 0, and their sum must be above 0")
        for name in ("kernel_size", "sigma", "generalized_beta", "plateau_beta", "resize_range", "gaussian_sigma", "poisson_scale"):
            low, high = getattr(self, name)
            floor = 0 if name in ("gaussian_sigma", "poisson_scale") else 1e-6
            if not floor <= low <= high < math.inf:
                raise ValueError(f"{name} is {low}, {high}; the smaller number first, and none below {floor:g}, is expected")
        if not all(size % 2 for size in self.kernel_size):
            raise ValueError(f"kernel_size is {self.kernel_size}; odd sides are expected")
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ValueError(f"jpeg_quality is {self.jpeg_quality}; a range between 1 and 100 is expected")


def blur_noise_jpeg() -> tuple[StageConfig, ...]:
    """Return the classical blind degradation: a Gaussian blur, a reduction straight to the LR size, noise, JPEG."""
    return (StageConfig(kernels={"iso": 0.5, "aniso": 0.5}, resize=(0.0, 0.0, 1.0), gaussian_sigma=(0.0, 25.0), poisson_scale=(0.05, 2.0)),)


def real_esrgan() -> tuple[StageConfig, ...]:
    """Return the two stages of Real-ESRGAN (Wang et al., ICCVW 2021), with the values of its published training options."""
    second = StageConfig(
        blur=0.8,
        sigma=(0.2, 1.5),
        resize=(0.3, 0.4, 0.3),
        resize_range=(0.3, 1.2),
        gaussian_sigma=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
    )
    return StageConfig(), second


@dataclass(frozen=True)
class DegradeConfig:
    """How an LR patch is made from an HR patch.

    Args:
        kind: ``bicubic`` takes the LR pictures of the folder, or MATLAB's bicubic reduction; ``blur_noise_jpeg`` and
            ``real_esrgan`` are blind degradations of one and of two stages.
        stages: Stages in place of those of ``kind``.
        final_sinc: Probability of a sinc filter at the end, the ringing of sharpened pictures; -1 for that of ``kind``: 0.8
            for ``real_esrgan``, otherwise 0.
        margin: Pixels of LR around a patch that are degraded with it and cut off, so that borders are those of the picture.
    """

    kind: Literal["bicubic", "blur_noise_jpeg", "real_esrgan"] = "bicubic"
    stages: tuple[StageConfig, ...] = ()
    final_sinc: float = -1.0
    margin: int = 8

    def __post_init__(self) -> None:
        if self.kind == "bicubic" and (self.stages or self.final_sinc > 0):
            raise ValueError("kind 'bicubic' has no stages and no sinc filter; choose 'blur_noise_jpeg' or 'real_esrgan'")
        if self.final_sinc != -1 and not 0 <= self.final_sinc <= 1:
            raise ValueError(f"final_sinc is {self.final_sinc}; a probability from 0 to 1, or -1, is expected")
        if self.margin < 0:
            raise ValueError(f"margin is {self.margin}; 0 or more is expected")

    @property
    def blind(self) -> bool:
        """Whether LR patches are degraded at random."""
        return self.kind != "bicubic"

    @property
    def recipe(self) -> tuple[StageConfig, ...]:
        """The stages in their order; none for ``bicubic``."""
        if self.stages or not self.blind:
            return self.stages
        return real_esrgan() if self.kind == "real_esrgan" else blur_noise_jpeg()

    @property
    def sinc(self) -> float:
        """The probability of the last sinc filter."""
        if self.final_sinc >= 0:
            return self.final_sinc
        return 0.8 if self.kind == "real_esrgan" else 0.0


@dataclass(frozen=True)
class LossConfig:
    """The weight of each loss in the sum; those of weight 0 are not computed.

    Args:
        l1: Mean absolute error.
        l2: Mean squared error.
        charbonnier: Mean of ``sqrt(x^2 + epsilon^2)``.
        epsilon: The Charbonnier loss's.
        frequency: L1 between the real and imaginary parts of the Fourier transforms (0.05 beside ``l1`` in the literature).
        amplitude: L1 between the amplitudes of the Fourier transforms, which does not see where a structure lies.
    """

    l1: float = 1.0
    l2: float = 0.0
    charbonnier: float = 0.0
    epsilon: float = 1e-3
    frequency: float = 0.0
    amplitude: float = 0.0

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("l1", "l2", "charbonnier", "frequency", "amplitude")}
        if min(weights.values()) < 0 or not 0 < sum(weights.values()) < math.inf:
            text = ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
            raise ValueError(f"{text}; weights of 0 or more, one of them above 0, are expected")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon is {self.epsilon}; a number above 0 is expected")

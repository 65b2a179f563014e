"""The losses between an enlarged picture and the original: pixel by pixel, and by frequency.

Values are in [0, 1]. The Charbonnier loss is that of LapSRN (Lai et al., CVPR 2017), ``sqrt(x^2 + epsilon^2)`` with 1e-3; some
codes add their epsilon without the square, so a number does not carry over. The frequency loss is that of MIMO-UNet (Cho et al.,
ICCV 2021): L1 between the real and imaginary parts of unnormalised Fourier transforms, ``|X| = O(sqrt(H W))`` times a pixel's
error, hence weights of about 0.05. Of amplitudes alone it is one half of Fuoli et al., "Fourier Space Losses" (ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit_superres.data_config import LossConfig


def charbonnier_loss(output: Tensor, target: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """Return the mean of ``sqrt((output - target)^2 + epsilon^2)``: L1 with a smooth bottom, never below ``epsilon``.

    Shapes:
        output, target: any, the same; the result is a scalar.
    """
    return ((output - target).square() + epsilon**2).sqrt().mean()


def frequency_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of the real and imaginary parts of the two-dimensional Fourier transforms.

    The transform is not normalised, and of its redundant halves one is kept.

    Shapes:
        output, target: ``(B, C, H, W)``; the result is a scalar.
    """
    return torch.view_as_real(torch.fft.rfft2(output - target)).abs().mean()  # The transform is linear: one suffices.


def amplitude_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of the amplitudes of the two-dimensional Fourier transforms, not normalised.

    Shapes:
        output, target: ``(B, C, H, W)``; the result is a scalar.
    """
    return F.l1_loss(torch.fft.rfft2(output).abs(), torch.fft.rfft2(target).abs())


class SuperResolutionLoss(nn.Module):
    """The weighted sum of the configured losses.

    Args:
        cfg: The weights.
    """

    def __init__(self, cfg: LossConfig | None = None) -> None:
        super().__init__()
        self.cfg = cfg or LossConfig()

    def terms(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted losses by their names in :class:`LossConfig`, without those of weight 0.

        They are computed in float32 at least: there is no Fourier transform of half precision at most sizes, and the squares of
        small errors would vanish.

        Shapes:
            output, target: ``(B, C, H, W)``.

        Raises:
            ValueError: If the shapes differ.
        """
        if output.shape != target.shape:
            raise ValueError(f"an output of shape {tuple(output.shape)} cannot be compared with a target of {tuple(target.shape)}")
        if output.dtype in (torch.float16, torch.bfloat16):
            output = output.float()
        target = target.to(output.dtype)
        losses: dict[str, Callable[[], Tensor]] = {
            "l1": lambda: F.l1_loss(output, target),
            "l2": lambda: F.mse_loss(output, target),
            "charbonnier": lambda: charbonnier_loss(output, target, epsilon=self.cfg.epsilon),
            "frequency": lambda: frequency_loss(output, target),
            "amplitude": lambda: amplitude_loss(output, target),
        }
        weights = {name: float(getattr(self.cfg, name)) for name in losses}
        return {name: weights[name] * loss() for name, loss in losses.items() if weights[name]}

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum of the weighted losses."""
        return torch.stack(list(self.terms(output, target).values())).sum()

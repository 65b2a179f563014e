"""The task's metric: the usual table of PSNR and SSIM beside bicubic interpolation, and what the network costs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from cnnkit.engine.files import write_text

from cnnkit_superres.metrics import PictureScores
from cnnkit_superres.resize import imresize

if TYPE_CHECKING:
    from cnnkit_superres.cost import Cost


class PictureMetric:
    """The core's metric interface over :class:`~cnnkit_superres.metrics.PictureScores`.

    Args:
        scale: Factor; so many pixels of the border do not count.
    """

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.scores = PictureScores(crop=scale)
        self.seconds: list[float] = []
        self.peak_memory = 0.0
        self.cost: Cost | None = None

    def update(self, predictions: Sequence[Any], batch: Any) -> None:
        """Score one picture against the reference in its batch."""
        (prediction,) = predictions
        (picture,) = prediction.frames
        baseline = imresize(batch["pixels"], self.scale)
        self.scores.update(batch["name"], picture.pixels, batch["reference"], dataset=batch["dataset"], baseline=baseline)
        self.seconds.append(prediction.seconds)
        self.peak_memory = peak_memory()
        self.cost = prediction.cost

    def merge(self, other: PictureMetric) -> None:
        """Take in the pictures of another process."""
        self.scores.merge(other.scores)
        self.seconds += other.seconds
        self.peak_memory = max(self.peak_memory, other.peak_memory)
        self.cost = self.cost or other.cost

    def compute(self) -> dict[str, float]:
        """Return the means over all pictures and over each dataset, seconds per picture, peak memory, and the cost at 1280 x 720."""
        figures = self.scores.compute()
        if self.seconds:
            figures |= {"seconds": sum(self.seconds) / len(self.seconds), "peak_memory_mb": self.peak_memory / 2**20}
        if self.cost is not None:
            figures |= {
                "params_m": self.cost.params / 1e6,
                "gmacs_720p": self.cost.macs / 1e9,
                "activations_m_720p": self.cost.activations / 1e6,
            }
        return figures

    def report(self, folder: Path) -> list[Path]:
        """Write the table of every picture, the table of datasets, and the cost."""
        files = self.scores.report(folder)
        if self.cost is not None:
            files.append(write_text(folder / "cost.md", f"{self.cost.HEADER}\n{self.cost.markdown('this network')}\n"))
        return files


def peak_memory() -> float:
    """Return the most bytes that were in use so far: on the GPU if there is one in use, otherwise by this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return float(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows has no such count.
        return float("nan")
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

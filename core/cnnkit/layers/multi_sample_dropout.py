"""Multi-sample dropout: Inoue (2019), "Multi-Sample Dropout for Accelerated Training and Better Generalization".

Dropout trains one random part of the layers after it per step. Here several parts are trained on the same features, in one step and with
shared weights, and their losses are averaged::

    L = 1/M sum_m loss(head(mask_m . x / (1 - p)), t)

The features are the costly part of a deep network and are computed once. The copies are further samples of the batch, so that everything
that follows the layer works as it is; the loss brings them together again::

    model.head_drop = MultiSampleDropout(0.5, samples=8)
    loss = MultiSampleLoss(nn.CrossEntropyLoss())(model(x), target)

In evaluation there is one pass without dropout, and the loss is the ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.errors import ConfigError, UsageError
from cnnkit.registry import Entry


class MultiSampleDropout(nn.Module):
    """While training, repeat the batch and drop elements of every copy by themselves; in evaluation do nothing.

    Shapes:
        x: ``(B, ...)``; the result is ``(samples * B, ...)`` while training, all of the first copy first, and ``x`` in evaluation.

    Args:
        rate: Probability that an element is dropped; the others are scaled by ``1 / (1 - rate)``.
        samples: Number of copies; with 1 it is ordinary dropout.

    Raises:
        ConfigError: If the rate is outside of ``[0, 1)`` or there is no copy.
    """

    def __init__(self, rate: float = 0.5, *, samples: int = 8) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ConfigError(f"rate={rate} must be in [0, 1)")
        if samples < 1:
            raise ConfigError(f"samples={samples} must be at least 1")
        self.rate = rate
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        """Return the copies with their own elements dropped."""
        if not self.training:
            return x
        return F.dropout(x.repeat(self.samples, *(1,) * (x.ndim - 1)), self.rate)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.rate}, samples={self.samples}"


class MultiSampleLoss(nn.Module):
    """The mean of a loss over the copies that :class:`MultiSampleDropout` made; the loss itself where it made none.

    Shapes:
        predictions: ``(samples * B, ...)``, or ``(B, ...)`` in evaluation; target: ``(B, ...)``.

    Args:
        loss: A loss of predictions and target, with any reduction.

    Raises:
        UsageError: If the number of predictions is no multiple of that of targets.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, predictions: Tensor, target: Tensor) -> Tensor:
        """Return the mean of the losses of the copies."""
        samples, rest = divmod(predictions.shape[0], target.shape[0])
        if rest or not samples:
            raise UsageError(
                f"{predictions.shape[0]} predictions for {target.shape[0]} targets: "
                "pass the target of the batch once, and the output of the model as it is"
            )
        losses = [self.loss(copy, target) for copy in predictions.chunk(samples)]
        return sum(losses[1:], losses[0]) / samples


LAYERS = {
    "multi_sample_dropout": Entry(
        "cnnkit.layers.multi_sample_dropout:MultiSampleDropout",
        paper="multi-sample-dropout",
        summary="Several dropout masks on the same features, whose losses are averaged (Inoue, 2019).",
        dims=(1, 2, 3),
    ),
}

"""What every compressed network is to be read beside: the most frequent label, and logistic regression on the mean log-mel spectrum."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit_audio.compress.training import Batch
from cnnkit_audio.frontends import LogMel
from cnnkit_audio.models._base import Tagger


class MeanLogMel(Tagger):
    """Logistic regression on the mean over time of 64 log-mel bands.

    Args:
        like: The network whose rate, window and classes it takes.
        multilabel: Whether several labels may hold.
    """

    def __init__(self, like: Tagger, *, multilabel: bool = False) -> None:
        bands = LogMel(sample_rate=like.sample_rate, n_mels=64)
        super().__init__(sample_rate=like.sample_rate, num_classes=like.num_classes, front=bands, window=like.window)
        self.norm = nn.BatchNorm1d(64, affine=False)
        self.linear = nn.Linear(64, like.num_classes)
        self.several = multilabel

    def embed(self, features: Tensor) -> Tensor:
        """Return the standardised mean of each band, ``(B, 64)``."""
        return self.norm(features.mean(3)[:, 0])

    def head(self, embedding: Tensor) -> Tensor:
        """Return logits."""
        return self.linear(embedding)

    def fit(self, batches: Iterable[Batch], *, penalty: float = 1e-3) -> MeanLogMel:
        """Solve the regression on some batches, to convergence, and return itself."""
        assert self.front is not None
        with torch.no_grad():
            found = [(self.front(batch["sound"]).mean(3)[:, 0], batch["target"]) for batch in batches]
        means, targets = torch.cat([mean for mean, _ in found]), torch.cat([target for _, target in found])
        self.norm.running_mean.copy_(means.mean(0))  # type: ignore[union-attr]
        self.norm.running_var.copy_(means.var(0, unbiased=False))  # type: ignore[union-attr]
        self.eval()
        standardised = self.norm(means)
        optimizer = torch.optim.LBFGS(self.linear.parameters(), max_iter=300, line_search_fn="strong_wolfe")
        loss = F.binary_cross_entropy_with_logits if self.several else F.cross_entropy

        def objective() -> Tensor:
            optimizer.zero_grad()
            value = loss(self.linear(standardised), targets) + penalty * self.linear.weight.square().sum()
            value.backward()
            return value

        optimizer.step(objective)  # type: ignore[arg-type]
        return self


class Constant(Tagger):
    """Always the same answer: the labels by how often they come.

    Args:
        like: The network whose rate, window and classes it takes.
        frequencies: Of each label, ``(num_classes,)``.
    """

    def __init__(self, like: Tagger, frequencies: Tensor) -> None:
        super().__init__(sample_rate=like.sample_rate, num_classes=like.num_classes, window=like.window)
        self.frequencies = nn.Parameter(frequencies.clone(), requires_grad=False)

    def embed(self, features: Tensor) -> Tensor:
        """Return nothing of a clip."""
        return features.new_zeros(len(features), 1)

    def head(self, embedding: Tensor) -> Tensor:
        """Return the logarithms of the frequencies."""
        return self.frequencies.clamp_min(1e-9).log().expand(len(embedding), -1)

"""Softmax with an additive angular margin: a clip must lie nearer to its speaker than to others by an angle (Deng et al., 2019)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AAMSoftmax(nn.Module):
    """Cross-entropy of ``scale * cos(angle)`` to every speaker's direction, with the margin added to the angle of the right one.

    Beyond ``pi - margin``, where the cosine of the sum would rise again, the cosine falls on by a constant.

    Args:
        dim: Length of the embeddings.
        speakers: Speakers.
        margin: Angle in radians.
        scale: Factor of the cosines.
    """

    def __init__(self, dim: int, speakers: int, *, margin: float = 0.2, scale: float = 30.0) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.W = nn.Parameter(nn.init.xavier_normal_(torch.empty(dim, speakers)))

    def logits(self, embeddings: Tensor, speakers: Tensor) -> Tensor:
        """Return ``(B, speakers)`` for embeddings ``(B, dim)``."""
        cosine = F.normalize(embeddings, dim=1) @ F.normalize(self.W, dim=0)
        right = cosine.gather(1, speakers[:, None])
        # The square root has no finite slope at zero: a clip on its speaker's direction gets the gradient of the cosine alone.
        sine = (1 - right.square()).clamp_min(1e-12).sqrt()
        moved = right * math.cos(self.margin) - sine * math.sin(self.margin)
        moved = torch.where(right > -math.cos(self.margin), moved, right - self.margin * math.sin(self.margin))
        return self.scale * cosine.scatter(1, speakers[:, None], moved)

    def forward(self, embeddings: Tensor, speakers: Tensor) -> Tensor:
        """Return the mean loss."""
        return F.cross_entropy(self.logits(embeddings, speakers), speakers)

"""Configuration of adapters and distillation. Standard library only: it is read where torch is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class AdapterConfig:
    """Fine-tuning by low-rank adapters under a teacher (:mod:`cnnkit_superres.dsclora`).

    The official code gives rank 2 to the blocks and 8 to the upsampler and the convolution before it, ``alpha`` twice the rank
    everywhere, and returns the nine maps of the convolutions in the first three blocks for comparison. Its training is not published:
    the paper sums three losses, pixels, outputs and affinity, and the weights here are ours.

    Args:
        rank: Rank of the updates; 0 trains the network itself, without adapters.
        alpha: ``alpha / rank`` scales every update, those of :attr:`ranks` too.
        where: Patterns of names of convolutions; none takes the paper's choice.
        ranks: Other ranks by pattern of name, as in ``{"conv_2*": 8, "upsampler*": 8}``; the last that matches counts.
        teacher: Checkpoint of the teacher; none fine-tunes without one.
        affinity_weight: Weight of the spatial affinity loss.
        output_weight: Weight of L1 between the outputs of student and teacher.
        layers: Patterns of names of modules whose outputs are compared.
        teacher_layers: The same for the teacher, where its names differ.
        max_positions: Larger maps are averaged down to at most so many positions before they are compared.
    """

    rank: int = 2
    alpha: float = 4.0
    where: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    teacher: Path | None = None
    affinity_weight: float = 1.0
    output_weight: float = 0.0
    layers: tuple[str, ...] = ("block_[1-3].c?_r",)
    teacher_layers: tuple[str, ...] = ()
    max_positions: int = 4096

    def __post_init__(self) -> None:
        if self.rank < 0 or min(self.ranks.values(), default=1) < 1:
            raise ValueError("a rank is 1 or more; rank: 0 alone switches the adapters off")
        if self.alpha <= 0:
            raise ValueError(f"alpha is more than 0, not {self.alpha}: it scales the updates")
        if min(self.affinity_weight, self.output_weight) < 0:
            raise ValueError("affinity_weight and output_weight are not negative")
        if self.max_positions < 1:
            raise ValueError("max_positions is 1 or more")

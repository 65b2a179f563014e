"""What a tagging experiment is made of. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from cnnkit_audio.data_config import AugmentConfig, DataConfig

SYNTHETIC = ("tone", "chirp", "am_fm", "clicks", "noise", "plucked_string", "speech", "siren", "rain", "engine")


@dataclass(frozen=True)
class TaggingConfig:
    """Tags, data and losses.

    Args:
        labels: Names of the sounds in the order of the network's outputs; the data set's own if there are none.
        multilabel: Whether several sounds may be heard at once (sigmoid and binary cross-entropy; else softmax and cross-entropy).
        data: Recordings to train and to measure on.
        augment: What is done to them in training.
        label_smoothing: Share of the target that is spread over all labels (for single labels).
        crops: Windows that vote on a whole clip in validation and test, spread evenly over it with silence of half a window at both ends:
            ACDNet's paper has 10. By default windows come every half window.
    """

    labels: tuple[str, ...] = ()
    multilabel: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    label_smoothing: float = 0.0
    crops: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The labels; until a data set told them, those of the synthetic sounds."""
        return self.labels or SYNTHETIC

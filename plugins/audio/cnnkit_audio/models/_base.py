"""What every network for sound has in common: waveforms in, at the rate it was trained for, and a job.

A front end (spectrogram, filter bank) is a part of the network and of its checkpoint, so that nobody can run it on features that
it was not trained on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from cnnkit.errors import ConfigError
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_audio.frontends import FrontEnd
from cnnkit_audio.window_features import Stem


class SoundModel(nn.Module, ABC):
    """A network that takes waveforms.

    Class attributes:
        job: What it is for, which picks the task: ``"tagging"``, ``"embedding"``, ``"effect"``, ``"codec"`` or ``"recognition"``.

    Args:
        sample_rate: Samples per second that it was made for.
    """

    job: ClassVar[str]
    layouts: ClassVar[tuple[Layout, ...]] = ()

    def __init__(self, *, sample_rate: int) -> None:
        super().__init__()
        if sample_rate < 1:
            raise ConfigError(f"sample_rate={sample_rate} is not a rate; accepted: 1 or more samples per second")
        self.sample_rate = sample_rate


class Tagger(SoundModel):
    """A network that says which sounds a clip holds.

    Args:
        sample_rate: Samples per second.
        num_classes: Sounds that it knows.
        front: From waveforms to features; ``None`` for networks that take the waveform itself.
        window: Seconds of sound that it looks at in one piece.

    Shapes:
        x: ``(B, 1, T)`` in [-1, 1]; the result is logits ``(B, num_classes)``. ``T`` is free from :attr:`least` samples on.
    """

    job = "tagging"
    multilabel: ClassVar[bool] = False
    """Whether the published weights hear several sounds at once."""

    def __init__(self, *, sample_rate: int, num_classes: int, front: FrontEnd | None = None, window: float) -> None:
        super().__init__(sample_rate=sample_rate)
        self.num_classes = num_classes
        self.window = window
        self.front = front

    @property
    def least(self) -> int:
        """Samples below which a clip cannot be heard; shorter ones are padded with silence by the task."""
        return round(self.window * self.sample_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` for waveforms ``(B, 1, T)``."""
        return self.classify(x if self.front is None else self.front(x))

    def stems(self) -> list[Stem]:
        """Return what overlapping windows may share: the front end, and first layers behind it from few to many.

        By default the front end alone, or nothing where there is none. Networks of convolutions add to it, in evaluation mode.
        """
        if self.front is None:
            return []
        return [Stem(self.front, layers=lambda x: x, rest=self.embed, channels=1, bands=self.front.bands, stride=1, reach=0)]

    def learn(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the logits that the loss is of; networks that mix clips of the same labels ``(B, num_classes)`` inside override it."""
        return self(x)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits for what the front end made: ``(B, 1, bands, frames)``, or the waveform if there is none."""
        return self.head(self.embed(features))

    @abstractmethod
    def embed(self, features: Tensor) -> Tensor:
        """Return the vector before the classifier, ``(B, D)``, for the same input as :meth:`classify`."""

    @abstractmethod
    def head(self, embedding: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` for embeddings ``(B, D)``."""


class Embedder(SoundModel):
    """A network that maps a clip to a vector whose direction tells, for example, who speaks.

    Args:
        sample_rate: Samples per second.
        embedding_dim: Length of the vector.

    Shapes:
        x: ``(B, 1, T)``; the result is ``(B, embedding_dim)``.
    """

    job = "embedding"

    def __init__(self, *, sample_rate: int, embedding_dim: int) -> None:
        super().__init__(sample_rate=sample_rate)
        self.embedding_dim = embedding_dim


class EffectStream(ABC):
    """A device that sound runs through block by block, with the settings of its knobs fixed."""

    @abstractmethod
    def push(self, x: Tensor) -> Tensor:
        """Return what comes out, ``(B, 1, m)``, when ``(B, 1, n)`` goes in; ``m`` is ``n`` once the device has heard its context."""


class Effect(SoundModel):
    """A network that does to sound what a device does.

    Args:
        sample_rate: Samples per second.
        knobs: Names of the settings.
        context: Samples of input that an output needs besides its own.
        lookahead: How many of these come after it; 0 for a causal network, which can be played through.
        delay: Samples by which the output comes late.

    Shapes:
        x: ``(B, 1, T)`` in [-1, 1], with knobs ``(B, K)``; the result is ``(B, 1, T - context)``.
    """

    job = "effect"

    def __init__(self, *, sample_rate: int, knobs: Sequence[str], context: int, lookahead: int = 0, delay: int = 0) -> None:
        super().__init__(sample_rate=sample_rate)
        self.knobs = tuple(knobs)
        self.context, self.lookahead, self.delay = context, lookahead, delay

    @abstractmethod
    def forward(self, x: Tensor, knobs: Tensor) -> Tensor:
        """Return the processed sound, shorter by :attr:`context`."""

    @abstractmethod
    def stream(self, knobs: Tensor) -> EffectStream:
        """Return the device with settings ``(1, K)`` for sound that comes in blocks; it has heard nothing yet."""

"""What an experiment with a codec is made of. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CodecDataConfig:
    """Recordings to learn from and to measure on; none of them needs a label.

    Args:
        train: Folders that are searched for sound files, with those inside; none for synthetic voices.
        val: The same for validation.
        test: The same for the test.
        seconds: Length of a training clip.
        batch_size: Clips per step, over all processes.
        clips_per_epoch: Clips per epoch; by default each file once, or 1000 synthetic ones.
        voices: Synthetic clips to validate and to test on.
        workers: Processes that load.
    """

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    seconds: float = 3.0
    batch_size: int = 36
    clips_per_epoch: int | None = None
    voices: int = 20
    workers: int = 0


@dataclass(frozen=True)
class CodecLossConfig:
    """Weights of the losses; a term of weight zero is not computed.

    Args:
        spectrum: Squared error of the complex spectrum, each part raised to ``power`` with its sign kept.
        mel: Absolute error of mel spectra and of their logarithms, over windows from 2 to 128 milliseconds.
        commitment: Distance of the features from their codes.
        codebook: Distance of the codes from the features.
        power: Exponent that raises the weight of quiet parts.
    """

    spectrum: float = 1.0
    mel: float = 0.25
    commitment: float = 0.25
    codebook: float = 1.0
    power: float = 0.3


@dataclass(frozen=True)
class CodecConfig:
    """Data, losses and stages of the training of a codec.

    Args:
        data: Recordings to train and to measure on.
        loss: The losses.
        pretrain_epochs: Epochs at the start in which nothing is quantised.
        refit_epochs: Later epochs at whose start the codebooks are set from data once more: entries that nothing is near any longer, as the
            network has moved away from them, come into use again.
        level_dropout: Share of the clips whose number of levels is drawn; the others send all.
        init_vectors: Vectors of each codebook that k-means sees when it sets the codebooks; at least those of one batch are taken.
    """

    data: CodecDataConfig = field(default_factory=CodecDataConfig)
    loss: CodecLossConfig = field(default_factory=CodecLossConfig)
    pretrain_epochs: int = 15
    refit_epochs: tuple[int, ...] = ()
    level_dropout: float = 0.75
    init_vectors: int = 8192

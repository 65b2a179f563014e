"""The front ends of published networks, with the constants of their official code."""

from __future__ import annotations

from cnnkit_audio.frontends.mel import Fbank, LogMel


def panns(*, sample_rate: int = 32_000, n_mels: int = 64, batch_norm: bool = False) -> LogMel:
    """Return the log-mel spectrogram of PANNs (Cnn14): Slaney's bands in decibels.

    Args:
        sample_rate: 32 000, or 16 000 or 8 000 for the networks of those rates.
        n_mels: Bands.
        batch_norm: Hold the normalisation over bands that the official network calls ``bn0``; leave it out if the network has it.
    """
    share = sample_rate / 32_000
    high = {32_000: 14_000.0, 16_000: 8_000.0, 8_000: 4_000.0}.get(sample_rate, min(14_000.0, sample_rate / 2))
    return LogMel(
        sample_rate=sample_rate,
        n_fft=round(1024 * share),
        hop=round(320 * share),
        n_mels=n_mels,
        f_min=50.0,
        f_max=high,
        batch_norm=batch_norm,
    )


def convnext_audioset(*, batch_norm: bool = False) -> LogMel:
    """Return the spectrogram of ConvNeXt for AudioSet (Pellegrini et al. 2023): that of PANNs with 224 bands."""
    return panns(n_mels=224, batch_norm=batch_norm)


def efficientat(*, n_mels: int = 128) -> LogMel:
    """Return that of EfficientAT in evaluation: pre-emphasis, a centred transform, Kaldi's bands, ``(ln(x + 1e-5) + 4.5) / 5``."""
    return LogMel(
        sample_rate=32_000,
        n_fft=1024,
        win_length=800,
        hop=320,
        n_mels=n_mels,
        f_min=0.0,
        f_max=15_000.0,
        mel="kaldi",
        log="ln",
        amin=1e-5,
        window="hann_symmetric",
        preemphasis=0.97,
        mean=-4.5,
        std=5.0,
    )


def kaldi_fbank(*, n_mels: int = 80, sample_rate: int = 16_000) -> Fbank:
    """Return Kaldi's filter banks with its defaults: frames of 25 ms each 10 ms, the Povey window, from 20 Hz on."""
    return Fbank(sample_rate=sample_rate, n_mels=n_mels)


def ast() -> Fbank:
    """Return the front end of the Audio Spectrogram Transformer, normalised by AudioSet's mean and twice its deviation."""
    return Fbank(n_mels=128, window="hann_symmetric", htk_compat=True, mean=-4.2677393, std=2 * 4.5689974)


def beats() -> Fbank:
    """Return the front end of BEATs: on the scale of 16-bit integers, normalised by its mean and twice its deviation."""
    return Fbank(n_mels=128, scale=2.0**15, mean=15.41663, std=2 * 6.55582)

"""What training does to batches of clips: mixing, level, place, noise, rooms, speed and pitch. All random numbers come from one generator.

Functions take clips ``(B, 1, T)`` and draw for each clip by itself. What is done to features stands in :mod:`.augment_features`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from cnnkit.errors import ConfigError
from numpy.random import Generator
from scipy.fft import next_fast_len
from torch import Tensor

from cnnkit_audio.data_config import AugmentConfig
from cnnkit_audio.synth.channel import channel_gains, coloured_noise, room_noise

COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
"""Exponents: the noise's energy falls with the frequency to this power."""


def augment_batch(x: Tensor, targets: Tensor, cfg: AugmentConfig, rng: Generator, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Return a batch as training sees it: what a clip undergoes by itself first, mixing last.

    Args:
        x: Clips ``(B, 1, T)``.
        targets: Shares of labels, ``(B, C)``.
        cfg: What is done; the masks of features are the network's.
        rng: Source of everything random; the same one gives the same batch.
        sample_rate: Samples per second.

    Returns:
        New clips and targets of the same shapes.
    """
    steps: list[tuple[bool, Callable[[Tensor], Tensor]]] = [
        (cfg.speed > 0, lambda x: change_speed(x, rng, most=cfg.speed)),
        (cfg.pitch > 0, lambda x: change_pitch(x, rng, sample_rate, semitones=cfg.pitch)),
        (cfg.time_scale > 0, lambda x: change_tempo(x, rng, sample_rate, most=cfg.time_scale)),
        (cfg.roll, lambda x: roll(x, rng)),
        (cfg.reverb > 0, lambda x: reverberate(x, rng, sample_rate, share=cfg.reverb, rt60=cfg.rt60)),
        (cfg.channel > 0, lambda x: pass_channel(x, rng, sample_rate, share=cfg.channel)),
        (cfg.gain_db > 0, lambda x: change_gain(x, rng, db=cfg.gain_db)),
        (cfg.clipping > 0, lambda x: saturate(x, rng, most=cfg.clipping)),
        (
            cfg.noise_db is not None,
            lambda x: add_noise(x, rng, snr_db=(cfg.noise_db or 0.0, (cfg.noise_db or 0.0) + cfg.noise_span_db), colour=cfg.noise_colour),
        ),
    ]
    for wanted, step in steps:
        if wanted:
            x = step(x)
    if cfg.mix == "mixup":
        return mixup(x, targets, rng, alpha=cfg.mix_alpha)
    if cfg.mix == "between_class":
        return mix_between_classes(x, targets, rng, sample_rate)
    return x, targets


def mixup(x: Tensor, targets: Tensor, rng: Generator, *, alpha: float = 0.2) -> tuple[Tensor, Tensor]:
    """Mix each clip with another one of the batch; labels by the same shares as amplitudes (Zhang et al. 2018).

    Args:
        x: Clips.
        targets: Shares of labels, ``(B, C)``; their sums stay.
        rng: Source of shares and partners.
        alpha: Both parameters of the Beta distribution of the shares; the clip's own share is the larger.
    """
    share = _per_clip(rng.beta(alpha, alpha, len(x)), x)
    share = torch.maximum(share, 1 - share)
    partners = torch.from_numpy(rng.permutation(len(x)))
    return share * x + (1 - share) * x[partners], _mixed_targets(targets, share, partners)


def mix_between_classes(x: Tensor, targets: Tensor, rng: Generator, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Mix each clip with one of another class, the labels by the shares with which the two are heard (Tokozume et al. 2018).

    The amplitude's share makes up for the difference in loudness, and the sum is scaled to the energy of one clip.

    Args:
        x: Clips.
        targets: Shares of labels, ``(B, C)``; their sums stay.
        rng: Source of shares and partners.
        sample_rate: Samples per second.
    """
    partners = torch.from_numpy(_strangers(targets, rng))
    share = _per_clip(rng.uniform(1e-6, 1 - 1e-6, len(x)), x)
    decibels = loudness(x, sample_rate)
    apart = (decibels - decibels[partners])[:, None, None]
    amplitude = 1 / (1 + 10 ** (apart / 20) * (1 - share) / share)
    mixed = (amplitude * x + (1 - amplitude) * x[partners]) / (amplitude.square() + (1 - amplitude).square()).sqrt()
    return mixed, _mixed_targets(targets, share, partners)


def loudness(x: Tensor, sample_rate: int, *, floor_db: float = -80.0) -> Tensor:
    """Return the level of each clip's loudest tenth of a second, in A-weighted decibels: ``(B,)`` for ``(B, 1, T)``.

    Frames overlap by half; their lengths are those of between-class learning (4096 samples at 44.1 kHz, 2048 at 16 kHz).
    """
    n_fft = 2 ** round(np.log2(sample_rate / 10))
    x = F.pad(x[:, 0].float(), (0, max(0, n_fft - x.shape[-1])))
    frames = x.unfold(-1, n_fft, n_fft // 2) * torch.hann_window(n_fft, device=x.device)
    weights = torch.from_numpy(_a_weights(sample_rate, n_fft)).to(x)
    energies = torch.fft.rfft(frames).abs().square() @ weights
    return 10 * energies.amax(-1).clamp_min(10 ** (floor_db / 10)).log10()


@cache
def _a_weights(sample_rate: int, n_fft: int) -> np.ndarray:
    """Return the A-weighting of the bins of a transform as factors of their energies, none below -80 dB (IEC 61672)."""
    square = np.linspace(0, sample_rate / 2, n_fft // 2 + 1) ** 2
    square[0] = 1.0
    ratio = 12194.0**2 * square**2 / ((square + 20.6**2) * (square + 12194.0**2) * np.sqrt((square + 107.7**2) * (square + 737.9**2)))
    return np.maximum(10 ** (2.0 / 10) * ratio**2, 1e-8)


def _strangers(targets: Tensor, rng: Generator) -> np.ndarray:
    """Return for each clip one of another label, or any one if there is none."""
    labels = targets.detach().cpu().numpy()
    partners = np.empty(len(labels), np.int64)
    for row, own in enumerate(labels):
        others = np.flatnonzero((labels != own).any(1))
        partners[row] = rng.choice(others if len(others) else len(labels))
    return partners


def _mixed_targets(targets: Tensor, share: Tensor, partners: Tensor) -> Tensor:
    own = share[:, :, 0].to(targets)
    return own * targets + (1 - own) * targets[partners]


def _per_clip(values: np.ndarray, x: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values)).to(x)[:, None, None]


def change_gain(x: Tensor, rng: Generator, *, db: float) -> Tensor:
    """Make each clip louder or quieter by up to so many decibels."""
    return x * 10 ** (_per_clip(rng.uniform(-db, db, len(x)), x) / 20)


def roll(x: Tensor, rng: Generator) -> Tensor:
    """Shift each clip in a circle by any number of samples."""
    return torch.stack([clip.roll(int(shift), -1) for clip, shift in zip(x, rng.integers(x.shape[-1], size=len(x)), strict=True)])


def crop(x: Tensor, rng: Generator, *, samples: int) -> Tensor:
    """Take a random stretch of each clip; shorter clips lie at a random place in silence."""
    return torch.stack([_fit(clip, rng, samples) for clip in x])


def _fit(clip: Tensor, rng: Generator, samples: int) -> Tensor:
    spare = clip.shape[-1] - samples
    start = int(rng.integers(abs(spare) + 1))
    return clip[..., start : start + samples] if spare >= 0 else F.pad(clip, (start, -spare - start))


def add_noise(x: Tensor, rng: Generator, *, snr_db: tuple[float, float], colour: str = "white") -> Tensor:
    """Add noise to each clip; silent clips stay silent.

    Args:
        x: Clips.
        rng: Source of noise and ratio.
        snr_db: Least and largest ratio of the clip's energy to the noise's, in decibels.
        colour: ``"white"``, ``"pink"`` (energy falls with the frequency), ``"brown"`` (with its square), or ``"any"``: drawn per clip.
    """
    if colour not in (*COLOURS, "any"):
        raise ConfigError(f"colour={colour} is not a colour of noise; accepted: {', '.join(COLOURS)}, any")
    names = rng.choice(list(COLOURS), len(x)) if colour == "any" else [colour] * len(x)
    noise = torch.from_numpy(np.stack([coloured_noise(rng, x.shape[-1], COLOURS[name]) for name in names])).to(x)[:, None]
    ratio = 10 ** (_per_clip(rng.uniform(*snr_db, len(x)), x) / 20)
    return x + noise * (_rms(x) / (_rms(noise) * ratio).clamp_min(1e-12))


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True).sqrt()


def saturate(x: Tensor, rng: Generator, *, most: float) -> Tensor:
    """Clip the peaks of each clip, so that up to a share ``most`` of its samples is at the limit."""
    shares = rng.uniform(0, most, len(x))
    sizes = x[:, 0].abs().sort(-1).values
    places = [min(int((1 - share) * sizes.shape[-1]), sizes.shape[-1] - 1) for share in shares]
    limits = torch.stack([row[place] for row, place in zip(sizes, places, strict=True)])[:, None, None]
    return torch.minimum(torch.maximum(x, -limits), limits)


def reverberate(x: Tensor, rng: Generator, sample_rate: int, *, share: float = 1.0, rt60: tuple[float, float] = (0.1, 0.8)) -> Tensor:
    """Place some clips in a room: direct sound, then noise that decays by 60 dB in the room's time, at the clip's energy.

    Args:
        x: Clips.
        rng: Source of rooms.
        sample_rate: Samples per second.
        share: Probability of each clip.
        rt60: Least and largest reverberation time in seconds. The direct sound has between a quarter and four times the room's energy.
    """
    result = []
    for clip, wanted in zip(x, rng.random(len(x)) < share, strict=True):
        if not wanted:
            result.append(clip)
            continue
        room = torch.from_numpy(room_noise(rng, sample_rate, rng.uniform(*rt60), 10 ** (rng.uniform(-6, 6) / 10))).to(x)[None]
        size = next_fast_len(clip.shape[-1] + room.shape[-1] - 1, real=True)
        wet = torch.fft.irfft(torch.fft.rfft(clip, size) * torch.fft.rfft(room, size), size)[..., : clip.shape[-1]]
        result.append(wet * (_rms(clip) / _rms(wet).clamp_min(1e-12)))
    return torch.stack(result)


def pass_channel(x: Tensor, rng: Generator, sample_rate: int, *, share: float = 1.0) -> Tensor:
    """Colour some clips by a channel of their own (a microphone, a loudspeaker, a wall), at the clip's energy.

    Args:
        x: Clips.
        rng: Source of channels.
        sample_rate: Samples per second.
        share: Probability of each clip.
    """
    samples = x.shape[-1]
    chosen = np.flatnonzero(rng.random(len(x)) < share)
    if not chosen.size:
        return x
    gains = torch.from_numpy(np.stack([channel_gains(rng, samples, sample_rate) for _ in chosen])).to(x)[:, None]
    dry = x[chosen]
    wet = torch.fft.irfft(torch.fft.rfft(dry) * gains, samples)
    result = x.clone()
    result[chosen] = wet * (_rms(dry) / _rms(wet).clamp_min(1e-12))
    return result


def change_speed(x: Tensor, rng: Generator, *, most: float) -> Tensor:
    """Play each clip faster or slower, which moves its pitch too, by steps of a hundredth; longer ones are cropped, shorter ones padded.

    Args:
        x: Clips.
        rng: Source of speeds.
        most: Largest relative change, below 1.
    """
    speeds = _hundredths(rng, most, len(x))
    return torch.stack([_fit(_faster(clip, speed), rng, x.shape[-1]) for clip, speed in zip(x, speeds, strict=True)])


def change_tempo(x: Tensor, rng: Generator, sample_rate: int, *, most: float) -> Tensor:
    """Stretch or shrink each clip in time at the same pitch, by a phase vocoder; longer ones are cropped, shorter ones padded.

    Args:
        x: Clips.
        rng: Source of tempos.
        sample_rate: Samples per second.
        most: Largest relative change, below 1.
    """
    tempos = _hundredths(rng, most, len(x)) / 100
    return torch.stack([_fit(_stretched(clip, tempo, sample_rate), rng, x.shape[-1]) for clip, tempo in zip(x, tempos, strict=True)])


def change_pitch(x: Tensor, rng: Generator, sample_rate: int, *, semitones: float) -> Tensor:
    """Shift the pitch of each clip by up to so many semitones at the same tempo."""
    ratios = np.round(100 * 2 ** (rng.uniform(-semitones, semitones, len(x)) / 12)).astype(int)
    moved = [_faster(_stretched(clip, 100 / ratio, sample_rate), ratio) for clip, ratio in zip(x, ratios, strict=True)]
    return torch.stack([F.pad(clip, (0, max(0, x.shape[-1] - clip.shape[-1])))[..., : x.shape[-1]] for clip in moved])


def _hundredths(rng: Generator, most: float, count: int) -> np.ndarray:
    if not 0 <= most < 1:
        raise ConfigError(f"a relative change of up to {most} is not accepted; accepted: 0 or more, below 1")
    return np.maximum(np.round(100 * rng.uniform(1 - most, 1 + most, count)), 1).astype(int)


def _faster(clip: Tensor, hundredths: int) -> Tensor:
    return AF.resample(clip, int(hundredths), 100)


def _stretched(clip: Tensor, tempo: float, sample_rate: int) -> Tensor:
    n_fft = 2 ** round(np.log2(sample_rate / 16))  # 1024 samples at 16 kHz.
    hop = n_fft // 4
    if tempo == 1.0 or clip.shape[-1] <= n_fft // 2:
        return clip
    window = torch.hann_window(n_fft, dtype=clip.dtype, device=clip.device)
    advance = torch.linspace(0, np.pi * hop, n_fft // 2 + 1, dtype=clip.dtype, device=clip.device)[..., None]
    spectrum = torch.stft(clip, n_fft, hop, n_fft, window, return_complex=True)
    return torch.istft(AF.phase_vocoder(spectrum, tempo, advance), n_fft, hop, n_fft, window, length=round(clip.shape[-1] / tempo))

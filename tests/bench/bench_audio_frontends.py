"""Front ends beside librosa, Kaldi's port and torch.stft, and windows that share a spectrogram beside windows one by one.

One thread; ours and the peer run in turns, and the minimum of the repeats counts, in processor time. Their results must agree. Exits
with 1 when a ratio is under its target or two results differ.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable

import numpy as np
from turns import Pairing, in_turns

TARGET_FRONT, TARGET_WINDOWS = 2.0, 3.0
TOLERANCE = 1e-4


def front_ends() -> list[Pairing]:
    """Ten seconds: log-mel at 32 kHz, and Kaldi's filter banks at 16 kHz."""
    import librosa
    import torch
    from cnnkit_audio import frontends
    from torchaudio.compliance import kaldi

    clip = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 1, 320_000)).astype(np.float32))
    short, mono = clip[..., :160_000], clip[0, 0].numpy()
    panns, banks, large = frontends.panns(), frontends.kaldi_fbank(n_mels=128), frontends.efficientat()
    mels, window = panns.bank.banks.T.contiguous(), torch.hann_window(1024)

    def librosa_mel() -> np.ndarray:
        energies = librosa.feature.melspectrogram(
            y=mono, sr=32_000, n_fft=1024, hop_length=320, n_mels=64, fmin=50, fmax=14_000, pad_mode="reflect"
        )
        return librosa.power_to_db(energies, top_db=None)

    def torch_mel() -> np.ndarray:
        spectrum = torch.stft(clip[0], 1024, 320, 1024, window, center=True, pad_mode="reflect", return_complex=True)
        return (10 * (mels @ spectrum.abs().square()).clamp_min(1e-10).log10())[0].numpy()

    def efficientat() -> np.ndarray:
        emphasised = torch.nn.functional.conv1d(clip, torch.tensor([[[-0.97, 1.0]]]))[:, 0]
        hann = torch.hann_window(800, periodic=False)
        spectrum = torch.stft(emphasised, 1024, 320, 800, hann, center=True, return_complex=False)
        bank, _ = kaldi.get_mel_banks(128, 1024, 32_000, 0.0, 15_000.0, 100.0, -500.0, 1.0)
        energies = torch.nn.functional.pad(bank, (0, 1)) @ spectrum.square().sum(-1)
        return (((energies + 1e-5).log() + 4.5) / 5)[0].numpy()

    def run(front: frontends.FrontEnd, x: torch.Tensor) -> Callable[[], np.ndarray]:
        return lambda: front(x)[0, 0].numpy()

    def port() -> np.ndarray:
        return kaldi.fbank(short[0], num_mel_bins=128).T.numpy()

    return [
        Pairing("log-mel 64, 10 s at 32 kHz: librosa", run(panns, clip), librosa_mel, TARGET_FRONT),
        Pairing("log-mel 64, 10 s at 32 kHz: torch.stft", run(panns, clip), torch_mel, 0.0),
        Pairing("EfficientAT's, 10 s at 32 kHz: its code's steps", run(large, clip), efficientat, 0.0),
        Pairing("fbank 128, 10 s at 16 kHz: torchaudio's Kaldi", run(banks, short), port, TARGET_FRONT),
    ]


def windows(minutes: float) -> list[Pairing]:
    """Windows of 10 s every 2.5 s of a recording at 32 kHz, in groups as long files are read; beside one window at a time."""
    import torch
    from cnnkit_audio import frontends
    from cnnkit_audio.window_features import window_features

    length, hop, group = 320_000, 80_000, 48
    total = int(minutes * 60 * 32_000)
    recording = torch.from_numpy(np.random.default_rng(1).normal(0, 0.1, (1, 1, total)).astype(np.float32))
    starts = list(range(0, total - length + 1, hop))
    front = frontends.panns()

    def checked(features: list[torch.Tensor]) -> np.ndarray:
        return torch.cat([some.mean((1, 3)) for some in features]).numpy()

    def shared() -> np.ndarray:
        features = []
        for first in range(0, len(starts), group):
            own = starts[first : first + group]
            stretch = recording[..., own[0] : own[-1] + length]
            some = window_features(front, stretch, [start - own[0] for start in own], length)
            features.append(some[..., ::50].clone())  # What a network would take; kept in part, to be compared.
        return checked(features)

    def alone() -> np.ndarray:
        return checked([front(recording[..., start : start + length])[..., ::50].clone() for start in starts])

    return [Pairing(f"{len(starts)} windows of {minutes:g} minutes: one by one", shared, alone, TARGET_WINDOWS)]


def measure(pairing: Pairing, repeats: int) -> bool:
    """Print one line; return whether target and agreement were met."""
    seconds, results = in_turns((pairing.ours, pairing.peer), repeats)
    ratio = seconds[1] / seconds[0]
    apart = float(np.abs(results[0] - results[1]).max() / np.ptp(results[1]))
    wanted = f">= {pairing.target:g}" if pairing.target else ""
    print(f"{pairing.name:50} {seconds[0] * 1e3:9.1f} {seconds[1] * 1e3:9.1f} {ratio:6.2f} {wanted:7} {apart:.1e}")
    return ratio >= pairing.target and apart < TOLERANCE


def main() -> int:
    """Run the pairings, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=80)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    print(f"{'pairing':50} {'ours ms':>9} {'peer ms':>9} {'ratio':>6} {'target':7} largest difference, of the range")
    with torch.inference_mode():
        pairings = front_ends()
        threadpool_limits(1)  # The peers' libraries would leave threads that spin, and count, while ours runs.
        met = [measure(pairing, args.repeats) for pairing in pairings]
        met += [measure(pairing, min(args.repeats, 3)) for pairing in windows(args.minutes)]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())

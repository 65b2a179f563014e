"""What learning a device is made of. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EffectConfig:
    """Pairs of dry and wet sound, and the losses.

    Args:
        folder: Root of pairs in the layout of SignalTrain: ``Train``, ``Val`` and ``Test`` with ``input_137_.wav`` and
            ``target_137_LA2A_3c__1__60.wav``, whose numbers after ``__`` are the knobs; a simulated compressor on drums if empty.
        simulated: How many pairs are simulated to train on, of 3 s each, every one with other settings.
        scales: What each knob of a file's name is divided by.
        samples: Length of what the loss is measured on; the network's context comes on top.
        batch_size: Pairs per step, over all processes.
        steps_per_epoch: Steps of an epoch.
        workers: Processes that load.
        l1: Weight of the mean absolute error.
        stft: Weight of the spectral distance.
        fft_sizes: Lengths of the Fourier transforms of the spectral distance; the paper has one of 1024.
    """

    folder: str = ""
    simulated: int = 24
    scales: tuple[float, ...] = (1.0, 100.0)
    samples: int = 32768
    batch_size: int = 16
    steps_per_epoch: int = 100
    workers: int = 0
    l1: float = 1.0
    stft: float = 1.0
    fft_sizes: tuple[int, ...] = (1024,)

"""PANNs the straightforward way: the official layers and keys, the spectrum by two convolutions, its bands by librosa's matrix."""

import librosa
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class STFT(nn.Module):
    """Real and imaginary parts of windowed frames by convolutions with fixed kernels."""

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        window = librosa.filters.get_window("hann", n_fft, fftbins=True)
        angles = 2 * np.pi * np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) / n_fft
        self.conv_real = nn.Conv1d(1, n_fft // 2 + 1, n_fft, stride=hop, bias=False)
        self.conv_imag = nn.Conv1d(1, n_fft // 2 + 1, n_fft, stride=hop, bias=False)
        self.conv_real.weight.data = torch.tensor(np.cos(angles) * window, dtype=torch.float32)[:, None]
        self.conv_imag.weight.data = torch.tensor(-np.sin(angles) * window, dtype=torch.float32)[:, None]
        for parameter in self.parameters():
            parameter.requires_grad = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.pad(x[:, None], (self.n_fft // 2, self.n_fft // 2), mode="reflect")
        return self.conv_real(x)[:, None].transpose(2, 3), self.conv_imag(x)[:, None].transpose(2, 3)


class Spectrogram(nn.Module):
    """Energies (B, 1, frames, bins)."""

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.stft = STFT(n_fft, hop)

    def forward(self, x: Tensor) -> Tensor:
        real, imag = self.stft(x)
        return real**2 + imag**2


class LogmelFilterBank(nn.Module):
    """Decibels of bands (B, 1, frames, bands)."""

    def __init__(self, sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> None:
        super().__init__()
        banks = librosa.filters.mel(sr=sr, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)
        self.melW = nn.Parameter(torch.tensor(banks.T.copy()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return 10.0 * torch.log10(torch.clamp(torch.matmul(x, self.melW), min=1e-10))


class ConvBlock(nn.Module):
    """Two 3x3 convolutions and an average."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, pool: int = 2) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, kernel_size=pool)


class SeparableBlock(nn.Module):
    """The same with depthwise and 1x1 convolutions, but for the one that has a single channel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1: nn.Module
        if inputs == 1:
            self.conv1 = nn.Conv2d(1, outputs, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False), nn.Conv2d(inputs, outputs, 1, bias=False)
            )
        self.conv2 = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs, bias=False), nn.Conv2d(outputs, outputs, 1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(outputs)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, pool: int = 2) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, kernel_size=pool)


class ConvBlock5x5(nn.Module):
    """One 5x5 convolution and an average."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, pool: int = 2) -> Tensor:
        return F.avg_pool2d(F.relu(self.bn1(self.conv1(x))), kernel_size=pool)


class SeparableBlock5x5(nn.Module):
    """One depthwise 5x5 and one 1x1 convolution, but for the one that has a single channel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1: nn.Module
        if inputs == 1:
            self.conv1 = nn.Conv2d(1, outputs, 5, padding=2, bias=False)
        else:
            self.conv1 = nn.Sequential(
                nn.Conv2d(inputs, inputs, 5, padding=2, groups=inputs, bias=False), nn.Conv2d(inputs, outputs, 1, bias=False)
            )
        self.bn1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, pool: int = 2) -> Tensor:
        return F.avg_pool2d(F.relu(self.bn1(self.conv1(x))), kernel_size=pool)


class PlainCnn(nn.Module):
    """CNN6, CNN10 or CNN14 by its blocks."""

    def __init__(self, block: type[nn.Module], widths: list[int], last_pool: int, classes: int) -> None:
        super().__init__()
        self.spectrogram_extractor = Spectrogram(1024, 320)
        self.logmel_extractor = LogmelFilterBank(32000, 1024, 64, 50, 14000)
        self.bn0 = nn.BatchNorm2d(64)
        self.names = [f"conv_block{index + 1}" for index in range(len(widths))]
        for name, inputs, outputs in zip(self.names, [1, *widths], widths, strict=False):
            setattr(self, name, block(inputs, outputs))
        self.last_pool = last_pool
        self.fc1 = nn.Linear(widths[-1], widths[-1])
        self.fc_audioset = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of waveforms (B, samples)."""
        return self.tag(self.logmel_extractor(self.spectrogram_extractor(x)))

    def tag(self, x: Tensor) -> Tensor:
        """Return logits of spectrograms (B, 1, frames, bands)."""
        x = x.transpose(1, 3)
        x = self.bn0(x)
        x = x.transpose(1, 3)
        for name in self.names:
            x = getattr(self, name)(x, pool=self.last_pool if name == self.names[-1] else 2)
            x = F.dropout(x, p=0.2, training=self.training)
        x = torch.mean(x, dim=3)
        x1, _ = torch.max(x, dim=2)
        x2 = torch.mean(x, dim=2)
        x = x1 + x2
        x = F.dropout(x, p=0.5, training=self.training)
        x = F.relu(self.fc1(x))
        return self.fc_audioset(x)


def create(name: str, classes: int = 527, widths: list[int] | None = None) -> nn.Module:
    """Build cnn6, cnn10 or cnn14, or one of these with _dsc, at full width or another."""
    kind, _, separable = name.partition("_")
    large, two = (SeparableBlock5x5, SeparableBlock) if separable else (ConvBlock5x5, ConvBlock)
    block = large if kind == "cnn6" else two
    full = [64, 128, 256, 512, 1024, 2048] if kind == "cnn14" else [64, 128, 256, 512]
    return PlainCnn(block, widths or full, 1 if kind == "cnn14" else 2, classes)

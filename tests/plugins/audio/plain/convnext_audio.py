"""ConvNeXt for AudioSet the straightforward way: the official layers and keys, all normalisations and permutations written out."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SPEC = importlib.util.spec_from_file_location("plain_audio_panns_front", Path(__file__).with_name("panns.py"))
assert _SPEC is not None and _SPEC.loader is not None
_PANNS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_PANNS)


class LayerNorm(nn.Module):
    """Over the channels of (N, C, H, W), by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Block(nn.Module):
    """Depthwise 7x7, normalisation, two linear layers, a scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.dwconv(x)
        branch = branch.permute(0, 2, 3, 1)
        branch = self.pwconv2(F.gelu(self.pwconv1(self.norm(branch))))
        branch = self.gamma * branch
        return x + branch.permute(0, 3, 1, 2)


class PlainConvNeXt(nn.Module):
    """The tagger, in evaluation."""

    def __init__(self, depths: list[int], dims: list[int], classes: int) -> None:
        super().__init__()
        self.spectrogram_extractor = _PANNS.Spectrogram(1024, 320)
        self.logmel_extractor = _PANNS.LogmelFilterBank(32000, 1024, 224, 50, 14000)
        self.bn0 = nn.BatchNorm2d(224)
        self.downsample_layers = nn.ModuleList()
        self.downsample_layers.append(nn.Sequential(nn.Conv2d(1, dims[0], 4, stride=4, padding=(4, 0)), LayerNorm(dims[0])))
        for index in range(3):
            self.downsample_layers.append(nn.Sequential(LayerNorm(dims[index]), nn.Conv2d(dims[index], dims[index + 1], 2, stride=2)))
        self.stages = nn.ModuleList(nn.Sequential(*[Block(width) for _ in range(depth)]) for width, depth in zip(dims, depths, strict=True))
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head_audioset = nn.Linear(dims[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of waveforms (B, samples)."""
        return self.tag(self.logmel_extractor(self.spectrogram_extractor(x)))

    def tag(self, x: Tensor) -> Tensor:
        """Return logits of spectrograms (B, 1, frames, bands)."""
        x = x.transpose(1, 3)
        x = self.bn0(x)
        x = x.transpose(1, 3)
        for index in range(4):
            x = self.downsample_layers[index](x)
            x = self.stages[index](x)
        x = torch.mean(x, dim=3)
        x1, _ = torch.max(x, dim=2)
        x2 = torch.mean(x, dim=2)
        return self.head_audioset(self.norm(x1 + x2))


def create(classes: int = 527, depths: list[int] | None = None, dims: list[int] | None = None) -> nn.Module:
    """Build the network of the paper, or a smaller one."""
    return PlainConvNeXt(depths or [3, 3, 9, 3], dims or [96, 192, 384, 768], classes)

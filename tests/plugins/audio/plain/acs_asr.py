"""The recogniser for arrays written the straightforward way: one recording at a time, loops over microphones and frames, no masks.

The Conformer layers are torchaudio's, with layer normalisation in the convolution; the attention between microphones gathers the windows of
keys frame by frame, as the public code of multi-frame cross-channel attention does. Parameter names are those of the plugin's network.
"""

from __future__ import annotations

import math

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.models.conformer import ConformerLayer


class FramesNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def conformer_layer(width: int, heads: int, hidden: int, kernel: int) -> ConformerLayer:
    layer = ConformerLayer(width, hidden, heads, kernel)
    layer.conv_module.sequential[3] = FramesNorm(width)
    return layer


class Attention(nn.Module):
    """nn.MultiheadAttention keeps its own names; this spells it out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        outputs = []
        q, k, v = (
            x @ self.in_proj_weight[i * width : (i + 1) * width].T + self.in_proj_bias[i * width : (i + 1) * width] for i in range(3)
        )
        size = width // self.heads
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(size), -1)
            outputs.append(weights @ v[:, part])
        return self.out_proj(torch.cat(outputs, -1))


class Selector(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))
        self.summary = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(C,)`` of ``(C, N, width)``."""
        sums = []
        for stream in x:
            weights = torch.softmax(self.pool(stream), 0)
            mean = (weights * stream).sum(0)
            variance = (weights * (stream - mean) ** 2).sum(0)
            sums.append(self.summary(torch.cat((mean, torch.sqrt(variance + 1e-5)))))
        heard = torch.stack(sums)
        heard = heard + self.attention(self.norm(heard))
        return self.out(heard)[:, 0]


class Cross(nn.Module):
    def __init__(self, width: int, heads: int, around: int) -> None:
        super().__init__()
        self.heads, self.around = heads, around
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, spatial: Tensor, weights: Tensor) -> Tensor:
        count, width = x.shape[1:]
        asked = self.norm(x) + spatial
        query, key, value = self.query(asked), self.key(asked), self.value(asked)
        size = width // self.heads
        result = torch.zeros_like(x)
        for time in range(count):
            near = range(max(0, time - self.around), min(count, time + self.around + 1))
            keys = torch.cat([key[:, other] for other in near])
            values = torch.cat([value[:, other] for other in near])
            share = weights.log().repeat(len(near))
            for head in range(self.heads):
                part = slice(head * size, (head + 1) * size)
                logits = query[:, time, part] @ keys[:, part].T / math.sqrt(size) + share
                result[:, time, part] = torch.softmax(logits, -1) @ values[:, part]
        return self.out(result)


class Fusion(nn.Module):
    def __init__(self, slots: int, width: int) -> None:
        super().__init__()

        def block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.SiLU())

        self.enter = block(slots, width)
        self.down = nn.ModuleList([block(width, 2 * width, 2), block(2 * width, 4 * width, 2)])
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.leave = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.enter(x[None])
        second = self.down[0](first)
        third = self.down[1](second)
        found = self.up[0](torch.cat((self.double(third, second), second), 1))
        found = self.up[1](torch.cat((self.double(found, first), first), 1))
        return self.leave(found)[0, 0]

    @staticmethod
    def double(x: Tensor, like: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : like.shape[2], : like.shape[3]]


class Embed(nn.Module):
    def __init__(self, bands: int, width: int, factor: int) -> None:
        super().__init__()
        middle, steps = max(8, width // 8), int(math.log2(factor))
        self.convolutions = nn.ModuleList([nn.Conv2d(middle if i else 1, middle, 3, 2, 1) for i in range(steps)])
        self.out = nn.Sequential(nn.Linear(middle * math.ceil(bands / factor), width), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for layer in self.convolutions:
            x = F.silu(layer(x))
        return self.out(x.transpose(1, 2).flatten(2))


class Conformer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, layers: int, kernel: int) -> None:
        super().__init__()
        self.conformer_layers = nn.ModuleList([conformer_layer(width, heads, hidden, kernel) for _ in range(layers)])


class Decoder(nn.Module):
    def __init__(self, units: int, width: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(units, width)
        layer = nn.TransformerDecoderLayer(width, heads, hidden, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, layers, nn.LayerNorm(width))
        self.out = nn.Linear(width, units)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        width = memory.shape[-1]
        x = self.embed(tokens) * math.sqrt(width)
        for place in range(len(tokens)):
            for index in range(width):
                angle = place / 10000 ** ((index // 2 * 2) / width)
                x[place, index] += math.sin(angle) if index % 2 == 0 else math.cos(angle)
        mask = nn.Transformer.generate_square_subsequent_mask(len(tokens)).to(x.dtype)
        return self.out(self.layers(x[None], memory[None], tgt_mask=mask))[0]


class Recogniser(nn.Module):
    def __init__(
        self,
        *,
        num_classes: int,
        sample_rate: int,
        n_fft: int,
        win_length: int,
        hop: int,
        n_mels: int,
        subsampling: int,
        width: int,
        heads: int,
        hidden: int,
        kernel: int,
        keep: tuple[int, int],
        around: int,
        channel_layers: int,
        layers: int,
        decoder_layers: int,
        fusion_width: int,
    ) -> None:
        super().__init__()
        self.sizes = (sample_rate, n_fft, win_length, hop, n_mels)
        self.subsampling, self.keep = subsampling, keep
        self.embed = Embed(n_mels, width, subsampling)
        self.spatial = nn.Linear(n_fft + 2, width)
        self.select1 = Selector(width, heads)
        self.cross = nn.ModuleList([Cross(width, heads, around) for _ in range(channel_layers)])
        self.channel = nn.ModuleList([conformer_layer(width, heads, hidden, kernel) for _ in range(channel_layers)])
        self.select2 = Selector(width, heads)
        self.fusion = Fusion(keep[1], fusion_width)
        self.encoder = Conformer(width, heads, hidden, layers, kernel)
        self.ctc = nn.Linear(width, num_classes)
        self.decoder = Decoder(num_classes, width, heads, hidden, decoder_layers)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """From ``(C, T)`` to CTC logits ``(N, units)``, the decoder's logits, and the numbers of the microphones kept by both selectors."""
        rate, n_fft, win, hop, mels = self.sizes
        windows = x.shape[1] // hop + 1
        spectra = torch.stft(x, n_fft, hop, win, torch.hann_window(win, dtype=x.dtype), pad_mode="constant", return_complex=True)
        spectra = spectra[:, :, :windows]
        banks = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 0.0, rate / 2, mels, rate).to(x.dtype)
        log_mel = torch.log(torch.clamp(spectra.abs().pow(2).transpose(1, 2) @ banks, min=1e-10))
        log_mel = torch.stack([one - one.mean() for one in log_mel])
        features = self.embed(log_mel)
        scores = self.select1(features)
        best = scores.argsort(descending=True)[: self.keep[0]].tolist()
        weights = torch.softmax(scores[best], 0)
        features, spectra = features[best], spectra[best]
        spatial = self.spatial(self.phases(spectra, weights))
        for cross, channel in zip(self.cross, self.channel, strict=True):
            features = features + cross(features, spatial, weights)
            features = torch.stack([channel(stream[:, None], None)[:, 0] for stream in features])
        scores = self.select2(features)
        second = scores.argsort(descending=True)[: self.keep[1]].tolist()
        kept = features[second] * torch.softmax(scores[second], 0)[:, None, None]
        slots = torch.zeros(self.keep[1], *kept.shape[1:], dtype=x.dtype)
        slots[: len(kept)] = kept
        memory = kept.sum(0) + self.fusion(slots)
        for layer in self.encoder.conformer_layers:
            memory = layer(memory[:, None], None)[:, 0]
        return self.ctc(memory), self.decoder(tokens, memory), [best[place] for place in second]

    def phases(self, spectra: Tensor, weights: Tensor) -> Tensor:
        phasors = spectra / torch.clamp(spectra.abs(), min=1e-6)
        common = sum(weight * one for weight, one in zip(weights, phasors, strict=True))
        common = common / torch.clamp(common.abs(), min=1e-6)
        result = []
        for one in phasors:
            against = (one * common.conj()).T
            both = torch.cat((against.real, against.imag), 1)
            rest = -len(both) % self.subsampling
            both = F.pad(both, (0, 0, 0, rest))
            result.append(torch.stack([both[i : i + self.subsampling].mean(0) for i in range(0, len(both), self.subsampling)]))
        return torch.stack(result)

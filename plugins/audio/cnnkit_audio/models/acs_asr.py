"""Multi-channel speech recognition for any array of microphones.

Mu et al., "Automatic channel selection and spatial feature integration for multi-channel speech recognition across various array
topologies" (2023). Two attention-based modules select the microphones that are worth listening to, utterance by utterance; multi-frame
cross-channel attention, told by phase differences where sounds come from, exchanges what they heard; a convolutional network shaped like
a U-Net merges them; a Conformer and a joint CTC/attention decoder write it down.

The authors published no code, and their text gives the parts, not their inside. Theirs: the order of the parts, the attention over two
frames on each side, phase differences at its input, the U-Net from many channels to one, joint CTC/attention. Ours: how a microphone is
scored, weights that fade into a hard choice in evaluation, the common phase that takes the place of a reference microphone, slots in the
order of the scores (so that neither the order nor the number of microphones matters), and all sizes.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from cnnkit.errors import ConfigError
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit_audio.models._base import SoundModel
from cnnkit_audio.models.acs_asr_blocks import Conformer, ConformerLayer, every, floor, lengths_to_mask
from cnnkit_audio.models.acs_asr_channels import ChannelSelector, ConvolutionFusion, CrossChannelAttention, Selection
from cnnkit_audio.models.acs_asr_decoder import AttentionDecoder
from cnnkit_audio.models.acs_asr_front import ArrayFeatures

PADDED_LOGIT = 20.0
"""Of the blank, in frames after the end of a recording."""


class Heard(NamedTuple):
    """What the encoder makes of a batch of recordings.

    Attributes:
        ctc: Logits of the CTC units, ``(B, N, num_classes)``.
        memory: Frames for the decoder, ``(B, N, width)``.
        frames: Which frames exist, ``(B, N)`` bool.
        first: What the first selector decided.
        second: What the second decided, about the same microphones in the same order.
    """

    ctc: Tensor
    memory: Tensor
    frames: Tensor
    first: Selection
    second: Selection


class ACSASR(SoundModel):
    """A recogniser that picks its microphones.

    Args:
        num_classes: Units: the blank of CTC, the mark of beginning and end, then those of the vocabulary.
        sample_rate: Samples per second.
        n_fft: Length of the Fourier transform.
        win_length: Samples of a window.
        hop: Samples between two windows.
        n_mels: Mel bands.
        subsampling: Windows that become one frame: 2 or 4.
        width: Features of a frame.
        heads: Heads of every attention.
        hidden: Features inside feed-forward networks.
        kernel: Frames that a Conformer's convolution sees; odd.
        keep: Microphones that the first and the second selector keep at most.
        around: Frames on each side that cross-channel attention looks at.
        channel_layers: Pairs of cross-channel attention and Conformer layer, before the microphones are merged.
        layers: Conformer layers after that.
        decoder_layers: Layers of the attention decoder.
        fusion_width: Channels of the fusion's first level.
        dropout: In training.

    Shapes:
        x: ``(B, C, T)`` with any number of microphones in any order; the result is CTC logits ``(B, num_classes, N)``. A microphone
        that is silent throughout, as padding is, does not take part. ``N`` is filled up to a multiple of eight, with blanks.

    Raises:
        ConfigError: If sizes do not go together.
    """

    job = "recognition"
    blank: ClassVar[int] = 0
    edge: ClassVar[int] = 1
    """The unit before the first word and after the last."""

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        sample_rate: int = 16000,
        n_fft: int = 512,
        win_length: int = 400,
        hop: int = 160,
        n_mels: int = 80,
        subsampling: int = 4,
        width: int = 256,
        heads: int = 4,
        hidden: int = 1024,
        kernel: int = 15,
        keep: tuple[int, int] = (6, 4),
        around: int = 2,
        channel_layers: int = 2,
        layers: int = 8,
        decoder_layers: int = 3,
        fusion_width: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(sample_rate=sample_rate)
        _check(num_classes, subsampling, width, heads, kernel, keep)
        self.num_classes, self.subsampling, self.keep = num_classes, subsampling, tuple(keep)
        self.front = ArrayFeatures(
            sample_rate=sample_rate, n_fft=n_fft, win_length=win_length, hop=hop, n_mels=n_mels, multiple=8 * subsampling
        )
        self.embed = Subsampling(n_mels, width, subsampling)
        self.spatial = nn.Linear(n_fft + 2, width)
        self.select1 = ChannelSelector(width, heads, keep[0])
        self.cross = nn.ModuleList(CrossChannelAttention(width, heads, around) for _ in range(channel_layers))
        self.channel = nn.ModuleList(ConformerLayer(width, heads, hidden, kernel, dropout=dropout) for _ in range(channel_layers))
        self.select2 = ChannelSelector(width, heads, keep[1])
        self.fusion = ConvolutionFusion(keep[1], fusion_width)
        self.encoder = Conformer(width, heads, hidden, layers, kernel, dropout=dropout)
        self.ctc = nn.Linear(width, num_classes)
        self.decoder = AttentionDecoder(num_classes, width, heads, hidden, decoder_layers, dropout=dropout)

    @property
    def frame_seconds(self) -> float:
        """Seconds between two frames of the result."""
        return self.front.hop * self.subsampling / self.sample_rate

    def forward(self, x: Tensor, channels: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Return CTC logits ``(B, num_classes, N)``; arguments as in :meth:`hear`."""
        return self.hear(x, channels, lengths).ctc.transpose(1, 2)

    def hear(self, x: Tensor, channels: Tensor | None = None, lengths: Tensor | None = None) -> Heard:
        """Encode recordings.

        Args:
            x: ``(B, C, T)``.
            channels: Which microphones exist, ``(B, C)`` bool; by default those that are not silent throughout.
            lengths: Samples of each recording, ``(B,)``; by default all.
        """
        if channels is None:
            channels = x.abs().amax(-1) > 0
            channels = channels | ~channels.any(1, keepdim=True)  # Nothing but silence is still a recording.
        if lengths is None:
            lengths = torch.full((x.shape[0],), x.shape[2], device=x.device)
        spectrum = self.front.spectrum(x * channels[:, :, None])
        windows = lengths_to_mask(self.front.frames(lengths), spectrum[0].shape[2])
        frames = every(windows, self.subsampling)
        features = self.embed(self.front.log_mel(spectrum, windows), windows)
        first = self.select1(features, frames, channels)
        spectrum, features, chosen = self._chosen(first, spectrum, features, channels)
        spatial = self._where(spectrum, windows, chosen.weights)
        features, second = self._exchange(features, spatial, frames, chosen)
        memory = self.encoder(self._merge(features, frames, second), frames)
        after = F.one_hot(frames.new_zeros((), dtype=torch.long) + self.blank, self.num_classes) * PADDED_LOGIT
        ctc = torch.where(frames[:, :, None], self.ctc(memory), after.to(memory.dtype))
        return Heard(ctc, memory, frames, first, _restored(first, chosen, second))

    def attend(self, heard: Heard, tokens: Tensor) -> Tensor:
        """Return the decoder's logits ``(B, L, num_classes)`` of the unit after each token ``(B, L)``; the first is the edge."""
        return self.decoder(tokens, heard.memory, heard.frames)

    def _chosen(
        self, first: Selection, spectrum: tuple[Tensor, Tensor], features: Tensor, channels: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Selection]:
        """In evaluation, go on with the kept microphones alone, best first; in training with all."""
        if self.training:
            return spectrum, features, first
        slots = self.keep[0] if torch.compiler.is_exporting() else min(self.keep[0], channels.shape[1])
        kept = first.take(first.kept.to(features.dtype), slots) > 0
        ranks = torch.arange(slots, device=kept.device).expand(kept.shape)
        narrowed = Selection(first.take(first.scores, slots), first.take(first.weights, slots), ranks, kept)
        real, imaginary = (first.take(part, slots) for part in spectrum)
        return (real, imaginary), first.take(features, slots), narrowed

    def _where(self, spectrum: tuple[Tensor, Tensor], windows: Tensor, weights: Tensor) -> Tensor:
        """Return what the phase differences say, at the rate of the frames, ``(B, C, N, width)``."""
        phase = self.front.phase(spectrum, weights) * windows[:, None, :, None]
        pooled = torch.stack([every(phase.transpose(1, 2), self.subsampling, first) for first in range(self.subsampling)]).mean(0)
        return self.spatial(pooled.transpose(1, 2))

    def _exchange(self, x: Tensor, spatial: Tensor, frames: Tensor, chosen: Selection) -> tuple[Tensor, Selection]:
        """Let the microphones attend to each other, and each to its own past and future; then select once more."""
        count = x.shape[1]
        streams = frames[:, None].expand(-1, count, -1).flatten(0, 1)
        for cross, channel in zip(self.cross, self.channel, strict=True):
            x = x + cross(x, spatial, frames, chosen.weights)
            x = channel(x.flatten(0, 1), streams).unflatten(0, (-1, count))
        return x, self.select2(x, frames, chosen.weights > 0)

    def _merge(self, x: Tensor, frames: Tensor, second: Selection) -> Tensor:
        """Return one stream ``(B, N, width)``: the weighted sum of the microphones, and what the fusion finds beyond that."""
        weighted = x * second.weights[:, :, None, None]
        return weighted.sum(1) + self.fusion(second.take(weighted, self.keep[1]), frames)


class Subsampling(nn.Module):
    """Convolutions over time and bands that halve both once or twice, for each microphone by itself.

    Shapes:
        x: ``(B, C, N, bands)``, N divisible by the factor; ``windows``: ``(B, N)`` bool; the result is ``(B, C, N / factor, width)``.
    """

    def __init__(self, bands: int, width: int, factor: int) -> None:
        super().__init__()
        middle = max(8, width // 8)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(middle if step else 1, middle, 3, stride=2, padding=1) for step in range(factor.bit_length() - 1)
        )
        self.out = nn.Sequential(nn.Linear(middle * -(-bands // factor), width), nn.LayerNorm(width))

    def forward(self, x: Tensor, windows: Tensor) -> Tensor:
        """Return the frames."""
        shape, x = x.shape[:2], x.flatten(0, 1)[:, None]
        for layer in self.convolutions:
            windows = every(windows, 2)
            there = windows[:, None].expand(-1, shape[1], -1).flatten(0, 1)[:, None, :, None]
            x = F.silu(layer(x)) * there
        return self.out(x.transpose(1, 2).flatten(2)).unflatten(0, shape)


def _restored(first: Selection, chosen: Selection, second: Selection) -> Selection:
    """Return the second selection in the order of the microphones that came in."""
    if chosen is first:
        return second
    back = ((first.ranks[:, :, None] == chosen.ranks[:, None, :]) & first.kept[:, :, None]).to(second.weights.dtype)
    weights, kept = (torch.einsum("bcs,bs->bc", back, part.to(back.dtype)) for part in (second.weights, second.kept))
    there = back.sum(-1) > 0
    lowest = floor(back)
    scores = torch.einsum("bcs,bs->bc", back, second.scores).masked_fill(~there, lowest)
    last = first.ranks.new_full((), first.ranks.shape[1])
    ranks = torch.where(there, torch.einsum("bcs,bs->bc", back, second.ranks.to(back.dtype)).long(), last)
    return Selection(scores, weights, ranks, kept > 0)


def _check(num_classes: int, subsampling: int, width: int, heads: int, kernel: int, keep: tuple[int, int]) -> None:
    """Raise ConfigError for sizes that do not go together."""
    wrong = [
        (num_classes < 3, f"num_classes={num_classes} leaves no word besides blank and edge; accepted: 3 or more"),
        (subsampling not in (2, 4), f"subsampling={subsampling} is not supported; accepted: 2 or 4"),
        (width % heads != 0, f"width={width} does not divide among heads={heads}"),
        (width % 4 != 0, f"width={width} cannot be halved twice; accepted: multiples of 4"),
        (kernel % 2 == 0, f"kernel={kernel} has no centre; accepted: odd numbers"),
        (not 1 <= keep[1] <= keep[0], f"keep={tuple(keep)} must fall, from the first selector to the second, to 1 or more"),
    ]
    for condition, message in wrong:
        if condition:
            raise ConfigError(message)

"""A quantised network where a task expects one of its own: it computes in integers, and answers in real numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnkit_audio.compress.quantize import Quantised, to_pcm
from cnnkit_audio.models._base import Tagger


class QuantisedTagger(Tagger):
    """A network of 8-bit integers for waveforms: what the exported C code answers, bit for bit.

    Args:
        network: The integers.
        like: The network that they were made from.

    Shapes:
        x: ``(B, 1, T)`` in [-1, 1], of which the first samples count; the result is logits ``(B, num_classes)``.
    """

    def __init__(self, network: Quantised, like: Tagger) -> None:
        super().__init__(sample_rate=like.sample_rate, num_classes=like.num_classes, window=like.window)
        self.network = network
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # Tells a task on which device to hand over sounds.

    def embed(self, features: Tensor) -> Tensor:
        """Return the integers before the last layer, as real numbers."""
        x = self.network.from_pcm(to_pcm(features[..., : self.network.layers[0].input[2]]))
        for layer in self.network.layers[:-1]:
            x = layer(x)
        return torch.from_numpy(x.reshape(len(x), -1)).to(self.place)

    def head(self, embedding: Tensor) -> Tensor:
        """Return logits for what :meth:`embed` gave."""
        last, scale = self.network.layers[-1], self.network.target
        logits = last(embedding.cpu().numpy().astype("int8")).reshape(len(embedding), -1)
        return scale.scale * (torch.from_numpy(logits).to(self.place) - scale.zero)

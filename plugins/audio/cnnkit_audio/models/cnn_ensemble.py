"""Networks for sound fused by the sum rule (Nanni, Maguolo, Brahnam and Paci, 2021).

"An Ensemble of Convolutional Neural Networks for Audio Classification" trains networks that differ in the image that they see, in how
their training sounds are augmented, and in their architecture, and adds up what their softmaxes say:

    ``p(c) = mean over members of softmax(member(x))[c]``

The fused classifier is one network here, with one checkpoint: its logits are ``log p``, so that its softmax is the mean. For sounds that
may be heard together it is the mean of the sigmoids. Members may be any networks that tag sound; ``cnnkit audio ensemble`` trains them
from one file that declares them, ``cnnkit audio fuse`` joins checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
import torchaudio.transforms as AT
from cnnkit.backbones import create_model
from cnnkit.errors import ConfigError, unknown
from torch import Tensor, nn

from cnnkit_audio.models._base import Tagger

Scores = Literal["softmax", "sigmoid"]
FOUR_IMAGES = tuple({"name": "audio/image_cnn", "args": {"image": image}} for image in ("mel", "gammatone", "constant_q", "gabor"))
"""A ResNet-50 on each image."""
_ZEROS = 32  # Zero crossings of the filter between rates, as where files are read.


def sum_rule(logits: Tensor, scores: Scores = "softmax") -> Tensor:
    """Return the logits of the mean of the members' probabilities.

    Args:
        logits: ``(members, ..., C)``.
        scores: ``"softmax"`` for one sound at a time, ``"sigmoid"`` for several.

    Returns:
        ``(..., C)``: the softmax, or sigmoid, of it is the mean over the members.
    """
    if scores == "softmax":
        return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
    return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)


class CNNEnsemble(Tagger):
    """The sum rule over networks that tag sound.

    It works at the highest rate of its members; the others hear it resampled. All hear the longest of their windows.

    Args:
        num_classes: Sounds that it knows.
        members: The networks, each as ``{"name": "audio/image_cnn", "args": {"image": "gammatone"}}``.
        scores: What is added up: ``"softmax"``, or ``"sigmoid"`` where several sounds may be heard at once.

    Shapes:
        x: ``(B, 1, T)``; the result is logits ``(B, num_classes)``, the logarithm of the mean probability for ``"softmax"``.

    Raises:
        ConfigError: If there are no members, or one does not tag sound.
    """

    def __init__(self, *, num_classes: int = 50, members: Sequence[Mapping[str, Any]] = FOUR_IMAGES, scores: Scores = "softmax") -> None:
        if scores not in ("softmax", "sigmoid"):
            raise ConfigError(unknown("scores", scores, ("softmax", "sigmoid")))
        if not members:
            raise ConfigError("members is empty; an ensemble needs one network or more")
        built = [_member(entry, num_classes) for entry in members]
        rate = max(member.sample_rate for member in built)
        super().__init__(sample_rate=rate, num_classes=num_classes, window=max(member.window for member in built))
        self.scores: Scores = scores
        self.members = nn.ModuleList(built)
        self.rates = nn.ModuleList(_resample(rate, member.sample_rate) for member in built)

    def member_logits(self, x: Tensor) -> Tensor:
        """Return what each member says, ``(members, B, num_classes)``, of waveforms ``(B, 1, T)``."""
        logits = []
        for member, resample in zip(self.members, self.rates, strict=True):
            assert isinstance(member, Tagger)
            sound = resample(x)
            logits.append(member(F.pad(sound, (0, max(0, member.least - sound.shape[-1])))))
        return torch.stack(logits)

    def embed(self, features: Tensor) -> Tensor:
        """Return the members' logits side by side, ``(B, members * num_classes)``, of waveforms ``(B, 1, T)``."""
        return self.member_logits(features).transpose(0, 1).flatten(1)

    def head(self, embedding: Tensor) -> Tensor:
        """Return the fused logits ``(B, num_classes)`` for what :meth:`embed` gave."""
        return sum_rule(embedding.unflatten(1, (len(self.members), self.num_classes)).transpose(0, 1), self.scores)


def _member(entry: Mapping[str, Any], num_classes: int) -> Tagger:
    strange = set(entry) - {"name", "args"}
    if strange or "name" not in entry:
        raise ConfigError(f"member {dict(entry)!r} is not understood; accepted: a name, and args if it has any")
    model = create_model(entry["name"], dims=1, **{"num_classes": num_classes, **entry.get("args", {})})
    if not isinstance(model, Tagger) or model.num_classes != num_classes:
        raise ConfigError(
            f"member {entry['name']} does not tag {num_classes} sounds; accepted: networks for tagging, all of the same labels"
        )
    return cast(Tagger, model)


def _resample(rate: int, wanted: int) -> nn.Module:
    return nn.Identity() if rate == wanted else AT.Resample(rate, wanted, lowpass_filter_width=_ZEROS, rolloff=0.99)

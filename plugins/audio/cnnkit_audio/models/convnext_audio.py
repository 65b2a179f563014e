"""ConvNeXt for AudioSet (Pellegrini et al., 2023, "Adapting a ConvNeXt model to audio classification on AudioSet").

ConvNeXt-Tiny with a spectrogram of 224 bands for a picture: there are about as many bands and frames as the rows and columns that it was
made for. Bands are normalised over the batch, the stem sees one channel and four frames of silence at each end, and the last maps are
averaged over bands and pooled over time by the sum of maximum and mean:

    ``x -> log-mel -> normalised bands -> ConvNeXt -> mean over bands -> max + mean over time -> layer norm -> linear``

The network starts from a ConvNeXt that was trained on ImageNet if one is given (``--init FILE``, in the layout of timm, torchvision or
the official code); the kernels of its stem are averaged over the colours. With stochastic depth, SpecAugment and mixup it then reaches
0.471 mAP with a third of the parameters of the transformers of its time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from cnnkit.backbones.convnext import ConvNeXt
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_audio import frontends
from cnnkit_audio.models._base import Tagger
from cnnkit_audio.models.panns import WINDOW, normalise_bands, pool_clip, spec_augment, without_front

_IMAGES = ("stages.0.blocks.0.conv_dw.weight", "features.1.0.layer_scale", "downsample_layers.0.0.weight")
"""A key of each layout of ConvNeXt for images: timm's, torchvision's and the official one."""


def _is_official(keys: Collection[str]) -> bool:
    return "downsample_layers.0.0.weight" in keys and "bn0.weight" in keys


def _is_image(keys: Collection[str]) -> bool:
    return "bn0.weight" not in keys and any(key in keys for key in _IMAGES)


def _convnext(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a ConvNeXt under the core's keys, whatever layout they came in."""
    for layout in ConvNeXt.layouts:
        if layout.matches and layout.convert and layout.matches(state.keys()):
            return layout.convert(state)
    return state


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {key.replace("head_audioset.", "head."): value for key, value in without_front(state).items()}
    bands = {key: state.pop(key) for key in list(state) if key.startswith("bn0.")}
    return {**bands, **{f"encoder.{key}": value for key, value in _convnext(state).items()}}


class ConvNeXtAudio(Tagger):
    """ConvNeXt on log-mel spectrograms.

    Args:
        num_classes: Sounds that it knows; AudioSet has 527.
        depths: Blocks of each stage.
        widths: Channels of each stage.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        freq_mask: Largest width of SpecAugment's two masks over bands in training; the official code's is 28.
        time_mask: Largest width of its two masks over frames; the official code's is 64.
        window: Seconds of sound that it looks at in one piece.

    Shapes:
        x: ``(B, 1, T)`` at 32 kHz, ``T`` from :attr:`least` on; the result is logits ``(B, num_classes)``.
    """

    multilabel = True

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("official", _is_official, _from_official),)
    classifier: ClassVar[str] = "encoder.head.fc"

    def __init__(
        self,
        *,
        num_classes: int = 527,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        drop_path_rate: float = 0.1,
        freq_mask: int = 0,
        time_mask: int = 0,
        window: float = WINDOW,
    ) -> None:
        front = frontends.convnext_audioset()
        super().__init__(sample_rate=front.sample_rate, num_classes=num_classes, front=front, window=window)
        self.bn0 = nn.BatchNorm2d(front.bands)
        self.mask = spec_augment(freq_mask, time_mask)
        self.encoder = ConvNeXt(depths=depths, widths=widths, in_chans=1, num_classes=num_classes, drop_path_rate=drop_path_rate)
        stem = self.encoder.stem[0]
        assert isinstance(stem, nn.Conv2d)
        stem.padding = (4, 0)  # Four frames at each end; no band. The reductions then fit for clips of any length.
        self._least = max(front.least, (4 * 2 ** (len(depths) - 1) - 8 - 1) * front.hop)
        # What a file of ImageNet lacks is taken from the network as it is, so this layout belongs to the instance.
        self.layouts = (*type(self).layouts, Layout("ConvNeXt for images", _is_image, self._from_image))  # type: ignore[misc]

    @property
    def least(self) -> int:
        """Samples of the shortest clip that leaves a frame in the last stage."""
        return self._least

    def forward_frames(self, features: Tensor) -> Tensor:
        """Return maps ``(B, widths[-1], frames / 32, bands / 32)`` of spectrograms ``(B, 1, bands, frames)``."""
        return self.encoder.forward_features(normalise_bands(self.bn0, self.mask, features))

    def frame_embeddings(self, x: Tensor) -> Tensor:
        """Return embeddings of frames and bands, ``(B, widths[-1], frames / 32, bands / 32)``, of waveforms ``(B, 1, T)``.

        For ten seconds they are 768 maps of 31 frames and 7 bands.
        """
        assert self.front is not None
        return self.forward_frames(self.front(x))

    def scene_embeddings(self, x: Tensor) -> Tensor:
        """Return one embedding for each clip, ``(B, widths[-1])``, of waveforms ``(B, 1, T)``."""
        assert self.front is not None
        return self.embed(self.front(x))

    def embed(self, features: Tensor) -> Tensor:
        """Return one embedding for each clip, ``(B, widths[-1])``, of spectrograms ``(B, 1, bands, frames)``."""
        pooled = pool_clip(self.forward_frames(features))
        return self.encoder.get_submodule("head.norm")(pooled)

    def head(self, embedding: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``; the probability of each sound is their sigmoid."""
        return self.encoder.get_classifier()(embedding)

    def _from_image(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring a ConvNeXt for images to our keys: the classifier and the normalisation of bands stay ours."""
        given = _convnext(state)
        given["stem.0.weight"] = given["stem.0.weight"].mean(1, keepdim=True)
        kept = ("bn0.", f"{self.classifier}.")
        own = {key: value for key, value in self.state_dict().items() if key.startswith(kept)}
        return {**{f"encoder.{key}": value for key, value in given.items() if not key.startswith("head.fc.")}, **own}

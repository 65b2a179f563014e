"""A time-frequency image and a network for pictures: one member of an ensemble (Nanni, Maguolo, Brahnam and Paci, 2021).

"An Ensemble of Convolutional Neural Networks for Audio Classification" turns a clip into one of several images, enlarges or shrinks it to
the side that a network for photographs was made for, and trains that network on from ImageNet:

    ``x -> image (mel, gammatone, constant Q, discrete Gabor transform) -> normalised bands -> size x size -> backbone``

Ours differs in two places. The grey levels of the image are its decibels, normalised band by band over the batch; and the network has one
channel of input, whose kernels are the sums over the colours of those of ImageNet (``--init FILE``, in any layout that the core reads),
which is the same as showing it the image three times.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model
from cnnkit.backbones._base import Backbone
from cnnkit.errors import CheckpointError, ConfigError, unknown
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_audio.augment_features import SpecAugment, shift_features, stretch_features, sum_same_class, warp_bands
from cnnkit_audio.frontends import ConstantQ, FrontEnd, Gabor, Gammatone, LogMel
from cnnkit_audio.models._base import Tagger

IMAGES: Mapping[str, type[FrontEnd]] = {"mel": LogMel, "gammatone": Gammatone, "constant_q": ConstantQ, "gabor": Gabor}
"""The images by name: front ends of :mod:`cnnkit_audio.frontends`."""


def make_image(name: str, sample_rate: int, args: Mapping[str, Any]) -> FrontEnd:
    """Build a front end by the name of its image.

    Args:
        name: A key of :data:`IMAGES`.
        sample_rate: Samples per second.
        args: Arguments of its class besides the rate.

    Raises:
        ConfigError: If there is no such image, or it has no such argument.
    """
    if name not in IMAGES:
        raise ConfigError(unknown("image", name, IMAGES))
    accepted = [key for key in inspect.signature(IMAGES[name]).parameters if key != "sample_rate"]
    for key in args:
        if key not in accepted:
            raise ConfigError(f"{unknown(f'argument of image {name!r}', key, accepted)} Accepted: {', '.join(accepted)}.")
    return IMAGES[name](sample_rate=sample_rate, **args)


class ImageAugment(nn.Module):
    """Shift, warp and stretch images in training, for each clip by itself; nothing in evaluation.

    Args:
        band_shift: Largest shift over bands.
        time_shift: Largest shift over frames, in a circle.
        warp: Largest relative change of the bands' axis, as by a longer or shorter vocal tract.
        stretch: Largest relative change of the tempo.
    """

    def __init__(self, *, band_shift: int = 0, time_shift: int = 0, warp: float = 0.0, stretch: float = 0.0) -> None:
        super().__init__()
        if min(band_shift, time_shift) < 0 or not 0 <= warp < 1 or not 0 <= stretch < 1:
            raise ConfigError(
                f"band_shift={band_shift}, time_shift={time_shift}, warp={warp}, stretch={stretch}: accepted are shifts of 0 or more, and "
                "a warp and a stretch of 0 or more, below 1"
            )
        self.band_shift, self.time_shift, self.warp, self.stretch = band_shift, time_shift, warp, stretch

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the same shape, ``(B, 1, bands, frames)``."""
        if not self.training or not (self.band_shift or self.time_shift or self.warp or self.stretch):
            return x
        rng = _generator()
        if self.band_shift or self.time_shift:
            x = shift_features(x, rng, bands=self.band_shift, frames=self.time_shift)
        if self.warp:
            x = warp_bands(x, rng, most=self.warp)
        return stretch_features(x, rng, most=self.stretch) if self.stretch else x


class ImageCNN(Tagger):
    """A backbone of the core on a time-frequency image.

    Args:
        num_classes: Sounds that it knows; ESC-50 has 50.
        image: ``"mel"``, ``"gammatone"``, ``"constant_q"`` or ``"gabor"``.
        image_args: Arguments of its front end besides the rate, for example ``{"n_bands": 96}``.
        backbone: Any 2-D backbone by its name; the paper takes AlexNet, GoogLeNet, VGG16 and 19, ResNet50 and 101, and Inception-v3.
        backbone_args: Its arguments, for example ``{"drop_rate": 0.5}``.
        size: Side length that images are resized to; ``None`` leaves them as they are.
        freq_mask: Largest width of the two masks over bands in training.
        time_mask: Largest width of the two masks over frames.
        band_shift: Largest shift over bands in training.
        time_shift: Largest shift over frames, in a circle.
        warp: Largest relative change of the bands' axis in training.
        stretch: Largest relative change of the tempo in training.
        same_class: Share of batches whose images are summed, each with another one of the same labels.
        sample_rate: Samples per second.
        window: Seconds of sound that it looks at in one piece.

    Shapes:
        x: ``(B, 1, T)``, ``T`` from :attr:`least` on; the result is logits ``(B, num_classes)``.

    Raises:
        ConfigError: If there is no such image, or it has no such argument.
        UsageError: If the backbone is not one for pictures, or has no such argument.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ()

    def __init__(
        self,
        *,
        num_classes: int = 50,
        image: str = "mel",
        image_args: Mapping[str, Any] | None = None,
        backbone: str = "resnet50",
        backbone_args: Mapping[str, Any] | None = None,
        size: int | None = 224,
        freq_mask: int = 0,
        time_mask: int = 0,
        band_shift: int = 0,
        time_shift: int = 0,
        warp: float = 0.0,
        stretch: float = 0.0,
        same_class: float = 0.0,
        sample_rate: int = 44_100,
        window: float = 5.0,
    ) -> None:
        front = make_image(image, sample_rate, image_args or {})
        super().__init__(sample_rate=sample_rate, num_classes=num_classes, front=front, window=window)
        if not 0 <= same_class <= 1:
            raise ConfigError(f"same_class={same_class} is no share; accepted: 0 to 1")
        self.size, self.same_class = size, same_class
        self.augment = ImageAugment(band_shift=band_shift, time_shift=time_shift, warp=warp, stretch=stretch)
        self.bn0 = nn.BatchNorm2d(front.bands)
        self.mask = SpecAugment(freq_mask=freq_mask, time_mask=time_mask, freq_masks=2, time_masks=2, fill=0.0)
        encoder = create_model(backbone, dims=2, in_chans=1, num_classes=num_classes, **(backbone_args or {}))
        if not isinstance(encoder, Backbone):
            raise ConfigError(f"backbone={backbone} is no backbone for pictures; cnnkit list models shows which there are")
        if size is not None:
            encoder.check_size(torch.empty(1, 1, size, size, device="meta"))
        self.encoder = encoder
        # What a file of ImageNet lacks is taken from the network as it is, so this layout belongs to the instance.
        self.layouts = (Layout("the backbone for images", _is_image, self._from_image),)  # type: ignore[misc]

    @property
    def least(self) -> int:
        """Samples of the shortest clip that makes an image of the size that the backbone admits."""
        assert self.front is not None
        side = 1 if self.size is not None else self.encoder.min_size
        return max(self.front.least, (side - 1) * self.front.hop)

    def learn(self, x: Tensor, target: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``; in training, of images that may be summed with others of the same labels."""
        if not self.training or not self.same_class or float(torch.rand(())) >= self.same_class:
            return self(x)
        assert self.front is not None
        return self.classify(sum_same_class(self.front(x), target, _generator()))

    def picture(self, features: Tensor) -> Tensor:
        """Return what the backbone sees of ``(B, 1, bands, frames)``: normalised, ``(B, 1, size, size)``."""
        bands = self.bn0(self.augment(features).transpose(1, 2)).transpose(1, 2)
        x = self.mask(bands)
        if self.size is None:
            return x
        return F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)

    def embed(self, features: Tensor) -> Tensor:
        """Return the input of the backbone's classifier, ``(B, D)``, for images ``(B, 1, bands, frames)``."""
        return self.encoder.forward_head(self.encoder.forward_features(self.picture(features)), pre_logits=True)

    def head(self, embedding: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        return self.encoder.get_classifier()(embedding)

    def _from_image(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring a network of colour pictures to our keys: its classifier and the normalisation of bands stay ours."""
        if any(value.is_meta for value in state.values()):  # Asked what bare weights are, not to load them.
            raise CheckpointError("weights for pictures hear nothing yet; train from them with --init")
        head = f"encoder.{self.encoder.classifier}."
        own = self.state_dict()
        given = {f"encoder.{key}": value for key, value in self._backbone_keys(state).items()}
        for key, value in given.items():
            wanted = own.get(key)
            if wanted is not None and value.ndim == wanted.ndim == 4 and value.shape[1] == 3 and wanted.shape[1] == 1:
                given[key] = value.sum(1, keepdim=True)
        kept = {key: value for key, value in own.items() if not key.startswith("encoder.") or key.startswith(head)}
        return {**{key: value for key, value in given.items() if not key.startswith(head)}, **kept}

    def _backbone_keys(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        for layout in self.encoder.layouts:
            if layout.matches and layout.convert and layout.matches(state.keys()):
                return layout.convert(state)
        return state


def _generator() -> np.random.Generator:
    """Return a generator that is seeded by torch's, which the training seeds and resumes."""
    return np.random.default_rng(int(torch.randint(2**62, ())))


def _is_image(keys: Collection[str]) -> bool:
    return "bn0.weight" not in keys and not any(key.startswith("encoder.") for key in keys)

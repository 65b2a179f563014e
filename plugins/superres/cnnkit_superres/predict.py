"""From a picture to the enlarged picture: colours, depths and transparency brought to what the network knows, and back.

* A network for RGB gets a grey picture three times, and the mean of its three answers is the grey of the result.
* A network for luminance gets the Y of MATLAB's YCbCr; chroma is enlarged by bicubic interpolation, as in the papers.
* Transparent pixels have a colour that nobody sees. Colours are multiplied by alpha before the network and divided by the
  enlarged alpha after it, so that such a colour does not bleed into what is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cnnkit_superres.colour import OFFSETS, YCBCR, rgb_to_ycbcr, ycbcr_to_rgb
from cnnkit_superres.models._base import LUMINANCE, SuperResolver
from cnnkit_superres.pictures import Picture
from cnnkit_superres.resize import imresize
from cnnkit_superres.tiling import upscale

# MATLAB's Y of black and of the range from black to white, in units of 255.
Y_BLACK, Y_RANGE = float(OFFSETS[0]) / 255, float(YCBCR[0].sum()) / 255


@dataclass(frozen=True)
class Settings:
    """How a picture is taken through the network.

    Args:
        tile: Largest side of a tile; ``None`` for the whole picture if memory allows.
        overlap: Pixels that neighbouring tiles share on each side; ``None`` for as many as the network sees.
        approximate: Allow tiles with a network that looks at the whole picture.
        ensemble: Average over the eight flips and turns.
        alpha: Enlarge transparency by the network or by bicubic interpolation.
    """

    tile: int | None = None
    overlap: int | None = None
    approximate: bool = False
    ensemble: bool = False
    alpha: Literal["network", "bicubic"] = "network"


class Ensemble(SuperResolver):
    """The mean of a network's answers to the eight flips and turns of a picture, each brought back (Timofte et al., CVPR 2016).

    The picture is extended to :attr:`size_multiple` before it is turned, so that tiles are divided alike in all eight.

    Args:
        model: The network; what another project's network says of tiles and data types holds for the mean too.

    Shapes:
        As the network's.
    """

    def __init__(self, model: SuperResolver) -> None:
        super().__init__(scale=model.scale, in_chans=model.in_chans, size_multiple=model.size_multiple)
        self.model = model
        for name in ("tiling", "minimum", "square", "dtypes"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def enlarge(self, x: Tensor) -> Tensor:
        """Return the mean of the eight."""
        total = torch.zeros(())
        for turned in (False, True):
            for flips in ((), (2,), (3,), (2, 3)):
                view = (x.transpose(2, 3) if turned else x).flip(flips)
                out = self.model(view).flip(flips)
                total = total + (out.transpose(2, 3) if turned else out)
        return total / 8


def enlarge(
    model: SuperResolver, picture: Picture, settings: Settings | None = None, *, progress: Callable[[int, int], None] | None = None
) -> Picture:
    """Enlarge a picture by the network's scale.

    Args:
        model: The network, in evaluation mode; or its :class:`Ensemble`, whose receptive field is then found once for many pictures.
        picture: Any depth, grey or RGB, with or without alpha.
        settings: Tiles, ensemble and transparency.
        progress: Told the tiles that are done and that there are.

    Returns:
        A picture of the same depth and colours, exactly ``scale`` times as high and as wide.

    Raises:
        ConfigError: If the settings do not suit the network.
    """
    settings = settings or Settings()
    network: SuperResolver = Ensemble(model).eval() if settings.ensemble and not isinstance(model, Ensemble) else model

    def run(pixels: np.ndarray, peak: float) -> np.ndarray:
        return upscale(
            network, pixels, peak=peak, tile=settings.tile, overlap=settings.overlap, approximate=settings.approximate, progress=progress
        )

    if picture.alpha is None or bool((picture.alpha >= picture.opaque).all()):
        alpha = None if picture.alpha is None else _filled(picture.alpha, model.scale)
        return picture.replaced(_colours(run, model, picture.pixels, picture.peak), alpha)
    return _transparent(run, model, picture, bicubic=settings.alpha == "bicubic")


def _filled(alpha: np.ndarray, scale: int) -> np.ndarray:
    return np.full((alpha.shape[0] * scale, alpha.shape[1] * scale), alpha.flat[0], alpha.dtype)


def _transparent(run: Callable[[np.ndarray, float], np.ndarray], model: SuperResolver, picture: Picture, *, bicubic: bool) -> Picture:
    """Enlarge colours multiplied by alpha, and alpha by itself; in float, for a dark product would lose its digits."""
    assert picture.alpha is not None
    share = np.clip(picture.alpha.astype(np.float32)[..., None] / picture.opaque, 0, 1)
    colours = _colours(run, model, picture.pixels.astype(np.float32) / picture.peak * share, 1.0)
    alpha = imresize(share, model.scale) if bicubic else _colours(run, model, share, 1.0)
    alpha = np.clip(alpha, 0, 1) * np.float32(share.any())  # Of nothing a network may still make a little, by its biases.
    # Below half a step of 8 bits nothing is seen, and a quotient would be noise.
    seen = alpha > 0.5 / 255
    colours = np.where(seen, colours / np.where(seen, alpha, 1), 0)
    low = _lowest(picture.pixels)
    return picture.replaced(
        _stored(colours, picture.pixels.dtype, picture.peak, low), _stored(alpha[..., 0], picture.pixels.dtype, picture.opaque)
    )


def _stored(unit: np.ndarray, dtype: np.dtype[Any], white: float, low: float = 0.0) -> np.ndarray:
    """Return values of ``low`` to 1 in a type of pixels where 1 is ``white``."""
    values = np.clip(unit, low, 1) * np.float32(white)
    return values.astype(dtype) if dtype.kind == "f" else np.rint(values).astype(dtype)


def _lowest(pixels: np.ndarray) -> float:
    """Return where the result is cut off below: nowhere if the picture itself goes below black, as float files may."""
    return -np.inf if pixels.dtype.kind == "f" and bool((pixels < 0).any()) else 0.0


def _colours(run: Callable[[np.ndarray, float], np.ndarray], model: SuperResolver, pixels: np.ndarray, peak: float) -> np.ndarray:
    """Enlarge ``(H, W, 1 or 3)`` by a network of either number of colours."""
    colours = pixels.shape[2]
    if model.in_chans == colours and colours != LUMINANCE:
        return run(pixels, peak)
    if model.in_chans != LUMINANCE:
        three = run(np.repeat(pixels, model.in_chans, axis=2), peak)
        mean = three.mean(axis=2, keepdims=True, dtype=np.float32)
        return mean if pixels.dtype.kind == "f" else np.rint(mean).astype(pixels.dtype)
    return _by_luminance(run, model.scale, pixels, peak)


def _by_luminance(run: Callable[[np.ndarray, float], np.ndarray], scale: int, pixels: np.ndarray, peak: float) -> np.ndarray:
    unit = pixels.astype(np.float32) / np.float32(peak)
    if pixels.shape[2] == 1:
        out = (run(unit * np.float32(Y_RANGE) + np.float32(Y_BLACK), 1.0) - np.float32(Y_BLACK)) / np.float32(Y_RANGE)
    else:
        planes = rgb_to_ycbcr(unit)
        chroma = imresize(planes[..., 1:], scale)
        out = ycbcr_to_rgb(np.concatenate([run(np.ascontiguousarray(planes[..., :1]), 1.0), chroma], axis=2))
    return _stored(out, pixels.dtype, peak, _lowest(pixels))


def bicubic(picture: Picture, scale: int) -> Picture:
    """Enlarge a picture by MATLAB's bicubic interpolation: what every network is compared with."""
    pixels = imresize(picture.pixels, scale)
    return picture.replaced(pixels, None if picture.alpha is None else imresize(picture.alpha, scale))

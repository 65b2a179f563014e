"""The photographs that the built-in networks are measured on, and those that they were trained on: scikit-image's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cnnkit.engine.files import atomic_path
from PIL import Image
from skimage import data

from cnnkit_superres.metrics import modcrop
from cnnkit_superres.resize import imresize

HELD_OUT = ("astronaut", "camera", "chelsea", "coffee")
"""Photographs that no built-in network has seen: a portrait, a grey scene, fur, and smooth shades with sharp rims."""

TRAINED = (
    "rocket",
    "retina",
    "immunohistochemistry",
    "hubble_deep_field",
    "brick",
    "grass",
    "gravel",
    "moon",
    "coins",
    "cell",
    "motorcycle",
)
"""Those that they were trained on, beside scikit-learn's two; of the stereo pair both views."""


def photograph(name: str) -> np.ndarray:
    """Return a photograph that scikit-image ships, ``(H, W, C)`` uint8.

    Args:
        name: A name in :data:`HELD_OUT` or :data:`TRAINED`; of a stereo pair, the left view.
    """
    image = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    return image[..., None] if image.ndim == 2 else image[..., :3]


def write_small(folder: Path, scale: int, name: str = "astronaut") -> tuple[Path, np.ndarray]:
    """Write a photograph reduced by ``scale`` as PNG, atomically, and return the file and the photograph.

    Args:
        folder: Where to.
        scale: Factor.
        name: Which photograph.
    """
    large = modcrop(photograph(name), scale)
    small = imresize(large, 1 / scale)
    path = folder / f"{name}_small.png"
    with atomic_path(path) as part:
        Image.fromarray(small if small.shape[2] == 3 else small[..., 0]).save(part, format="PNG")
    return path, large

"""ESPCN (Shi et al., CVPR 2016): all convolutions at the low resolution, and one rearrangement at the end.

Earlier networks enlarged the picture first and then convolved at the high resolution. Here the last convolution gives ``r^2`` values per
low-resolution pixel for each colour, and the *sub-pixel* layer, a periodic shuffle without arithmetic, lays them out as ``r x r`` pixels:

    ``SR[c, r y + i, r x + j] = f(LR)[c r^2 + i r + j, y, x]``

which makes every layer ``r^2`` times cheaper, and the enlargement itself learned. The paper's network works on luminance;
chroma is enlarged by bicubic interpolation.
"""

from __future__ import annotations

from cnnkit.errors import ConfigError, unknown
from torch import Tensor, nn

from cnnkit_superres.models._base import LUMINANCE, SuperResolver

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class ESPCN(SuperResolver):
    """Two convolutions of the features, one to ``scale^2`` maps, and the shuffle.

    Args:
        scale: Factor.
        in_chans: 1 for luminance, as in the paper, or 3.
        widths: Features after the first and the second convolution.
        activation: ``"tanh"`` as in the paper, or ``"relu"``.

    Shapes:
        x: ``(B, in_chans, H, W)``; the result is ``(B, in_chans, scale * H, scale * W)``.

    Raises:
        ConfigError: If there is no such activation.
    """

    def __init__(self, *, scale: int = 3, in_chans: int = LUMINANCE, widths: tuple[int, int] = (64, 32), activation: str = "tanh") -> None:
        super().__init__(scale=scale, in_chans=in_chans)
        if activation not in ACTIVATIONS:
            raise ConfigError(unknown("activation", activation, ACTIVATIONS))
        self.conv1 = nn.Conv2d(in_chans, widths[0], 5, padding=2)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=1)
        self.conv3 = nn.Conv2d(widths[1], in_chans * scale**2, 3, padding=1)
        self.act = ACTIVATIONS[activation]()
        self.shuffle = nn.PixelShuffle(scale)

    def enlarge(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, scale * H, scale * W)``."""
        x = self.act(self.conv1(x))
        return self.shuffle(self.conv3(self.act(self.conv2(x))))

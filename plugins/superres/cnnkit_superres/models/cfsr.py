"""CFSR (Wu et al., IEEE Transactions on Image Processing, 2024): a transformer's layout with convolutions for the mixing.

Self-attention gives way to a large depthwise kernel whose result weighs a second projection, and the feed-forward part looks for edges.
Its depthwise kernel is the sum of a learned one and of three fixed detectors of edges, each with a learned scale per channel::

    K = K_learned + s_x Sobel_x + s_y Sobel_y + s_l Laplacian

Training sees the four terms, so that gradients of the picture have a path of their own; a convolution is linear, so inference has one
kernel. Both forms here convolve once: it is the kernels that are added, not four results. A layer is

    ``x = x + gamma_1 mixer(x)``, ``x = x + gamma_2 feed_forward(x)``, each with a layer normalisation inside.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from cnnkit.layers.norm import LayerNormNd
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_superres.models._base import RGB, SuperResolver

SOBEL_X = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
SOBEL_Y = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
EDGES = {"sobel_x": SOBEL_X, "sobel_y": SOBEL_Y, "laplacian": LAPLACIAN}
"""The fixed kernels, by the names that they have in a state dict."""
_MEAN = (0.4488, 0.4371, 0.4040)  # Of DIV2K's training pictures.


class LargeKernelMixer(nn.Module):
    """Weigh one projection of the features by a large depthwise convolution of another.

    Shapes:
        x: ``(B, channels, H, W)``; the result has the same shape.

    Args:
        channels: Number of channels.
        kernel_size: Side of the depthwise kernel, odd.
    """

    def __init__(self, channels: int, *, kernel_size: int = 9) -> None:
        super().__init__()
        depthwise = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = LayerNormNd(channels)
        self.a = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), nn.Sequential(OrderedDict(lkb_reparam=depthwise)))
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the neighbourhood of every pixel."""
        x = self.norm(x)
        return self.proj(self.a(x) * self.v(x))


class EdgeFeedForward(nn.Module):
    """The edge-preserving feed-forward network: expand, convolve depthwise with a learned kernel and edge detectors, reduce.

    Shapes:
        x: ``(B, channels, H, W)``; the result has the same shape.

    Args:
        channels: Number of channels.
        ratio: Expansion inside.
        edges: Have the scaled edge detectors; without them it is the form for inference.
    """

    edges: Tensor | None

    def __init__(self, channels: int, *, ratio: int = 2, edges: bool = True) -> None:
        super().__init__()
        hidden = channels * ratio
        self.norm = LayerNormNd(channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.pos = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.act = nn.GELU()
        self.register_buffer("edges", torch.tensor([list(EDGES.values())]) if edges else None, persistent=False)  # (1, 3, 3, 3)
        for edge in EDGES if edges else ():
            self.register_parameter(f"scale_{edge}", nn.Parameter(1e-3 * torch.randn(hidden, 1, 1, 1)))
            self.register_parameter(f"{edge}_bias", nn.Parameter(1e-3 * torch.randn(hidden)))

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Return the weight, ``(hidden, 1, 3, 3)``, and the bias of the one depthwise convolution that all terms add up to."""
        assert self.pos.bias is not None
        if self.edges is None:
            return self.pos.weight, self.pos.bias
        scales = torch.cat([self.get_parameter(f"scale_{edge}") for edge in EDGES], dim=1)
        biases = torch.stack([self.get_parameter(f"{edge}_bias") for edge in EDGES])
        return self.pos.weight + (scales * self.edges).sum(1, keepdim=True), self.pos.bias + biases.sum(0)

    def forward(self, x: Tensor) -> Tensor:
        """Aggregate the features of the 3x3 neighbourhood of every pixel."""
        x = self.act(self.fc1(self.norm(x)))
        weight, bias = self.kernel()
        return self.fc2(x + self.act(F.conv2d(x, weight, bias, padding=1, groups=self.pos.groups)))

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return the form for inference, with one depthwise kernel."""
        channels, hidden = self.fc2.out_channels, self.fc2.in_channels
        state = {key: value for key, value in self.state_dict().items() if "sobel" not in key and "laplacian" not in key}
        state["pos.weight"], state["pos.bias"] = self.kernel()
        layer = EdgeFeedForward(channels, ratio=hidden // channels, edges=False).to(self.pos.weight)
        layer.load_state_dict(state)
        return layer


class ConvFormerLayer(nn.Module):
    """A mixer and a feed-forward network, each added to what it was given with a learned scale per channel.

    Shapes:
        x: ``(B, channels, H, W)``; the result has the same shape.

    Args:
        channels: Number of channels.
        kernel_size: Of the mixer.
        ratio: Of the feed-forward network.
        scale_init: What the two scales start at.
    """

    def __init__(self, channels: int, *, kernel_size: int, ratio: int, scale_init: float) -> None:
        super().__init__()
        self.attn = LargeKernelMixer(channels, kernel_size=kernel_size)
        self.mlp = EdgeFeedForward(channels, ratio=ratio)
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), scale_init))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), scale_init))

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        x = torch.addcmul(x, self.layer_scale_1[:, None, None], self.attn(x))
        return torch.addcmul(x, self.layer_scale_2[:, None, None], self.mlp(x))


class ResidualGroup(nn.Module):
    """A chain of layers and a 1x1 convolution, which is added to the chain's result.

    Shapes:
        x: ``(B, channels, H, W)``; the result has the same shape.
    """

    def __init__(self, layers: Sequence[ConvFormerLayer], channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*layers)
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the chain."""
        x = self.blocks(x)
        return self.conv(x) + x


def _is_official(keys: Collection[str]) -> bool:
    """The official files hold the merged network; a training state of that code holds the fixed kernels as ``mask_...`` too."""
    inside = [key for key in keys if ".mlp." in key]
    return any(".mask_" in key for key in inside) or (bool(inside) and not any(".scale_" in key for key in inside))


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give merged kernels edge detectors of scale 0, and take over kernels of the file that are not quite Sobel's or Laplace's.

    In the official code one entry each of the horizontal Sobel kernel and of the Laplacian stands in the neighbouring place. What the
    file's kernel has beyond ours goes into the learned kernel, so the network computes what it did.
    """
    state = dict(state)
    for key in [key for key in state if key.endswith(".mlp.pos.weight")]:
        stem = key.removesuffix("pos.weight")
        hidden = state[key].shape[0]
        for edge, kernel in EDGES.items():
            scale = state.setdefault(f"{stem}scale_{edge}", state[key].new_zeros(hidden, 1, 1, 1))
            state.setdefault(f"{stem}{edge}_bias", state[key].new_zeros(hidden))
            if (mask := state.pop(f"{stem}mask_{edge}", None)) is not None:
                state[key] = state[key] + scale * (mask - mask.new_tensor(kernel))
    return state


class CFSR(SuperResolver):
    """Groups of ConvFormer layers at the low resolution between two convolutions, a long skip, and a sub-pixel shuffle.

    :func:`cnnkit.layers.fuse.fuse` gives the published form for inference. Files of the official code hold that form; loaded here they
    compute the same and can be trained on, with edge detectors that start at a scale of 0.

    Args:
        scale: Factor.
        in_chans: 3 for RGB, 1 for luminance.
        channels: Features of every layer.
        depths: Number of layers of each group.
        kernel_size: Side of the mixers' depthwise kernels, odd.
        mlp_ratio: Expansion in the feed-forward networks.
        layer_scale_init: What the scales of the branches start at.

    Shapes:
        x: ``(B, in_chans, H, W)``; the result is ``(B, in_chans, scale * H, scale * W)``.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("official", _is_official, _from_official),)
    mean: Tensor

    def __init__(
        self,
        *,
        scale: int = 4,
        in_chans: int = RGB,
        channels: int = 48,
        depths: tuple[int, ...] = (6, 6),
        kernel_size: int = 9,
        mlp_ratio: int = 2,
        layer_scale_init: float = 1e-6,
    ) -> None:
        super().__init__(scale=scale, in_chans=in_chans)
        mean = torch.tensor(_MEAN if in_chans == RGB else (0.0,)).view(-1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = nn.Conv2d(in_chans, channels, 3, padding=1)
        self.layers = nn.Sequential()
        for depth in depths:
            chain = [ConvFormerLayer(channels, kernel_size=kernel_size, ratio=mlp_ratio, scale_init=layer_scale_init) for _ in range(depth)]
            self.layers.append(ResidualGroup(chain, channels))
        self.norm = LayerNormNd(channels)
        self.conv_after_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsample = nn.Sequential(nn.Conv2d(channels, in_chans * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def enlarge(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, scale * H, scale * W)``."""
        shallow = self.conv_first(x - self.mean)
        deep = self.conv_after_body(self.norm(self.layers(shallow)))
        return self.upsample(deep + shallow) + self.mean

"""A2N (Chen et al., 2021), "Attention in Attention Network for Image Super-Resolution": attention where it helps, less where it does not.

Switching off the attention of single blocks of a trained network can make its pictures better. So each block has a branch with attention
per pixel and a branch without, and a small *dynamic attention module* looks at the whole feature map and weighs them::

    (w_a, w_n) = softmax(W_2 relu(W_1 mean(x)) / t),    y = x_0 + conv(lrelu(w_a attention(x) + w_n plain(x)))

:func:`branch_weights` shows the weights for a picture, :func:`forced_branches` overrides them, as the paper's ablation does.

The mean is over the picture, so a result depends on all of it: tiles are not exact, and whoever enlarges by tiles must say so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError, UsageError
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_superres.models._base import RGB, SuperResolver

_STEPS = {2: (2,), 3: (3,), 4: (2, 2)}
_SLOPE = 0.2
_RANGE = 255.0  # The official weights see colours from 0 to 255, without a shift.


class AttentionBranch(nn.Module):
    """A convolution whose features are weighed by a sigmoid map of their own size, then another convolution.

    Shapes:
        x: ``(B, channels, H, W)``; the result has the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.k1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.k2 = nn.Conv2d(channels, channels, 1)
        self.k3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.k4 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighed features."""
        attention = self.k2(F.leaky_relu(self.k1(x), _SLOPE)).sigmoid()
        return self.k4(self.k3(x) * attention)


class A2Block(nn.Module):
    """A branch with attention and one without, summed with weights that the input chooses, and a shortcut.

    Shapes:
        x: ``(B, channels, H, W)``; the result has the same shape.

    Args:
        channels: Number of channels.
        plain_kernel: Side of the kernel of the branch without attention, odd.
        reduction: Of the channels inside the dynamic attention module.
        temperature: Divides what the softmax sees.
    """

    forced: tuple[float, float] | None = None
    """Weights of the branches with and without attention to use instead of the module's."""

    def __init__(self, channels: int, *, plain_kernel: int = 3, reduction: int = 4, temperature: float = 30.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.conv_first = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv_last = nn.Conv2d(channels, channels, 1, bias=False)
        hidden = max(1, channels // reduction)
        self.ADM = nn.Sequential(nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, 2, bias=False))
        self.attention = AttentionBranch(channels)
        self.non_attention = nn.Conv2d(channels, channels, plain_kernel, padding=plain_kernel // 2, bias=False)

    def weigh(self, x: Tensor) -> Tensor:
        """Return the weights of the two branches, ``(B, 2)``, for the features that both see."""
        if self.forced is not None:
            return x.new_tensor(self.forced).expand(x.shape[0], 2)
        return (self.ADM(x.mean((2, 3))) / self.temperature).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's result."""
        features = F.leaky_relu(self.conv_first(x), _SLOPE)
        attended, plain = self.weigh(features)[:, :, None, None, None].unbind(1)
        mixed = torch.addcmul(self.non_attention(features) * plain, self.attention(features), attended)
        return x + self.conv_last(F.leaky_relu(mixed, _SLOPE))


class PixelAttention(nn.Module):
    """Weigh every value by a sigmoid of a 1x1 convolution (Zhao et al., 2020, "Efficient Image Super-Resolution Using Pixel Attention")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` weighed."""
        return x * self.conv(x).sigmoid()


class EnlargedConv(nn.Conv2d):
    """Repeat every pixel ``factor`` times along both sides, then convolve 3x3.

    Shapes:
        x: ``(B, in_channels, H, W)``; the result is ``(B, out_channels, factor * H, factor * W)``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        factor: Enlargement.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge and convolve."""
        return super().forward(F.interpolate(x, scale_factor=float(self.factor), mode="nearest"))

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return the transposed convolution that computes the same with ``((factor + 2) / factor)^2`` products instead of 9.

        Repetition is a transposed convolution with ones, and a chain of two is one whose kernel is their full convolution.
        """
        layer = nn.ConvTranspose2d(self.in_channels, self.out_channels, self.factor + 2, stride=self.factor, padding=1).to(self.weight)
        ones = self.weight.new_ones(1, 1, self.factor, self.factor)
        flipped = self.weight.flip(2, 3).transpose(0, 1).flatten(0, 1)[:, None]
        full = F.conv2d(flipped, ones, padding=self.factor - 1)
        layer.weight.copy_(full[:, 0].unflatten(0, (self.in_channels, self.out_channels)))
        assert self.bias is not None and layer.bias is not None
        layer.bias.copy_(self.bias)
        return layer


class A2N(SuperResolver):
    """Blocks with weighed branches at the low resolution, enlargement by repetition, and the linearly enlarged picture added.

    Args:
        scale: 2, 3 or 4.
        in_chans: 3 for RGB, 1 for luminance.
        channels: Features of the blocks.
        tail_channels: Features after the enlargement.
        depth: Number of blocks.
        plain_kernel: Side of the kernel of the branch without attention: 3, or 1 for A2N-M.
        reduction: Of the channels inside the dynamic attention modules.
        temperature: Of their softmax.

    Shapes:
        x: ``(B, in_chans, H, W)``; the result is ``(B, in_chans, scale * H, scale * W)``.

    Raises:
        ConfigError: If the scale is another.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("official"),)

    def __init__(
        self,
        *,
        scale: int = 4,
        in_chans: int = RGB,
        channels: int = 40,
        tail_channels: int = 24,
        depth: int = 16,
        plain_kernel: int = 3,
        reduction: int = 4,
        temperature: float = 30.0,
    ) -> None:
        super().__init__(scale=scale, in_chans=in_chans)
        if scale not in _STEPS:
            raise ConfigError(f"A2N enlarges by 2, 3 or 4, not by {scale}")
        self.conv_first = nn.Conv2d(in_chans, channels, 3, padding=1)
        self.AAB_trunk = nn.Sequential(
            *(A2Block(channels, plain_kernel=plain_kernel, reduction=reduction, temperature=temperature) for _ in range(depth))
        )
        self.trunk_conv = nn.Conv2d(channels, channels, 3, padding=1)
        for step, factor in enumerate(_STEPS[scale], 1):
            self.add_module(f"upconv{step}", EnlargedConv(channels if step == 1 else tail_channels, tail_channels, factor))
            self.add_module(f"att{step}", PixelAttention(tail_channels))
            self.add_module(f"HRconv{step}", nn.Conv2d(tail_channels, tail_channels, 3, padding=1))
        self.conv_last = nn.Conv2d(tail_channels, in_chans, 3, padding=1)

    def enlarge(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, scale * H, scale * W)``."""
        features = self.conv_first(x * _RANGE)
        features = features + self.trunk_conv(self.AAB_trunk(features))
        for step in range(1, len(_STEPS[self.scale]) + 1):
            for name in ("upconv", "att", "HRconv"):
                features = self.get_submodule(f"{name}{step}")(features)
                if name != "upconv":
                    features = F.leaky_relu(features, _SLOPE)
        return self.conv_last(features) / _RANGE + F.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)


def _blocks(model: nn.Module) -> list[A2Block]:
    """Return the blocks of a network in order."""
    blocks = [module for module in model.modules() if isinstance(module, A2Block)]
    if not blocks:
        raise UsageError(f"{type(model).__name__} has no blocks with weighed branches; this is for A2N, for example superres/a2n_x2")
    return blocks


@torch.no_grad()
def branch_weights(model: nn.Module, x: Tensor) -> Tensor:
    """Return how each block weighs its branches for each picture.

    Args:
        model: An :class:`A2N`.
        x: Pictures, ``(B, in_chans, H, W)``, in [0, 1].

    Returns:
        ``(B, blocks, 2)``: the weights of the branches with and without attention, which sum to 1.

    Raises:
        UsageError: If the model has no such blocks.
    """
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], features: Tensor) -> None:
        seen.append(block_of[module].weigh(F.leaky_relu(features, _SLOPE)))

    block_of: dict[nn.Module, A2Block] = {block.conv_first: block for block in _blocks(model)}
    handles = [convolution.register_forward_hook(note) for convolution in block_of]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen, 1)


@contextmanager
def forced_branches(model: nn.Module, weights: tuple[float, float], blocks: Collection[int] | None = None) -> Iterator[None]:
    """Give the branches fixed weights inside a ``with`` statement: ``(0, 1)`` removes the attention, ``(1, 0)`` the branch without it.

    Args:
        model: An :class:`A2N`.
        weights: Of the branches with and without attention.
        blocks: Numbers of the blocks, from 0; by default all.

    Raises:
        UsageError: If the model has no such blocks, or not one of these numbers.
    """
    every = _blocks(model)
    if odd := sorted(number for number in blocks or () if not 0 <= number < len(every)):
        raise UsageError(f"there is no block {odd[0]}; this network's blocks are 0 to {len(every) - 1}")
    chosen = every if blocks is None else [every[number] for number in blocks]
    before = [block.forced for block in chosen]
    for block in chosen:
        block.forced = weights
    try:
        yield
    finally:
        for block, forced in zip(chosen, before, strict=True):
            block.forced = forced

"""SPAN (Wan et al., CVPR 2024 workshops), and DSCF, its size in the challenge that DSCLoRA won (Chai et al., CVPR 2025 workshops).

Attention without parameters: what the third convolution of a block finds is its own map of where to look. The activation is odd, so that
strong responses of either sign count, and flat regions, where the response is near zero, are held back::

    a = silu(conv1(x)),  h = conv3(silu(conv2(a))),  y = (x + h) (sigmoid(h) - 1/2)

Six blocks follow one another; the input of the first, the first and the last output and the last block's ``a`` meet in a 1x1 convolution.

Every 3x3 convolution is trained as a sum of a 1x1 and a chain 1x1 - 3x3 - 1x1 of twice the width, which is one kernel
(:class:`TripleConv`). The official code runs the branches in training and the kernel afterwards. Here the kernel is formed first in
training too: the same function and the same gradients, for a fifth of the arithmetic on the maps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from cnnkit.weights import Layout, has_keys
from torch import Tensor, nn

from cnnkit_superres.models._base import RGB, SuperResolver

BLOCKS = 6
RGB_MEAN = (0.4488, 0.4371, 0.4040)
RANGE = 255.0
"""The network sees colours of 0 to 255 less their mean over DIV2K; its output is in [0, 1] as it is."""
WIDENING = 2


def triple_kernel(
    chain: tuple[Tensor, Tensor, Tensor], biases: tuple[Tensor, Tensor, Tensor], skip: Tensor, skip_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the one 3x3 convolution that equals 1x1, 3x3 and 1x1 in a row plus a 1x1 beside them.

    The zeros of the border lie outside of the whole chain, so that it is exact there as well.

    Args:
        chain: Weights in the order of use, ``(m, i, 1, 1)``, ``(n, m, 3, 3)`` and ``(o, n, 1, 1)``.
        biases: Their biases.
        skip: Weight of the 1x1 convolution, ``(o, i, 1, 1)``.
        skip_bias: Its bias.
    """
    first, middle, last = chain[0].flatten(1), chain[1], chain[2].flatten(1)
    weight = torch.einsum("on,nihw->oihw", last, torch.einsum("nmhw,mi->nihw", middle, first))
    bias = last @ (middle.sum((2, 3)) @ biases[0] + biases[1]) + biases[2]
    return weight + F.pad(skip, (1, 1, 1, 1)), bias + skip_bias


class _Derived(nn.Module):
    """The merged kernel under the key that the official files have for it; it is written for other readers, and never read here."""

    weight: Tensor
    bias: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(out_channels, in_channels, 3, 3))
        self.register_buffer("bias", torch.zeros(out_channels))


class TripleConv(nn.Module):
    """A 3x3 convolution with over-complete weights: ``conv[2](conv[1](conv[0](x))) + sk(x)``, computed by one kernel.

    Its state has the merged kernel too, under ``eval_conv``, as the official files do. The branches are what counts: the kernel of a
    file is not used, as in the official code, and that of a state is brought up to date when the state is asked for.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.

    Shapes:
        x: ``(B, in_channels, H, W)``; the result is ``(B, out_channels, H, W)``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        inner, outer = WIDENING * in_channels, WIDENING * out_channels
        self.sk = nn.Conv2d(in_channels, out_channels, 1)
        self.conv = nn.Sequential(nn.Conv2d(in_channels, inner, 1), nn.Conv2d(inner, outer, 3), nn.Conv2d(outer, out_channels, 1))
        self.eval_conv = _Derived(in_channels, out_channels)
        self.register_state_dict_pre_hook(_derive)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the convolution that the branches amount to."""
        first, middle, last = (layer.weight for layer in self.conv)
        biases = tuple(layer.bias for layer in self.conv)
        return triple_kernel((first, middle, last), biases, self.sk.weight, self.sk.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the kernel."""
        weight, bias = self.kernel()
        return F.conv2d(x, weight, bias, padding=1)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return the plain convolution, under the key ``eval_conv``, which is how the merged official files name it."""
        weight, bias = self.kernel()
        plain = plain_conv(weight.shape[1], weight.shape[0]).to(weight)
        plain.load_state_dict({"eval_conv.weight": weight, "eval_conv.bias": bias})
        return plain


@torch.no_grad()
def _derive(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Bring ``eval_conv`` up to date before a state is read."""
    assert isinstance(module, TripleConv)
    weight, bias = module.kernel()
    module.eval_conv.weight.copy_(weight)
    module.eval_conv.bias.copy_(bias)


def plain_conv(in_channels: int, out_channels: int) -> nn.Module:
    """Return a 3x3 convolution under the key ``eval_conv``."""
    return nn.Sequential(OrderedDict(eval_conv=nn.Conv2d(in_channels, out_channels, 3, padding=1)))


class AttentionBlock(nn.Module):
    """Three convolutions, and attention that reads nothing but what they found.

    Args:
        channels: Features.
        merged: Plain convolutions in place of :class:`TripleConv`.

    Shapes:
        x: ``(B, channels, H, W)``; the results are the output and the activation of the first convolution, both of that shape.
    """

    def __init__(self, channels: int, *, merged: bool = False) -> None:
        super().__init__()
        layer = plain_conv if merged else TripleConv
        self.c1_r = layer(channels, channels)
        self.c2_r = layer(channels, channels)
        self.c3_r = layer(channels, channels)
        # In place, as in the official code: what a hook keeps of c1_r and c2_r is activated, and DSCLoRA distils it so.
        self.act1 = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's output and the activation of its first convolution."""
        first = self.act1(self.c1_r(x))
        found = self.c3_r(self.act1(self.c2_r(first)))
        return (found + x) * (found.sigmoid() - 0.5), first


def merge_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a merged network from those of one with branches."""
    merged: dict[str, Tensor] = {}
    for key, value in state.items():
        name, _, part = key.rpartition(".sk.")
        if part == "weight":
            steps = [f"{name}.conv.{step}" for step in range(3)]
            first, middle, last = (state[f"{step}.weight"] for step in steps)
            one, two, three = (state[f"{step}.bias"] for step in steps)
            weight, bias = triple_kernel((first, middle, last), (one, two, three), value, state[f"{name}.sk.bias"])
            merged[f"{name}.eval_conv.weight"], merged[f"{name}.eval_conv.bias"] = weight, bias
        elif not any(branch in key for branch in (".sk.", ".conv.", ".eval_conv.")):
            merged[key] = value
    return merged


class SPAN(SuperResolver):
    """Six blocks of parameter-free attention between a convolution and a sub-pixel shuffle.

    Args:
        scale: Factor.
        in_chans: 3 for RGB, 1 for luminance.
        channels: Features: 52 in the paper's SPAN, 48 in its SPAN-S, 26 in DSCF.
        merged: Build it of plain convolutions, for inference or for adapters: what :func:`cnnkit.layers.fuse.fuse` makes of the
            trained network. Files of either form are understood; those with branches are merged on the way in.

    Shapes:
        x: ``(B, in_chans, H, W)``; the result is ``(B, in_chans, scale * H, scale * W)``.
    """

    layouts = (Layout("official", has_keys("conv_1.sk.weight", "conv_1.conv.0.weight"), merge_state),)
    mean: Tensor

    def __init__(self, *, scale: int = 4, in_chans: int = RGB, channels: int = 48, merged: bool = False) -> None:
        super().__init__(scale=scale, in_chans=in_chans)
        layer = plain_conv if merged else TripleConv
        self.conv_1 = layer(in_chans, channels)
        for number in range(1, BLOCKS + 1):
            self.add_module(f"block_{number}", AttentionBlock(channels, merged=merged))
        self.conv_cat = nn.Conv2d(4 * channels, channels, 1)
        self.conv_2 = layer(channels, channels)
        self.upsampler = nn.Sequential(nn.Conv2d(channels, in_chans * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        mean = torch.tensor(RGB_MEAN)
        self.register_buffer("mean", (mean if in_chans == RGB else mean.mean()).view(1, -1, 1, 1), persistent=False)

    def enlarge(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, scale * H, scale * W)``."""
        shallow = x = self.conv_1((x - self.mean) * RANGE)
        first_output = inner = x
        for number in range(1, BLOCKS + 1):
            x, inner = self.get_submodule(f"block_{number}")(x)
            if number == 1:
                first_output = x
        x = self.conv_cat(torch.cat([shallow, self.conv_2(x), first_output, inner], 1))
        return self.upsampler(x)

"""CondConv: Yang, Bender, Le and Ngiam (2019), "CondConv: Conditionally Parameterized Convolutions for Efficient Inference".

A convolution whose kernel is made for each example, as a sum of expert kernels that the example's own features weight::

    r(x) = sigmoid(R mean(x) + b);    y = (sum_i r_i(x) W_i) * x  =  sum_i r_i(x) (W_i * x)

The first form mixes kernels, then convolves once: it costs hardly more than one convolution, whatever the number of experts. The
second mixes the outputs of all experts; it is the same because convolution is linear, and it trains faster with few experts.
In the paper's networks the three convolutions of an inverted bottleneck share one routing (:class:`CondInvertedResidual`), in the
later half of the blocks::

    for stage in model.blocks[4:]:
        for index, block in enumerate(stage):
            stage[index] = CondInvertedResidual(block, experts=8)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit.errors import ConfigError, UsageError, unknown
from cnnkit.layers.conv import same_padding
from cnnkit.layers.mbconv import InvertedResidual
from cnnkit.layers.nd import check_dims, tupled
from cnnkit.layers.same import SameConv1d, SameConv2d, SameConv3d, pad_same
from cnnkit.registry import Entry

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
FORMS = ("kernels", "outputs")


class Routing(nn.Linear):
    """The weight of every expert for every example, between 0 and 1, from the global means of its features.

    Shapes:
        x: ``(B, channels, *spatial)``; the result is ``(B, experts)``.

    Args:
        channels: Channels of the features.
        experts: Number of experts.
        device: Where the parameters live.
        dtype: Their type.
    """

    def __init__(self, channels: int, experts: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(channels, experts, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Return the weights."""
        return super().forward(input.mean(tuple(range(2, input.ndim)))).sigmoid()


class CondConv(nn.Module):
    """A convolution with a kernel for every example, mixed from those of experts.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *spatial / stride)``, rounded up for odd kernels with
        the default padding.
        routing: ``(B, experts)``, weights that replace the layer's own.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: One size, or one per dimension.
        experts: Number of kernels; the paper has 4 or 8.
        dims: Number of spatial dimensions: 1, 2 or 3.
        stride: Stride, one or one per dimension.
        padding: Zeros on each side; by default what keeps the size at stride 1. ``"same"`` pads as TensorFlow does.
        dilation: Dilation, one or one per dimension.
        groups: Groups of the convolution; ``in_channels`` makes it depthwise.
        bias: Whether every expert has a bias, which is mixed as the kernels are.
        route: Whether the layer has a :class:`Routing` of its own; without, it needs ``routing`` in every call.
        form: ``"kernels"`` or ``"outputs"``: what is mixed. It may be changed at any time. ONNX with a free batch size needs
            ``"outputs"``: the other form has a number of groups that depends on it.
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ConfigError: If the form is unknown, or the channels cannot be divided into the groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        experts: int = 4,
        dims: int = 2,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str | None = None,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        route: bool = True,
        form: str = "kernels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ConfigError(unknown("form", form, FORMS))
        if in_channels % groups or out_channels % groups:
            raise ConfigError(f"groups={groups} does not divide in_channels={in_channels} and out_channels={out_channels}")
        if isinstance(padding, str) and padding != "same":
            raise ConfigError(unknown("padding", padding, ("same",)))
        self.dims = check_dims(dims)
        self.in_channels, self.out_channels, self.experts, self.groups, self.form = in_channels, out_channels, experts, groups, form
        self.kernel_size, self.stride, self.dilation = tupled(kernel_size, dims), tupled(stride, dims), tupled(dilation, dims)
        self.pad_same = padding == "same"
        if padding is None:
            self.padding = same_padding(self.kernel_size, self.dilation, dims=dims)
        else:
            self.padding = tupled(0 if isinstance(padding, str) else padding, dims)
        shape = (experts, out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(experts, out_channels, device=device, dtype=dtype)) if bias else None
        self.routing_fn = Routing(in_channels, experts, device=device, dtype=dtype) if route else None
        self.reset_parameters()

    @classmethod
    def like(cls, layer: nn.Module, *, experts: int = 4, route: bool = True, form: str = "kernels") -> CondConv:
        """Return a new layer of the geometry of a convolution; its kernels are drawn anew.

        Equal experts would have equal gradients and stay equal, so that kernels are not taken over.

        Args:
            layer: A convolution; if it pads as :mod:`cnnkit.layers.same` does, so does the new one.
            experts: Number of kernels.
            route: Whether the layer has a routing of its own.
            form: What is mixed.
        """
        plain: Any = layer
        return cls(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,
            experts=experts,
            dims=plain.weight.ndim - 2,
            stride=plain.stride,
            padding="same" if isinstance(layer, (SameConv1d, SameConv2d, SameConv3d)) else plain.padding,
            dilation=plain.dilation,
            groups=plain.groups,
            bias=plain.bias is not None,
            route=route,
            form=form,
            device=plain.weight.device,
            dtype=plain.weight.dtype,
        )

    def reset_parameters(self) -> None:
        """Draw every expert as a convolution by itself is drawn."""
        bound = 1 / math.sqrt(math.prod(self.weight.shape[2:]))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, routing: Tensor | None = None) -> Tensor:
        """Convolve every example with its own kernel.

        Raises:
            UsageError: If neither the layer nor the call has a routing.
        """
        if routing is None:
            if self.routing_fn is None:
                raise UsageError("this layer has no routing of its own (route=False): call it as layer(x, routing), with (B, experts)")
            routing = self.routing_fn(x)
        if self.pad_same:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return self._mix_kernels(x, routing) if self.form == "kernels" else self._mix_outputs(x, routing)

    def _mix_kernels(self, x: Tensor, routing: Tensor) -> Tensor:
        """Convolve once, with the examples as groups of one."""
        batch = x.shape[0]
        weight = (routing @ self.weight.flatten(1)).view(batch * self.out_channels, *self.weight.shape[2:])
        bias = None if self.bias is None else (routing @ self.bias).flatten()
        y = self._convolve(x.reshape(1, batch * self.in_channels, *x.shape[2:]), weight, bias, batch * self.groups)
        return y.reshape(batch, self.out_channels, *y.shape[2:])

    def _mix_outputs(self, x: Tensor, routing: Tensor) -> Tensor:
        """Convolve with all experts, as so many more output channels within every group."""
        weight = self.weight.unflatten(1, (self.groups, -1)).transpose(0, 1).flatten(0, 2)
        bias = None if self.bias is None else self.bias.unflatten(1, (self.groups, -1)).transpose(0, 1).flatten()
        y = self._convolve(x, weight, bias, self.groups)
        parts = y.reshape(x.shape[0], self.groups, self.experts, -1)
        mixed = routing.view(-1, 1, 1, self.experts) @ parts
        return mixed.view(x.shape[0], self.out_channels, *y.shape[2:])

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        return _CONV[self.dims](x, weight, bias, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=groups)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, experts={self.experts}, form={self.form!r}"


class CondInvertedResidual(nn.Module):
    """An inverted bottleneck whose three convolutions have experts and share one routing, that of the block's input.

    Names of parameters are timm's.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *ceil(spatial / stride))``.

    Args:
        block: The block to take the place of; all but its convolutions is taken over.
        experts: Number of kernels of each convolution.
        form: ``"kernels"`` or ``"outputs"``, see :class:`CondConv`.
    """

    def __init__(self, block: InvertedResidual, *, experts: int = 4, form: str = "kernels") -> None:
        super().__init__()
        self.has_shortcut = block.has_shortcut
        weight: Any = block.conv_pw.weight
        self.routing_fn = Routing(weight.shape[1], experts, device=weight.device, dtype=weight.dtype)
        self.conv_pw = CondConv.like(block.conv_pw, experts=experts, route=False, form=form)
        self.bn1 = block.bn1
        self.act = block.act
        self.conv_dw = CondConv.like(block.conv_dw, experts=experts, route=False, form=form)
        self.bn2 = block.bn2
        self.se = block.se
        self.conv_pwl = CondConv.like(block.conv_pwl, experts=experts, route=False, form=form)
        self.bn3 = block.bn3
        self.drop_path = block.drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        routing = self.routing_fn(x)
        branch = self.act(self.bn1(self.conv_pw(x, routing)))
        branch = self.se(self.act(self.bn2(self.conv_dw(branch, routing))))
        branch = self.bn3(self.conv_pwl(branch, routing))
        return x + self.drop_path(branch) if self.has_shortcut else branch


LAYERS = {
    "condconv": Entry(
        "cnnkit.layers.condconv:CondConv",
        paper="condconv",
        summary="Convolution with a kernel for every example, mixed from those of experts (Yang et al., 2019).",
        dims=(1, 2, 3),
    ),
}

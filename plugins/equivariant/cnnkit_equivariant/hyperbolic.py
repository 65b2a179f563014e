"""Layers of convolutional networks in hyperbolic space.

Bdeir, Schwethelm and Landwehr (2024), "Fully Hyperbolic Convolutional Neural Networks for Computer Vision". Features are points of the
Lorentz model, one for each pixel, held by their space parts alone: ``(B, C, *spatial)``, where ``C`` is the dimension of the space
(:mod:`cnnkit_equivariant.lorentz`). The time part follows, so that

* the direct concatenation of the points ``x_i`` in a window, whose time is ``sqrt(sum t_i**2 - (N - 1)/k)``, has just
  ``sqrt(1/k + sum |s_i|**2)``: a sum over the window. The Lorentz fully connected layer on it is then an ordinary convolution of the space
  parts and one more term, and no window is ever unfolded; padding with zeros is padding with the origin;
* a rectifier acts on the space part, and a shortcut adds space parts: ``torch.relu`` and ``+``;
* what is learnt are space parts of points, which any optimizer may move: no step leaves the manifold, so that no Riemannian one is needed
  (the paper's own code moves the mean of its normalisation by one; Lorentz regression has no constrained parameter).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from cnnkit.layers.nd import check_dims, tupled
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit_equivariant.lorentz import Lorentz, asinhc, norm, stretch

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
EPS = 1e-5
"""Added to the dispersion that a batch normalisation divides by."""


class LorentzLayer(nn.Module):
    """A layer on a manifold that many layers share: the model registers it, and its curvature is saved once.

    Args:
        manifold: The hyperboloid.
    """

    def __init__(self, manifold: Lorentz) -> None:
        super().__init__()
        self._shared = (manifold,)  # Within a tuple it is not registered here.

    @property
    def manifold(self) -> Lorentz:
        """The hyperboloid."""
        return self._shared[0]


class LorentzLinear(LorentzLayer):
    """The Lorentz fully connected layer: the space part is an affine function of the whole point, and the time part follows.

    Args:
        manifold: The hyperboloid.
        in_features: Dimension of the points that come in.
        out_features: Dimension of those that go out.
        bias: Whether there is a bias.

    Shapes:
        x: ``(..., in_features)``; the result is ``(..., out_features)``; space parts.
    """

    def __init__(self, manifold: Lorentz, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__(manifold)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.time_weight = nn.Parameter(torch.empty(out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        bound = math.sqrt(2 / in_features)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return F.linear(x, self.weight, self.bias) + self.manifold.time(x) * self.time_weight


class LorentzConv(LorentzLayer):
    """A convolution of points: direct concatenation of a window, then a Lorentz fully connected layer.

    Args:
        manifold: The hyperboloid.
        in_channels: Dimension of the points that come in.
        out_channels: Dimension of those that go out.
        kernel_size: Size of the window.
        dims: Number of spatial dimensions.
        stride: Stride of the window.
        padding: Origins beside the picture.
        dilation: Step within the window.
        bias: Whether there is a bias.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is as that of an ordinary convolution; space parts.
    """

    def __init__(
        self,
        manifold: Lorentz,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        dims: int = 2,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(manifold)
        self.dims = check_dims(dims)
        size = tupled(kernel_size, dims)
        self.stride, self.padding, self.dilation = tupled(stride, dims), tupled(padding, dims), tupled(dilation, dims)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *size))
        self.time_weight = nn.Parameter(torch.empty(out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        bound = math.sqrt(2 / (in_channels * math.prod(size)))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        squares = self._convolve(x.square().sum(1, keepdim=True), x.new_ones(1, 1, *self.weight.shape[2:]), None)
        time = (squares + 1 / self.manifold.k).sqrt()
        return self._convolve(x, self.weight, self.bias) + time * _channels(self.time_weight, self.dims)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _CONV[self.dims](x, weight, bias, self.stride, self.padding, self.dilation)


class LorentzBatchNorm(LorentzLayer):
    """Moves the centroid of a batch to a learnt point, and scales distances from it to a learnt mean.

    Points are moved by the isometry that takes the centroid to the origin, which is parallel transport of their tangent vectors; these are
    scaled, and the isometry that takes the origin to the learnt point follows. The dispersion is the mean distance from the centroid, as in
    the paper's code; one number for all channels. The centroid is that of all pixels of all pictures (the paper's code takes first that of
    each picture, and of these the centroid).

    Args:
        manifold: The hyperboloid.
        num_features: Dimension of the points.
        momentum: Weight of the batch in the running statistics.

    Shapes:
        x: ``(B, C, *spatial)`` or ``(B, C)``; space parts.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, manifold: Lorentz, num_features: int, *, momentum: float = 0.1) -> None:
        super().__init__(manifold)
        self.momentum = momentum
        self.mean = nn.Parameter(torch.zeros(num_features))
        self.gamma = nn.Parameter(torch.ones(1))
        # The mean as a tangent vector at the origin; the mean distance from it.
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        # All of it is f x + g mean + h beta with three numbers for each point, so that features are read twice and written once.
        manifold, beta = self.manifold, self.mean
        k, root = manifold.k, manifold.k.sqrt()
        points = x.reshape(*x.shape[:2], -1)
        square = points.square().sum(1, keepdim=True)
        time = (square + 1 / k).sqrt()
        mean = self._centroid(points, time) if self.training else manifold.exp0(self.running_mean)
        on_mean, on_beta = (torch.stack([mean, beta]) @ points).split(1, 1)
        # The isometry that takes the mean to the origin adds so much of the mean.
        back = k * on_mean / (1 + root * manifold.time(mean)) - root * time
        moved = (square + back * (2 * on_mean + back * mean.square().sum())).clamp_min(0)
        arc = asinhc(k * moved)
        dispersion = (norm(moved) * arc).mean() if self.training else self.running_var
        if self.training:
            self._remember(mean, dispersion)
        factor = self.gamma / (dispersion + EPS)
        factor = factor * arc * stretch(k * moved * (factor * arc).square())
        there = k * factor * (on_beta + back * (mean @ beta)) / (1 + root * manifold.time(beta))
        there = there + root * (factor.square() * moved + 1 / k).sqrt()
        added = torch.stack([mean, beta], 1) @ torch.cat([factor * back, there], 1)
        return torch.addcmul(added, factor, points).view_as(x)

    def _centroid(self, points: Tensor, time: Tensor) -> Tensor:
        mean = points.mean((0, 2))
        length = torch.maximum(time.mean().square() - mean.square().sum(), 1 / self.manifold.k)
        return mean / (self.manifold.k * length).sqrt()

    @torch.no_grad()
    def _remember(self, mean: Tensor, dispersion: Tensor) -> None:
        manifold = self.manifold
        both = torch.stack([manifold.exp0(self.running_mean), mean.to(self.running_mean)], 1)[None]
        weights = both.new_tensor([2 * (1 - self.momentum), 2 * self.momentum])  # The centroid takes the mean of both.
        centre = self._centroid(both * weights, manifold.time(both, dim=1) * weights)
        self.running_mean.copy_(manifold.log0(centre))
        self.running_var.lerp_(dispersion.to(self.running_var), self.momentum)


class LorentzPool(LorentzLayer):
    """The centroid of all pixels: global average pooling.

    Shapes:
        x: ``(B, C, *spatial)``; the result is ``(B, C)``; space parts.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return self.manifold.centroid(x, tuple(range(2, x.ndim))).flatten(1)


class LorentzRegression(LorentzLayer):
    """Multinomial logistic regression: the logit of a class is the signed distance from a hyperplane, times its steepness.

    The hyperplane of a class is orthogonal to the direction of ``normal`` and passes at the distance ``offset`` from the origin.

    Args:
        manifold: The hyperboloid.
        in_features: Dimension of the points.
        num_classes: Number of classes.

    Shapes:
        x: ``(..., in_features)``, space parts; the result is ``(..., num_classes)``.
    """

    def __init__(self, manifold: Lorentz, in_features: int, num_classes: int) -> None:
        super().__init__(manifold)
        self.offset = nn.Parameter(torch.empty(num_classes))
        self.normal = nn.Parameter(torch.empty(num_classes, in_features))
        bound = 1 / math.sqrt(in_features)
        nn.init.uniform_(self.offset, -bound, bound)
        nn.init.uniform_(self.normal, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        root = self.manifold.k.sqrt()
        steepness = norm(self.normal.square().sum(1))
        angle = root * self.offset
        along = F.linear(x, angle.cosh()[:, None] * self.normal) - self.manifold.time(x) * (angle.sinh() * steepness)
        return along * asinhc((root * along / steepness).square())


def _channels(vector: Tensor, dims: int) -> Tensor:
    """Return a vector ``(C,)`` as ``(C, 1, ...)``."""
    return vector.view(-1, *[1] * dims)

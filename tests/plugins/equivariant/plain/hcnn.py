"""A Lorentz ResNet as one writes it down first: whole points, channels last, unfolded windows, maps at every step.

The structure, the names of the parameters and ``k`` (one over the curvature's size) are those of the paper's code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def inner(x, y):
    return -x[..., :1] * y[..., :1] + (x[..., 1:] * y[..., 1:]).sum(-1, keepdim=True)


class Manifold(nn.Module):
    def __init__(self, k=1.0):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(float(k)))

    def with_time(self, space):
        return torch.cat([(space.square().sum(-1, keepdim=True) + self.k).sqrt(), space], -1)

    def origin(self, like):
        return self.with_time(torch.zeros_like(like[..., 1:]))

    def distance(self, x, y):
        return self.k.sqrt() * torch.acosh((-inner(x, y) / self.k).clamp_min(1 + 1e-15))

    def log(self, x, y):
        direction = y + inner(x, y) / self.k * x
        return self.distance(x, y) * direction / inner(direction, direction).clamp_min(1e-30).sqrt()

    def exp(self, x, v):
        length = inner(v, v).clamp_min(1e-30).sqrt()
        angle = length / self.k.sqrt()
        return angle.cosh() * x + self.k.sqrt() * angle.sinh() * v / length

    def transport(self, x, y, v):
        return v + inner(y, v) / (self.k - inner(x, y)) * (x + y)

    def centroid(self, x):
        mean = x.mean(-2)
        return self.k.sqrt() * mean / (-inner(mean, mean)).sqrt()


class FullyConnected(nn.Module):
    def __init__(self, manifold, ins, outs):
        super().__init__()
        self.manifold = manifold
        self.weight = nn.Linear(ins, outs)
        self.scale = nn.Parameter(torch.tensor(2.3), requires_grad=False)

    def forward(self, x):
        return self.manifold.with_time(self.weight(x)[..., 1:])


class Conv2d(nn.Module):
    """Channels count the time."""

    def __init__(self, manifold, ins, outs, size, stride=1):
        super().__init__()
        self.manifold, self.size, self.stride = manifold, size, stride
        self.linearized_kernel = FullyConnected(manifold, (ins - 1) * size**2 + 1, outs)

    def forward(self, x):
        edge = self.size // 2
        padded = F.pad(x, (0, 0, edge, edge, edge, edge))
        padded = self.manifold.with_time(padded[..., 1:])
        windows = padded.unfold(1, self.size, self.stride).unfold(2, self.size, self.stride).flatten(-2)  # B, H, W, C, pixels
        time = (windows[..., :1, :].square().sum(-1) - (self.size**2 - 1) * self.manifold.k).sqrt()
        space = windows[..., 1:, :].transpose(-1, -2).flatten(-2)
        return self.linearized_kernel(torch.cat([time, space], -1))


class BatchNorm2d(nn.Module):
    def __init__(self, manifold, channels):
        super().__init__()
        self.manifold = manifold
        self.beta = nn.Parameter(manifold.origin(torch.zeros(channels)).detach())
        self.gamma = nn.Parameter(torch.ones(1))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(1))

    def forward(self, x):
        manifold, origin = self.manifold, self.manifold.origin(x[:1, :1, :1])
        mean = manifold.exp(origin[0, 0, 0], self.running_mean)
        if self.training:
            mean = manifold.centroid(x.flatten(0, 2))
        mean = mean.expand(x.shape)
        tangent = manifold.transport(mean, origin, manifold.log(mean, x))
        spread = tangent.norm(dim=-1).mean() if self.training else self.running_var
        tangent = tangent * self.gamma / (spread + 1e-5)
        return manifold.exp(self.beta, manifold.transport(origin, self.beta, tangent))


class ReLU(nn.Module):
    def __init__(self, manifold):
        super().__init__()
        self.manifold = manifold

    def forward(self, x):
        return self.manifold.with_time(x[..., 1:].relu())


class Stem(nn.Module):
    def __init__(self, manifold, ins, outs):
        super().__init__()
        self.manifold = manifold
        self.conv = nn.Sequential(Conv2d(manifold, ins + 1, outs + 1, 3), BatchNorm2d(manifold, outs + 1), ReLU(manifold))

    def forward(self, x):
        return self.conv(self.manifold.with_time(x.permute(0, 2, 3, 1)))


class Block(nn.Module):
    def __init__(self, manifold, ins, outs, stride):
        super().__init__()
        self.manifold = manifold
        self.conv = nn.Sequential(
            Conv2d(manifold, ins + 1, outs + 1, 3, stride),
            BatchNorm2d(manifold, outs + 1),
            ReLU(manifold),
            Conv2d(manifold, outs + 1, outs + 1, 3),
            BatchNorm2d(manifold, outs + 1),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or ins != outs:
            self.shortcut = nn.Sequential(Conv2d(manifold, ins + 1, outs + 1, 1, stride), BatchNorm2d(manifold, outs + 1))

    def forward(self, x):
        total = self.conv(x)[..., 1:] + self.shortcut(x)[..., 1:]
        return self.manifold.with_time(total.relu())


class Encoder(nn.Module):
    def __init__(self, manifold, ins, depths, widths):
        super().__init__()
        self.manifold = manifold
        self.conv1 = Stem(manifold, ins, widths[0])
        before, self.names = widths[0], []
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for index in range(depth):
                blocks.append(Block(manifold, before, width, 2 if stage and not index else 1))
                before = width
            self.names.append(f"conv{stage + 2}_x")
            self.add_module(self.names[-1], nn.Sequential(*blocks))

    def forward(self, x):
        x = self.conv1(x)
        for name in self.names:
            x = getattr(self, name)(x)
        return self.manifold.centroid(x.flatten(1, 2))


class Regression(nn.Module):
    def __init__(self, manifold, features, classes):
        super().__init__()
        self.manifold = manifold
        self.a = nn.Parameter(0.3 * torch.randn(classes))
        self.z = nn.Parameter(torch.randn(classes, features))

    def forward(self, x):
        root = self.manifold.k.sqrt()
        length = self.z.norm(dim=-1)
        time, space = (self.a / root).sinh() * length, (self.a / root).cosh()[:, None] * self.z
        steep = (space.square().sum(-1) - time.square()).sqrt()
        along = x[..., 1:] @ space.T - x[..., :1] * time
        return steep * root * torch.asinh(along / (root * steep))


class Classifier(nn.Module):
    def __init__(self, depths, widths, classes, ins, k=1.0, head_k=1.0):
        super().__init__()
        self.encoder = Encoder(Manifold(k), ins, depths, widths)
        self.dec_manifold = Manifold(head_k)
        self.decoder = Regression(self.dec_manifold, widths[-1], classes)

    def embed(self, x):
        x, manifold = self.encoder(x), self.encoder.manifold
        if float(manifold.k) == float(self.dec_manifold.k):
            return x
        return self.dec_manifold.exp(self.dec_manifold.origin(x), manifold.log(manifold.origin(x), x))

    def forward(self, x):
        return self.decoder(self.embed(x))

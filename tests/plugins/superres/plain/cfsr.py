"""CFSR the straightforward way: four depthwise convolutions of the same features, or one after :meth:`PlainCFSR.merge`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKS = {
    "sobel_x": [[1, 0, -1], [2, 0, -2], [1, 0, -1]],
    "sobel_y": [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
    "laplacian": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
}


class Norm(nn.Module):
    """Layer normalisation over the channels, by mean and square."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = ((x - mean) ** 2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.bias[:, None, None]


class LargeKernel(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lkb_reparam = nn.Conv2d(dim, dim, 9, padding=4, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lkb_reparam(x)


class Mixer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Norm(dim)
        self.a = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU(), LargeKernel(dim))
        self.v = nn.Conv2d(dim, dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.proj(self.a(x) * self.v(x))


class FeedForward(nn.Module):
    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.hidden = dim * ratio
        self.norm = Norm(dim)
        self.fc1 = nn.Conv2d(dim, self.hidden, 1)
        self.pos = nn.Conv2d(self.hidden, self.hidden, 3, padding=1, groups=self.hidden)
        self.fc2 = nn.Conv2d(self.hidden, dim, 1)
        self.act = nn.GELU()
        self.is_merged = False
        for name, mask in MASKS.items():
            setattr(self, f"scale_{name}", nn.Parameter(torch.randn(self.hidden, 1, 1, 1) * 1e-3))
            setattr(self, f"{name}_bias", nn.Parameter(torch.randn(self.hidden) * 1e-3))
            repeated = torch.tensor(mask, dtype=torch.float32).repeat(self.hidden, 1, 1, 1)
            setattr(self, f"mask_{name}", nn.Parameter(repeated, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(self.norm(x)))
        out = self.pos(x)
        if not self.is_merged:
            for name in MASKS:
                weight = getattr(self, f"scale_{name}") * getattr(self, f"mask_{name}")
                out = out + F.conv2d(x, weight, getattr(self, f"{name}_bias"), padding=1, groups=self.hidden)
        return self.fc2(x + self.act(out))

    def merge(self) -> None:
        assert self.pos.bias is not None
        for name in MASKS:
            self.pos.weight.data += getattr(self, f"scale_{name}").data * getattr(self, f"mask_{name}").data
            self.pos.bias.data += getattr(self, f"{name}_bias").data
            for attribute in (f"scale_{name}", f"mask_{name}", f"{name}_bias"):
                delattr(self, attribute)
        self.is_merged = True


class Block(nn.Module):
    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.attn = Mixer(dim)
        self.mlp = FeedForward(dim, ratio)
        self.layer_scale_1 = nn.Parameter(1e-6 * torch.ones(dim))
        self.layer_scale_2 = nn.Parameter(1e-6 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1.unsqueeze(-1).unsqueeze(-1) * self.attn(x)
        return x + self.layer_scale_2.unsqueeze(-1).unsqueeze(-1) * self.mlp(x)


class Layer(nn.Module):
    def __init__(self, dim: int, depth: int, ratio: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(dim, ratio) for _ in range(depth)])
        self.conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.conv(x) + x


class PlainCFSR(nn.Module):
    """The paper's network; input and output in [0, 1]."""

    def __init__(self, upscale: int, in_chans: int = 3, dim: int = 48, depths: tuple[int, ...] = (6, 6), ratio: int = 2) -> None:
        super().__init__()
        mean = torch.tensor([0.4488, 0.4371, 0.4040] if in_chans == 3 else [0.0])
        self.mean = mean.view(1, -1, 1, 1)
        self.conv_first = nn.Conv2d(in_chans, dim, 3, 1, 1)
        self.layers = nn.ModuleList([Layer(dim, depth, ratio) for depth in depths])
        self.norm = Norm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, 1, 1)
        self.upsample = nn.Sequential(nn.Conv2d(dim, upscale**2 * in_chans, 3, 1, 1), nn.PixelShuffle(upscale))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, upscale * H, upscale * W)``."""
        self.mean = self.mean.type_as(x)
        x = self.conv_first(x - self.mean)
        features = x
        for layer in self.layers:
            features = layer(features)
        x = self.conv_after_body(self.norm(features)) + x
        return self.upsample(x) + self.mean

    def merge(self) -> "PlainCFSR":
        """Add the edge detectors to the learned kernels, as the official code does for inference."""
        for module in self.modules():
            if isinstance(module, FeedForward):
                module.merge()
        return self

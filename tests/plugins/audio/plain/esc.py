"""ESC written straightforwardly, with the structure, the key names and the order of operations of its authors' code."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn


def cut(x: Tensor, side: int) -> Tensor:
    """``(B, H, W, C)`` -> ``(B * windows, side * side, C)``."""
    b, h, w, c = x.shape
    x = x.view(b, h // side, side, w // side, side, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, c)


def paste(windows: Tensor, side: int, h: int, w: int) -> Tensor:
    """The way back of :func:`cut`."""
    x = windows.view(-1, h // side, w // side, side, side, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, windows.shape[-1])


class WindowAttention(nn.Module):
    """Attention of a window's tokens with a bias by relative position, and a mask by window."""

    def __init__(self, dim: int, side: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        place = torch.stack([rows.flatten(), columns.flatten()])
        apart = place[:, :, None] - place[:, None, :] + side - 1
        self.register_buffer("relative_position_index", apart[0] * (2 * side - 1) + apart[1])
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        logits = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(n, n, -1)
        logits = logits + bias.permute(2, 0, 1)[None]
        if mask is not None:
            number = mask.shape[0]
            logits = logits.view(b // number, number, self.heads, n, n) + mask[None, :, None]
            logits = logits.view(-1, self.heads, n, n)
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class FeedForward(nn.Module):
    """Two linear maps."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, hidden)
        self.linear_2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x)))


class SwinBlock(nn.Module):
    """Attention in windows, which may be shifted, and a perceptron."""

    def __init__(self, dim: int, heads: int, side: int, shift: int, ratio: float) -> None:
        super().__init__()
        self.side, self.shift = side, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, side, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, int(dim * ratio))

    def forward(self, x: Tensor, mask: Tensor, h: int, w: int) -> Tensor:
        b, _, c = x.shape
        shortcut = x
        x = self.norm1(x).view(b, h, w, c)
        x = F.pad(x, (0, 0, 0, -w % self.side, 0, -h % self.side))
        high, wide = x.shape[1:3]
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = self.attn(cut(x, self.side), mask if self.shift else None)
        x = paste(windows, self.side, high, wide)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        x = shortcut + x[:, :h, :w].reshape(b, h * w, c)
        return x + self.mlp(self.norm2(x))


class PatchMerge(nn.Module):
    """Two neighbouring frequencies become one."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * in_dim)
        self.down = nn.Linear(2 * in_dim, out_dim, bias=False)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        b, _, c = x.shape
        x = x.view(b, h // 2, 2, w, c).permute(0, 1, 3, 2, 4).reshape(b, h // 2 * w, 2 * c)
        return self.down(self.norm(x))


class PatchSplit(nn.Module):
    """One frequency becomes two."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.up = nn.Linear(in_dim, 2 * out_dim, bias=False)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = self.up(self.norm(x))
        b, _, c = x.shape
        return x.view(b, h, w, 2, c // 2).permute(0, 1, 3, 2, 4).reshape(b, 2 * h * w, c // 2)


class TransformerLayer(nn.Module):
    """Blocks in turns without and with a shift, and a change of scale."""

    def __init__(self, in_dim: int, out_dim: int, heads: int, depth: int, side: int, ratio: float, scale: str | None) -> None:
        super().__init__()
        self.side, self.scale = side, scale
        self.swint_blocks = nn.ModuleList(SwinBlock(in_dim, heads, side, side // 2 * (i % 2), ratio) for i in range(depth))
        self.subsample = {"down": PatchMerge, "up": PatchSplit}[scale](in_dim, out_dim) if scale else None

    def forward(self, x: Tensor, h: int, w: int) -> tuple[Tensor, int, int]:
        side, shift = self.side, self.side // 2
        regions = torch.zeros(1, math.ceil(h / side) * side, math.ceil(w / side) * side, 1, dtype=x.dtype)
        count = 0
        parts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
        for rows in parts:
            for columns in parts:
                regions[:, rows, columns] = count
                count += 1
        which = cut(regions, side)[..., 0]
        mask = torch.where(which[:, None] != which[:, :, None], -100.0, 0.0).to(x.dtype)
        for block in self.swint_blocks:
            x = block(x, mask, h, w)
        if self.subsample is None:
            return x, h, w
        return self.subsample(x, h, w), h // 2 if self.scale == "down" else h * 2, w


class PatchEmbed(nn.Module):
    """Patches of the spectrum as tokens."""

    def __init__(self, in_dim: int, patch: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class PatchDeEmbed(nn.Module):
    """Tokens as patches of the spectrum."""

    def __init__(self, in_freq: int, in_dim: int, patch: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.patch, self.h = patch, in_freq // patch[0]
        self.de_proj1 = nn.Conv2d(dim, dim * patch[0] * patch[1], 5, padding=2)
        self.de_proj2 = nn.Conv2d(dim, in_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        x = self.de_proj1(x.view(b, self.h, n // self.h, c).permute(0, 3, 1, 2))
        _, _, h, w = x.shape
        high, wide = self.patch
        x = x.permute(0, 2, 3, 1).reshape(b, h, w, high, wide, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h * high, w * wide, c)
        return self.de_proj2(x.permute(0, 3, 1, 2))


class Codebook(nn.Module):
    """The entries of a quantiser: the nearest in direction is taken, at its own length."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        nn.init.kaiming_normal_(self.embedding.weight)

    def encode(self, z: Tensor) -> Tensor:
        entries = F.normalize(self.embedding.weight, dim=-1)
        flat = F.normalize(z.reshape(-1, z.shape[-1]), dim=-1)
        distance = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ entries.t() + entries.pow(2).sum(1, keepdim=True).t()
        return distance.min(1).indices.view(z.shape[:2])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        code = self.encode(z)
        q = self.embedding(code)
        commitment = (q.detach() - z).pow(2).mean([1, 2])
        codebook = (q - z.detach()).pow(2).mean([1, 2])
        return z + (q - z).detach() if self.training else q, code, codebook, commitment


class ProductVectorQuantize(nn.Module):
    """All frequencies and channels of some frames as a vector, which is split into groups; each is quantised in few dimensions."""

    def __init__(self, in_dim: int, in_freq: int, overlap: int, groups: int, dim: int, size: int) -> None:
        super().__init__()
        self.in_freq, self.fix_dim, self.overlap = in_freq, in_freq * in_dim, overlap
        each = self.fix_dim * overlap // groups
        self.vq_dims = [each] * (groups - 1) + [self.fix_dim * overlap - each * (groups - 1)]
        self.vqs = nn.ModuleList(Codebook(dim, size) for _ in self.vq_dims)
        self.down_projs = nn.ModuleList(nn.Linear(width, dim, bias=False) for width in self.vq_dims)
        self.up_projs = nn.ModuleList(nn.Linear(dim, width, bias=False) for width in self.vq_dims)

    def gather(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        w = n // self.in_freq
        x = x.view(b, self.in_freq, w, c).permute(0, 2, 3, 1).reshape(b, w, self.fix_dim)
        return x.reshape(b, w // self.overlap, self.overlap * self.fix_dim)

    def spread(self, x: Tensor) -> Tensor:
        b, c = x.shape[0], self.fix_dim // self.in_freq
        x = x.reshape(b, -1, c, self.in_freq)
        return x.permute(0, 3, 1, 2).reshape(b, -1, c)

    def forward(self, x: Tensor, freeze: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = self.gather(x).split(self.vq_dims, dim=-1)
        outs, codes, codebook_loss, commitment_loss = [], [], 0.0, 0.0
        for part, down, up, vq in zip(parts, self.down_projs, self.up_projs, self.vqs, strict=True):
            z = down(part)
            q, code, codebook, commitment = vq(z)
            if freeze:
                q, codebook, commitment = q * 0 + z, codebook * 0, commitment * 0
            outs.append(up(q))
            codes.append(code)
            codebook_loss = codebook_loss + codebook / len(self.vqs)
            commitment_loss = commitment_loss + commitment / len(self.vqs)
        return self.spread(torch.cat(outs, -1)), torch.stack(codes, 1), codebook_loss, commitment_loss

    def encode(self, x: Tensor) -> Tensor:
        parts = self.gather(x).split(self.vq_dims, dim=-1)
        return torch.stack([vq.encode(down(part)) for part, down, vq in zip(parts, self.down_projs, self.vqs, strict=True)], 1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.spread(
            torch.cat([up(vq.embedding(codes[:, m])) for m, (up, vq) in enumerate(zip(self.up_projs, self.vqs, strict=True))], -1)
        )


class Encoder(nn.Module):
    """Tokens at every scale."""

    def __init__(self, in_dim: int, dims: list[int], patch: tuple[int, int], heads: list[int], depth: int, side: int, ratio: float) -> None:
        super().__init__()
        self.patch = patch
        self.patch_embed = PatchEmbed(in_dim, patch, dims[0])
        self.pre_nn = TransformerLayer(dims[0], dims[0], heads[0], depth, side, ratio, None)
        self.blocks = nn.ModuleList(
            TransformerLayer(a, b, n, depth, side, ratio, "down") for a, b, n in zip(dims[:-1], dims[1:], heads, strict=True)
        )

    def forward(self, spectrum: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        h, w = spectrum.shape[2] // self.patch[0], spectrum.shape[3] // self.patch[1]
        x, h, w = self.pre_nn(self.patch_embed(spectrum), h, w)
        found = [x]
        for block in self.blocks:
            x, h, w = block(x, h, w)
            found.append(x)
        return found, (h, w)


class Decoder(nn.Module):
    """From the coarsest scale back, with what was quantised added at each."""

    def __init__(
        self, in_freq: int, in_dim: int, dims: list[int], patch: tuple[int, int], heads: list[int], depth: int, side: int, ratio: float
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerLayer(a, b, n, depth, side, ratio, "up") for a, b, n in zip(dims[:-1], dims[1:], heads, strict=True)
        )
        self.patch_deembed = PatchDeEmbed(in_freq, in_dim, patch, dims[-1])
        self.post_nn = TransformerLayer(dims[-1], dims[-1], heads[-1], depth, side, ratio, None)

    def finish(self, x: Tensor, h: int, w: int) -> Tensor:
        x, _, _ = self.post_nn(x, h, w)
        return self.patch_deembed(x)

    def forward(self, found: list[Tensor], streams: int, quantizers: nn.ModuleList, shape: tuple[int, int], freeze: bool) -> tuple:
        h, w = shape
        x, code, codebook_loss, commitment_loss = quantizers[0](found[-1], freeze)
        codes = [code]
        for i, block in enumerate(self.blocks):
            if i < streams - 1 or self.training:
                q, code, codebook, commitment = quantizers[i + 1](found[-1 - i] - x, freeze)
                sent = float(i < streams - 1)
                x = x + q * sent
                codebook_loss, commitment_loss = codebook_loss + codebook * sent, commitment_loss + commitment * sent
                codes.append(code)
            x, h, w = block(x, h, w)
        return self.finish(x, h, w), torch.stack(codes, 1), commitment_loss, codebook_loss

    def encode(self, found: list[Tensor], streams: int, quantizers: nn.ModuleList, shape: tuple[int, int]) -> Tensor:
        h, w = shape
        codes = [quantizers[0].encode(found[-1])]
        x = quantizers[0].decode(codes[0])
        for i in range(streams - 1):
            codes.append(quantizers[i + 1].encode(found[-1 - i] - x))
            if len(codes) == streams:
                break
            x = x + quantizers[i + 1].decode(codes[-1])
            x, h, w = self.blocks[i](x, h, w)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor, quantizers: nn.ModuleList, shape: tuple[int, int]) -> Tensor:
        h, w = shape
        x = quantizers[0].decode(codes[:, 0])
        for i, block in enumerate(self.blocks):
            if i < codes.shape[1] - 1:
                x = x + quantizers[i + 1].decode(codes[:, i + 1])
            x, h, w = block(x, h, w)
        return self.finish(x, h, w)


class PlainESC(nn.Module):
    """The codec."""

    def __init__(
        self,
        *,
        in_freq: int = 192,
        h_dims: tuple[int, ...] = (45, 72, 96, 144, 192, 384),
        patch_size: tuple[int, int] = (3, 2),
        swin_heads: tuple[int, ...] = (3, 6, 12, 24, 24),
        swin_depth: int = 2,
        window_size: int = 4,
        mlp_ratio: float = 4.0,
        overlap: int = 2,
        group_size: int = 3,
        codebook_size: int = 1024,
        codebook_dims: tuple[int, ...] = (8, 8, 8, 8, 8, 8),
    ) -> None:
        super().__init__()
        dims, heads, streams = list(h_dims), list(swin_heads), len(h_dims)
        self.ft = torchaudio.transforms.Spectrogram((in_freq - 1) * 2, 320, 80, power=None)
        self.ift = torchaudio.transforms.InverseSpectrogram((in_freq - 1) * 2, 320, 80)
        h = in_freq // patch_size[0]
        self.quantizers = nn.ModuleList(
            ProductVectorQuantize(
                dims[-max(level, 1)], h // 2 ** (streams - max(level, 1)), overlap, group_size, codebook_dims[level], codebook_size
            )
            for level in range(streams)
        )
        self.encoder = Encoder(2, dims, patch_size, heads, swin_depth, window_size, mlp_ratio)
        self.decoder = Decoder(in_freq, 2, dims[::-1], patch_size, heads[::-1], swin_depth, window_size, mlp_ratio)

    def spectrum(self, x: Tensor) -> Tensor:
        return torch.view_as_real(self.ft(x)).permute(0, 3, 1, 2)

    def sound(self, spectrum: Tensor) -> Tensor:
        return self.ift(torch.view_as_complex(spectrum.permute(0, 2, 3, 1).contiguous()))

    def forward(self, x: Tensor, streams: int, freeze: bool = False) -> dict[str, Tensor]:
        spectrum = self.spectrum(x)
        found, shape = self.encoder(spectrum)
        made, codes, commitment, codebook = self.decoder(found, streams, self.quantizers, shape, freeze)
        return {"wave": self.sound(made), "spectrum": made, "codes": codes, "commitment": commitment, "codebook": codebook}

    @torch.no_grad()
    def encode(self, x: Tensor, streams: int) -> tuple[Tensor, tuple[int, int]]:
        found, shape = self.encoder(self.spectrum(x))
        return self.decoder.encode(found, streams, self.quantizers, shape), shape

    @torch.no_grad()
    def decode(self, codes: Tensor, shape: tuple[int, int]) -> Tensor:
        return self.sound(self.decoder.decode(codes, self.quantizers, shape))

"""ESC (Gu and Diao, EMNLP 2024): a speech codec of window attention whose decoder is refined scale by scale.

The complex spectrogram is cut into patches. An encoder halves the frequencies five times, a decoder doubles them again, and on the way
each scale codes what the decoder does not know yet:

    ``d_0 = Q_0(e_n),   d_k+1 = up_k(d_k + Q_k+1(e_n-k - d_k))``

with the encoder's features ``e``, coarse to fine, and the product quantisers ``Q`` (:mod:`~cnnkit_audio.models.esc_quantize`). Leaving the
last quantisers out gives a lower rate with the same network: at 16 kHz each level is 1.5 kbit/s. Training begins without quantisation;
codebooks are then set by k-means, and the number of levels is drawn anew for every clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from cnnkit.weights import Layout, rename_keys
from torch import Tensor, nn

from cnnkit_audio.models._codec import Codec, Coded
from cnnkit_audio.models.esc_layers import Merge, PatchEmbed, PatchJoin, Split, Stage
from cnnkit_audio.models.esc_quantize import ProductQuantiser, fit_codebook


class Encoder(nn.Module):
    """Features of a spectrum at every scale.

    Args:
        channels: Channels by scale, fine to coarse.
        heads: Attention heads by change of scale.
        patch: Bins and frames of a patch.
        depth: Blocks of a stage.
        window: Side of a window.
        mlp_ratio: Hidden width of the perceptrons.
    """

    def __init__(
        self, channels: Sequence[int], heads: Sequence[int], *, patch: tuple[int, int], depth: int, window: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch, channels[0])
        self.pre_nn = Stage(channels[0], depth=depth, heads=heads[0], window=window, mlp_ratio=mlp_ratio)
        self.blocks = nn.ModuleList(
            Stage(fine, depth=depth, heads=number, window=window, mlp_ratio=mlp_ratio, scale=Merge(fine, coarse))
            for (fine, coarse), number in zip(pairwise(channels), heads, strict=True)
        )

    def forward(self, spectrum: Tensor) -> list[Tensor]:
        """Return maps ``(B, H, W, channels)``, fine to coarse."""
        found = [self.pre_nn(self.patch_embed(spectrum))]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found


class Decoder(nn.Module):
    """The way back: stages that each double the frequencies. Arguments as for :class:`Encoder`."""

    def __init__(
        self, channels: Sequence[int], heads: Sequence[int], *, patch: tuple[int, int], depth: int, window: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Stage(coarse, depth=depth, heads=number, window=window, mlp_ratio=mlp_ratio, scale=Split(coarse, fine))
            for (coarse, fine), number in zip(pairwise(reversed(channels)), reversed(heads), strict=True)
        )
        self.patch_deembed = PatchJoin(patch, channels[0])
        self.post_nn = Stage(channels[0], depth=depth, heads=heads[0], window=window, mlp_ratio=mlp_ratio)

    def finish(self, x: Tensor) -> Tensor:
        """Return the spectrum for the finest map."""
        return self.patch_deembed(self.post_nn(x))


class ESC(Codec):
    """The codec.

    Args:
        sample_rate: Samples per second.
        n_fft: Length of the Fourier transform.
        win_length: Length of the Hann window in samples.
        hop_length: Samples between two frames.
        patch_size: Bins and frames of a patch.
        channels: Channels by scale, fine to coarse. There are as many levels: two at the coarsest scale, none at the finest.
        heads: Attention heads by change of scale, fine to coarse.
        depth: Blocks of window attention in a stage.
        window: Side of a window in tokens.
        mlp_ratio: Hidden width of the perceptrons by the channels.
        overlap: Tokens in time that one code frame holds.
        groups: Parts into which the vector of a code frame is split at each level.
        codebook_size: Entries of a codebook.
        codebook_channels: Dimensions of an entry, by level.

    Shapes:
        x: ``(B, 1, T)`` in [-1, 1], of any length from one sample.

    Raises:
        ConfigError: If the numbers do not fit together.
    """

    layouts: ClassVar[tuple[Layout, ...]]
    window: Tensor
    codebooks_fitted: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        n_fft: int = 382,
        win_length: int = 320,
        hop_length: int = 80,
        patch_size: Sequence[int] = (3, 2),
        channels: Sequence[int] = (45, 72, 96, 144, 192, 384),
        heads: Sequence[int] = (3, 6, 12, 24, 24),
        depth: int = 2,
        window: int = 4,
        mlp_ratio: float = 4.0,
        overlap: int = 2,
        groups: int = 3,
        codebook_size: int = 1024,
        codebook_channels: Sequence[int] = (8, 8, 8, 8, 8, 8),
    ) -> None:
        levels = len(channels)
        super().__init__(
            sample_rate=sample_rate,
            levels=levels,
            groups=groups,
            codebook_size=codebook_size,
            frame=hop_length * patch_size[1] * overlap,
        )
        high = _token_rows(n_fft // 2 + 1, patch_size[0], levels)
        if (levels - 1, levels) != (len(heads), len(codebook_channels)):
            raise ConfigError(f"{levels} channels want {levels - 1} heads and {levels} codebook_channels")
        if not hop_length < win_length <= n_fft:
            raise ConfigError(f"hop_length={hop_length} must be below win_length={win_length}, and that at most n_fft={n_fft}")
        if codebook_size < 2:
            raise ConfigError(f"codebook_size={codebook_size} says nothing; accepted: 2 or more")
        self.n_fft, self.hop_length, self.depth = n_fft, hop_length, depth
        self.token, self.side = hop_length * patch_size[1], window
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)
        self.register_buffer("codebooks_fitted", torch.tensor(0))
        self.quantizers = nn.ModuleList()
        for level, width in enumerate(codebook_channels):
            scale = levels - max(level, 1)  # The first two levels are both at the coarsest scale.
            self.quantizers.append(
                ProductQuantiser(channels[scale], high >> scale, overlap=overlap, groups=groups, size=codebook_size, code_channels=width)
            )
        patch = (patch_size[0], patch_size[1])
        self.encoder = Encoder(channels, heads, patch=patch, depth=depth, window=window, mlp_ratio=mlp_ratio)
        self.decoder = Decoder(channels, heads, patch=patch, depth=depth, window=window, mlp_ratio=mlp_ratio)

    # Spectra.

    def spectrum(self, x: Tensor) -> Tensor:
        """Return the complex spectrum ``(B, 2, F, frames)`` of waveforms; the frames fill whole code frames."""
        samples = x.shape[-1]
        whole = -(-samples // self.frame) * self.frame
        # The border is mirrored where the last frames do not reach beyond the sound, and silence where they do.
        least = self.n_fft // 2 + 1
        x = x[:, 0] if whole - samples <= self.hop_length and samples >= least else F.pad(x[:, 0], (0, max(whole, least) - samples))
        found = torch.stft(
            x, self.n_fft, self.hop_length, self.window.numel(), self.window, center=True, pad_mode="reflect", return_complex=True
        )
        return torch.view_as_real(found[..., : whole // self.hop_length]).permute(0, 3, 1, 2)

    def waveform(self, spectrum: Tensor, samples: int | None = None) -> Tensor:
        """Return waveforms ``(B, 1, samples)`` of spectra; :meth:`spectrum` backwards, exactly."""
        parts = torch.view_as_complex(spectrum.permute(0, 2, 3, 1).contiguous())
        length = spectrum.shape[-1] * self.hop_length if samples is None else samples
        x = torch.istft(parts, self.n_fft, self.hop_length, self.window.numel(), self.window, center=True, length=length)
        return x[:, None]

    # Training.

    def forward(self, x: Tensor, levels: Tensor | int | None = None, *, quantise: bool = True) -> Coded:
        """Code and decode with gradients, see :class:`~cnnkit_audio.models._codec.Codec`."""
        target = self.spectrum(x)
        found = self.encoder(target)
        sent = torch.as_tensor(self.levels if levels is None else levels, device=x.device).expand(len(x))
        coded, commitment, codebook = self.quantisers[0](found[-1], quantise=quantise)
        for level, block in enumerate(self.decoder.blocks, start=1):
            residual = self.quantisers[level](found[-level] - coded, quantise=quantise)
            share = (sent > level).to(coded.dtype)
            coded = block(coded + residual.features * share[:, None, None, None])
            commitment = commitment + residual.commitment * share
            codebook = codebook + residual.codebook * share
        spectrum = self.decoder.finish(coded)
        return Coded(self.waveform(spectrum, x.shape[-1]), spectrum, target, commitment, codebook)

    @torch.no_grad()
    def fit_codebooks(self, waves: Iterable[Tensor], *, seed: int = 0) -> None:
        """Set all codebooks by k-means, level by level: what a level codes depends on those before it.

        Args:
            waves: Waveforms ``(B, 1, T)``, gone through once for each level.
            seed: Of the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        waves = list(waves)
        for level, quantiser in enumerate(self.quantisers):
            gathered = [self._to_code(wave, level) for wave in waves]
            for group, vq in enumerate(quantiser.codebooks):
                vectors = torch.cat([parts[group].flatten(0, 1) for parts in gathered])
                vq.embedding.weight.copy_(fit_codebook(vectors, self.codebook_size, generator=generator))
        self.codebooks_fitted.add_(1)

    def _to_code(self, wave: Tensor, level: int) -> list[Tensor]:
        """Return what the groups of a level quantise."""
        found = self.encoder(self.spectrum(wave))
        return self.quantisers[level].project(self._encode(found, level)[1])

    # Codes.

    @torch.no_grad()
    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """Return codes ``(B, levels, groups, ceil(T / frame))`` of waveforms ``(B, 1, T)``.

        Raises:
            UsageError: If the network has no so many levels.
        """
        levels = self.checked(levels)
        codes, left = self._encode(self.encoder(self.spectrum(x)), levels - 1)
        codes.append(self.quantisers[levels - 1].encode(left))
        return torch.stack(codes, 1)

    def _encode(self, found: list[Tensor], levels: int) -> tuple[list[Tensor], Tensor]:
        """Return the codes of the first ``levels``, and the map that the next level codes."""
        codes: list[Tensor] = []
        coded, left = torch.zeros_like(found[-1]), found[-1]
        for level, quantiser in enumerate(self.quantisers[:levels]):
            codes.append(quantiser.encode(left))
            coded = coded + quantiser.decode(codes[-1])
            if level:
                coded = self.decoder.blocks[level - 1](coded)
            left = found[-1 - level] - coded
        return codes, left

    @torch.no_grad()
    def decode(self, codes: Tensor, samples: int | None = None) -> Tensor:
        """Return waveforms ``(B, 1, samples)`` of codes ``(B, levels, groups, code frames)``; by default of whole code frames.

        Raises:
            UsageError: If the codes are of more levels than the network has.
        """
        levels = self.checked(codes.shape[1])
        coded = self.quantisers[0].decode(codes[:, 0])
        for level, block in enumerate(self.decoder.blocks, start=1):
            coded = block(coded + self.quantisers[level].decode(codes[:, level]) if level < levels else coded)
        return self.waveform(self.decoder.finish(coded), samples)

    @property
    def quantisers(self) -> list[ProductQuantiser]:
        """The quantiser of each level."""
        return list(self.quantizers)  # type: ignore[arg-type]

    @property
    def reach(self) -> tuple[int, int, int]:
        """Overlaps in code frames and the grid of pieces, see :class:`~cnnkit_audio.models._codec.Codec`.

        Windows begin at multiples of their side, so a shifted block lets a whole window see one more on each side and no further; the
        spectrum and the last convolutions take less than one window.
        """
        grid = math.lcm(self.side * self.token, self.frame)
        seen = self.depth // 2 * self.side * self.token
        stages = self.levels
        encode, decode = ((number * seen // grid + 2) * grid // self.frame for number in (2 * stages - 2, stages))
        return encode, decode, grid // self.frame


def _token_rows(bins: int, patch: int, levels: int) -> int:
    """Return the number of tokens along frequency, after checking that it can be halved between all levels."""
    multiple = patch << (levels - 1)
    if bins % multiple:
        accepted = [2 * (bins // multiple * multiple + more - 1) for more in (0, multiple)]
        raise ConfigError(
            f"n_fft / 2 + 1 = {bins} bins cannot be cut into patches of {patch} and halved {levels - 1} times; "
            f"accepted: n_fft={' or '.join(str(length) for length in accepted if length > 0)}"
        )
    return bins // patch


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the authors' code: biases by query minus key in one axis, and buffers of the front end and of positions."""
    rules = (
        (r"\.attn\.relative_position_bias_table$", ".attn.tokens.rel_pos.relative_position_bias_table"),
        (r"\.attn\.(qkv|proj)\.", r".attn.tokens.\1."),
        (r"\.mlp\.linear_([12])\.", r".mlp.fc\1."),
    )
    kept = {key: value for key, value in state.items() if not key.startswith(("ft.", "ift.")) and "relative_position_index" not in key}
    converted = rename_keys(kept, rules)
    for key, value in converted.items():
        if key.endswith("relative_position_bias_table"):
            side = math.isqrt(value.shape[0])
            converted[key] = value.T.unflatten(1, (side, side)).flip(1, 2)
    converted["codebooks_fitted"] = torch.tensor(1)
    return converted


ESC.layouts = (Layout("official", lambda keys: any(key.endswith(".mlp.linear_1.weight") for key in keys), _from_official),)

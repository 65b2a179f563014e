"""Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images (Hatamizadeh et al., 2022).

A U-Net whose encoder is a shifted-window transformer. The image is cut into patches of ``2^dims`` voxels; four
stages of attention inside windows of ``7^dims`` tokens, every second block with windows shifted by half a window so
that information crosses their borders, halve the grid and double the features; a residual convolutional decoder
joins the five resolutions through skips.

Parameters have the names and shapes of ``monai.networks.nets.SwinUNETR``, in which the authors publish their
weights: those files load as they are, and ours load there. One thing is not in the file. Up to MONAI 1.4 the merging
of 3-D patches read two of the eight neighbours twice and left two out; from 1.5 on it reads each once. Weights that
were trained before need ``downsample="merging-0.9"``, or they segment with the wrong features and say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from cnnkit.errors import unknown
from cnnkit.layers import nd
from cnnkit.layers.resample import TransposedConv
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_medseg.models.swin import MERGING, ResidualConv, SwinEncoder, named, plain_conv


class UpBlock(nn.Module):
    """Double the resolution, join the skip, and convolve."""

    def __init__(self, dims: int, in_channels: int, channels: int) -> None:
        super().__init__()
        self.transp_conv = TransposedConv(in_channels, channels, dims=dims, bias=False)
        self.conv_block = ResidualConv(dims, 2 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map ``(B, in_channels, *spatial)`` and the skip ``(B, channels, *2 * spatial)`` to the skip's shape."""
        return self.conv_block(torch.cat((self.transp_conv(x), skip), dim=1))


class SwinUNETR(nn.Module):
    """Swin UNETR for images and volumes.

    Args:
        in_chans: Input channels, for example the four contrasts of a brain MRI.
        num_classes: Channels of the output.
        dims: 2 or 3.
        feature_size: Features of a patch, a multiple of 12 with the default heads.
        depths: Transformer blocks in each of the four stages.
        num_heads: Attention heads in each stage.
        window_size: Side of an attention window in tokens, one or one per axis.
        mlp_ratio: Hidden features of each perceptron per feature.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout of tokens and outputs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        normalize: Normalise the encoder's features before the decoder takes them.
        downsample: ``"merging"``, as MONAI since 1.5; ``"merging-0.9"``, as MONAI up to 1.4, for 3-D weights trained
            with it; or ``"mergingv2"``. They differ in which neighbours a merged patch holds, not in parameters.
        use_v2: Put a residual convolution block before every stage (Swin UNETR V2).
        use_checkpoint: Save memory in training by computing each transformer block twice.

    Shapes:
        input: ``(B, in_chans, *spatial)``, every side a multiple of 32 and one of them at least 64.
        output: logits ``(B, num_classes, *spatial)``.

    Note:
        The paper prints 61.98 M parameters for four contrasts, three regions and ``feature_size=48``; this network,
        like MONAI's, has 62.19 M, of which 0.20 M are the tables of relative position that many counters pass over.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("monai"),)

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        dims: int = 3,
        *,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        normalize: bool = True,
        downsample: str = "merging",
        use_v2: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        nd.check_dims(dims, (2, 3))
        if len(depths) != 4 or len(num_heads) != 4:
            raise ValueError(f"depths and num_heads need 4 values each, got {tuple(depths)} and {tuple(num_heads)}")
        if uneven := [heads for stage, heads in enumerate(num_heads) if feature_size * 2**stage % heads]:
            raise ValueError(f"feature_size={feature_size} does not divide among {uneven[0]} heads; default heads need a multiple of 12")
        if downsample not in MERGING:
            raise ValueError(unknown("downsample", downsample, MERGING))
        self.dims = dims
        f = feature_size
        self.swinViT = SwinEncoder(
            in_chans,
            dims=dims,
            feature_size=f,
            depths=depths,
            num_heads=num_heads,
            window_size=nd.tupled(window_size, dims),
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            normalize=normalize,
            merging=downsample,
            conv_stages=use_v2,
            use_checkpoint=use_checkpoint,
        )
        self.encoder1 = named("layer", ResidualConv(dims, in_chans, f))
        self.encoder2 = named("layer", ResidualConv(dims, f, f))
        self.encoder3 = named("layer", ResidualConv(dims, 2 * f, 2 * f))
        self.encoder4 = named("layer", ResidualConv(dims, 4 * f, 4 * f))
        self.encoder10 = named("layer", ResidualConv(dims, 16 * f, 16 * f))
        self.decoder5 = UpBlock(dims, 16 * f, 8 * f)
        self.decoder4 = UpBlock(dims, 8 * f, 4 * f)
        self.decoder3 = UpBlock(dims, 4 * f, 2 * f)
        self.decoder2 = UpBlock(dims, 2 * f, f)
        self.decoder1 = UpBlock(dims, f, f)
        self.out = named("conv", plain_conv(dims, f, num_classes, 1, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every class at every voxel."""
        self._check_size(x.shape[2:])
        half, quarter, eighth, sixteenth, bottom = self.swinViT(x)
        y = self.decoder5(self.encoder10(bottom), sixteenth)
        y = self.decoder4(y, self.encoder4(eighth))
        y = self.decoder3(y, self.encoder3(quarter))
        y = self.decoder2(y, self.encoder2(half))
        y = self.decoder1(y, self.encoder1(x))
        return self.out(y)

    def _check_size(self, size: Sequence[int]) -> None:
        accepted = tuple(max(32, -(-side // 32) * 32) for side in size)
        if len(size) != self.dims:
            raise ValueError(f"this SwinUNETR has dims={self.dims}, the input has {len(size)} spatial sides: {tuple(size)}")
        if tuple(size) != accepted:
            raise ValueError(f"SwinUNETR takes sides that are multiples of 32, got {tuple(size)}; pad to {accepted}")
        if all(side == 32 for side in size):
            raise ValueError(f"SwinUNETR normalises over the deepest grid and needs one side of at least 64, got {tuple(size)}")

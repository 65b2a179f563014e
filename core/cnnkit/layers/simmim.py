"""SimMIM: Xie et al. (2022), "SimMIM: A Simple Framework for Masked Image Modeling".

Large patches of an image are hidden from a backbone by a learnt token in place of their own; a linear map of the last features
paints their pixels, and the mean error there is what it learns from, without labels::

    loss = mean over masked pixels |decode(backbone(where(mask, token, embed(x)))) - x|
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cnnkit.errors import InputError


class SimMIM(nn.Module):
    """A backbone in pre-training.

    Shapes:
        x: ``(B, in_chans, *spatial)``, every side a multiple of the last reduction; the result is the loss, a scalar.

    Args:
        backbone: What is trained, with its methods ``patch_embed`` and ``run_stages`` and its last ``norm``, for example
            :class:`cnnkit.backbones.swin_v2.SwinV2`. Its head is removed.
        ratio: Share of the patches that are masked, rounded up.
    """

    def __init__(self, backbone: Any, *, ratio: float = 0.6) -> None:
        super().__init__()
        norm = backbone.norm
        backbone.drop_head()
        backbone.norm = norm
        self.backbone = backbone
        self.ratio = ratio
        self.stride = backbone.feature_info.reduction()[-1]
        self.mask_token = nn.Parameter(torch.empty(backbone.feature_info.channels()[0]))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder = nn.Linear(backbone.num_features, backbone.in_chans * self.stride**backbone.dims)

    def draw_mask(self, x: Tensor) -> Tensor:
        """Draw which patches of the last stage's grid are masked, ``(B, *grid)``, as many in every sample."""
        grid = [side // self.stride for side in x.shape[2:]]
        number = math.prod(grid)
        order = torch.rand(x.shape[0], number, device=x.device).argsort(1)
        return (order < math.ceil(self.ratio * number)).unflatten(1, grid)

    def reconstruct(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the painted image, ``(B, in_chans, *spatial)``; ``mask`` is that of :meth:`draw_mask`."""
        tokens = self.backbone.patch_embed(x)
        hidden = _repeat(mask, self.stride // self.backbone.feature_info.reduction()[0])
        tokens = torch.where(hidden[..., None], self.mask_token, tokens)
        features = self.backbone.norm(self.backbone.run_stages(tokens)[-1])
        dims = self.backbone.dims
        cells = self.decoder(features).unflatten(-1, (-1, *(self.stride,) * dims))
        order = (part for axis in range(dims) for part in (1 + axis, 2 + dims + axis))
        return cells.permute(0, 1 + dims, *order).reshape(x.shape)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mean absolute error over the masked pixels.

        Args:
            x: The images.
            mask: Which patches are masked; drawn anew by default.

        Raises:
            InputError: If a side is no multiple of the last reduction.
        """
        if any(side % self.stride for side in x.shape[2:]):
            raise InputError(f"input size {tuple(x.shape[2:])} does not fit: every side must be a multiple of {self.stride}")
        mask = self.draw_mask(x) if mask is None else mask
        error = (self.reconstruct(x, mask) - x).abs().mean(1)
        hidden = _repeat(mask, self.stride).to(error)
        return (error * hidden).sum() / hidden.sum()


def _repeat(mask: Tensor, times: int) -> Tensor:
    """Repeat every entry along every axis but the first."""
    for axis in range(1, mask.ndim):
        mask = mask.repeat_interleave(times, axis)
    return mask

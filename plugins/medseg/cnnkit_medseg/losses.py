"""The loss of nnU-Net: soft Dice and cross entropy, for labels or regions, with voxels to ignore and deep supervision.

The constants are nnU-Net's (Isensee et al., 2021): smoothing 1e-5 above and below, equal weights, no background in
the Dice term, and weights of ``1 / 2^i`` over resolutions with none for the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from torch import Tensor, nn


def soft_dice_loss(
    probabilities: Tensor, target: Tensor, mask: Tensor | None = None, *, batch_dice: bool = False, smooth: float = 1e-5
) -> Tensor:
    """One minus the mean soft Dice coefficient ``(2 sum(p t) + s) / (sum(p) + sum(t) + s)``.

    Args:
        probabilities: Between 0 and 1.
        target: 0 or 1, of the same shape.
        mask: Voxels that count; all if ``None``.
        batch_dice: Sum over the batch too, so that a case without a class does not weigh as much as one with it.
        smooth: ``s``; a class that is absent in both then has the coefficient 1.

    Shapes:
        probabilities, target: ``(B, C, *spatial)``; mask: ``(B, 1, *spatial)``; the result is a scalar.
    """
    axes = (*((0,) if batch_dice else ()), *range(2, probabilities.ndim))
    if mask is not None:
        # Not a product: an infinite or undefined value in an ignored voxel would survive it.
        probabilities = torch.where(mask, probabilities, 0.0)
        target = torch.where(mask, target, 0.0)
    overlap = (probabilities * target).sum(axes)
    total = probabilities.sum(axes) + target.sum(axes)
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


def region_targets(labels: Tensor, regions: Sequence[int | Sequence[int]]) -> Tensor:
    """Return for every region whether a voxel's label belongs to it.

    Args:
        labels: Integers.
        regions: The labels of each region, for example ``[(1, 2, 3), (2, 3), (3,)]`` for whole tumour, core and
            enhancing tumour.

    Shapes:
        labels: ``(B, 1, *spatial)``; the result is ``(B, len(regions), *spatial)``, float32.
    """
    members = [torch.tensor([region] if isinstance(region, int) else list(region), device=labels.device) for region in regions]
    return torch.cat([torch.isin(labels, member) for member in members], dim=1).float()


class DiceCELoss(nn.Module):
    """Soft Dice plus cross entropy; for regions, which may overlap, with sigmoids and binary cross entropy.

    Args:
        dice: Weight of the Dice term.
        cross_entropy: Weight of the cross entropy, a mean over the voxels that count (and over regions).
        batch_dice: Sum over the batch before the Dice ratio.
        smooth: Added above and below in the Dice ratio.
        background: Count label 0 in the Dice term; regions all count.
        regions: The labels of each region; ``None`` for one label per voxel.
        ignore_label: Voxels with this label have no part in either term.

    Shapes:
        logits: ``(B, C, *spatial)`` with a channel per label or per region.
        target: ``(B, 1, *spatial)`` integer labels.
        result: a scalar, 0 for a perfect prediction.

    Raises:
        ConfigError: If both weights are 0, or one is negative.
    """

    def __init__(
        self,
        *,
        dice: float = 1.0,
        cross_entropy: float = 1.0,
        batch_dice: bool = False,
        smooth: float = 1e-5,
        background: bool = False,
        regions: Sequence[int | Sequence[int]] | None = None,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        if min(dice, cross_entropy) < 0 or dice == cross_entropy == 0:
            raise ConfigError(f"loss.dice={dice} and loss.cross_entropy={cross_entropy} must not be negative, and not both 0")
        self.dice = dice
        self.cross_entropy = cross_entropy
        self.batch_dice = batch_dice
        self.smooth = smooth
        self.background = background
        self.regions = None if regions is None else [(region,) if isinstance(region, int) else tuple(region) for region in regions]
        self.ignore_label = ignore_label

    def terms(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms, ``"dice"`` and ``"cross_entropy"``, without those of weight 0."""
        channels = logits.shape[1] if self.regions is None else len(self.regions)
        if target.shape[1:] != (1, *logits.shape[2:]) or logits.shape[1] != channels:
            raise ValueError(
                f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit: "
                f"expected (B, {channels}, *spatial) and (B, 1, *spatial)"
            )
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        target = target.long()
        mask = None if self.ignore_label is None else target != self.ignore_label
        if mask is not None:
            # Ignored logits are cut off here, so that neither their values nor their gradients reach any sum.
            logits = torch.where(mask, logits, 0.0)
            target = torch.where(mask, target, 0)
        dice, entropy = self._label_terms(logits, target, mask) if self.regions is None else self._region_terms(logits, target, mask)
        terms = {"dice": (self.dice, dice), "cross_entropy": (self.cross_entropy, entropy)}
        return {name: weight * term() for name, (weight, term) in terms.items() if weight}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the sum of the weighted terms."""
        return torch.stack(list(self.terms(logits, target).values())).sum()

    def _label_terms(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        first = 0 if self.background or logits.shape[1] == 1 else 1

        def dice() -> Tensor:
            one_hot = torch.zeros_like(logits).scatter_(1, target, 1.0)
            probabilities = logits.softmax(1)
            return self._dice(probabilities[:, first:], one_hot[:, first:], mask)

        def entropy() -> Tensor:
            return masked_mean(F.cross_entropy(logits, target[:, 0], reduction="none")[:, None], mask)

        return dice, entropy

    def _region_terms(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        inside = region_targets(target, self.regions or ()).to(logits.dtype)

        def dice() -> Tensor:
            return self._dice(logits.sigmoid(), inside, mask)

        def entropy() -> Tensor:
            return masked_mean(F.binary_cross_entropy_with_logits(logits, inside, reduction="none"), mask)

        return dice, entropy

    def _dice(self, probabilities: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        return soft_dice_loss(probabilities, target, mask, batch_dice=self.batch_dice, smooth=self.smooth)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of ``(B, C, *spatial)`` over the voxels of ``mask`` ``(B, 1, *spatial)``; 0 if it has none."""
    if mask is None:
        return values.mean()
    return torch.where(mask, values, 0.0).sum() / (mask.sum() * values.shape[1]).clamp(min=1)


def deep_supervision_weights(outputs: int) -> list[float]:
    """Return the weight of each of ``outputs`` resolutions: ``1 / 2^i``, none for the last, summing to 1."""
    weights = [0.5**index for index in range(outputs)]
    if outputs > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Take the label nearest to the centre of each coarse voxel; a centre between two takes the farther one.

    Shapes:
        labels: ``(B, 1, *spatial)`` of any type; the result is ``(B, 1, *size)`` of the same type.
    """
    for axis, (old, new) in enumerate(zip(labels.shape[2:], size, strict=True), start=2):
        if old != new:
            index = (2 * torch.arange(new, device=labels.device) + 1) * old // (2 * new)
            labels = labels.index_select(axis, index)
    return labels


def deep_supervision_loss(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
    """Return the weighted sum of ``loss`` over the resolutions of a network's output.

    The loss of weight 0 is computed as well, so that every parameter has a gradient, as distributed training demands.

    Args:
        loss: A function of logits and target, for example :class:`DiceCELoss`.
        outputs: Logits, or a list of them, full resolution first.
        target: Labels ``(B, 1, *spatial)`` at full resolution.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, target)
    losses = [loss(logits, resize_labels(target, logits.shape[2:])) for logits in outputs]
    return torch.stack([weight * value for weight, value in zip(deep_supervision_weights(len(losses)), losses, strict=True)]).sum()

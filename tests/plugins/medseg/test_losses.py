"""The loss against MONAI's, closed forms, and what ignoring a voxel must mean."""

from __future__ import annotations

import math

import pytest
import torch
from cnnkit.errors import ConfigError
from cnnkit_medseg.losses import DiceCELoss, deep_supervision_loss, deep_supervision_weights, region_targets, resize_labels, soft_dice_loss

EXACT = dict(rtol=1e-10, atol=1e-10)


def case(classes=4, size=(5, 6, 7), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (2, 1, *size), generator=generator)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_labels_equal_monai(batch_dice, background):
    from monai.losses.dice import DiceCELoss as Monai

    logits, target = case()
    theirs = Monai(include_background=background, to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=batch_dice)
    ours = DiceCELoss(batch_dice=batch_dice, background=background)
    torch.testing.assert_close(ours(logits, target), theirs(logits, target), **EXACT)


def test_regions_equal_monai():
    # MONAI's DiceCELoss takes a softmax cross entropy even for sigmoid outputs, so its Dice term alone is the oracle.
    from monai.losses.dice import DiceLoss as Monai

    logits, _ = case(classes=3)
    _, target = case(classes=4)
    regions = [(1, 2, 3), (2, 3), 3]
    inside = region_targets(target, regions).double()
    expected = Monai(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, inside) + torch.nn.BCEWithLogitsLoss()(logits, inside)
    torch.testing.assert_close(DiceCELoss(regions=regions)(logits, target), expected, **EXACT)


def test_closed_forms():
    target = torch.tensor([[[0, 1, 1, 1]]])
    uniform = torch.zeros(1, 2, 4, dtype=torch.float64)
    terms = DiceCELoss(dice=2.0, cross_entropy=3.0).terms(uniform, target)
    smooth = 1e-5
    assert terms["dice"].item() == pytest.approx(2 * (1 - (2 * 1.5 + smooth) / (2 + 3 + smooth)), abs=1e-12)
    assert terms["cross_entropy"].item() == pytest.approx(3 * math.log(2), abs=1e-12)
    perfect = torch.nn.functional.one_hot(target[:, 0], 2).movedim(-1, 1) * 100.0
    assert DiceCELoss()(perfect, target).item() == pytest.approx(0, abs=1e-6)


def test_absent_class_scores_one():
    nothing = torch.zeros(1, 1, 8)
    assert soft_dice_loss(nothing, nothing).item() == 0


@pytest.mark.parametrize("regions", [None, [(1, 2), (2,)]])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_ignored_voxels_have_no_part(regions, batch_dice):
    logits, target = case(classes=3 if regions is None else 2)
    target = target % 3
    ignored = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    target[ignored] = 7
    loss = DiceCELoss(ignore_label=7, regions=regions, batch_dice=batch_dice)
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    everywhere = ignored.expand_as(logits)
    assert torch.equal(logits.grad[everywhere], torch.zeros(int(everywhere.sum()), dtype=torch.float64))
    assert (logits.grad[~everywhere] != 0).all()
    for wild in (1e6, math.inf, math.nan):
        changed = torch.where(everywhere, wild, logits.detach())
        torch.testing.assert_close(loss(changed, target), value.detach(), **EXACT)


def test_ignoring_equals_cutting_out():
    # Ignoring the second half of a row gives the loss of the first half.
    logits, target = case(classes=3, size=(8,))
    masked = target.clone()
    masked[..., 4:] = 9
    torch.testing.assert_close(DiceCELoss(ignore_label=9)(logits, masked), DiceCELoss()(logits[..., :4], target[..., :4]), **EXACT)


def test_all_ignored_is_finite():
    logits, target = case(classes=3, size=(4,))
    logits.requires_grad_()
    value = DiceCELoss(ignore_label=9)(logits, torch.full_like(target, 9))
    value.backward()
    assert value.isfinite() and not logits.grad.any()


def test_nothing_ignored_changes_nothing():
    for regions in (None, [1, 2, 3, (1, 2, 3)]):
        logits, target = case()
        expected = DiceCELoss(regions=regions)(logits, target)
        torch.testing.assert_close(DiceCELoss(ignore_label=9, regions=regions)(logits, target), expected, **EXACT)


def test_gradcheck():
    logits, target = case(classes=3, size=(2, 2))
    target[0, 0, 0, 0] = 5
    for regions in (None, [(1, 2), 2, 1]):
        loss = DiceCELoss(ignore_label=5, regions=regions)
        assert torch.autograd.gradcheck(lambda values, loss=loss: loss(values, target), logits.clone().requires_grad_())


def test_region_targets():
    labels = torch.tensor([[[0, 1, 2, 4]]], dtype=torch.int16)
    assert region_targets(labels, [(1, 2, 4), (2, 4), 4]).tolist() == [[[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]]


def test_deep_supervision_weights():
    assert deep_supervision_weights(1) == [1]
    assert deep_supervision_weights(2) == [1, 0]
    assert deep_supervision_weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])


def test_deep_supervision_loss_is_the_weighted_sum():
    fine, target = case(size=(8, 8))
    coarse, _ = case(size=(4, 4), seed=1)
    last, _ = case(size=(2, 2), seed=2)
    last.requires_grad_()
    loss = DiceCELoss()
    total = deep_supervision_loss(loss, [fine, coarse, last], target)
    expected = (2 * loss(fine, target) + loss(coarse, target[..., 1::2, 1::2])) / 3
    torch.testing.assert_close(total.detach(), expected, **EXACT)
    total.backward()
    assert last.grad is not None and not last.grad.any()
    torch.testing.assert_close(deep_supervision_loss(loss, fine, target), loss(fine, target))


@pytest.mark.parametrize(("old", "new"), [((9, 8), (3, 4)), ((7, 5), (4, 3)), ((5, 6), (5, 6))])
def test_resize_labels_takes_the_nearest(old, new):
    labels = torch.randint(100, (1, 1, *old))
    expected = torch.nn.functional.interpolate(labels.double(), size=new, mode="nearest-exact").long()
    assert torch.equal(resize_labels(labels, new), expected)


def test_low_precision_is_summed_in_single():
    logits, target = case(size=(64, 64))
    value = DiceCELoss(batch_dice=True)(logits.bfloat16(), target)
    torch.testing.assert_close(value, DiceCELoss(batch_dice=True)(logits.bfloat16().float(), target))


def test_mistakes_are_explained():
    logits, target = case()
    with pytest.raises(ValueError, match="do not fit"):
        DiceCELoss()(logits, target[:, 0])
    with pytest.raises(ValueError, match=r"\(B, 2"):
        DiceCELoss(regions=[1, 2])(logits, target)
    with pytest.raises(ConfigError, match="not both 0"):
        DiceCELoss(dice=0, cross_entropy=0)

"""Folding against the unfolded model, and the cases in which nothing may be folded."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, create_small
from cnnkit.layers.conv import ConvNormAct
from cnnkit.layers.fuse import fold_batch_norm, foldable_pairs, fuse
from cnnkit.layers.nd import batch_norm, conv
from torch import nn


def settled(model: nn.Module) -> nn.Module:
    """Give every normalisation statistics and an affine map of its own."""
    torch.manual_seed(0)
    for tensor in model.double().state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) for module in model.modules())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_folded_weights_are_the_closed_form(dims, bias):
    pair = settled(nn.Sequential(conv(dims)(4, 6, 3, groups=2, bias=bias), batch_norm(dims)(6)))
    x = torch.randn(2, 4, *(5,) * dims, dtype=torch.float64)
    weight, shift = fold_batch_norm(pair[0], pair[1])
    whole = conv(dims)(4, 6, 3, groups=2).double()
    whole.weight.copy_(weight)
    whole.bias.copy_(shift)
    torch.testing.assert_close(whole(x), pair(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_linear_layer_is_folded_for_vectors_only():
    model = settled(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = model(x)
    torch.testing.assert_close(fuse(model, x)(x), expected, rtol=1e-12, atol=1e-12)
    assert norms(model) == 0
    tokens = settled(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))  # Of 4 tokens: the normalised axis is theirs.
    assert foldable_pairs(tokens, torch.randn(2, 4, 4, dtype=torch.float64)) == []


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_all_normalisations_of_a_resnet_go(name):
    model = settled(create_model(name, dims=1, num_classes=3, depths=(1, 1, 1, 1), widths=(4, 4, 8, 8)))
    x = torch.randn(2, 3, 70, dtype=torch.float64)
    expected = model(x)
    torch.testing.assert_close(model.fuse()(x), expected, rtol=1e-10, atol=1e-10)
    assert norms(model) == 0


class Reader(nn.Module):
    """A convolution whose output something else reads too, or that is used twice, or normalised twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.bn = how, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        if self.how == "also read":
            return self.bn(y) + y
        if self.how == "read in a list":
            return torch.cat([self.bn(y), y])
        return self.bn(self.conv(self.bn(y)))


@pytest.mark.parametrize("how", ["also read", "read in a list", "used twice"])
def test_what_something_else_reads_is_not_folded(how):
    assert foldable_pairs(settled(Reader(how)), torch.zeros(1, 3, 4, 4, dtype=torch.float64)) == []


def test_a_normalisation_before_the_convolution_stays():
    model = settled(ConvNormAct(4, 6, order="nac"))
    assert foldable_pairs(model, torch.zeros(1, 4, 8, 8, dtype=torch.float64)) == []


class Branches(nn.Module):
    """3 x and 2 x in parallel."""

    def merged(self) -> nn.Module:
        layer = nn.Conv2d(1, 1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(layer.weight, 5.0)
        return layer

    def forward(self, x):
        return 3 * x + 2 * x


@torch.no_grad()
def test_branches_are_merged_first_so_that_what_follows_folds():
    model = settled(nn.Sequential(Branches(), nn.BatchNorm2d(1)))
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    expected = model(x)
    torch.testing.assert_close(fuse(model, x)(x), expected, rtol=1e-12, atol=1e-12)
    assert norms(model) == 0 and not any(isinstance(module, Branches) for module in model.modules())


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        create_small("resnet").train().fuse()


@torch.no_grad()
def test_maps_of_a_fused_model_are_channels_last_in_memory_and_its_files_are_not(tmp_path):
    from cnnkit.checkpoint import Header, load_checkpoint, save_checkpoint

    model, x = settled(create_small("resnet", num_classes=3)), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected, plain = model(x), model.forward_features(x)
    fused = model.fuse()
    features = fused.forward_features(x)
    assert plain.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    torch.testing.assert_close(fused(x), expected, rtol=1e-10, atol=1e-10)
    save_checkpoint(tmp_path / "fused.ckpt", fused.state_dict(), Header(task="backbone", model="resnet"))
    stored = load_checkpoint(tmp_path / "fused.ckpt")[1]
    assert all(torch.equal(stored[key], tensor) and stored[key].is_contiguous() for key, tensor in fused.state_dict().items())

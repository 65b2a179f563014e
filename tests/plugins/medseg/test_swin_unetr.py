"""Swin UNETR against MONAI's class with the same weights, whose keys it shares."""

from __future__ import annotations

import pytest
import torch
from cnnkit.errors import CheckpointError
from cnnkit.testing.onnx_program import through_onnx
from cnnkit.weights import load_weights
from cnnkit_medseg.models.swin import MERGING, PatchMerging
from cnnkit_medseg.models.swin_unetr import SwinUNETR
from torch import nn

pytestmark = pytest.mark.paper("swin-unetr")
TOLERANCE = {torch.float32: dict(rtol=1e-4, atol=1e-5), torch.float64: dict(rtol=1e-10, atol=1e-10)}
SMALL = dict(feature_size=12, depths=(2, 2, 1, 1))


def randomize(model: nn.Module) -> nn.Module:
    """Give every parameter a random value, also those that start at 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.eval()


def pair(dims, dtype, **arch):
    from monai.networks.nets.swin_unetr import SwinUNETR as Monai

    theirs = randomize(Monai(in_channels=2, out_channels=3, spatial_dims=dims, **SMALL, **arch)).to(dtype)
    ours = SwinUNETR(2, 3, dims, **SMALL, **arch).to(dtype).eval()
    assert load_weights(ours, theirs.state_dict()) == "cnnkit", "the layout of MONAI is the model's own"
    return ours, theirs


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("dims", "size", "arch"),
    [
        (3, (64, 32, 32), {}),  # windows of 7 on 32 x 16 x 16 tokens: padded and shifted
        (3, (32, 32, 96), {"window_size": 4, "downsample": "mergingv2", "normalize": False}),  # windows divide the first grids
        (2, (64, 96), {"use_v2": True}),
        (2, (224, 224), {"qkv_bias": False}),  # 112 tokens: no padding down to one window
    ],
)
def test_equals_monai(dims, size, arch, dtype):
    ours, theirs = pair(dims, dtype, **arch)
    x = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)
    with torch.no_grad():
        # Sums of 3-D float32 convolutions are up to 2e-5 apart on some processors; float64 decides.
        tolerance = TOLERANCE[dtype] | ({"atol": 3e-5} if dims == 3 and dtype is torch.float32 else {})
        torch.testing.assert_close(ours(x), theirs(x), **tolerance)


def test_gradients_equal_monai():
    ours, theirs = pair(2, torch.float64)
    x = torch.randn(1, 2, 64, 96, dtype=torch.float64)
    for model in (ours, theirs):
        model.train()
        (model(x) ** 2).sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-9, atol=1e-9)


def test_parameters_of_the_brats_model():
    with torch.device("meta"):
        model = SwinUNETR(4, 3, feature_size=48)
    count = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(parameter.numel() for name, parameter in model.named_parameters() if name.endswith("position_bias_table"))
    assert count == 62_191_941  # what MONAI's class has
    assert (count - tables) / 1e6 == pytest.approx(61.98, abs=0.02)  # the paper's figure


def test_merging_of_monai_up_to_1_4():
    # Their forward pass, written out for one patch whose eight voxels are numbered by (z, y, x).
    merge = PatchMerging(1, 3, order="merging-0.9")
    merge.norm = nn.Identity()
    merge.reduction = nn.Identity()
    patch = torch.arange(8.0).reshape(1, 2, 2, 2, 1)
    assert merge(patch).flatten().tolist() == [0, 4, 2, 1, 5, 2, 1, 7]
    assert sorted(MERGING["merging"]) == sorted(MERGING["mergingv2"])


def test_merging_order_changes_the_output_of_the_same_weights():
    ours, _ = pair(3, torch.float32)
    old = SwinUNETR(2, 3, 3, **SMALL, downsample="merging-0.9").eval()
    old.load_state_dict(ours.state_dict())
    x = torch.randn(1, 2, 64, 32, 32)
    with torch.no_grad():
        assert (ours(x) - old(x)).abs().max() > 1e-3


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_every_parameter_has_a_gradient(use_checkpoint):
    model = SwinUNETR(1, 2, 2, **SMALL, use_v2=True, drop_path_rate=0.0, use_checkpoint=use_checkpoint)
    model(torch.randn(1, 1, 64, 64)).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_dropout_acts_in_training_only():
    model = SwinUNETR(1, 2, 2, **SMALL, drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.3)
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("size", "message"),
    [((64, 60), r"multiples of 32.*\(64, 64\)"), ((32, 32), "at least 64"), ((64, 64, 64), "dims=2")],
)
def test_sizes_are_explained(size, message):
    with pytest.raises(ValueError, match=message):
        SwinUNETR(1, 2, 2, **SMALL)(torch.zeros(1, 1, *size))


def test_arguments_are_explained():
    with pytest.raises(ValueError, match="did you mean 'merging'"):
        SwinUNETR(downsample="mergin")
    with pytest.raises(ValueError, match="multiple of 12"):
        SwinUNETR(feature_size=16)
    with pytest.raises(CheckpointError, match="lacks"):
        state = dict(list(SwinUNETR(1, 2, 2, **SMALL).state_dict().items())[:-1])
        load_weights(SwinUNETR(1, 2, 2, **SMALL), state)


def export(dims):
    model = SwinUNETR(1, 2, dims, feature_size=12, depths=(2, 1, 1, 1), window_size=4).eval()
    x = torch.randn(1, 1, 64, *(32,) * (dims - 1))
    with torch.no_grad():
        expected = model(x)
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x), expected)  # nothing of the tracing stays on the model
    return program, x, expected


def test_torch_export_of_volumes():
    export(dims=3)


@pytest.mark.slow
def test_onnx_of_images():
    program, x, expected = export(dims=2)
    torch.testing.assert_close(through_onnx(program)(x), expected, rtol=1e-4, atol=1e-4)

"""MONAI's networks under our words: their keys, their outputs, our convention of deep supervision."""

from __future__ import annotations

import copy

import pytest
import torch
from cnnkit.weights import load_weights

nets = pytest.importorskip("cnnkit_medseg.models.monai_nets")


def test_dynunet_takes_monai_weights_and_gives_its_output():
    from monai.networks.nets.dynunet import DynUNet

    strides = (1, 2, (1, 2, 2))
    theirs = DynUNet(3, 1, 2, (3, 3, 3), strides, strides[1:], filters=(4, 6, 8), deep_supervision=True)
    ours = nets.dynunet(1, 2, 3, channels=(4, 6, 8), strides=strides)
    assert load_weights(ours, theirs.state_dict()) == "cnnkit"
    x = torch.randn(2, 1, 8, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)
        stacked = theirs.train()(x)
        full, half = ours.train()(x)
    torch.testing.assert_close(full, stacked[:, 0], rtol=0, atol=0)
    assert half.shape == (2, 2, 4, 8, 8)
    torch.testing.assert_close(torch.nn.functional.interpolate(half, full.shape[2:]), stacked[:, 1], rtol=0, atol=0)


def test_dynunet_can_be_copied_after_a_step():
    model = nets.dynunet(1, 2, 2, channels=(4, 6, 8))
    outputs = model(torch.randn(1, 1, 16, 16))
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    copied = copy.deepcopy(model).eval()
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(copied(x), model.eval()(x))


def test_dynunet_without_deep_supervision():
    assert nets.dynunet(1, 2, 2, channels=(4, 6, 8), deep_supervision=False)(torch.randn(1, 1, 16, 16)).shape == (1, 2, 16, 16)


@pytest.mark.parametrize("dims", [2, 3])
def test_segresnet_takes_monai_weights_and_gives_its_output(dims):
    from monai.networks.nets.segresnet import SegResNet

    theirs = SegResNet(spatial_dims=dims, in_channels=4, out_channels=3, dropout_prob=0.2)
    ours = nets.segresnet(4, 3, dims, dropout=0.2)
    assert load_weights(ours, theirs.state_dict()) == "cnnkit"
    x = torch.randn(1, 4, *(16,) * dims)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)
    ours.train()(x).square().mean().backward()
    assert [name for name, parameter in ours.named_parameters() if parameter.grad is None] == []


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="one entry per stage"):
        nets.dynunet(strides=(1, 2))
    with pytest.raises(ValueError, match="one entry fewer"):
        nets.segresnet(blocks_up=(1,))
    with pytest.raises(ValueError, match="dims=1"):
        nets.segresnet(dims=1)
    with pytest.raises(TypeError, match="feature"):
        nets.dynunet(feature=3)

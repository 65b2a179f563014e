"""The U-Net against MONAI's DynUNet and nnU-Net's own network with the same weights."""

from __future__ import annotations

import pytest
import torch
from cnnkit.errors import CheckpointError, ConfigError
from cnnkit.testing.onnx_program import through_onnx
from cnnkit.weights import load_weights
from cnnkit_medseg.losses import DiceCELoss, deep_supervision_loss
from cnnkit_medseg.models.unet import UNet

TOLERANCE = {torch.float32: dict(rtol=1e-4, atol=1e-5), torch.float64: dict(rtol=1e-10, atol=1e-10)}


def randomize(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("dims", "strides", "size", "residual"),
    [(2, (1, 2, 2, 2), (32, 48), False), (3, (1, (1, 2, 2), 2, 2), (8, 16, 24), False), (3, (1, 2, (1, 2, 2)), (8, 16, 16), True)],
)
def test_equals_dynunet(dims, strides, size, residual, dtype):
    from monai.networks.nets.dynunet import DynUNet

    channels = (4, 6, 8, 10)[: len(strides)]
    theirs = DynUNet(
        dims, 2, 3, (3,) * len(strides), strides, strides[1:], filters=channels, res_block=residual,
        deep_supervision=True, deep_supr_num=len(strides) - 2,
    )  # fmt: skip
    randomize(theirs).to(dtype)
    ours = UNet(2, 3, dims, channels=channels, strides=strides, residual=residual, conv_bias=False).to(dtype)
    assert load_weights(ours, theirs.state_dict()) == "monai-dynunet"
    x = torch.randn(2, 2, *size, dtype=dtype)
    with torch.no_grad():
        outputs = ours(x)
        torch.testing.assert_close(outputs[0], theirs(x)[:, 0], **TOLERANCE[dtype])
        for output, head in zip(outputs[1:], theirs.heads, strict=True):
            torch.testing.assert_close(output, head, **TOLERANCE[dtype])
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), **TOLERANCE[dtype])


def test_equals_nnunet():
    package = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    strides, kernels, channels = [(1, 1, 1), (1, 2, 2), (2, 2, 2)], [(1, 3, 3), (3, 3, 3), (3, 3, 3)], (4, 6, 8)
    theirs = package.PlainConvUNet(
        2, 3, channels, torch.nn.Conv3d, kernels, strides, 2, 3, 2, conv_bias=True, norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU, deep_supervision=True,
    )  # fmt: skip
    randomize(theirs).double()
    ours = UNet(2, 3, 3, channels=channels, strides=strides, kernel_sizes=kernels).double()
    assert load_weights(ours, theirs.state_dict()) == "nnunet"
    x = torch.randn(1, 2, 8, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        for output, expected in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(output, expected, **TOLERANCE[torch.float64])


def nnunet_keys(state, levels):
    """Return our weights under the names that nnU-Net gives them, with its repetitions."""
    theirs = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "encoder":
            name = ".".join(["encoder.stages", parts[2], "0", *parts[3:]])
        elif parts[0] == "heads":
            name = f"decoder.seg_layers.{levels - 1 - int(parts[1])}.{parts[2]}"
        elif parts[2] == "up":
            name = f"decoder.transpconvs.{levels - 1 - int(parts[1])}.{parts[-1]}"
        else:
            name = ".".join(["decoder.stages", str(levels - 1 - int(parts[1])), *parts[3:]])
        for alias in (name, "decoder." + name) if parts[0] == "encoder" else (name,):
            for own, again in (("", ""), (".conv.", ".all_modules.0."), (".norm.", ".all_modules.1.")):
                if own in alias:
                    theirs[alias.replace(own, again) if own else alias] = value
    return theirs


def test_nnunet_layout():
    channels = tuple(range(4, 15))  # eleven stages: names with two digits, all of different shape
    first, second = (UNet(1, 2, 1, channels=channels, strides=(1,) * 11) for _ in range(2))
    randomize(first)
    theirs = nnunet_keys(first.state_dict(), 10)
    assert "decoder.encoder.stages.10.0.convs.1.all_modules.1.weight" in theirs
    assert load_weights(second, theirs) == "nnunet"
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key
    del theirs["decoder.seg_layers.0.bias"]
    with pytest.raises(CheckpointError, match=r"lacks heads\.9\.bias"):
        load_weights(second, theirs)


ENCODERS = [(1, "resnet18", (70,)), (2, "resnet18", (50, 71)), (3, "resnet18", (17, 32, 20)), (2, "convnext_tiny", (40, 70))]


@pytest.mark.parametrize(("dims", "encoder", "size"), ENCODERS)
def test_backbone_as_encoder(dims, encoder, size):
    model = UNet(2, 3, dims, encoder=encoder, channels=(4, 6, 8, 10, 12))
    assert model.stem is not None
    x = torch.randn(2, 2, *size)
    outputs = model(x)
    assert outputs[0].shape == (2, 3, *size)
    assert all(output.shape[1] == 3 for output in outputs)
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.eval()(x).shape == (2, 3, *size)


@pytest.mark.parametrize(("dims", "size"), [(1, (19,)), (2, (17, 24)), (3, (9, 12, 17))])
@pytest.mark.parametrize("residual", [False, True])
def test_any_size(dims, size, residual):
    model = UNet(1, 2, dims, channels=(4, 6, 8), residual=residual)
    x = torch.randn(2, 1, *size)
    outputs = model(x)
    expected = [[-(-side // 2**level) for side in size] for level in range(2)]
    assert [list(output.shape[2:]) for output in outputs] == expected
    # What it returns for the padded image, cut to the image's size.
    padded = torch.zeros(2, 1, *(-(-side // 4) * 4 for side in size))
    window = (..., *(slice(side) for side in size))
    padded[window] = x
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(model(x), model(padded)[window], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("regions", [None, [(1, 2), (2,)]])
def test_every_parameter_has_a_gradient(regions):
    model = UNet(1, 3 if regions is None else 2, 2, channels=(4, 6, 8, 8))
    outputs = model(torch.randn(2, 1, 32, 32))
    deep_supervision_loss(DiceCELoss(regions=regions), outputs, torch.randint(3, (2, 1, 32, 32))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_without_deep_supervision():
    model = UNet(1, 2, 2, channels=(4, 6, 8), deep_supervision=False)
    assert len(model.heads) == 1
    output = model(torch.randn(1, 1, 16, 16))
    assert output.shape == (1, 2, 16, 16)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    supervised = UNet(1, 2, 2, channels=(4, 6, 8))
    assert set(model.state_dict()) < set(supervised.state_dict())


def test_loss_falls():
    torch.manual_seed(0)
    model = UNet(1, 2, 2, channels=(4, 8, 8))
    grid = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij"))
    target = ((grid - 12).norm(dim=0) < 6).long()[None, None]
    x = target + 0.3 * torch.randn(1, 1, 24, 24)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = deep_supervision_loss(DiceCELoss(), model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():
        assert (model.eval()(x).argmax(1, keepdim=True) == target).float().mean() > 0.97


def test_mistakes_are_explained():
    with pytest.raises(ConfigError, match="strides has 2 entries for 3 stages"):
        UNet(channels=(4, 6, 8), strides=(1, 2))
    with pytest.raises(ConfigError, match="first stride"):
        UNet(channels=(4, 6, 8), strides=(2, 2, 2))
    with pytest.raises(ConfigError, match="has its own"):
        UNet(encoder="resnet18", strides=(1, 2))
    with pytest.raises(ConfigError, match="needs 5 entries"):
        UNet(encoder="resnet18", channels=(4, 6))
    with pytest.raises(ValueError, match="dims=3"):
        UNet(channels=(4, 6, 8))(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="longer than"):
        UNet(1, 2, 2, channels=(4, 6, 8))(torch.zeros(1, 1, 4, 4))


@pytest.mark.slow
def test_export():
    model = randomize(UNet(1, 2, 3, channels=(4, 6, 8), residual=True)).eval()
    x = torch.randn(1, 1, 14, 16, 19)  # padded inside
    with torch.no_grad():
        expected = model(x)
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(through_onnx(program)(x), expected, rtol=1e-4, atol=1e-4)

"""IMDN and IMDN_AS: the official arithmetic and files, the attention by contrast, one set of weights for any scale, export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.checkpoint import read_state
from cnnkit.count import count_params
from cnnkit.errors import CheckpointError, ConfigError, UsageError
from cnnkit.layers.fuse import fuse
from cnnkit.testing.compare import assert_near, assert_same_keys, image, randomise
from cnnkit.weights import load_weights
from cnnkit_superres.models.imdn import ContrastAttention
from cnnkit_superres.resize import imresize

pytestmark = pytest.mark.paper("imdn")

SIZES = {"imdn": ((11, 14), (1, 5)), "imdn_as": ((12, 8), (4, 4))}


def pictures(*size: int, channels: int = 3) -> torch.Tensor:
    return image(*size, channels=channels).mul(0.3).add(0.5)


def pair(plain, name: str) -> tuple[Any, Any]:
    """Return ours and the plain network with the same random weights."""
    ours: Any = randomise(create_model(f"superres/{name}"), gain=1.5)
    theirs = plain("imdn").create(name).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_official_weights_give_the_official_output(plain, kind, scale):
    ours, theirs = pair(plain, f"{kind}_x{scale}")
    assert_same_keys(ours, theirs)
    for tolerance in (1e-5, 1e-10):
        for size in SIZES[kind]:
            x = pictures(*size).to(next(ours.parameters()).dtype)
            found = ours(x).detach()
            assert found.shape[-2:] == (scale * size[0], scale * size[1])
            assert_near(found, theirs(x).detach(), tolerance)
        ours, theirs = ours.double(), theirs.double()


@pytest.mark.parametrize(
    ("name", "params"), [("imdn_x2", 694_404), ("imdn_x3", 703_059), ("imdn_x4", 715_176), ("imdn_as_x2", 752_104), ("imdn_as_x4", 752_104)]
)
def test_parameters(name, params):
    """As many as the official files hold."""
    assert count_params(create_model(f"superres/{name}")) == params


def test_parameters_by_hand():
    """Convolutions of the paper's figure: ``inputs * outputs * k * k + outputs``."""

    def conv(inputs: int, outputs: int, k: int) -> int:
        return inputs * outputs * k * k + outputs

    attention = conv(64, 4, 1) + conv(4, 64, 1)
    block = conv(64, 64, 3) + 2 * conv(48, 64, 3) + conv(48, 16, 3) + attention + conv(64, 64, 1)
    rest = conv(3, 64, 3) + conv(6 * 64, 64, 1) + conv(64, 64, 3)
    for scale in (2, 3, 4):
        total = 6 * block + rest + conv(64, 3 * scale**2, 3)
        assert count_params(create_model(f"superres/imdn_x{scale}")) == total


def test_the_attention_sees_deviation_plus_mean():
    """Against numpy, through a gate that passes on what it is given: half of it, by a sigmoid's slope of 1/4 at small values."""
    x = pictures(7, 9, channels=16).double()
    attention = ContrastAttention(16).double()
    seen: list[torch.Tensor] = []
    attention.conv_du.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    gate = attention(x) / x
    expected = x.numpy().mean((2, 3)) + x.numpy().std((2, 3))
    np.testing.assert_allclose(seen[0][..., 0, 0].numpy(), expected, rtol=1e-13)
    assert_near(gate.detach(), attention.conv_du(seen[0]).detach().expand_as(gate), 1e-12)


def test_texture_and_not_brightness_moves_the_contrast():
    attention = ContrastAttention(16).double()
    seen: list[torch.Tensor] = []
    attention.conv_du.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = pictures(8, 8, channels=16).double()
    attention(x)
    attention(x + 1)
    attention(2 * x)
    assert_near(seen[1], seen[0] + 1, 1e-12)
    assert_near(seen[2], 2 * seen[0], 1e-12)


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_a_picture_without_variance_has_a_finite_gradient(size):
    model = randomise(create_model("superres/imdn_x2", width=16)).train()
    x = torch.full((1, 3, *size), 0.5, requires_grad=True)
    model(x).square().mean().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["imdn_x3", "imdn_as_x2"])
def test_the_merged_form_computes_the_same(plain, name):
    ours, theirs = pair(plain, name)
    fuse(ours, pictures(4, 4))
    assert not any(type(module).__name__ == "ConcatConv" for module in ours.modules())
    x = pictures(8, 12)
    assert_near(ours(x).detach(), theirs(x).detach(), 1e-5)
    assert_near(ours.double()(x.double()).detach(), theirs.double()(x.double()).detach(), 1e-10)


def test_the_weights_for_any_scale_serve_each(plain):
    """Scale 1 is the official network itself, on a picture that has its final size."""
    ours, theirs = pair(plain, "imdn_as_x2")
    for scale in (1, 2, 3, 4):
        ours.set_scale(scale)
        theirs.scale = scale
        x = pictures(4, 8)
        assert ours(x).shape[-2:] == (4 * scale, 8 * scale)
        assert_near(ours(x).detach(), theirs(x).detach(), 1e-5)
    with pytest.raises(UsageError, match="by 1 or 2 or 3 or 4, not by 8"):
        ours.set_scale(8)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (2, 9)])
def test_the_network_for_any_scale_takes_any_size(size):
    model: Any = randomise(create_model("superres/imdn_as_x3", width=16))
    for scale in (1, 3):
        model.set_scale(scale)
        out = model(pictures(*size))
        assert out.shape[-2:] == (scale * size[0], scale * size[1]) and out.isfinite().all()


def test_the_picture_is_first_enlarged_as_matlab_does():
    """Away from the border, where MATLAB repeats pixels and the filter here is normalised."""
    seen: list[torch.Tensor] = []
    model: Any = create_model("superres/imdn_as_x3", width=16)
    model.fea_conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = pictures(12, 8)[:1]
    model(x)
    expected = torch.from_numpy(imresize(x[0].permute(1, 2, 0).numpy(), 3)).permute(2, 0, 1)
    assert_near(seen[0][0, :, 6:-6, 6:-6], expected[:, 6:-6, 6:-6].float(), 1e-5)


def test_official_files_are_read(plain, tmp_path):
    """They have a prefix of nn.DataParallel."""
    theirs = randomise(plain("imdn").create("imdn_x4"))
    torch.save({f"module.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "IMDN_x4.pth")
    ours = create_model("superres/imdn_x4", weights=tmp_path / "IMDN_x4.pth").eval()
    assert_near(ours(pictures(5, 5)).detach(), theirs(pictures(5, 5)).detach(), 1e-5)
    with pytest.raises(CheckpointError, match=r"upsampler\.0\.bias"):
        load_weights(create_model("superres/imdn_x2"), read_state(tmp_path / "IMDN_x4.pth"))


def test_a_width_that_has_no_quarter_is_refused():
    with pytest.raises(ConfigError, match="width=30 is not a multiple of 4"):
        create_model("superres/imdn_x2", width=30)


@pytest.mark.parametrize(("name", "multiple"), [("imdn_x3", 1), ("imdn_as_x2", 4)])
def test_it_exports_with_sides_that_vary(name, multiple):
    model = randomise(create_model(f"superres/{name}", width=16))
    height, width = (torch.export.Dim(side, min=2, max=128) for side in ("height", "width"))
    sides = {2: multiple * height, 3: multiple * width} if multiple > 1 else {2: height, 3: width}
    program = torch.export.export(model, (pictures(8, 12),), dynamic_shapes=(sides,)).module()
    x = pictures(16, 20)
    assert_near(program(x).detach(), model(x).detach(), 1e-6)

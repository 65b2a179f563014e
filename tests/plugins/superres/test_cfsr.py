"""CFSR: the official arithmetic and files, the edge detectors against scipy, and the merged form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.checkpoint import read_state
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import CheckpointError
from cnnkit.layers.fuse import fuse
from cnnkit.testing.compare import assert_near, image, randomise
from cnnkit.weights import load_weights
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.paper("cfsr")

SIZES = ((12, 9), (1, 5))
SMALL: dict[str, Any] = {"channels": 8, "depths": (2, 1)}


def peer(plain, scale: int, seed: int = 0, **arch) -> Any:
    """Return the plain network with random weights and the fixed kernels as they are."""
    theirs = plain("cfsr").PlainCFSR(scale, **arch).eval()
    kernels = {key: value.clone() for key, value in theirs.state_dict().items() if ".mask_" in key}
    randomise(theirs, seed)
    theirs.load_state_dict(kernels, strict=False)
    return theirs


def loaded(theirs: nn.Module, scale: int, **arch) -> nn.Module:
    """Return our network with the plain one's weights."""
    ours = create_model(f"superres/cfsr_x{scale}", **arch).eval()
    assert load_weights(ours, theirs.state_dict()) == "official"
    return ours


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_official_weights_give_the_official_output(plain, scale):
    theirs = peer(plain, scale)
    ours = loaded(theirs, scale)
    for size in SIZES:
        x = image(*size).mul(0.3).add(0.5)
        assert_near(ours(x).detach(), theirs(x).detach(), 1e-5)
        assert ours(x).shape[-2:] == (scale * size[0], scale * size[1])
    ours, theirs = ours.double(), theirs.double()
    for size in SIZES:
        x = image(*size).double()
        assert_near(ours(x).detach(), theirs(x).detach(), 1e-10)


@pytest.mark.parametrize(
    ("scale", "params", "thousands", "gmacs"), [(2, 291_324, 291, 65.06), (3, 297_819, 298, 29.60), (4, 306_912, 307, 17.16)]
)
def test_published_parameters_are_those_of_the_merged_form(scale, params, thousands, gmacs):
    """The files of the official code hold exactly these numbers; branches cost parameters, but no multiply-adds."""
    model = create_model(f"superres/cfsr_x{scale}").eval()
    size = {2: (360, 640), 3: (240, 427), 4: (180, 320)}[scale]
    with on_meta():
        assert count_macs(create_model(f"superres/cfsr_x{scale}"), (1, 3, *size)) / 1e9 == pytest.approx(gmacs, abs=5e-3)
    assert count_params(model) == params + 12 * 3 * 2 * 96
    assert count_params(fuse(model, image(4, 4, batch=1))) == params
    assert round(params / 1000) == thousands


def test_the_merged_form_computes_the_same(plain):
    ours = loaded(peer(plain, 2), 2)
    merged = fuse(loaded(peer(plain, 2), 2), image(4, 4, batch=1))
    x = image(14, 11)
    assert_near(merged(x).detach(), ours(x).detach(), 1e-5)
    assert_near(merged.double()(x.double()).detach(), ours.double()(x.double()).detach(), 1e-6)  # Its kernels were added in float32.
    again = create_model("superres/cfsr_x2").double().eval()
    assert load_weights(again, merged.state_dict()) == "official"
    assert_near(again(x.double()).detach(), merged(x.double()).detach(), 1e-12)


def test_merging_in_double_precision_loses_nothing():
    ours = randomise(create_model("superres/cfsr_x3", **SMALL)).double()
    x = image(6, 7).double()
    before = ours(x).detach()
    assert_near(fuse(ours, x)(x).detach(), before, 1e-13)
    assert not any("sobel" in key or "laplacian" in key for key in ours.state_dict())


def test_the_fixed_kernels_are_sobel_and_laplace():
    """The kernels of a layer with one detector at scale 1 and nothing else, against scipy on a random picture."""
    layer: Any = create_model("superres/cfsr_x2", **SMALL).get_submodule("layers.0.blocks.0.mlp")
    picture = torch.rand(9, 8, generator=torch.Generator().manual_seed(0)).double()
    expected = {
        "sobel_x": -ndimage.sobel(picture.numpy(), axis=1, mode="constant"),
        "sobel_y": -ndimage.sobel(picture.numpy(), axis=0, mode="constant"),
        "laplacian": ndimage.laplace(picture.numpy(), mode="constant"),
    }
    for name, parameter in layer.named_parameters():
        if name.startswith(("pos", "scale")) or "_bias" in name:
            nn.init.zeros_(parameter)
    for name, response in expected.items():
        with torch.no_grad():
            layer.get_parameter(f"scale_{name}").fill_(1.0)
            weight, bias = layer.kernel()
            layer.get_parameter(f"scale_{name}").zero_()
        found = F.conv2d(picture[None, None], weight[:1].double(), bias[:1].double(), padding=1)[0, 0]
        assert_near(found, torch.from_numpy(response), 1e-12)


def test_kernels_of_a_file_that_differ_from_ours_are_kept(plain):
    """The official code writes one entry of two kernels in the neighbouring place; a state trained with those computes what it did."""
    theirs = peer(plain, 2, dim=8, depths=(1,))
    state = theirs.state_dict()
    for key, row in (("sobel_x", [0.0, 1.0, -1.0]), ("laplacian", [1.0, 0.0, 0.0])):
        state[f"layers.0.blocks.0.mlp.mask_{key}"][:, 0, 0] = torch.tensor(row)
    ours = loaded(theirs, 2, channels=8, depths=(1,))
    exact = loaded(peer(plain, 2, dim=8, depths=(1,)), 2, channels=8, depths=(1,))
    x = image(6, 5)
    assert_near(ours(x).detach(), theirs(x).detach(), 1e-5)
    assert (ours(x) - exact(x)).abs().max() > 1e-3


def test_a_published_file_is_read_and_trains_on(plain, tmp_path):
    theirs = peer(plain, 4, dim=8, depths=(2, 1)).merge()
    torch.save({"params": theirs.state_dict()}, tmp_path / "CFSR_x4.pth")
    ours = create_model("superres/cfsr_x4", **SMALL)
    assert load_weights(ours, read_state(tmp_path / "CFSR_x4.pth")) == "official"
    x = image(5, 6)
    assert_near(ours(x).detach(), theirs(x).detach(), 1e-5)
    ours(x).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for name, parameter in ours.named_parameters() if "sobel" in name)


def test_a_file_of_another_scale_is_refused(plain):
    with pytest.raises(CheckpointError, match=r"upsample\.0\.weight"):
        load_weights(create_model("superres/cfsr_x2"), peer(plain, 4).state_dict())


def test_luminance_has_no_mean(plain):
    theirs = peer(plain, 2, in_chans=1, dim=8, depths=(1,))
    ours = loaded(theirs, 2, in_chans=1, channels=8, depths=(1,))
    x = image(6, 5, channels=1)
    assert_near(ours(x).detach(), theirs(x).detach(), 1e-5)


def test_it_exports_with_sides_that_vary():
    ours = randomise(create_model("superres/cfsr_x2", **SMALL))
    sides = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    program = torch.export.export(ours, (image(8, 9),), dynamic_shapes=(sides,)).module()
    x = image(5, 13)
    assert_near(program(x).detach(), ours(x).detach(), 1e-6)

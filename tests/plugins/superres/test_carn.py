"""CARN and CARN-M: the official arithmetic and keys at every scale of one set of weights, sharing, the merged form, and export."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.checkpoint import read_state
from cnnkit.count import count_params
from cnnkit.errors import CheckpointError, ConfigError, UsageError
from cnnkit.layers.fuse import fuse
from cnnkit.testing.compare import assert_near, assert_same_keys, image, randomise, without_gradient
from cnnkit.weights import load_weights

pytestmark = pytest.mark.paper("carn")

KINDS = ("carn", "carn_m")
SIZES = ((11, 14), (1, 5))


def pictures(*size: int, channels: int = 3) -> torch.Tensor:
    return image(*size, channels=channels).mul(0.3).add(0.5)


def pair(plain, kind: str, scale: int) -> tuple[Any, Any]:
    """Return ours and the plain network with the same random weights."""
    ours: Any = randomise(create_model(f"superres/{kind}_x{scale}"), gain=1.5)
    theirs = plain("carn").create(f"{kind}_x{scale}").eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("kind", KINDS)
def test_one_set_of_weights_gives_the_official_output_at_each_scale(plain, kind):
    ours, theirs = pair(plain, kind, 2)
    for single in (True, False):
        for scale in (2, 3, 4):
            ours.set_scale(scale)
            for size in SIZES:
                x = pictures(*size).to(torch.float32 if single else torch.float64)
                found = ours(x).detach()
                assert found.shape[-2:] == (scale * size[0], scale * size[1])
                assert_near(found, theirs(x, scale).detach(), 1e-5 if single else 1e-10)
        ours, theirs = ours.double(), theirs.double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_registered_network_works_at_its_scale(plain, kind, scale):
    ours, theirs = pair(plain, kind, scale)
    assert_same_keys(ours, theirs)
    x = pictures(6, 5)
    assert_near(ours(x).detach(), theirs(x).detach(), 1e-5)


@pytest.mark.parametrize(("kind", "params"), [("carn", 1_591_963), ("carn_m", 414_811)])
def test_parameters(kind, params):
    """Of CARN-M the paper prints 412 K: that is without biases, which it counts for CARN."""
    model = create_model(f"superres/{kind}_x4")
    assert count_params(model) == params
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert round((params if kind == "carn" else weights) / 1000) == {"carn": 1592, "carn_m": 412}[kind]


def test_the_residual_blocks_of_carn_m_are_one_tensor_used_three_times():
    model: Any = create_model("superres/carn_m_x2")
    assert [name for name in model.state_dict() if name.startswith("b1.b")] == [
        f"b1.b1.body.{i}.{leaf}" for i in (0, 2, 4) for leaf in ("weight", "bias")
    ]
    calls: list[int] = []
    for block in (model.b1, model.b2, model.b3):
        block.b1.body[0].register_forward_hook(lambda module, args, out: calls.append(module.weight.data_ptr()))
    model(pictures(5, 6))
    assert [calls.count(block.b1.body[0].weight.data_ptr()) for block in (model.b1, model.b2, model.b3)] == [3, 3, 3]
    assert model.b1.b1.body[0].weight.shape == (64, 16, 3, 3)
    assert model.b1.b1.body[0].weight.data_ptr() != model.b2.b1.body[0].weight.data_ptr()


def test_a_shared_block_gets_the_sum_of_the_gradients_of_its_uses():
    """Against the block with three copies of the weights."""
    torch.manual_seed(0)
    shared: Any = create_model("superres/carn_m_x2", width=8).double().get_submodule("b1")
    x = torch.randn(1, 8, 6, 5, dtype=torch.float64)

    class Copies(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks: Any = torch.nn.ModuleList(copy.deepcopy(shared.b1) for _ in range(3))

        def forward(self, x):
            maps, out = [x], x
            for block, fusion in zip(self.blocks, (shared.c1, shared.c2, shared.c3), strict=True):
                maps.append(block(out))
                out = fusion(maps)
            return out

    copies = Copies()
    assert torch.equal(copies(x), shared(x))
    shared(x).square().sum().backward()
    copies(x).square().sum().backward()
    for name, parameter in shared.b1.named_parameters():
        assert parameter.grad is not None
        total = torch.stack([block.get_parameter(name).grad for block in copies.blocks]).sum(0)
        assert_near(parameter.grad, total, 1e-12)


def test_a_step_trains_the_branch_of_its_scale_and_all_three_together_the_whole():
    model: Any = create_model("superres/carn_x3", width=8)
    x = pictures(6, 6)
    model(x).square().mean().backward()
    left = without_gradient(model)
    assert left and all(name.startswith(("upsample.up2.", "upsample.up4.")) for name in left)
    for scale in (2, 4):
        model.set_scale(scale)
        model(x).square().mean().backward()
    assert without_gradient(model) == []


def test_a_network_of_one_scale_has_the_official_keys_for_it():
    model: Any = create_model("superres/carn_x3", scales=(), width=8)
    assert model.scales == (3,)
    assert {name.split(".")[1] for name in model.state_dict() if name.startswith("upsample")} == {"up"}
    with pytest.raises(UsageError, match="by 3, not by 2"):
        model.set_scale(2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_form_computes_the_same(plain, kind):
    """Without concatenations, in the memory format of inference."""
    ours, theirs = pair(plain, kind, 2)
    fuse(ours, pictures(4, 4))
    assert not any(type(module).__name__ == "ConcatConv" for module in ours.modules())
    for scale in (2, 3, 4):
        ours.set_scale(scale)
        x = pictures(9, 7)
        assert_near(ours(x).detach(), theirs(x, scale).detach(), 1e-5)
    x = pictures(5, 6).double()
    assert_near(ours.double()(x).detach(), theirs.double()(x, 4).detach(), 1e-10)


def test_the_mean_colour_goes_and_comes_back():
    """With all convolutions at zero the network answers its mean colour: DIV2K's, and for luminance its average."""
    for channels, mean in ((3, [0.4488, 0.4371, 0.4040]), (1, [0.4299667])):
        model: Any = create_model("superres/carn_x2", in_chans=channels, width=4)
        torch.nn.init.zeros_(model.exit.weight)
        torch.nn.init.zeros_(model.exit.bias)
        assert_near(model(pictures(3, 3, channels=channels)).detach()[0, :, 2, 1], torch.tensor(mean), 1e-6)
        shifted = model.add_mean(model.sub_mean(pictures(3, 3, channels=channels)))
        assert_near(shifted.detach(), pictures(3, 3, channels=channels), 1e-6)
        assert not any(p.requires_grad for shift in (model.sub_mean, model.add_mean) for p in shift.parameters())


def test_official_files_are_read(plain, tmp_path):
    theirs = randomise(plain("carn").create("carn_m_x2"))
    torch.save({f"module.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "carn_m.pth")
    ours: Any = create_model("superres/carn_m_x3", weights=tmp_path / "carn_m.pth").eval()
    assert_near(ours(pictures(5, 5)).detach(), theirs(pictures(5, 5), 3).detach(), 1e-5)
    with pytest.raises(CheckpointError, match=r"b1\.b2\.body\.0\.bias"):
        load_weights(create_model("superres/carn_x2"), read_state(tmp_path / "carn_m.pth"))


def test_wrong_arguments_say_what_is_accepted():
    with pytest.raises(ConfigError, match="scale 5 is not served by CARN; accepted: 2, 3, 4"):
        create_model("superres/carn_x2", scale=5)
    with pytest.raises(ConfigError, match="no branch for scale 8; accepted: 2, 3, 4"):
        create_model("superres/carn_x2", scales=(2, 8))
    with pytest.raises(ConfigError, match="groups=3 does not divide width=64"):
        create_model("superres/carn_m_x2", groups=3)


@pytest.mark.parametrize("merge", [False, True])
def test_it_exports_with_sides_that_vary(merge):
    model: Any = randomise(create_model("superres/carn_m_x3", width=8))
    if merge:
        fuse(model, pictures(4, 4))
    sides = {2: torch.export.Dim("height", min=2, max=512), 3: torch.export.Dim("width", min=2, max=512)}
    program = torch.export.export(model, (pictures(8, 9),), dynamic_shapes=(sides,)).module()
    x = pictures(5, 13)
    assert_near(program(x).detach(), model(x).detach(), 1e-6)

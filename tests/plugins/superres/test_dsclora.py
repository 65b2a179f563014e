"""DSCLoRA: adapters that merge without a trace, and the affinity loss against whole matrices."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.checkpoint import Header, load_checkpoint, save_checkpoint
from cnnkit.config import from_dict, to_dict
from cnnkit.count import count_macs, count_params
from cnnkit.errors import CheckpointError, ConfigError, UsageError
from cnnkit.layers.fuse import fuse
from cnnkit.plugin import get
from cnnkit.testing.compare import assert_near, assert_same, image, randomise, without_gradient
from cnnkit_superres.dsclora import (
    AffinityDistillation,
    ConvLoRA,
    Distillation,
    adapter_state,
    add_adapters,
    affinity_distance,
    feature_taps,
    load_adapters,
    merge_adapters,
)
from cnnkit_superres.dsclora_config import AdapterConfig
from cnnkit_superres.models.span import SPAN
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.paper("dsclora")

CONVS = {
    "grouped, strided, dilated": lambda: nn.Conv2d(6, 8, 3, stride=2, groups=2, dilation=2, padding=1),
    "depthwise, oblong": lambda: nn.Conv2d(4, 4, (1, 5), groups=4, bias=False),
    "pointwise": lambda: nn.Conv2d(4, 6, 1),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, (4, 3), stride=2, groups=2),
    "volume": lambda: nn.Conv3d(4, 5, (3, 1, 2)),
    "sound": lambda: nn.Conv1d(4, 5, 7),
}


def span(scale: int = 2, *, channels: int = 8, merged: bool = False, seed: int = 0) -> SPAN:
    """A network whose attention is not saturated by random weights at a range of 255."""
    model = randomise(SPAN(scale=scale, channels=channels, merged=merged), seed)
    for name, parameter in model.conv_1.named_parameters():
        if parameter.shape[1:2] == (3,):
            with torch.no_grad():
                model.conv_1.get_parameter(name).mul_(0.02)
    return model


def stirred(model: nn.Module) -> nn.Module:
    """Move the adapters off zero."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


# The adapter.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_is_the_official_layer(plain, dtype, tolerance):
    theirs = plain("dsclora").PlainLoraConv(6, 8, 3, 2, 5.0, stride=2, padding=1, groups=2).to(dtype)
    ours = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)).to(dtype)
    ours[0].load_state_dict({"weight": theirs.weight, "bias": theirs.bias})
    add_adapters(ours, rank=2, alpha=5.0, where="*")
    stirred(ours)
    state = adapter_state(ours)
    with torch.no_grad():
        theirs.lora_A.copy_(state["0.lora_A"])  # Fails if the shapes differ.
        theirs.lora_B.copy_(state["0.lora_B"])
    x = image(9, 8, channels=6).to(dtype)
    assert theirs.lora_A.shape == state["0.lora_A"].shape and theirs.lora_B.shape == state["0.lora_B"].shape
    assert_near(ours(x).detach(), theirs(x).detach(), tolerance)


@pytest.mark.parametrize("kind", CONVS)
def test_any_convolution_starts_as_it_was_and_merges_to_what_it_became(kind):
    model = randomise(nn.Sequential(CONVS[kind]())).double()
    before, keys = copy.deepcopy(model), list(model.state_dict())
    dims = model[0].weight.ndim - 2
    x = torch.randn(2, model[0].in_channels, *(9, 8, 7)[:dims], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert add_adapters(model, rank=2, alpha=3.0, where="*") == ("0",)
    with torch.no_grad():
        assert torch.equal(model(x), before(x))
        adapted = stirred(model)(x)
        assert float((adapted - before(x)).abs().max()) > 0.01
        assert merge_adapters(model) == 1
        assert_near(model(x), adapted, 1e-12)
    assert type(model[0]) is type(before[0]) and list(model.state_dict()) == keys
    assert torch.linalg.matrix_rank((model[0].weight - before[0].weight).reshape(-1, model[0].weight[0, :, 0].numel())) <= (
        2 * model[0].weight.shape[2]
    )


# Any network of the plugin.

MODELS = get("superres").models
NETWORKS = {entry.target: name for name, entry in reversed(MODELS.items()) if name.endswith("_x2")} | {"merged": "superres/dscf_x4"}
"""The first name of each class."""


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", NETWORKS.values())
def test_merging_leaves_the_base_and_the_adapted_output(name, dtype, tolerance):
    model = randomise(create_model(name)).to(dtype)
    x = image(8, 8, channels=model.in_chans).to(dtype).sigmoid()
    base = copy.deepcopy(model)
    facts = count_params(base), count_macs(base, x.shape), list(base.state_dict())
    with torch.no_grad():
        before = base(x)
        add_adapters(model, rank=2, alpha=4.0, where="*")
        assert count_params(model, trainable=True) == count_params(model) - facts[0]
        assert_near(model(x), before, tolerance)
        adapted = stirred(model)(x)
        assert float((adapted - before).abs().max()) > 1e-3 * float(before.abs().max())
        merge_adapters(model)
        assert_near(model(x), adapted, tolerance)
    assert (count_params(model), count_macs(model, x.shape), list(model.state_dict())) == facts
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_papers_convolutions(plain):
    assert sorted(add_adapters(span(merged=True), ranks={"conv_2*": 8, "upsampler*": 8})) == sorted(plain("dsclora").ADAPTED)
    branches = add_adapters(span())  # The block's own 3x3 convolution, between its 1x1 ones.
    assert sorted(branches) == sorted(name.replace("eval_conv", "conv.1") for name in plain("dsclora").ADAPTED)


def test_ranks_by_name_keep_the_scale():
    model = span(merged=True)
    add_adapters(model, rank=2, alpha=4.0, ranks={"conv_2*": 8, "upsampler*": 8})
    state = adapter_state(model)
    assert state["block_1.c1_r.eval_conv.lora_A"].shape == (2 * 3, 8 * 3) and state["upsampler.0.lora_B"].shape == (12 * 3, 8 * 3)
    assert {float(value) for key, value in state.items() if key.endswith("scale")} == {2.0}


def test_a_reparameterised_block_sees_the_adapted_kernel():
    model, x = span(), image(6, 7).sigmoid()
    add_adapters(model)
    stirred(model)
    with torch.no_grad():
        adapted = model(x)
        fused = fuse(copy.deepcopy(model), x)
        assert_near(fused(x), adapted)
        merge_adapters(model)
        assert_near(model(x), adapted)


def test_only_the_factors_are_trained():
    model = span()
    frozen = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    names = add_adapters(model)
    stirred(model).train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(trained) == sorted(f"{name}.parametrizations.weight.0.{part}" for name in names for part in ("lora_A", "lora_B"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(image(6, 7).sigmoid()).square().mean().backward()
    assert without_gradient(model) == []
    optimizer.step()
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            assert parameter.grad is None and torch.equal(parameter, frozen[name.replace("parametrizations.weight.original", "weight")])


def test_adapters_travel_alone(tmp_path):
    base, x = span(merged=True), image(6, 7).sigmoid()
    model = copy.deepcopy(base)
    add_adapters(model, rank=1, alpha=3.0, ranks={"upsampler*": 2})
    stirred(model)
    file = save_checkpoint(tmp_path / "adapters.ckpt", adapter_state(model), Header(task="superres"))
    load_adapters(base, load_checkpoint(file)[1])
    with torch.no_grad():
        assert_same(base(x), model(x))
    assert {name for name, parameter in base.named_parameters() if parameter.requires_grad} == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    untouched = span(channels=6, merged=True)
    with pytest.raises(CheckpointError, match=r"block_1\.c1_r\.eval_conv.* does not fit this SPAN"):
        load_adapters(untouched, adapter_state(model))
    assert merge_adapters(untouched) == 0
    with pytest.raises(UsageError, match="has adapters"):
        load_adapters(base, adapter_state(model))


def test_a_training_state_resumes():
    model = span()
    add_adapters(model)
    state = stirred(model).state_dict()
    again = span(seed=5)
    add_adapters(again)
    again.load_state_dict(state)
    with torch.no_grad():
        assert_same(again(image(6, 7)), model(image(6, 7)))


def test_what_cannot_be_adapted_is_named():
    model = span()
    with pytest.raises(ConfigError, match=r"'upsample' or 'x\*'; this network has conv_1\.sk"):
        add_adapters(model, where=("upsample", "x*"))
    with pytest.raises(ConfigError, match=r"rank is 1 or more: rank=0"):
        add_adapters(model, rank=0)
    with pytest.raises(ConfigError, match="no adapted convolution is named 'tail'"):
        add_adapters(model, ranks={"tail": 8})
    with pytest.raises(ConfigError, match=r"where='\*'"):
        add_adapters(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)))
    assert merge_adapters(model) == 0 and all(parameter.requires_grad for parameter in model.parameters())
    add_adapters(model, where=lambda name, conv: name.startswith("upsampler"))
    with pytest.raises(UsageError, match=r"upsampler\.0 has an adapter already"):
        add_adapters(model, where="upsampler*")
    assert sum(isinstance(module, ConvLoRA) for module in model.modules()) == 1


# The loss.


def maps(channels: int = 5, size: tuple[int, int] = (5, 7), seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("block", [1, 700, 1 << 22])
def test_affinity_and_its_gradient_are_those_of_the_whole_matrices(plain, monkeypatch, block):
    monkeypatch.setattr("cnnkit_superres.dsclora._BLOCK", block)  # One row at a time, ten, all.
    student, other = maps().requires_grad_(), maps(9, seed=1)
    expected = plain("dsclora").affinity_loss(student, other)
    (gradient,) = torch.autograd.grad(3 * expected, student)
    ours = affinity_distance(student, other)
    (ours_gradient,) = torch.autograd.grad(3 * ours, student)
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert_near(ours_gradient, gradient, 1e-12)


def test_gradient_against_differences():
    other = maps(4, (2, 3), seed=1)
    assert torch.autograd.gradcheck(lambda x: affinity_distance(x, other), maps(3, (2, 3)).requires_grad_())


def test_equal_features_have_no_loss():
    features = maps()
    assert float(affinity_distance(features, features)) < 1e-15  # Two products of equal numbers may be rounded differently.
    rotation = torch.linalg.qr(torch.randn(8, 5, dtype=torch.float64))[0]  # Into more channels: lengths and angles stay.
    rotated = torch.einsum("dc,bchw->bdhw", rotation, features) * torch.rand(2, 1, 5, 7, dtype=torch.float64).add(0.1)
    assert float(affinity_distance(features, rotated)) < 1e-15
    assert float(affinity_distance(features, -features)) < 1e-15
    assert float(affinity_distance(maps(1), maps(1, seed=1))) > 0.5  # Signs alone: half of the pairs disagree, by 2.


def test_silent_positions_have_no_gradient():
    student = torch.zeros(1, 4, 3, 3, requires_grad=True)
    affinity_distance(student, image(3, 3, channels=4, batch=1)).backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_large_maps_are_averaged_over_squares():
    student, other = maps(size=(9, 10)), maps(size=(9, 10), seed=1)
    pooled = [torch.nn.functional.avg_pool2d(x, 3, ceil_mode=True) for x in (student, other)]
    assert float(affinity_distance(student, other, max_positions=12)) == float(affinity_distance(*pooled))
    assert affinity_distance(student.float(), other.float(), max_positions=1).isfinite()


def test_half_precision_is_compared_in_single():
    student, other = maps().bfloat16(), maps(seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = affinity_distance(student, other)
    assert ours.dtype == torch.float32
    assert float(ours) == pytest.approx(float(affinity_distance(student.double(), other.double())), rel=1e-5)


class Largest(TorchDispatchMode):
    """Note the number of elements of the largest result."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_memory_is_bounded_forward_and_backward(monkeypatch):
    monkeypatch.setattr("cnnkit_superres.dsclora._BLOCK", 1 << 14)
    student = torch.randn(2, 4, 32, 32, requires_grad=True)
    with Largest() as largest:
        affinity_distance(student, torch.randn(2, 4, 32, 32)).backward()
    assert largest.elements <= 1 << 14 < 2 * 1024**2 // 100


def test_unequal_maps_are_refused():
    with pytest.raises(UsageError, match="equal sides"):
        affinity_distance(maps(), maps(size=(5, 6)))
    with pytest.raises(UsageError, match="the student returned 1 maps and the teacher 2"):
        AffinityDistillation(["a"])([maps()], [maps(), maps()])
    with pytest.raises(ConfigError, match="names no module"):
        AffinityDistillation([])


# Teacher and student.


def test_taps_collect_what_the_official_code_distils(plain):
    model, x = span(), image(6, 7).sigmoid()
    theirs = plain("span").PlainSPAN(2, 8).eval()
    theirs.load_state_dict(model.state_dict())
    with torch.no_grad(), feature_taps(model, ["block_[1-3].c?_r"]) as found:
        model(x)
        features, expected = theirs.conv_1((x - theirs.mean) * 255.0), []
        for block in (theirs.block_1, theirs.block_2, theirs.block_3):
            first = block.act1(block.c1_r(features))
            second = block.act1(block.c2_r(first))
            third = block.c3_r(second)
            expected += [first, second, third]
            features = (third + features) * (third.sigmoid() - 0.5)
    assert len(found) == 9
    assert_near(found, expected)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_is_not_there_is_answered():
    with pytest.raises(ConfigError, match=r"'blok_1'; SPAN is made of conv_1, block_1"), feature_taps(span(), ["blok_1"]):
        pass
    model = span()
    with pytest.raises(UsageError, match=r"block_1\.c1_r\.sk was not run"), feature_taps(model, ["block_1.c1_r.sk"]):
        model(image(4, 4))


def test_the_losses_add_up_to_the_papers(plain):
    student, teacher = span(), span(channels=10, seed=1)
    add_adapters(student)
    low, high = image(6, 7).sigmoid(), image(12, 14).sigmoid()
    layers = ("block_[1-3].c?_r",)
    terms = Distillation(teacher, layers=layers, affinity_weight=0.7).terms(student, low, high)
    with feature_taps(student, layers) as ours, feature_taps(teacher, layers) as theirs:
        output, taught = student(low), teacher(low)
    expected = plain("dsclora").total_loss(output, high, ours, theirs, 0.7)
    assert list(terms) == ["l1", "affinity"]
    assert float(sum(terms.values()).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    both = Distillation(teacher, layers=layers, affinity_weight=0.0, output_weight=0.5).terms(student, low, high)
    assert list(both) == ["l1", "output"]
    assert float(both["output"].detach()) == pytest.approx(0.5 * float((output - taught).detach().abs().mean()), rel=1e-5)


def test_training_the_adapters_alone_lowers_the_losses():
    torch.manual_seed(0)
    teacher = span(channels=6, merged=True)
    model = copy.deepcopy(teacher)
    with torch.no_grad():  # A student that has lost what its teacher knows.
        for block in range(1, 7):
            kernel = model.get_submodule(f"block_{block}").c2_r.eval_conv.weight
            kernel.add_(0.1 * torch.randn(kernel.shape))
    add_adapters(model, rank=2, alpha=4.0)
    model.train()
    distillation = Distillation(teacher, layers=AdapterConfig().layers)
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-3)
    low = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        high = teacher(low)
    history: list[dict[str, float]] = []
    for _ in range(30):
        terms = distillation.terms(model, low, high)
        history.append({name: float(term.detach()) for name, term in terms.items()})
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert history[-1]["l1"] < 0.6 * history[0]["l1"] and history[-1]["affinity"] < 0.6 * history[0]["affinity"], (history[0], history[-1])
    with torch.no_grad():
        adapted = model.eval()(low)
        merge_adapters(model)
        assert_near(model(low), adapted)


# The configuration.


def test_the_configuration_needs_no_torch():
    code = "import sys, cnnkit_superres.dsclora_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_configuration_survives_plain_data():
    config = AdapterConfig(rank=4, ranks={"upsampler*": 8}, where=("block_*",), teacher="teacher.ckpt")
    again = from_dict(AdapterConfig, to_dict(config))
    assert (again.rank, again.ranks, again.where, str(again.teacher)) == (4, {"upsampler*": 8}, ("block_*",), "teacher.ckpt")
    for wrong in ({"rank": -1}, {"ranks": {"a": 0}}, {"alpha": 0.0}, {"affinity_weight": -1.0}, {"max_positions": 0}):
        with pytest.raises(ConfigError):
            from_dict(AdapterConfig, wrong)

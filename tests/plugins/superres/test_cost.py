"""The cost of a network: counts by hand and by fvcore, the size that is counted, the network left alone, the measured figures."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit_superres.cost import Cost, cost
from cnnkit_superres.dsclora import add_adapters
from cnnkit_superres.models._base import SuperResolver
from torch import nn
from torch.nn import functional as F


class Small(SuperResolver):
    """A convolution used twice, a functional one, a transposed one, a linear layer, a buffer and a normalisation."""

    def __init__(self) -> None:
        super().__init__(scale=2, in_chans=3)
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("kernel", torch.ones(3, 1, 3, 3))
        self.norm = nn.BatchNorm2d(3)
        self.mix = nn.Linear(3, 3)
        self.up = nn.ConvTranspose2d(3, 3, 2, stride=2, bias=False)

    def enlarge(self, x):
        x = self.norm(self.first(self.first(x)))
        x = F.conv2d(x, self.kernel, padding=1, groups=3)
        return self.up(self.mix(x.movedim(1, -1)).movedim(-1, 1))


def test_counts_by_hand():
    found = cost(Small(), (8, 12))
    pixels = 4 * 6
    assert (found.input_size, found.output_size) == ((4, 6), (8, 12))
    assert found.params == (3 * 3 * 9 + 3) + 6 + (9 + 3) + 3 * 3 * 4
    assert found.convs == 4
    assert found.activations == 3 * pixels * 3 + 3 * 8 * 12
    assert found.macs == pixels * (2 * 81 + 27 + 9 + 9 * 4)
    assert found.seconds is None and found.peak_memory is None


@pytest.mark.parametrize(("scale", "size"), [(2, (360, 640)), (3, (240, 427)), (4, (180, 320))])
def test_espcn_by_hand(scale, size):
    """At the low resolution: 64 features by 5 x 5, 32 by 3 x 3, and a map for every pixel of the enlarged square."""
    with on_meta():
        model = create_model(f"superres/espcn_x{scale}")
    found, pixels = cost(model), size[0] * size[1]
    assert found.input_size == size
    assert found.output_size == (720, 3 * 427 if scale == 3 else 1280)
    assert found.activations == pixels * (64 + 32 + scale**2)
    assert found.macs == pixels * (25 * 64 + 9 * 64 * 32 + 9 * 32 * scale**2)
    assert found.convs == 3


@pytest.mark.parametrize("name", ["espcn_x3", "carn_m_x4"])
def test_fvcore_counts_alike(name):
    fvcore = pytest.importorskip("fvcore.nn")
    model = create_model(f"superres/{name}").eval()
    found = cost(model, (24, 36))
    x = torch.zeros(1, model.in_chans, *found.input_size)
    activations = fvcore.ActivationCountAnalysis(model, x).unsupported_ops_warnings(False)
    assert found.activations == activations.by_operator()["conv"] == activations.total()
    assert found.macs == fvcore.FlopCountAnalysis(model, x).unsupported_ops_warnings(False).by_operator()["conv"]
    assert found.params == fvcore.parameter_count(model)[""]


def test_the_network_is_left_as_it_was():
    model = Small().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost(model, (8, 8), measure=True)
    assert model.training and not model.norm.training
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(not value.is_meta for value in after.values())


class Branch(nn.Module):
    """Two kernels whose sum infers; it notes who runs."""

    def __init__(self, merges_to: int, runs: list[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
        self.merges_to, self.runs = merges_to, runs

    def __deepcopy__(self, known):
        return Branch(self.merges_to, self.runs)

    def forward(self, x):
        self.runs.append("branch")
        return self.parts[0](x) + self.parts[1](x)

    def merged(self):
        other = Branch(self.merges_to, self.runs)
        other.parts = other.parts[: self.merges_to]
        other.forward = lambda x: self.runs.append("merged") or other.parts[0](x)
        return other


class Branched(SuperResolver):
    def __init__(self, merges_to: int, runs: list[str]) -> None:
        super().__init__(scale=1)
        self.branch = Branch(merges_to, runs)

    def enlarge(self, x):
        return self.branch(x)


@pytest.mark.parametrize(("merges_to", "convs"), [(1, 1), (2, 2)])
def test_branches_for_training_are_merged_and_other_forms_counted_as_written(merges_to, convs):
    """What is measured is merged in either case, and the network itself keeps its branches."""
    runs: list[str] = []
    model = Branched(merges_to, runs)
    found = cost(model, (8, 8))
    assert (found.convs, found.params) == (convs, convs * 81)
    runs.clear()
    assert cost(model, (8, 8), measure=True).seconds
    assert runs.count("merged") >= 4 and len(model.branch.parts) == 2  # To warm up, and three that count.
    model(torch.zeros(1, 3, 4, 4))
    assert runs[-1] == "branch"


def test_adapters_cost_nothing():
    model, plain = (create_model("superres/espcn_x2") for _ in range(2))
    add_adapters(model, rank=2)
    assert count_params(model) > count_params(plain)
    assert cost(model, (64, 64)) == cost(plain, (64, 64))


def test_measured_on_the_cpu():
    found = cost(Small().double(), (64, 64), measure=True)
    assert found.seconds is not None and found.seconds > 0
    assert found.peak_memory is None  # There is no such counter.
    assert found.device == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_measured_on_a_gpu():
    found = cost(Small().cuda(), (512, 512), measure=True)
    assert found.peak_memory is not None and found.peak_memory >= 3 * 512 * 512 * 4
    assert found.seconds is not None and found.seconds > 0


def test_a_row_of_the_table():
    row = Cost((180, 320), (720, 1280), 1_234_567, 45_600_000_000, 7_890_000, 12).markdown("net")
    assert row == "| net | 1.235 | 45.60 | 7.89 | 12 | - | - |"
    assert [line.count("|") for line in Cost.HEADER.splitlines()] == [row.count("|")] * 2
    measured = Cost((1, 1), (2, 2), 0, 0, 0, 0, seconds=0.0123, peak_memory=3 * 2**20, device="cuda")
    assert measured.markdown("net").endswith("| 12.3 | 3 |")


def test_what_cannot_be_counted_is_said():
    with pytest.raises(ConfigError, match=r"positive \(height, width\), not \(0, 8\)"):
        cost(Small(), (0, 8))
    with on_meta():
        model = Small()
    with pytest.raises(ConfigError, match="meta device"):
        cost(model, (8, 8), measure=True)

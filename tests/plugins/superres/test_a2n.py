"""A2N: the official arithmetic in its own range, the weights of the branches and their ablation, and the merged enlargement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.checkpoint import read_state
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import CheckpointError, ConfigError, UsageError
from cnnkit.layers.fuse import fuse
from cnnkit.testing.compare import assert_near, image, randomise
from cnnkit.weights import load_weights
from cnnkit_superres.models.a2n import EnlargedConv, branch_weights, forced_branches
from torch import Tensor, nn

pytestmark = pytest.mark.paper("a2n")

KERNELS = {"a2n": 3, "a2n_m": 1}
SMALL: dict[str, Any] = {"channels": 8, "tail_channels": 6, "depth": 3}


def small_pair(plain, scale: int = 2) -> tuple[Any, Any]:
    """Return a small network and the plain one with the same random weights."""
    ours = randomise(create_model(f"superres/a2n_x{scale}", **SMALL)).double()
    theirs = plain("a2n").PlainA2N(scale, nf=8, unf=6, nb=3).double().eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def pictures(*size: int, batch: int = 2, seed: int = 1) -> Tensor:
    """Return pictures with values in [0, 1]."""
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", KERNELS)
def test_official_weights_give_the_official_output(plain, name, scale, tmp_path):
    theirs = randomise(plain("a2n").PlainA2N(scale, KERNELS[name]))
    with torch.no_grad():  # Features of about 1, as trained weights make them: sigmoids of hundreds would only magnify rounding.
        theirs.conv_first.weight /= 255
        theirs.conv_last.weight *= 255
    torch.save(theirs.state_dict(), tmp_path / "aan.pt")
    ours = create_model(f"superres/{name}_x{scale}").eval()
    load_weights(ours, read_state(tmp_path / "aan.pt"))
    for size in ((10, 7), (1, 4)):
        x = pictures(*size)
        assert_near(ours(x).detach(), theirs(255 * x).detach() / 255, 1e-5)
        assert ours(x).shape[-2:] == (scale * size[0], scale * size[1])
    ours, theirs = ours.double(), theirs.double()
    for size in ((10, 7), (1, 4)):
        x = pictures(*size).double()
        assert_near(ours(x).detach(), theirs(255 * x).detach() / 255, 1e-10)


@pytest.mark.parametrize(
    ("name", "scale", "params", "gmacs"),
    [
        ("a2n", 2, 1_036_443, 247.47),
        ("a2n", 3, 1_036_443, 117.78),
        ("a2n", 4, 1_047_459, 72.40),
        ("a2n_m", 2, 831_643, 200.28),
        ("a2n_m", 3, 831_643, 96.79),
        ("a2n_m", 4, 842_659, 60.60),
    ],
)
def test_parameters_are_those_of_the_official_code(name, scale, params, gmacs):
    """The official files for x2 and x3 hold 1036443 numbers; multiply-adds are for an output of 1280 x 720."""
    size = {2: (360, 640), 3: (240, 427), 4: (180, 320)}[scale]
    with on_meta():
        model = create_model(f"superres/{name}_x{scale}")
        assert count_params(model) == params
        assert count_macs(model, (1, 3, *size)) / 1e9 == pytest.approx(gmacs, abs=5e-3)


def test_branch_weights_are_those_of_the_plain_network(plain):
    ours, theirs = small_pair(plain)
    x = pictures(9, 8, batch=3).double()
    logits: list[Tensor] = []
    for block in theirs.AAB_trunk:
        block.ADM.register_forward_hook(lambda module, args, output: logits.append(output / 30.0))
    theirs(255 * x)
    weights = branch_weights(ours, x)
    assert weights.shape == (3, 3, 2)
    assert_near(weights, torch.stack(logits, 1).softmax(2).detach(), 1e-12)
    assert_near(weights.sum(2), torch.ones(3, 3).double(), 1e-12)
    assert weights.std(0).min() > 1e-6, "every block answers other pictures with other weights"
    assert_near(branch_weights(fuse(ours, x), x), weights, 1e-12)


class Always(nn.Module):
    """Stand in for a dynamic attention module: logits so far apart that the softmax is exactly 0 and 1."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.logits = torch.tensor([[first, second]]).double() * 1e6

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(x.shape[0], 2)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("blocks", [None, (0, 2)])
def test_forced_branches_are_the_papers_ablation(plain, weights, blocks):
    ours, theirs = small_pair(plain)
    x = pictures(7, 6).double()
    free = ours(x).detach()
    for number in range(3) if blocks is None else blocks:
        theirs.AAB_trunk[number].ADM = Always(*weights)
    with forced_branches(ours, weights, blocks):
        forced = ours(x).detach()
        assert torch.equal(branch_weights(ours, x)[0, 0], torch.tensor(weights).double())
    assert_near(forced, theirs(255 * x).detach() / 255, 1e-12)
    assert (forced - free).abs().max() > 1e-3 * free.abs().max()
    assert torch.equal(ours(x).detach(), free), "after the with statement the modules decide again"


def test_without_attention_its_branch_is_not_read(plain):
    ours, _ = small_pair(plain)
    x = pictures(5, 6).double()
    with forced_branches(ours, (0.0, 1.0)):
        before = ours(x).detach()
        for name, parameter in ours.named_parameters():
            if ".attention." in name:
                nn.init.normal_(parameter)
        assert torch.equal(ours(x).detach(), before)
    assert not torch.equal(ours(x).detach(), before)


def test_forcing_ends_when_something_fails(plain):
    ours, _ = small_pair(plain)
    x = pictures(5, 6).double()
    before = ours(x).detach()
    with pytest.raises(RuntimeError), forced_branches(ours, (0.0, 1.0)):
        ours(x[:, :2])
    assert torch.equal(ours(x).detach(), before)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_repetition_and_convolution_are_one_transposed_convolution(factor):
    layer: Any = randomise(EnlargedConv(5, 4, factor)).double()
    merged = layer.merged()
    for size in ((6, 5), (1, 1), (1, 7)):
        x = image(*size, channels=5).double()
        assert_near(merged(x).detach(), layer(x).detach(), 1e-13)
    with on_meta():
        before, after = (count_macs(module.to("meta"), (1, 5, 8, 8)) for module in (layer, merged))
    assert after * 9 * factor**2 == before * (factor + 2) ** 2


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_merged_network_computes_the_same(plain, scale):
    ours, theirs = small_pair(plain, scale)
    x = pictures(7, 5).double()
    expected = theirs(255 * x).detach() / 255
    fuse(ours, x)
    assert any(isinstance(module, nn.ConvTranspose2d) for module in ours.modules())
    assert_near(ours(x).detach(), expected, 1e-12)


def test_every_output_pixel_sees_the_whole_picture(plain):
    ours, _ = small_pair(plain)
    x = pictures(40, 40, batch=1).double()
    other = x.clone()
    other[..., -1, -1] = 1 - other[..., -1, -1]
    corner = (slice(None), slice(None), slice(4), slice(4))
    assert not torch.equal(ours(x)[corner], ours(other)[corner])
    with forced_branches(ours, (0.5, 0.5)):
        assert torch.equal(ours(x)[corner], ours(other)[corner])


def test_other_networks_files_and_scales_are_refused(plain):
    with pytest.raises(ConfigError, match="2, 3 or 4"):
        create_model("superres/a2n_x2", scale=8)
    with pytest.raises(CheckpointError, match="non_attention"):
        load_weights(create_model("superres/a2n_m_x2"), plain("a2n").PlainA2N(2).state_dict())
    with pytest.raises(UsageError, match="A2N"):
        branch_weights(create_model("superres/espcn_x2"), pictures(4, 4))
    ours, _ = small_pair(plain)
    with pytest.raises(UsageError, match="0 to 2"), forced_branches(ours, (0.0, 1.0), (1, 3)):
        pass


def test_it_exports_with_sides_that_vary():
    ours: Any = randomise(create_model("superres/a2n_x4", **SMALL))
    sides = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    program = torch.export.export(ours, (pictures(8, 9),), dynamic_shapes=(sides,)).module()
    x = pictures(5, 13)
    assert_near(program(x).detach(), ours(x).detach(), 1e-6)

"""Inception-v4 against timm, its counts, and its factorised kernels in other dimensions."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, create_small
from cnnkit.backbones._inception import Parts
from cnnkit.backbones.inception_v4 import inception_b, inception_c
from cnnkit.count import count_params, on_meta
from cnnkit.errors import InputError
from cnnkit.testing.compare import assert_near, filled, image
from torch import nn

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.paper("inception-v4")


def drawn(build, seed: int = 0) -> nn.Module:
    return filled(build, seed, gain=2.0)


@torch.no_grad()
def test_levels_and_logits_equal_timm():
    theirs = drawn(lambda: timm.create_model("inception_v4", num_classes=5))
    with on_meta():
        ours = create_model("inception_v4", num_classes=5).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [dict(level) for level in ours.feature_info] == theirs.feature_info
    ours.load_state_dict(theirs.state_dict(), assign=True)
    for size in ((75, 75), (97, 110)):
        last, levels = theirs.forward_intermediates(image(*size, batch=1))
        found = ours.forward_pyramid(image(*size, batch=1))
        assert_near(found, levels)
        assert_near(ours.forward_head(found[-1]), theirs.forward_head(last))


def test_counts_and_shapes():
    """The released network has 42.68 million parameters; levels of 299 pixels, and with padding everywhere."""
    with on_meta():
        model = create_model("inception_v4").eval()
        assert count_params(model) == 42_679_816
        shapes = [tuple(level.shape[1:]) for level in model.forward_pyramid(torch.empty(1, 3, 299, 299))]
        assert shapes == [(64, 147, 147), (160, 73, 73), (384, 35, 35), (1024, 17, 17), (1536, 8, 8)]
        aligned = create_model("inception_v4", aligned=True).eval()
        assert [level.shape[2] for level in aligned.forward_pyramid(torch.empty(1, 3, 320, 320))] == [160, 80, 40, 20, 10]
        assert list(aligned.state_dict()) == list(model.state_dict())
        assert [create_model("inception_v4", dims=dims).num_features for dims in (1, 2, 3)] == [1024, 1536, 2048]


def kernels(module: nn.Module) -> list[tuple[int, tuple[int, ...]]]:
    """Return width and kernel of each convolution, in order."""
    return [(m.out_channels, m.kernel_size) for m in module.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_factorised_kernels_visit_every_axis(dims):
    """On the grid of 17 one branch spans each axis once, the other twice; on that of 8, one kernel per axis stands side by side."""

    def along(axis: int, size: int) -> tuple[int, ...]:
        return tuple(size if own == axis else 1 for own in range(dims))

    back, forth = list(reversed(range(dims))), list(range(dims))
    with torch.device("meta"):
        b, c = inception_b(Parts(dims), 1024), inception_c(Parts(dims), 1536)
    assert [kernel for _, kernel in kernels(b.branch1)[1:]] == [along(axis, 7) for axis in back]
    assert [kernel for _, kernel in kernels(b.branch2)[1:]] == [along(axis, 7) for axis in forth + forth]
    widths = {1: [192, 224, 256], 2: [192, 192, 224, 224, 256], 3: [192, 192, 192, 224, 224, 224, 256]}[dims]
    assert [width for width, _ in kernels(b.branch2)] == widths
    fan = [(256, along(axis, 3)) for axis in back]
    first = 1 + 1 + dims  # The 1x1 convolutions of two branches, then the first fan.
    assert kernels(c)[2:first] == fan
    assert [kernel for _, kernel in kernels(c)[first + 1 : first + 1 + dims]] == [along(axis, 3) for axis in forth]
    assert kernels(c)[first + 1 + dims : -1] == fan
    assert b.out_channels == 1024
    assert c.out_channels == 512 + 2 * 256 * dims


@pytest.mark.parametrize("dims", [1, 3])
@torch.no_grad()
def test_the_last_block_concatenates_what_its_units_return(dims):
    """The plain equations, in the dimensions that timm has not."""
    block = drawn(lambda: inception_c(Parts(dims, 0.03), 6)).double()
    x = torch.randn(2, 6, *(4, 3, 5)[:dims], generator=torch.Generator().manual_seed(2)).double()
    letters = "abc"[:dims]
    short = block.branch1_0(x)
    long = block.branch2_0(x)
    for index in range(1, dims + 1):
        long = block.get_submodule(f"branch2_{index}")(long)
    expected = [block.branch0(x), *(block.get_submodule(f"branch1_1{letter}")(short) for letter in letters)]
    expected += [block.get_submodule(f"branch2_{dims + 1}{letter}")(long) for letter in letters]
    torch.testing.assert_close(block(x), torch.cat([*expected, block.branch3(x)], 1), rtol=1e-12, atol=1e-12)


def test_sizes():
    """The paper's padding needs 75 pixels, padding everywhere any number."""
    with pytest.raises(InputError, match="at least 75"):
        create_model("inception_v4", width=0.05, depths=(1, 1, 1))(image(74, 80, batch=1))
    assert create_small("inception_v4", num_classes=3).eval()(image(32, 33, batch=1)).shape == (1, 3)

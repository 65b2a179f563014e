"""Shift-wise convolution against large kernels that are assembled element by element."""

from __future__ import annotations

import pytest
import torch
from cnnkit.errors import ConfigError
from cnnkit.layers.fuse import fuse
from cnnkit.layers.shiftwise import ShiftwiseConv, Strips, shift_sum
from cnnkit.testing.compare import stir, without_gradient
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.paper("shiftwise")
DIMS = (1, 2, 3)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIZES = {1: (23,), 2: (12, 17), 3: (7, 9, 8)}


def layer(dims: int, channels: int = 5, **arguments) -> ShiftwiseConv:
    torch.manual_seed(dims)
    made = ShiftwiseConv(channels, **{"kernel_size": 13, "dims": dims, **arguments}).double()
    stir(made)
    with torch.no_grad():
        made.train()(4 * image(dims, channels) + 1)  # Running statistics that are not the initial ones.
    return made.eval()


def image(dims: int, channels: int = 5) -> torch.Tensor:
    return torch.randn(2, channels, *SIZES[dims], generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def assembled(made: ShiftwiseConv, axis: int) -> torch.Tensor:
    """The strip along an axis as one large kernel with its centre in the middle, tap by tap from the module's own tables."""
    size, length = made.piece_size, 4 * made.kernel_size + 1
    small = (made.weight * made.mask[(..., *(None,) * made.dims)]).sum(0)
    strip = torch.zeros(made.active, *(length if other == axis else size for other in range(made.dims)), dtype=small.dtype)
    for channel in range(made.active):
        for slot in range(made.pieces):
            for piece in range(made.pieces):
                for tap in range(size):
                    place = length // 2 - made.kernel_size // 2 + slot * size + tap
                    source = small[channel, piece].select(axis, tap)
                    strip[channel].select(axis, place).add_(made.layouts[axis, channel, slot, piece] * source)
    return strip.unsqueeze(1)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize(("kernel_size", "piece_size"), [(13, 3), (15, 5), (9, 3)])
@torch.no_grad()
def test_it_is_the_sum_of_large_kernels(dims, kernel_size, piece_size):
    """To 1e-10; also where the strip is longer than the image, and where the pieces do not divide it."""
    made = layer(dims, kernel_size=kernel_size, piece_size=piece_size)
    x = image(dims)
    taken, passed = x[:, : made.active], x[:, made.active :]
    half, expected = piece_size // 2, taken.clone()
    small = sum(made.chosen[:, p, *(None,) * dims] * made.weight.sum(0)[:, p] for p in range(made.pieces)).unsqueeze(1)
    expected += made.small_norm(CONV[dims](taken, small, padding=half, groups=made.active))
    for axis in range(dims):
        padding = [2 * kernel_size if other == axis else half for other in range(dims)]
        expected += made.norms[axis](CONV[dims](taken, assembled(made, axis), padding=padding, groups=made.active))
    assert passed.shape[1] == 2  # A share of 0.23 of five channels, rounded up.
    torch.testing.assert_close(made(x), torch.cat((expected, passed), 1), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_one_path_with_given_pieces_is_the_strip_that_was_cut():
    """A strip of 13 x 3 taps cut into five pieces of 3 x 3 (two taps too many) and put together again."""
    strip = torch.randn(2, 1, 13, 3, dtype=torch.float64)
    pieces = F.pad(strip, (0, 0, 0, 2)).view(2, 5, 3, 3)
    x = image(2, 2)
    shifts = [slot * 3 + 1 - 6 for slot in range(5)]
    parts = F.conv2d(x, pieces.flatten(0, 1).unsqueeze(1), padding=(2, 1), groups=2).unflatten(1, (2, 5))
    together = shift_sum(parts, [shift + 1 for shift in shifts], 0, x.shape[2])
    torch.testing.assert_close(together, F.conv2d(x, strip, padding=(6, 1), groups=2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_gradient_of_shifts_is_that_of_finite_differences(axis):
    pieces = torch.randn(1, 2, 3, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: shift_sum(given, (-3, 0, 2), axis, 3), (pieces,))


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("ghost", [0.0, 0.4])
@torch.no_grad()
def test_merged_it_is_one_strip_per_axis(dims, ghost):
    made = layer(dims, ghost=ghost)
    made.prune(0.3)
    model, x = nn.Sequential(made, nn.ReLU()).eval(), image(dims)
    expected = model(x)
    fuse(model, x)
    assert isinstance(model[0], Strips) and len(model[0].strips) == dims
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", DIMS)
def test_every_parameter_gets_a_gradient(dims):
    made = layer(dims).train()
    made(image(dims)).square().sum().backward()
    assert without_gradient(made) == []


def test_orders_are_permutations_and_differ():
    made = ShiftwiseConv(8, 51, orders=3)
    assert made.pieces == 17 and made.active == 6 and made.layouts.shape == (2, 6, 17, 17)
    assert (made.layouts.sum(-1) == 3).all() and (made.layouts.sum(-2) == 3).all() and (made.chosen.sum(-1) == 3).all()
    assert not torch.equal(made.layouts[0], made.layouts[1]) and not torch.equal(made.layouts[0, 0], made.layouts[0, 1])
    assert torch.equal(made.layouts, ShiftwiseConv(8, 51, orders=3).layouts)
    assert not torch.equal(made.layouts, ShiftwiseConv(8, 51, orders=3, seed=1).layouts)


def test_the_requested_sparsity_is_reached_and_the_weakest_go():
    made = layer(2, channels=8)
    x = image(2, 8)
    strength = made.weight.detach().abs().sum((3, 4))
    made.prune(0.4)
    off = ~made.mask
    assert off.float().mean().item() == pytest.approx(0.4, abs=0.5 / off.numel())
    assert strength[off].max() <= strength[made.mask].min() and not made.weight[off].any()
    made(x).sum().backward()
    assert not made.weight.grad[off].any() and made.weight.grad[made.mask].abs().sum((1, 2)).min() > 0

    made.prune(0.4, regrow=0.25, generator=torch.Generator().manual_seed(0))
    back = made.mask & off
    assert (~made.mask).sum() == off.sum() and back.sum() == round(0.25 * int(made.mask.sum()))
    before = made(x)
    assert not made.weight[back].any()
    made.zero_grad()
    before.square().sum().backward()
    assert made.weight.grad[back].abs().sum((1, 2)).min() > 0
    made.prune(0.0)
    assert made.mask.all()
    torch.testing.assert_close(made(x), before)


def test_it_exports_and_survives_a_file():
    made = layer(2).float()
    x = image(2).float()
    program = torch.export.export(made, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    torch.testing.assert_close(program.module()(x[:1]), made(x[:1]))
    other = ShiftwiseConv(5, 13, seed=5).eval()
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), made(x))


def test_wrong_arguments_are_refused():
    for wrong in ({"kernel_size": 12}, {"piece_size": 2}, {"kernel_size": 3, "piece_size": 5}):
        with pytest.raises(ConfigError, match="must be odd"):
            ShiftwiseConv(8, **wrong)
    with pytest.raises(ConfigError, match="leaves none to convolve"):
        ShiftwiseConv(2, ghost=0.6)
    with pytest.raises(ConfigError, match=r"sparsity=1.0 and regrow=0.0 must be in \[0, 1\)"):
        ShiftwiseConv(4).prune(1.0)

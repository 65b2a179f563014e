"""NASNet-A against timm, the wiring of the released networks, its counts, and its cells in plain equations."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, create_small
from cnnkit.backbones._cells import Cell, Design, SamePool
from cnnkit.backbones.nasnet import NORMAL, REDUCTION
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError, InputError, UsageError
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise
from torch import Tensor, nn

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.paper("nasnet")


@pytest.fixture(scope="module")
def of_timm() -> nn.Module:
    """timm's network with cells of width 4 on the first grid."""
    theirs = timm.models.nasnet.NASNetALarge(num_classes=5, stem_size=8, num_features=96)
    return randomise(theirs, gain=2.0).double()


SMALL = {"stem_width": 8, "num_features": 96, "num_classes": 5}


@torch.no_grad()
def test_levels_and_logits_equal_timm(of_timm):
    """With averages that count the zeros outside, as timm's do where they are strided."""
    ours = create_model("nasnetalarge", **SMALL, count_border=True, weights=of_timm.float().state_dict()).double().eval()
    of_timm.double()
    for size in ((64, 64), (75, 90)):
        last, levels = of_timm.forward_intermediates(image(*size).double())
        found = ours.forward_pyramid(image(*size).double())
        assert_near(found, levels, 1e-10)
        assert_near(ours.forward_head(found[-1]), of_timm.forward_head(last), 1e-10)


def without_border(self, x: Tensor) -> Tensor:
    """What the released code averages: the positions that exist."""
    padded = timm.layers.padding.pad_same(torch.cat([x, torch.ones_like(x[:, :1])], 1), self.kernel_size, self.stride)
    means = F.avg_pool2d(padded, self.kernel_size, self.stride)
    return means[:, :-1] / means[:, -1:]


@torch.no_grad()
def test_by_default_averages_leave_the_border_out(of_timm, monkeypatch):
    monkeypatch.setattr(timm.layers.pool2d_same.AvgPool2dSame, "forward", without_border)
    ours = create_model("nasnetalarge", **SMALL, weights=of_timm.float().state_dict()).double().eval()
    of_timm.double()
    for size in ((64, 64), (75, 90)):
        assert_near(ours(image(*size).double()), of_timm(image(*size).double()), 1e-10)


@torch.no_grad()
def test_the_mobile_network_has_the_released_wiring(of_timm, monkeypatch):
    """Four cells on each grid; after a reduction the older input is the last cell of the finer grid, not the one before it."""
    monkeypatch.setattr(timm.layers.pool2d_same.AvgPool2dSame, "forward", without_border)
    t = of_timm.double()
    x = image(67, 80).double()
    conv0 = t.conv0(x)
    outputs = [conv0, t.cell_stem_0(conv0)]
    outputs.append(t.cell_stem_1(conv0, outputs[-1]))
    for grid in range(3):
        if grid:
            reduction = t.reduction_cell_0 if grid == 1 else t.reduction_cell_1
            outputs.append(reduction(outputs[-1], outputs[-2]))
        for index in range(4):
            outputs.append(getattr(t, f"cell_{6 * grid + index}")(outputs[-1], outputs[-2]))
    expected = t.last_linear(outputs[-1].relu().mean((2, 3)))
    surplus = tuple(f"cell_{number}." for number in (4, 5, 10, 11, 16, 17))
    state = {key: value for key, value in t.state_dict().items() if not key.startswith(surplus)}
    ours = create_model("nasnetamobile", **SMALL).double().eval()
    ours.load_state_dict(state)
    assert_near(ours(x), expected, 1e-10)


def test_keys_and_shapes_equal_timm():
    with torch.device("meta"):
        theirs = timm.create_model("nasnetalarge")
    with on_meta():
        ours = create_model("nasnetalarge")
    assert_same_keys(ours, theirs)
    for own, other in zip(ours.feature_info, theirs.feature_info, strict=True):
        assert (own["num_chs"], own["reduction"]) == (other["num_chs"], other["reduction"])


def test_counts_of_the_paper():
    """Trainable parameters of the large network, with and without statistics; the mobile one, and that for CIFAR with ten classes."""
    with on_meta():
        large = create_model("nasnetalarge")
        assert count_params(large) == 88_753_150
        statistics = sum(value.numel() for key, value in large.state_dict().items() if "running" in key)
        assert (count_params(large) + statistics) // 100_000 == 889
        assert count_params(create_model("nasnetamobile")) == 5_289_978
        assert count_params(create_model("nasneta_cifar", num_classes=10)) == 3_346_538
        sides = [level.shape[2] for level in large.eval().forward_pyramid(torch.empty(1, 3, 331, 331))]
        assert sides == [165, 83, 42, 21, 11]
        cifar = create_model("nasneta_cifar").eval()
        assert [tuple(level.shape[1:]) for level in cifar.forward_pyramid(torch.empty(1, 3, 32, 32))] == [
            (192, 32, 32),
            (384, 16, 16),
            (768, 8, 8),
        ]


AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def mean3(x: Tensor) -> Tensor:
    return AVG[x.ndim - 2](x, 3, 1, 1, count_include_pad=False)


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_the_normal_cell_in_plain_equations(dims):
    """The first cell of the network for CIFAR too, where the older input is the stem's output as it is, in its own width."""
    size = (7, 6, 5)[:dims]
    now, before = (torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(seed)).double() for seed in (2, 3))
    arguments = {"design": NORMAL, "stride": 1, "dims": dims, "norm_eps": 1e-3, "count_border": False, "drop_path": 0.0}
    cell = randomise(Cell(6, 6, 4, align="project", **arguments), gain=2.0).double()
    a, b = cell.conv_1x1.bn(cell.conv_1x1.conv(now.relu())), cell.conv_prev_1x1.bn(cell.conv_prev_1x1.conv(before.relu()))
    blocks = [
        cell.comb_iter_0_left(a.relu()) + cell.comb_iter_0_right(b.relu()),
        cell.comb_iter_1_left(b.relu()) + cell.comb_iter_1_right(b.relu()),
        mean3(a) + b,
        2 * mean3(b),
        cell.comb_iter_4_left(a.relu()) + a,
    ]
    assert_near(cell(now, before), torch.cat([b, *blocks], 1), 1e-10)
    first = randomise(Cell(6, 6, 4, align="none", **arguments), gain=2.0).double()
    a, b = first.conv_1x1(now), before
    blocks = [
        first.comb_iter_0_left(a.relu()) + first.comb_iter_0_right(b.relu()),
        first.comb_iter_1_left(b.relu()) + first.comb_iter_1_right(b.relu()),
        mean3(a) + first.comb_iter_2_right.bn(first.comb_iter_2_right.conv(b.relu())),
        sum(side[1].bn(side[1].conv(mean3(b))) for side in (first.comb_iter_3_left, first.comb_iter_3_right)),
        first.comb_iter_4_left(a.relu()) + a,
    ]
    assert_near(first(now, before), torch.cat([first.reduction_1.bn(first.reduction_1.conv(b)), *blocks], 1), 1e-10)


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_gives_the_logits_of_a_slice(dims):
    """With kernels centred in the new axis, slices never mix; averages leave the border out."""
    build = {"num_features": 96, "stem_width": 6, "repeats": 2, "num_classes": 5}
    flat = randomise(create_model("nasneta_cifar", dims=dims, **build), gain=2.0).double()
    deep = centred(flat, create_model("nasneta_cifar", dims=dims + 1, **build).double())
    x = image(*(15, 20)[:dims]).double()
    assert_near(deep(x.unsqueeze(-1).expand(*x.shape, 8)), flat(x), 1e-10)


@pytest.mark.parametrize("size", [(5,), (6,), (1,), (5, 6), (2, 1), (4, 5, 6), (1, 2, 3)])
@pytest.mark.parametrize(("kind", "kernel", "stride"), [("avg", 3, 1), ("avg", 3, 2), ("max", 3, 2), ("max", 5, 1), ("max", 7, 2)])
@torch.no_grad()
def test_pooling_pads_as_tensorflow_does(size, kind, kernel, stride):
    x = image(*size).double()
    found = SamePool(kind, kernel, stride=stride)(x)
    assert found.shape[2:] == tuple(-(-side // stride) for side in size)
    for place in itertools.product(*(range(side) for side in found.shape[2:])):
        window = []
        for index, side in zip(place, size, strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            start = index * stride - total // 2
            window.append(slice(max(start, 0), start + kernel))
        cells = x[(slice(None), slice(None), *window)].flatten(2)
        expected = cells.mean(2) if kind == "avg" else cells.amax(2)
        torch.testing.assert_close(found[(slice(None), slice(None), *place)], expected, rtol=1e-12, atol=1e-12)


def test_drop_path_rises_with_depth_and_over_the_training():
    model = create_small("nasnet", drop_path_rate=0.7)
    cells = [module for module in model.modules() if isinstance(module, Cell)]
    full = [0.7 * (index + 1) / len(cells) for index in range(len(cells))]
    assert [cell.drop_path.rate for cell in cells] == pytest.approx(full)
    for progress in (0.0, 0.25, 1.0):
        model.schedule_drop_path(progress)
        assert [cell.drop_path.rate for cell in cells] == pytest.approx([rate * progress for rate in full])
    model.schedule_drop_path(3.0)
    assert cells[-1].drop_path.rate == pytest.approx(0.7)


def test_every_operation_but_the_identity_can_be_dropped():
    arguments = {"design": NORMAL, "stride": 1, "dims": 2, "norm_eps": 1e-3, "count_border": False, "drop_path": 1 - 1e-9}
    cell = Cell(6, 6, 4, align="project", **arguments).train()
    now, before = torch.randn(2, 6, 5, 5), torch.randn(2, 6, 5, 5)
    one, two, three, four, five, six = cell(now, before).split(4, 1)
    for dropped in (two, three, five):
        assert not dropped.any()
    assert torch.equal(four, one)  # h_1 by itself, without the average of h_0.
    assert torch.equal(six, cell.conv_1x1(now))


@torch.no_grad()
def test_a_cell_survives_json():
    """A cell is data; another one of the same operations makes another network."""
    normal, reduction = json.loads(json.dumps([NORMAL, REDUCTION]))
    build = {"num_features": 96, "repeats": 1, "stem_width": 6, "num_classes": 5}
    one = randomise(create_model("nasnetamobile", **build), gain=2.0).double()
    other = create_model("nasnetamobile", **build, normal=normal, reduction=reduction).double().eval()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(image(32, 32).double()), one(image(32, 32).double()))
    plain = Design((("identity", 0, "separable_3", 1), ("max_pool_5", 2, "max_pool_7", 0)), (2, 3))
    strided = Design((("identity", 0, "max_pool_3", 1), ("avg_pool_3", 2, "identity", 1)), (2, 3))
    model = create_model("nasnetamobile", num_features=64, repeats=2, stem_width=6, num_classes=5, normal=plain, reduction=strided)
    assert model.eval()(image(32, 37)).shape == (2, 5)
    assert model.feature_info.channels() == [6, 4, 16, 32, 64]


@pytest.mark.parametrize("indices", [(0,), (0, 1), (2,), (1, 3)])
def test_a_pyramid_keeps_no_cell_in_vain(indices):
    model = create_model("nasnetalarge", num_features=96, repeats=2, stem_width=8, features_only=True, out_indices=indices)
    levels = model(torch.randn(2, 3, 64, 64))
    assert [level.shape[1] for level in levels] == model.channels
    sum(level.square().sum() for level in levels).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_auxiliary_head_follows_the_classifier():
    model = create_small("nasnet", aux_logits=True, num_classes=3)
    whole = count_params(model)
    model.reset_classifier(0)
    with pytest.raises(UsageError, match="aux_logits=True"):
        model.forward_with_aux(torch.zeros(1, 3, 64, 64))
    model.reset_classifier(4)
    assert count_params(model) == whole + model.last_linear.in_features + 1 + 769
    with pytest.raises(InputError, match="at least 14 positions"):
        model.forward_with_aux(torch.zeros(1, 3, 64, 64))
    logits, aux = model.forward_with_aux(torch.randn(2, 3, 224, 224))
    assert logits.shape == aux.shape == (2, 4)
    (logits.square().mean() + 0.4 * aux.square().mean()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    head = model.aux_head.eval()
    x = torch.rand(1, head.proj.in_channels, 14, 14)
    pooled = F.avg_pool2d(x, 5, 3)
    assert pooled.shape[2:] == head.conv.kernel_size == (4, 4)
    expected = head.fc(head.aux_bn1(head.conv(head.aux_bn0(head.proj(pooled)).relu())).relu().flatten(1))
    torch.testing.assert_close(head(x), expected)


def test_wrong_arguments_are_explained():
    with pytest.raises(ConfigError, match="unknown stem 'cifra'; did you mean 'cifar'"):
        create_model("nasnetamobile", stem="cifra")
    with pytest.raises(ConfigError, match="not a multiple of 96"):
        create_model("nasnetamobile", num_features=1000)
    with pytest.raises(ConfigError, match="unknown operation 'separable_4'; did you mean"):
        create_small("nasnet", normal=Design((("separable_4", 0, "identity", 1),) * 2, (1, 2, 3)))

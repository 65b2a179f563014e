"""ShuffleNet against its plain equations in the authors' layout, the paper's tables and the independence of groups."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones.shufflenet_v1 import ShuffleNetV1, ShuffleUnit, channel_shuffle
from cnnkit.count import count_macs, on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import image, randomise
from cnnkit.weights import load_weights

pytestmark = pytest.mark.paper("shufflenet-v1")

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def official_forward(state, x, groups, depths):
    """The network from weights in the authors' layout, in plain functions."""
    dims = x.ndim - 2

    def norm(x, name):
        return F.batch_norm(x, *[state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")])

    def convolve(x, name, **words):
        return CONV[dims](x, state[f"{name}.weight"], **words)

    x = norm(convolve(x, "first_conv.0", stride=2, padding=1), "first_conv.1").relu()
    x = MAX_POOL[dims](x, 3, stride=2, padding=1)
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    for index in range(sum(depths)):
        stride, name = 2 if index in starts else 1, f"features.{index}.branch_main"
        y = norm(convolve(x, f"{name}_1.0", groups=groups if index else 1), f"{name}_1.1").relu()
        inner = y.shape[1]
        y = norm(convolve(y, f"{name}_1.3", stride=stride, padding=1, groups=inner), f"{name}_1.4")
        if groups > 1:
            y = y[:, torch.arange(inner).view(inner // groups, groups).T.flatten()]
        y = norm(convolve(y, f"{name}_2.0", groups=groups), f"{name}_2.1")
        padded = F.pad(x, (1, 1) * dims)
        x = (x + y).relu() if stride == 1 else torch.cat((AVG_POOL[dims](padded, 3, stride=2), y.relu()), 1)
    return F.linear(x.flatten(2).mean(-1), state["classifier.0.weight"])


@pytest.mark.parametrize("groups", [1, 2, 3, 8])
@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_the_official_weights_give_the_official_output(groups, dims):
    """In float64, to 1e-10; sizes that every reduction divides, and that none does."""
    words = {"groups": groups, "width": 8 * groups, "stem_channels": groups, "depths": (2, 3, 1), "num_classes": 5, "dims": dims}
    made = randomise(ShuffleNetV1(**words).double())
    official = {key.replace("fc.", "classifier.0."): value for key, value in made.state_dict().items()}
    model = ShuffleNetV1(**words).double().eval()
    assert load_weights(model, official) == "official"
    for size in ((64, 32, 32)[:dims], (45, 37, 33)[:dims]):
        expected = official_forward(official, image(*size).double(), groups, (2, 3, 1))
        torch.testing.assert_close(model(image(*size).double()), expected, rtol=1e-10, atol=1e-10)


def test_a_shuffle_deals_out_and_its_inverse_collects():
    x = torch.arange(12.0).view(1, 12, 1)
    assert channel_shuffle(x, 3).flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    for groups in (1, 2, 3, 4, 6, 12):
        assert torch.equal(channel_shuffle(channel_shuffle(x, groups), 12 // groups), x)
        assert torch.equal(channel_shuffle(x.unsqueeze(-1), groups), F.channel_shuffle(x.unsqueeze(-1), groups))


@pytest.mark.parametrize("shuffle", [False, True])
def test_only_the_shuffle_connects_the_groups(shuffle):
    """Which input groups reach the first output group, by gradients: its own alone, or all."""
    torch.manual_seed(0)
    unit = ShuffleUnit(36, 36, groups=3, shuffle=shuffle).double().eval()
    x = image(5, 5, channels=36).double().requires_grad_()
    branch = unit(x) - x  # Where the rectifier is open, the branch; elsewhere what does not leave the group.
    branch[:, :12].square().sum().backward()
    reached = x.grad.abs().sum((0, 2, 3)).view(3, 12).sum(1) > 0
    assert reached.tolist() == [True, shuffle, shuffle]


def test_where_the_size_is_halved_the_input_is_kept():
    unit = randomise(ShuffleUnit(6, 24, groups=3, stride=2).double())
    x = image(7, 8, channels=6).double()
    torch.testing.assert_close(unit(x)[:, :6], F.avg_pool2d(x, 3, stride=2, padding=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("groups", "width", "millions"), [(1, 144, 143), (2, 200, 140), (3, 240, 137), (4, 272, 133), (8, 384, 137)])
def test_convolutions_alone_cost_what_table_1_says(groups, width, millions):
    """The classifier left out, each of the five networks meets the paper's figure to its last digit."""
    name = f"shufflenet_v1_x1_0_g{groups}"
    with on_meta():
        model = create_model(name)
    macs = count_macs(model, (1, 3, 224, 224)) - model.fc.weight.numel()
    assert round(macs / 1e6) == millions == round(1000 * model_entry(name).figures.gmacs)
    assert model.feature_info.channels() == [24, 24, width, 2 * width, 4 * width]
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]


def test_variants_have_the_channels_of_the_authors_code():
    stages = {
        "x0_5_g3": [12, 120, 240, 480],
        "x1_0_g3": [24, 240, 480, 960],
        "x1_5_g3": [24, 360, 720, 1440],
        "x2_0_g3": [48, 480, 960, 1920],
        "x0_5_g8": [16, 192, 384, 768],
        "x1_0_g8": [24, 384, 768, 1536],
        "x1_5_g8": [24, 576, 1152, 2304],
        "x2_0_g8": [48, 768, 1536, 3072],
    }
    for name, channels in stages.items():
        with on_meta():
            assert create_model(f"shufflenet_v1_{name}").feature_info.channels()[1:] == channels


def test_scaled_widths_are_the_nearest_that_the_groups_divide():
    """Of two equally near the larger: 136 becomes 144, so that the last stage has the 576 channels that the paper names."""
    table_1 = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
    names = list_models(family="shufflenet_v1")
    assert len(names) == 20
    for name in names:
        scale, groups = float(name.split("_x")[1].split("_g")[0].replace("_", ".")), int(name[-1])
        entry, unit = model_entry(name), 4 * groups
        assert entry.args["groups"] == groups
        assert entry.args["width"] == int(table_1[groups] * scale / unit + 0.5) * unit
    assert 4 * model_entry("shufflenet_v1_x0_5_g4").args["width"] == 576


def test_an_attention_reweights_every_branch():
    model = create_model("shufflenet_v1_x1_0_g3", attention="se", width=24, stem_channels=12, depths=(2, 1))
    assert [unit.attention.fc2.out_channels for unit in model.features] == [12, 24, 24]
    unit = randomise(model.features[1])
    x = image(4, 4, channels=24)
    before = unit(x)
    unit.attention.fc2.bias.data.fill_(-1e9)  # All gates shut: only the shortcut is left.
    assert torch.equal(unit(x), x.relu()) and not torch.equal(before, x.relu())


def test_stochastic_depth_drops_the_branches_that_are_added():
    model = ShuffleNetV1(groups=2, width=16, stem_channels=8, depths=(2, 2), drop_path_rate=0.6)
    assert [round(unit.drop_path.rate, 6) for unit in model.features] == [0.0, 0.2, 0.0, 0.6]


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="width=200 does not fit groups=3: use a multiple of 12"):
        ShuffleNetV1(width=200)
    with pytest.raises(ConfigError, match="which must be a multiple of groups=3"):
        ShuffleNetV1(stem_channels=16)
    with pytest.raises(ConfigError, match="unknown attention 'sea'"):
        ShuffleNetV1(attention="sea")

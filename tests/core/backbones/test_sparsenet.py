"""SparseNet against its connection rule, plain equations, DenseNet as its limit, and the paper's counts."""

from __future__ import annotations

import math

import pytest
import torch
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones.densenet import DenseNet
from cnnkit.backbones.sparsenet import SparseNet, exponential_sources
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import image, randomise
from cnnkit.weights import load_weights
from torch import nn

pytestmark = pytest.mark.paper("sparsenet")


@pytest.mark.parametrize("base", [2, 3])
@pytest.mark.parametrize("layer", [1, 2, 3, 9, 33])
def test_a_layer_reads_at_powers_of_the_base(layer, base):
    powers = {base**k for k in range(10)}
    assert exponential_sources(layer, base) == [i for i in range(layer - 1, -1, -1) if layer - i in powers]


def test_any_two_layers_are_a_logarithmic_number_of_steps_apart():
    depth = 512
    steps = [0]
    for layer in range(1, depth + 1):
        steps.append(1 + min(steps[i] for i in exponential_sources(layer)))
    assert max(steps) <= math.log2(depth)


@torch.no_grad()
def test_at_base_1_it_is_densenet():
    """The same features, joined from the last to the first."""
    words = {"depths": (2, 3), "stem": "cifar", "num_classes": 5}
    ours = randomise(SparseNet(growth_rates=(6, 6), base=1, **words).double())
    theirs = DenseNet(growth_rate=6, **words).double().eval()
    state = dict(ours.state_dict())
    for index, block_in in ((1, 12), (2, 12)):
        block = f"features.denseblock{index}."
        widths = [block_in, *[6] * (2 if index == 1 else 3)]
        readers = [f"{block}denselayer{n}.{{}}1" for n in range(1, len(widths))]
        readers.append("features.transition1.{}" if index == 1 else "features.norm5")
        for count, reader in enumerate(readers, 1):
            newest_first = list(torch.arange(sum(widths[:count])).split(widths[:count][::-1]))
            order = torch.cat(newest_first[::-1])
            for key in state:
                if key.startswith((reader.format("norm") + ".", reader.format("conv") + ".")) and state[key].ndim:
                    state[key] = state[key].index_select(min(1, state[key].ndim - 1), order)
    state["fc.weight"] = state["fc.weight"][:, order]
    theirs.load_state_dict(state)
    x = image(16, 16).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


def official_forward(state, x, depths):
    """The paper's network from its own code's weights, in plain functions."""

    def pre(x, name, number=""):
        norm = [state[f"{name}.bn{number}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return nn.functional.batch_norm(x, *norm).relu()

    x = nn.functional.conv2d(x, state["features.conv0.weight"], padding=1)
    for stage, depth in enumerate(depths):
        outputs = [x]
        for layer in range(1, depth + 1):
            name = f"features.dense-stage-{stage}.block-{layer}"
            x = nn.functional.conv2d(pre(x, name, 1), state[f"{name}.conv1.weight"])
            outputs.append(nn.functional.conv2d(pre(x, name, 2), state[f"{name}.conv2.weight"], padding=1))
            chosen, offset = [], 1
            while offset <= len(outputs):
                chosen.append(outputs[-offset])
                offset *= 2
            x = torch.cat(chosen, 1)
        if stage < len(depths) - 1:
            name = f"features.transition-{stage}"
            x = nn.functional.avg_pool2d(nn.functional.conv2d(pre(x, name, 1), state[f"{name}.conv1.weight"]), 2)
    norm = [state[f"features.norm_last.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    x = nn.functional.batch_norm(x, *norm).relu().mean((2, 3))
    return nn.functional.linear(x, state["classifier.linear.weight"], state["classifier.linear.bias"])


@torch.no_grad()
def test_the_official_weights_give_the_official_output():
    words = {"depths": (5, 3), "growth_rates": (4, 6), "stem": "cifar", "stem_channels": 8, "num_classes": 5}
    model = randomise(SparseNet(**words).double())
    official = {}
    for key, value in model.state_dict().items():
        if key.startswith("fc."):
            key = f"classifier.linear.{key[3:]}"
        for number in range(1, 6):
            key = key.replace(f"denseblock{number}.denselayer", f"dense-stage-{number - 1}.block-")
        for number in range(1, 6):
            key = key.replace(f"block-{number}.norm", f"block-{number}.bn")
        key = key.replace("transition1.norm", "transition-0.bn1").replace("transition1.conv", "transition-0.conv1")
        official[key.replace("norm5", "norm_last")] = value
    fresh = SparseNet(**words).double().eval()
    assert load_weights(fresh, official) == "official"
    for size in ((16, 16), (11, 18)):
        torch.testing.assert_close(
            fresh(image(*size).double()), official_forward(official, image(*size).double(), (5, 3)), rtol=1e-10, atol=1e-10
        )


@torch.no_grad()
def test_a_sum_is_the_sum():
    model = randomise(SparseNet(depths=(6, 2), growth_rates=(5, 7), aggregation="sum", stem="cifar", bottleneck=0, num_classes=0).double())
    x, f = image(8, 8).double(), model.features
    outputs = [f.conv0(x)]
    for layer, offsets in zip(f.denseblock1.children(), ((1,), (1, 2), (1, 2), (1, 2, 4), (1, 2, 4), (1, 2, 4)), strict=True):
        outputs.append(layer.conv1(layer.norm1(sum(outputs[-k] for k in offsets)).relu()))
    torch.testing.assert_close(model.forward_pyramid(x)[0], outputs[-1] + outputs[-2] + outputs[-4], rtol=1e-10, atol=1e-10)
    assert model.feature_info.channels() == [5, 7]


def test_a_block_lets_go_of_what_nobody_reads_again():
    """A feature outlives its last reader by nothing; the block's output is read last."""
    block = SparseNet(depths=(40,), growth_rates=(2,), stem="cifar").features.denseblock1
    held, most = {0}, 0
    for index, reads in enumerate(block.reads[:-1]):
        assert set(reads) <= held
        held = (held | {index + 1}) - set(block.frees[index])
        assert all(any(i in later for later in block.reads[index + 1 :]) for i in held)
        most = max(most, len(held))
    assert set(block.reads[-1]) == held and most < 40


def test_parameters_grow_with_depth_times_its_logarithm():
    def params(depth, base):
        with on_meta():
            return count_params(SparseNet(depths=(depth,), growth_rates=(4,), base=base, stem="cifar", bottleneck=0, num_classes=0))

    for depth in (32, 64):
        assert params(2 * depth, 2) / params(depth, 2) < 2.5  # 2 (log 2L / log L)
        assert params(2 * depth, 1) / params(depth, 1) > 3.6  # 2^2


@pytest.mark.parametrize("name", [name for name in list_models("*_cifar", family="sparsenet") if "32_64" not in name or "bc" not in name])
def test_a_hundred_classes_meet_the_papers_figures(name):
    with on_meta():
        model = create_model(name, num_classes=100)
    assert round(count_params(model) / 1e6, 2) == model_entry(name).figures.params_m


@pytest.mark.parametrize("name", ["sparsenet121", "sparsenet169", "sparsenet201", "sparsenet201_k48"])
def test_the_reason_given_for_the_imagenet_figures_is_the_reason(name):
    """With weights for nine positions in the classifier and one operation per normalised value, the counts are the paper's."""
    normalised = []
    with on_meta():
        model = create_model(name)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda module, args, output: normalised.append(output.numel()))
        params, macs = count_params(model), count_macs(model, (1, 3, 224, 224))
    figures, more = model_entry(name).figures, 8 * model.fc.weight.numel()
    assert round((params + more) / 1e6, 2) == figures.params_m
    # The paper counts a multiply-add as two operations.
    assert round(2 * (macs + more + sum(normalised)) / 1e9, 2) == round(2 * figures.gmacs, 2)


def test_a_thousand_layers_train():
    """The loss of a narrow network of 1000 layers, all in one block, falls on digits of 4x4."""
    digits = pytest.importorskip("sklearn.datasets").load_digits(n_class=2)
    x = nn.functional.avg_pool2d(torch.tensor(digits.images[:16], dtype=torch.float32).unsqueeze(1) / 8 - 1, 2)
    y = torch.tensor(digits.target[:16])
    torch.manual_seed(0)
    model = SparseNet(depths=(1000,), growth_rates=(2,), stem="cifar", bottleneck=0, in_chans=1, num_classes=2)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"aggregation": "mean"}, "unknown aggregation 'mean'"),
        ({"base": 0}, "base=0 gives no offsets"),
        ({"depths": (2, 2)}, "depths has 2 blocks and growth_rates 4"),
        ({"stem": "mnist"}, "unknown stem 'mnist'"),
    ],
)
def test_wrong_arguments_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        SparseNet(**words)

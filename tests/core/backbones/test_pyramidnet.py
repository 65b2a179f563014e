"""PyramidNet against the equations of its authors' code, and the widths and numbers of parameters of the paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones._base import FeaturePyramid
from cnnkit.backbones.pyramidnet import PyramidBlock, PyramidNet, pyramid_widths
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import centred, image, randomise

pytestmark = pytest.mark.paper("pyramidnet")

CASES = {
    "imagenet": {"depths": (1, 2, 1, 1), "alpha": 21, "start": 12},
    "imagenet basic": {"block": "basic", "depths": (2, 1, 1, 2), "alpha": 17, "start": 12, "rounding": "nearest"},
    "cifar": {"block": "basic", "depths": (2, 2, 2), "alpha": 10, "start": 8, "stem": "small"},
    "cifar bottleneck": {"depths": (1, 2, 1), "alpha": 3, "start": 8, "stem": "small", "widening": "multiply"},
}


def official(state: dict[str, torch.Tensor], x: torch.Tensor, depths: tuple[int, ...]) -> list[torch.Tensor]:
    """The authors' forward pass, from weights under their names alone: the levels, and the logits last."""

    def norm(y: torch.Tensor, name: str) -> torch.Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, *parts)

    large = state["conv1.weight"].shape[-1] == 7
    x = norm(F.conv2d(x, state["conv1.weight"], stride=2 if large else 1, padding=3 if large else 1), "bn1")
    levels = [F.relu(x) if large else x]
    x = F.max_pool2d(levels[0], 3, 2, 1) if large else x
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(x, f"{name}.bn1")
            last = 3 if f"{name}.conv3.weight" in state else 2
            for layer in range(1, last + 1):
                weight = state[f"{name}.conv{layer}.weight"]
                y = F.conv2d(y, weight, stride=stride if layer == last - 1 else 1, padding=weight.shape[-1] // 2)
                y = norm(y, f"{name}.bn{layer + 1}")
                y = F.relu(y) if layer < last else y
            short = F.avg_pool2d(x, 2, 2, ceil_mode=True) if stride == 2 else x
            zeros = y.new_zeros(y.shape[0], y.shape[1] - short.shape[1], *y.shape[2:])
            x = y + torch.cat([short, zeros], 1)
        levels.append(x)
    levels[-1] = F.relu(norm(x, "bn_final"))
    return [*levels, F.linear(levels[-1].mean((2, 3)), state["fc.weight"], state["fc.bias"])]


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_and_pyramid_equal_the_official_equations(name):
    model = randomise(PyramidNet(num_classes=7, **CASES[name])).double()
    for size in ((64, 64), (43, 57)):
        *levels, logits = official(model.state_dict(), image(*size).double(), CASES[name]["depths"])
        torch.testing.assert_close(model(image(*size).double()), logits, rtol=1e-10, atol=1e-10)
        for level, expected in zip(model.forward_pyramid(image(*size).double()), levels, strict=True):
            torch.testing.assert_close(level, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in list_models(family="pyramidnet") if "mul" not in name])
def test_every_variant_has_the_keys_and_widths_of_the_official_code(name):
    """Whose widths grow by a float that is summed up and rounded; it only adds."""
    args = model_entry(name).args
    with on_meta():
        model = create_model(name, rounding="nearest")
    width, channels, expected = float(args.get("start", 64)), args.get("start", 64), {}
    for stage, depth in enumerate(args.get("depths", (3, 24, 36, 3)), 1):
        for block in range(depth):
            width += args["alpha"] / sum(args.get("depths", (3, 24, 36, 3)))
            here, at = round(width), f"layer{stage}.{block}"
            if args.get("block") == "basic":
                expected |= {f"{at}.conv1.weight": (here, channels, 3, 3), f"{at}.conv2.weight": (here, here, 3, 3)}
                channels = here
            else:
                expected |= {f"{at}.conv1.weight": (here, channels, 1, 1), f"{at}.conv2.weight": (here, here, 3, 3)}
                expected[f"{at}.conv3.weight"] = (4 * here, here, 1, 1)
                channels = 4 * here
    found = {key: tuple(value.shape) for key, value in model.state_dict().items() if key.startswith("layer") and "conv" in key}
    assert found == expected
    assert model.fc.in_features == channels


@pytest.mark.parametrize(
    ("name", "params", "features"),
    [
        ("pyramidnet110_a48_cifar", 1_739_730, 64),
        ("pyramidnet110_a84_cifar", 3_855_054, 100),
        ("pyramidnet110_a270_cifar", 28_485_477, 286),
        ("pyramidnet110_mul4_75_cifar", 1_717_584, 76),
        ("pyramidnet110_mul27_cifar", 28_259_684, 432),
        ("pyramidnet164_a270_bn_cifar", 27_216_021, 1144),
        ("pyramidnet200_a240_bn_cifar", 26_617_000, 1024),
        ("pyramidnet236_a220_bn_cifar", 26_806_528, 944),
        ("pyramidnet272_a200_bn_cifar", 26_049_562, 864),
    ],
)
def test_parameters_with_ten_classes_and_last_features(name, params, features):
    """The dimension of the last features is the paper's, and the parameters are where the two agree."""
    with on_meta():
        model = create_model(name, num_classes=10)
    assert (count_params(model), model.num_features) == (params, features)
    figures = model_entry(name).figures
    if "do not know" not in figures.note and "cut off" not in figures.note:
        assert round(params / 1e6, 1) == figures.params_m


def test_last_features_of_the_large_ones():
    with on_meta():
        assert [create_model(f"pyramidnet200_a{alpha}").num_features for alpha in (300, 450)] == [1456, 2056]
        assert create_model("pyramidnet200_a450").head_drop.p == 0.5


def test_widths():
    assert pyramid_widths(16, 48, 54) == [16 + 48 * step // 54 for step in range(1, 55)]
    assert pyramid_widths(16, 48, 54)[26] == 40  # Half of the way, exactly; a sum of floats of 48 / 54 falls short of it.
    assert pyramid_widths(64, 300, 66, rounding="nearest")[:4] == [69, 73, 78, 82]
    assert pyramid_widths(16, 0, 5) == [16] * 5
    assert pyramid_widths(8, 4, 2, widening="multiply") == [16, 32]
    for wrong in ({"alpha": -1}, {"alpha": 0.5, "widening": "multiply"}):
        with pytest.raises(ConfigError, match="narrower"):
            pyramid_widths(16, blocks=3, **wrong)
    with pytest.raises(ConfigError, match="nearest"):
        pyramid_widths(16, 3, 3, rounding="up")


@torch.no_grad()
def test_the_shortcut_has_no_parameters_and_new_channels_are_the_branchs():
    block = randomise(PyramidBlock(8, 12, stride=2)).double()
    assert sum(parameter.numel() for parameter in block.parameters()) == 9 * (8 * 12 + 12 * 12) + 2 * (8 + 12 + 12)
    x = torch.randn(2, 8, 6, 6).double()
    whole = block(x)
    block.bn3.weight.zero_()
    block.bn3.bias.zero_()
    torch.testing.assert_close(block(x)[:, :8], F.avg_pool2d(x, 2))
    assert not bool(block(x)[:, 8:].any()) and bool(whole[:, 8:].any())


def test_a_pyramid_without_the_last_level_has_no_final_normalisation():
    pyramid = FeaturePyramid(PyramidNet(**CASES["imagenet"]), out_indices=(1, 2))
    assert not [key for key, _ in pyramid.named_parameters() if "bn_final" in key or "layer3" in key]
    sum(level.sum() for level in pyramid(torch.randn(2, 3, 32, 32))).backward()
    assert [key for key, parameter in pyramid.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_the_one_of_a_stacked_input_equals_the_one_of_a_slice(dims):
    sizes = {**CASES["cifar bottleneck"], "num_classes": 5}
    flat = randomise(PyramidNet(dims=dims, **sizes)).double()
    deep = centred(flat, PyramidNet(dims=dims + 1, **sizes).double())
    x = image(*(13, 10)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 9)), flat(x), rtol=1e-10, atol=1e-10)

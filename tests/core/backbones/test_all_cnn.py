"""All-CNN against its equations and counts; guided backpropagation against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, create_small, list_models
from cnnkit.backbones.all_cnn import guided_gradient
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.testing.compare import centred, image, randomise
from torch import Tensor, nn

pytestmark = pytest.mark.paper("all-cnn")

P = "pool"
# (kernel, stride, padding) of every convolution of Tables 1 and 2, and 3x3 poolings of stride 2.
EXPECTED = {
    "all_cnn_a_base": [(5, 1, 2), P, (5, 1, 2), P, (3, 1, 0), (1, 1, 0)],
    "all_cnn_b_base": [(5, 1, 2), (1, 1, 0), P, (5, 1, 2), (1, 1, 0), P, (3, 1, 0), (1, 1, 0)],
    "all_cnn_c_base": [(3, 1, 1), (3, 1, 1), P, (3, 1, 1), (3, 1, 1), P, (3, 1, 0), (1, 1, 0)],
    "all_cnn_c_strided": [(3, 1, 1), (3, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 0), (1, 1, 0)],
    "all_cnn_c_conv_pool": [(3, 1, 1)] * 3 + [P] + [(3, 1, 1)] * 3 + [P, (3, 1, 0), (1, 1, 0)],
    "all_cnn_c": [(3, 1, 1), (3, 1, 1), (3, 2, 1)] * 2 + [(3, 1, 0), (1, 1, 0)],
    "all_cnn_a": [(5, 1, 2), (3, 2, 1)] * 2 + [(3, 1, 0), (1, 1, 0)],
    "all_cnn_b_imagenet": [
        *((11, 4, 2), (1, 1, 0), (3, 2, 0), (5, 1, 2), (1, 1, 0), (3, 2, 0), (3, 1, 1), (1, 1, 0), (3, 2, 0), (3, 1, 1), (1, 1, 0)),
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
@torch.no_grad()
def test_logits_follow_the_equations(name):
    """The paper's tables, layer by layer, at two sizes."""
    model = randomise(create_model(name, width=0.05, num_classes=5), gain=2.0).double()
    weights = [tensor for key, tensor in model.named_parameters() if not key.startswith("head.")]
    for size in ((64, 64), (67, 75)) if "imagenet" in name else ((32, 32), (17, 22)):
        x, used = image(*size).double(), iter(weights)
        for layer in EXPECTED[name]:
            if layer == P:
                x = F.max_pool2d(x, 3, stride=2, padding=1)
            else:
                kernel, stride, padding = layer
                weight, bias = next(used), next(used)
                assert weight.shape[2:] == (kernel, kernel)
                x = F.conv2d(x, weight, bias, stride=stride, padding=padding).relu()
        assert next(used, None) is None
        scores = F.conv2d(x, model.head.weight, model.head.bias)
        torch.testing.assert_close(model(image(*size).double()), scores.relu().mean((2, 3)), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model.forward_features(image(*size).double()), x, rtol=1e-10, atol=1e-10)
        assert torch.equal(model.forward_head(x, pre_logits=True), x.mean((2, 3)))


def test_counts_and_shapes():
    """1,369,738 parameters for ten classes; All-CNN and ConvPool-CNN have the same; the network for ImageNet less than ten million."""
    with on_meta():
        models = {name: create_model(name, num_classes=10).eval() for name in list_models(family="all_cnn")}
        counts = {name: count_params(model) for name, model in models.items()}
        assert counts["all_cnn_c"] == counts["all_cnn_c_conv_pool"] == 1_369_738
        for letter, count in (("a", 839_242), ("b", 885_610), ("c", 954_730)):
            assert counts[f"all_cnn_{letter}_base"] == counts[f"all_cnn_{letter}_strided"] == count
            assert counts[f"all_cnn_{letter}"] == counts[f"all_cnn_{letter}_conv_pool"] == count + 9 * (96**2 + 192**2) + 96 + 192
        assert len(models) == 13
        assert 9e6 < count_params(create_model("all_cnn_b_imagenet")) < 1e7
        # The paper's last averages are over 6x6 positions.
        for name, model in models.items():
            side = 224 if "imagenet" in name else 32
            assert model.forward_features(torch.empty(1, 3, side, side)).shape[2:] == (6, 6)
        aligned = create_model("all_cnn_b_imagenet", aligned=True).eval()
        assert [level.shape[2] for level in aligned.forward_pyramid(torch.empty(1, 3, 256, 256))] == [64, 32, 16, 8]
        assert list(aligned.state_dict()) == list(models["all_cnn_b_imagenet"].state_dict())


def test_nothing_is_pooled_but_the_scores():
    pooling = (nn.MaxPool2d, nn.AvgPool2d, nn.Linear)
    with on_meta():
        for name in list_models(family="all_cnn"):
            found = sum(isinstance(module, pooling) for module in create_model(name).modules())
            assert found == (2 if name.endswith(("base", "conv_pool")) else 0)


def test_dropout_is_where_the_paper_has_it():
    """On the input, and after each pooling or what replaces it; in the network for ImageNet after the last of these."""
    for name, expected in (("all_cnn_c", [2, 5]), ("all_cnn_c_base", [2, 5]), ("all_cnn_a_strided", [0, 1]), ("all_cnn_b_imagenet", [8])):
        model = create_model(name, width=0.05, drop_rate=0.5, input_drop_rate=0.2)
        assert [index for index, layer in enumerate(model.layers) if layer.drop.p == 0.5] == expected
        assert model.input_drop.p == 0.2
        assert model.chain[0] == "input_drop"


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("reduction", ["conv", "pool"])
@torch.no_grad()
def test_a_stacked_input_gives_the_logits_of_a_slice(dims, reduction):
    """With kernels centred in the new axis, slices never mix."""
    flat = randomise(create_small("all_cnn", dims=dims, reduction=reduction, num_classes=5), gain=2.0).double()
    deep = centred(flat, create_small("all_cnn", dims=dims + 1, reduction=reduction, num_classes=5).double())
    x = image(*(20, 24)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 16)), flat(x), rtol=1e-10, atol=1e-10)


class Guided(torch.autograd.Function):
    """The paper's rule, written down directly."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        Guided.seen.append((x > 0, gradient))
        return gradient * (x > 0) * (gradient > 0)

    seen: list = []


def test_guided_gradient_follows_its_rule(monkeypatch):
    """Zero where a ReLU was off, and never negative after one; the model and later gradients stay as they were."""
    model = randomise(create_small("all_cnn", num_classes=4), gain=2.0).double()
    x = image(24, 24).double()
    before = x.clone()

    def score(logits: Tensor) -> Tensor:
        return logits[:, 1]

    found = guided_gradient(model, x, score)
    leaf = x.clone().requires_grad_()
    score(model(leaf)).sum().backward()
    plain = leaf.grad.clone()
    assert not torch.allclose(found, plain)
    assert torch.equal(x, before)
    assert not x.requires_grad

    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: Guided.apply(x))
    leaf.grad = None
    score(model(leaf)).sum().backward()
    torch.testing.assert_close(found, leaf.grad, rtol=1e-10, atol=1e-14)
    assert sum(int((~on).sum()) for on, _ in Guided.seen) > 0
    assert sum(int((gradient < 0).sum()) for _, gradient in Guided.seen) > 0


def test_guided_gradient_of_a_small_case():
    """Two units see the input, one for and one against it: only what speaks for the score comes back."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 1.0], [1.0, 0.5]])
    model[2].weight.data = torch.tensor([[1.0, -3.0]])
    x = torch.tensor([[1.0, 2.0]])
    assert guided_gradient(model, x, lambda y: y[:, 0]).tolist() == [[1.0, 1.0]]
    with torch.no_grad():
        assert guided_gradient(model, torch.tensor([[-1.0, -2.0]]), lambda y: y[:, 0]).tolist() == [[0.0, 0.0]]


def test_the_classifier_is_a_convolution_that_can_be_replaced():
    model = create_small("all_cnn", num_classes=3)
    model.reset_classifier(7)
    assert model(image(32, 32)).shape == (2, 7)
    assert model.head.weight.shape == (7, model.num_features, 1, 1)
    # At the start every class is awake.
    assert (model(image(32, 32)) > 0).all()


def test_wrong_arguments_and_sizes_are_explained():
    with pytest.raises(ConfigError, match="unknown base 'd'"):
        create_model("all_cnn_c", base="d")
    with pytest.raises(ConfigError, match="did you mean 'stride'"):
        create_model("all_cnn_c", reduction="strid")
    with pytest.raises(ConfigError, match="no pooling to begin with"):
        create_model("all_cnn_b_imagenet", reduction="pool")
    with pytest.raises(InputError, match="at least 12"):
        create_small("all_cnn")(torch.zeros(1, 3, 11, 32))

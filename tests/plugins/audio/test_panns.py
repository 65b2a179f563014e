"""CNN6, CNN10, CNN14 and their separable forms: the official layers, keys and front end, sizes, training, merging and export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import CheckpointError, ConfigError
from cnnkit.layers.fuse import fuse
from cnnkit.testing.compare import assert_near, randomise, without_gradient
from cnnkit_audio.models.panns import WideConv2d, halved
from torch import Tensor, nn

pytestmark = pytest.mark.paper("convnext-audioset")

SMALL = {"cnn6": (4, 6, 8, 10), "cnn10": (4, 6, 8, 10), "cnn14": (4, 5, 6, 7, 8, 9)}
KINDS = [f"{kind}{suffix}" for kind in SMALL for suffix in ("", "_dsc")]


def waves(samples: int, batch: int = 2, seed: int = 1) -> Tensor:
    return 0.3 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))


def small(kind: str, **args: Any) -> Any:
    return create_model(f"audio/panns_{kind}", dims=1, num_classes=7, widths=SMALL[kind.partition("_")[0]], **args)


def pair(plain, kind: str) -> tuple[Any, Any]:
    """Return ours and the plain network with the same random weights, given to ours as an official file."""
    theirs = plain("panns").create(kind, 7, list(SMALL[kind.partition("_")[0]])).eval()
    learned = {key: value for key, value in theirs.state_dict().items() if not key.startswith(("spectrogram", "logmel"))}
    theirs.load_state_dict({**theirs.state_dict(), **randomise({key: value.clone() for key, value in learned.items()}, gain=2.0)})
    return small(kind, weights=theirs.state_dict()).eval(), theirs


@pytest.mark.parametrize("kind", KINDS)
def test_official_weights_give_the_official_logits(plain, kind):
    """From the waveform in float32, and from the spectrogram in float64, for two lengths."""
    ours, theirs = pair(plain, kind)
    for samples in (ours.least, 23_457):
        assert_near(ours(waves(samples)).detach(), theirs(waves(samples)[:, 0]).detach(), 1e-5)
    ours, theirs = ours.double(), theirs.double()
    for frames in (33, 70):
        features = torch.randn(2, 1, 64, frames, generator=torch.Generator().manual_seed(3)).double() * 20
        assert_near(ours.classify(features).detach(), theirs.tag(features.transpose(2, 3)).detach(), 1e-10)


def test_parameters_are_those_of_the_paper():
    """Kong et al., Table XII; the separable forms are far below."""
    sizes = {}
    for kind in KINDS:
        with on_meta():
            sizes[kind] = count_params(create_model(f"audio/panns_{kind}", dims=1, num_classes=527))
    assert {kind: sizes[kind] for kind in SMALL} == {"cnn6": 4_837_455, "cnn10": 5_219_279, "cnn14": 80_753_615}
    assert all(sizes[f"{kind}_dsc"] < sizes[kind] / 4 for kind in SMALL)
    with on_meta():
        cnn14, separable = (create_model(f"audio/panns_cnn14{suffix}", dims=1, num_classes=527) for suffix in ("", "_dsc"))
    assert count_macs(separable, (1, 1, 320_000)) < count_macs(cnn14, (1, 1, 320_000)) / 8


def test_separable_cnn6_has_a_depthwise_and_a_1x1_convolution_for_each():
    convolutions = [module for module in small("cnn6_dsc").modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.kernel_size, conv.groups > 1) for conv in convolutions] == [((5, 5), False)] + 3 * [((5, 5), True), ((1, 1), False)]


def test_an_official_file_is_read(plain, tmp_path):
    _, theirs = pair(plain, "cnn10")
    torch.save({"iteration": 600_000, "model": {f"module.{key}": value for key, value in theirs.state_dict().items()}}, tmp_path / "c.pth")
    ours = small("cnn10", weights=tmp_path / "c.pth").eval()
    assert_near(ours(waves(9000)).detach(), theirs(waves(9000)[:, 0]).detach(), 1e-5)
    with pytest.raises(CheckpointError, match="its head has 7 classes and the model was built with num_classes=3; pass num_classes=7"):
        create_model("audio/panns_cnn10", dims=1, num_classes=3, widths=SMALL["cnn10"], weights=tmp_path / "c.pth")


def test_logits_are_the_head_of_the_embedding():
    ours: Any = randomise(small("cnn10"))
    features = ours.front(waves(9000))
    assert ours.embed(features).shape == (2, 10)
    torch.testing.assert_close(ours.head(ours.embed(features)), ours(waves(9000)))


def test_a_short_event_counts_as_much_as_a_long_one():
    """The pooling over time: a single frame of ones gives the maximum 1 and its share as the mean."""
    from cnnkit_audio.models.panns import pool_clip

    x = torch.zeros(1, 1, 10, 4)
    x[0, 0, 3] = 1
    assert float(pool_clip(x)) == pytest.approx(1.1)


@pytest.mark.parametrize("kind", ["cnn6", "cnn14_dsc"])
def test_a_step_reaches_every_parameter(kind):
    ours = small(kind, drop_rate=0.0).train()
    ours(waves(12_000, batch=4)).square().mean().backward()
    assert without_gradient(ours) == []


@pytest.mark.parametrize("kind", ["cnn6", "cnn10", "cnn14_dsc"])
def test_the_merged_form_computes_the_same(kind):
    ours: Any = randomise(small(kind), gain=2.0)
    expected = ours(waves(12_000)).detach()
    fuse(ours, waves(12_000))
    assert [name for name, module in ours.named_modules() if isinstance(module, nn.BatchNorm2d)] == ["bn0"]
    assert_near(ours(waves(12_000)).detach(), expected, 1e-5)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kernel", [3, 5])
def test_wide_convolutions_of_few_positions_are_convolutions(kernel, last):
    """As a product, with the kernel in either memory format, values and gradients are those of a convolution."""
    torch.manual_seed(0)
    wide = WideConv2d(5, 4, kernel, padding=kernel // 2).double()
    if last:
        wide = wide.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = (torch.randn(2, 5, 7, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_() for _ in range(2))
    found = wide(x)
    assert "Convolution" not in type(found.grad_fn).__name__ and "View" in type(found.grad_fn).__name__
    expected = nn.functional.conv2d(y, wide.weight, wide.bias, padding=kernel // 2)
    assert_near(found.detach(), expected.detach(), 1e-12)
    gradients = torch.autograd.grad(found.square().sum(), (x, *wide.parameters()))
    for one, other in zip(gradients, torch.autograd.grad(expected.square().sum(), (y, *wide.parameters())), strict=True):
        assert_near(one, other, 1e-12)
    many = torch.randn(1, 5, 20, 10).double()
    assert torch.equal(wide(many), nn.functional.conv2d(many, wide.weight, wide.bias, padding=kernel // 2))


def test_cnn14_has_them_where_channels_are_many():
    with on_meta():
        cnn14 = create_model("audio/panns_cnn14", dims=1)
    wide = [name for name, module in cnn14.named_modules() if isinstance(module, WideConv2d)]
    assert wide == ["conv_block5.conv2", "conv_block6.conv1", "conv_block6.conv2"]


def test_rates_of_the_paper_have_the_same_frames():
    for rate in (8000, 16_000, 32_000):
        with on_meta():
            ours: Any = small("cnn10", sample_rate=rate)
            assert ours.front(torch.empty(1, 1, rate, device="meta")).shape == (1, 1, 64, 101)


def test_wrong_arguments_say_what_is_accepted():
    with pytest.raises(ConfigError, match="kernel_size=7; accepted: 3 for blocks of two convolutions, 5 for blocks of one"):
        small("cnn10", kernel_size=7)
    with pytest.raises(ConfigError, match="pools=5 of 4 blocks; accepted: 0 to 4"):
        small("cnn10", pools=5)


def test_it_exports_with_its_front_end():
    """For clips of the exported length."""
    ours: Any = randomise(small("cnn10"))
    program = torch.export.export(ours, (waves(9600),)).module()
    assert_near(program(waves(9600, seed=2)).detach(), ours(waves(9600, seed=2)).detach(), 1e-5)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 12), (7, 5), (2, 3)])
def test_averages_are_those_of_pooling(form, size):
    """1e-6, with and without gradients, also of odd sizes and of many channels."""
    torch.manual_seed(0)
    for channels in (3, 40):
        x = torch.randn(2, channels, *size).to(memory_format=form)
        expected = torch.nn.functional.avg_pool2d(x, 2)
        torch.testing.assert_close(halved(x), expected, rtol=0, atol=1e-6)
        with torch.inference_mode():
            torch.testing.assert_close(halved(x), expected, rtol=0, atol=1e-6)

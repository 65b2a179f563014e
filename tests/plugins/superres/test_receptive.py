"""The receptive field: networks whose radius can be worked out by hand, windows, global layers, and what the probe leaves untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit_superres.models._base import SuperResolver
from cnnkit_superres.receptive import Reach, reach, receptive_radius
from torch import Tensor, nn


class Chain(SuperResolver):
    """Layers one after the other, which enlarge by ``scale`` in all."""

    def __init__(self, *layers: nn.Module, scale: int = 1, size_multiple: int = 1) -> None:
        super().__init__(scale=scale, size_multiple=size_multiple)
        self.layers = nn.Sequential(*layers)

    def enlarge(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Excite(nn.Module):
    """Squeeze and excite: every pixel depends on the mean of all."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Windows(nn.Module):
    """Attention among the pixels of each window, whose grid starts at ``-shift``; a picture is extended at its end by reflection."""

    def __init__(self, size: int, shift: int = 0) -> None:
        super().__init__()
        self.size, self.shift = size, shift

    def forward(self, x: Tensor) -> Tensor:
        _, colours, height, width = x.shape
        n, s = self.size, self.shift
        x = nn.functional.pad(x, (s, -(width + s) % n, s, -(height + s) % n), mode="reflect")
        rows, columns = x.shape[2] // n, x.shape[3] // n
        tokens = x.view(-1, colours, rows, n, columns, n).permute(0, 2, 4, 3, 5, 1).flatten(3, 4)
        tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        x = tokens.view(-1, rows, columns, n, n, colours).permute(0, 5, 1, 3, 2, 4).reshape(-1, colours, rows * n, columns * n)
        return x[:, :, s : s + height, s : s + width]


def conv(kernel: int, dilation: int = 1, colours: int = 3, mode: str = "zeros") -> nn.Module:
    return nn.Conv2d(3, colours, kernel, padding=(kernel // 2) * dilation, dilation=dilation, padding_mode=mode)


@pytest.mark.parametrize(
    ("layers", "scale", "radius"),
    [
        ([Apply(torch.sin)], 1, 0),
        ([conv(1)], 1, 0),
        ([conv(3), nn.ReLU(), conv(5)], 1, 3),
        ([conv(3, dilation=4), conv(3, dilation=7)], 1, 11),
        ([conv(7, mode="reflect"), conv(3, mode="replicate")], 1, 4),
        ([conv(5, colours=12), nn.PixelShuffle(2)], 2, 2),
        ([conv(5), nn.Upsample(scale_factor=3), conv(3)], 3, 3),  # A pixel of the large picture looks into the next small one.
        ([nn.Upsample(scale_factor=2, mode="bicubic")], 2, 2),
        ([nn.Conv2d(3, 3, (1, 9), padding=(0, 4)), nn.Conv2d(3, 3, (3, 1), padding=(1, 0))], 1, 4),
        ([nn.MaxPool2d(3, 1, 1), nn.GELU(), nn.Hardtanh(0, 1), nn.PReLU(), nn.Softmax(1)], 1, 1),
        ([conv(3, dilation=150)], 1, 150),  # Nothing lies between the taps.
    ],
)
def test_the_radius_of_convolutions(layers, scale, radius):
    model = Chain(*layers, scale=scale)
    assert receptive_radius(model) == radius
    assert reach(model) == Reach(halo=radius, period=1)


@pytest.mark.parametrize(
    ("layers", "scale", "halo", "period", "radius"),
    [
        # Blocks of 4 see themselves alone: no surroundings, but from one end to the other.
        ([Windows(4)], 1, 0, 4, 3),
        ([Windows(5)], 1, 0, 5, 4),
        # A pixel is mixed with its window, then with every shifted window that this one meets.
        ([Windows(4), Windows(4, 2)], 1, 4, 4, 5),
        ([Windows(4), conv(3)], 1, 4, 4, 4),
        ([Windows(3), Windows(2)], 1, 0, 6, 3),
        # Kernel 2 at stride 2, a 3 x 3 between, and back: the neighbouring pair of pixels.
        ([nn.PixelUnshuffle(2), nn.Conv2d(12, 12, 3, padding=1), nn.PixelShuffle(2)], 1, 2, 2, 3),
        # Output pair k sees kernel 3 about 2k, that is 2k - 1 to 2k + 1; nearest repetition gives it to 2k and 2k + 1.
        ([nn.Conv2d(3, 3, 3, stride=2, padding=1), nn.Upsample(scale_factor=2)], 1, 2, 2, 2),
    ],
)
def test_windows_and_strides_have_a_period(layers, scale, halo, period, radius):
    multiple = period if any(isinstance(layer, (nn.PixelUnshuffle, nn.Upsample)) for layer in layers) else 1
    model = Chain(*layers, scale=scale, size_multiple=multiple)
    assert reach(model) == Reach(halo=halo, period=period)
    assert receptive_radius(model) == radius


def learned_positions(x: Tensor) -> Tensor:
    return x * torch.arange(x.shape[3], dtype=x.dtype)


def global_attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).view_as(x)


@pytest.mark.parametrize(
    "function",
    [
        Excite(),
        Apply(global_attention),
        Apply(lambda x: torch.fft.ifft2(torch.fft.fft2(x)).real),
        Apply(learned_positions),
        Apply(lambda x: torch.where(x.mean() > 0.4, x, -x) + x[..., -1:, -1:]),
        Apply(lambda x: x + x.var((2,), keepdim=True)),
        conv(3, mode="circular"),
        Apply(lambda x: Windows(4)(x.flip(3)).flip(3)),  # Windows that begin at the end of whatever they are given.
        Apply(torch.nan_to_num),
    ],
    ids=["excite", "attention", "fourier", "positions", "corner", "columns", "circular", "from the end", "no marks"],
)
def test_what_sees_the_whole_picture_has_no_radius(function, monkeypatch):
    monkeypatch.setattr("cnnkit_superres.receptive.LENGTHS", (128,))
    model = Chain(conv(3), function)
    assert receptive_radius(model) is None


def test_weights_of_zero_count():
    model = Chain(conv(9))
    nn.init.zeros_(model.layers[0].weight)
    assert receptive_radius(model) == 4


def test_espcn():
    assert [receptive_radius(create_model(f"superres/espcn_x{scale}")) for scale in (2, 3, 4)] == [4, 4, 4]


def test_the_network_and_the_random_state_are_untouched():
    class Noisy(Chain):
        def enlarge(self, x: Tensor) -> Tensor:
            return self.layers(x) + 0 * torch.randn(1)

    model = Noisy(conv(3), nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert receptive_radius(model) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) and value.dtype == before[key].dtype for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.backends.cudnn.enabled


def test_the_answer_is_remembered_until_the_network_changes(monkeypatch):
    model = Chain(conv(3))
    assert reach(model).halo == 1
    monkeypatch.setattr("cnnkit_superres.receptive._reach", lambda model: pytest.fail("asked again"))
    assert reach(model).halo == 1
    monkeypatch.undo()
    model.layers.append(conv(5))
    assert reach(model).halo == 3

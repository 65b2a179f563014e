"""What overlapping windows share, spectrogram and first layers, equals what each window alone gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cnnkit.errors import InputError
from cnnkit.testing.compare import stir
from cnnkit_audio import frontends, window_features
from cnnkit_audio.frontends import Fbank, FrontEnd, LogMel, Mfcc
from cnnkit_audio.models.panns import Pann

FRONTS: dict[str, Callable[[], FrontEnd]] = {
    "panns": frontends.panns,
    "batch norm": lambda: frontends.panns(batch_norm=True).eval(),
    "efficientat": frontends.efficientat,
    "ast": frontends.ast,
    "kaldi edges": lambda: Fbank(snip_edges=False, use_energy=True),
    "gaps": lambda: Fbank(snip_edges=False, frame_shift=40.0),
    "none": lambda: LogMel(sample_rate=16_000, n_fft=1024, win_length=400, hop=150, pad="none"),
    "silence around": lambda: LogMel(sample_rate=16_000, n_fft=2048, hop=100, pad="constant", power=1.0),
    "cepstra": lambda: Mfcc(mel=LogMel(sample_rate=16_000, hop=160)),
    "per clip": lambda: LogMel(sample_rate=16_000, hop=160, top_db=30.0),
}


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest) -> FrontEnd:
    """Each kind of padding, alignment and scope."""
    return FRONTS[request.param]()


def recording(samples: int) -> torch.Tensor:
    """Noise that grows louder, so that no frame is like another."""
    noise = torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(samples))
    return noise * torch.linspace(0.01, 0.3, samples)


def alone(front: FrontEnd, signal: torch.Tensor, starts: list[int], length: int) -> torch.Tensor:
    """The definition."""
    with torch.no_grad():
        return torch.cat([front(signal[..., start : start + length]) for start in starts])


def check(front: FrontEnd, signal: torch.Tensor, starts: list[int], length: int) -> None:
    """1e-5 of the features' range."""
    expected = alone(front, signal, starts, length)
    span = float(expected.max() - expected.min())
    torch.testing.assert_close(window_features.window_features(front, signal, starts, length), expected, rtol=0, atol=1e-5 * span)


@pytest.mark.parametrize("length", [6_400, 6_437])
def test_windows_are_those_alone(front: FrontEnd, length: int) -> None:
    """Overlapping, in any order, twice, off the grid of hops, and one by itself; lengths on and off that grid."""
    hop = front.hop
    signal = recording(length + 40 * hop + 7)
    check(front, signal, [0, 4 * hop, 8 * hop, 12 * hop, 40 * hop], length)
    check(front, signal, [8 * hop + 7, 7, 8 * hop + 7, 3 * hop + 7], length)
    check(front, signal, [0, 5 * hop + 1, 9 * hop, 11 * hop + 1, 40 * hop + 7], length)
    check(front, signal, [3 * hop], length)


def test_a_spectrogram_of_several_pieces_has_no_seams(monkeypatch: pytest.MonkeyPatch, front: FrontEnd) -> None:
    """Pieces of seven frames, whose last has one."""
    monkeypatch.setattr(window_features, "PIECE", 7)
    for more in range(6, 10):
        signal = recording(6_400 + more * front.hop)
        check(front, signal, [0, front.hop, 2 * front.hop, more * front.hop], 6_400)


def test_windows_far_apart_are_computed_alone() -> None:
    """What lies between them is not looked at."""
    front = frontends.panns()
    signal = recording(200_000)
    signal[..., 10_000:180_000] = float("nan")
    starts = [0, 320, 180_160, 180_480]
    assert window_features.window_features(front, signal, starts, 8_000).isfinite().all()
    check(front, signal, starts, 8_000)


def test_a_shared_frame_is_computed_once() -> None:
    """Windows of 100 hops every 10: at least three times fewer frames than windows one by one."""
    front = frontends.panns()
    seen: list[int] = []
    front.bank.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0] * output.shape[-1]))
    starts = list(range(0, 320 * 400, 3_200))
    window_features.window_features(front, recording(starts[-1] + 32_000), starts, 32_000)
    assert 3 * sum(seen) < len(starts) * front.frames(32_000)


def test_no_windows_give_no_features(front: FrontEnd) -> None:
    """An empty batch."""
    assert window_features.window_features(front, recording(8_000), [], 6_400).shape == (0, 1, front.bands, front.frames(6_400))


def test_windows_must_lie_inside_the_signal_and_be_long_enough(front: FrontEnd) -> None:
    """Named with their numbers."""
    for starts in ([-1], [1_601]):
        with pytest.raises(ValueError, match="inside the 8000 samples"):
            window_features.window_features(front, recording(8_000), starts, 6_400)
    with pytest.raises(InputError, match="too short"):
        window_features.window_features(front, recording(8_000), [0], front.least - 1)


def test_half_precision_stays_half() -> None:
    """The type of the signal is that of the features."""
    signal = recording(20_000).half()
    features = window_features.window_features(frontends.panns(), signal, [0, 320, 640], 16_000)
    assert features.dtype == torch.float16
    torch.testing.assert_close(features, alone(frontends.panns(), signal, [0, 320, 640], 16_000))


def small_cnn(kind: str) -> Pann:
    """A network of four blocks with statistics of its own, in evaluation mode."""
    args: dict[str, Any] = {"cnn6": {"kernel_size": 5}, "cnn10": {"pools": 3}, "separable": {"separable": True}}[kind]
    torch.manual_seed(0)
    return stir(Pann(num_classes=3, sample_rate=8_000, widths=(3, 4, 5, 6), **{"pools": 4, **args})).eval()


@pytest.mark.parametrize("kind", ["cnn6", "cnn10", "separable"])
@pytest.mark.parametrize(("length", "hop"), [(8_000, 640), (8_000, 1_280), (8_077, 160), (8_040, 80), (8_000, 4_001)])
def test_first_layers_of_a_network_are_shared_exactly(monkeypatch: pytest.MonkeyPatch, kind: str, length: int, hop: int) -> None:
    """At each depth the vectors are those of each window alone, on one grid of strides or several; 1e-5 of their range."""
    monkeypatch.setattr(window_features, "PIECE", 61)  # Seams, at each stride.
    model, starts = small_cnn(kind), [hop * number for number in range(7)]
    signal = recording(starts[-1] + length + 5)
    with torch.no_grad():
        expected = torch.cat([model.embed(model.front(signal[..., start : start + length])) for start in starts])
        assert len(model.stems()) == 5
        for stem in model.stems():
            maps = window_features.window_features(stem, signal, starts, length)
            assert maps.shape == (7, stem.channels, stem.bands, stem.frames(length))
            torch.testing.assert_close(stem.rest(maps), expected, rtol=0, atol=1e-5 * float(expected.max() - expected.min()))


def test_shared_layers_hear_less_than_the_windows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight windows that overlap by seven eighths: the second block's columns take less than half of the samples."""
    heard: list[int] = []
    front = LogMel.forward
    monkeypatch.setattr(LogMel, "forward", lambda self, x: heard.append(x.shape[0] * x.shape[-1]) or front(self, x))
    starts = [number * 2_560 for number in range(8)]
    window_features.window_features(small_cnn("cnn6").stems()[2], recording(starts[-1] + 20_480), starts, 20_480)
    assert sum(heard) < 0.4 * 8 * 20_480


def test_the_deepest_layers_that_pay_are_shared() -> None:
    """Much overlap shares all, an odd number of frames one block, windows off the grid of frames nothing."""
    model = small_cnn("cnn6")

    def depth(hop: int, length: int) -> int:
        stems = model.stems()
        return stems.index(window_features.best_stem(stems, range(0, 12 * hop, hop), length))

    assert depth(640, 80_000) == 4 and depth(80 * 27, 8_640) == 1 and depth(81, 8_000) == 0 and depth(8_000, 8_000) == 0
    assert len(model.train().stems()) == 1

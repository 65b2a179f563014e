"""EfficientTDNN's stand-alone networks: the published figures, and equality with the straightforward version."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.testing.compare import assert_near, randomise
from cnnkit.weights import load_weights
from cnnkit_audio.models.efficient_tdnn import TDNN, EfficientTDNN, SpeakerFeatures
from cnnkit_audio.models.efficient_tdnn_space import BASE, LARGEST, MOBILE, SMALL, Space, SubNet

pytestmark = pytest.mark.paper("efficienttdnn")

TINY = SubNet((32, 24, 16, 40), (5, 3, 1, 5), 48)
LEAST = SubNet((128,) * 3, (1,) * 3, 384)


def normalised(subnet: SubNet) -> int:
    """Values of one frame that a batch normalisation before the pooling takes, by blocks."""
    first, *inner = subnet.channels
    return first + sum(2 * first // 2 + width + 7 * width // 8 for width in inner)


@pytest.mark.parametrize(
    ("subnet", "macs", "params"),
    [(SMALL, "204.07M", "899.20K"), (MOBILE, "570.98M", "2.42M"), (BASE, "1.45G", "5.79M"), (LARGEST, "1.94G", "7.55M")],
)
def test_published_counts(subnet: SubNet, macs: str, params: str) -> None:
    """All digits, once two operations for each value of a batch normalisation are added, as the authors' counter does.

    The largest is printed as 1.93 G for 300 frames; the others are for three seconds, which are 301.
    """
    unit = {"K": 1e3, "M": 1e6, "G": 1e9}
    found = subnet.macs(301) + 2 * 301 * normalised(subnet)
    assert f"{found / unit[macs[-1]]:.2f}{macs[-1]}" == macs
    assert f"{subnet.params() / unit[params[-1]]:.2f}{params[-1]}" == params


@pytest.mark.parametrize(("subnet", "macs", "params"), [(LARGEST, "1.93G", "7.55M"), (LEAST, "83.47M", "443.97K")])
def test_published_bounds(subnet: SubNet, macs: str, params: str) -> None:
    """The most and the least of the space, for 300 frames."""
    unit = {"K": 1e3, "M": 1e6, "G": 1e9}
    found = subnet.macs(300) + 2 * 300 * normalised(subnet)
    assert f"{found / unit[macs[-1]]:.2f}{macs[-1]}" == macs
    assert f"{subnet.params() / unit[params[-1]]:.2f}{params[-1]}" == params


@pytest.mark.parametrize("subnet", [SMALL, MOBILE, BASE, LARGEST, TINY])
def test_costs_without_a_network(subnet: SubNet) -> None:
    """What a description says that it costs is what the network costs."""
    with on_meta():
        network = TDNN(subnet)
    assert subnet.params() == count_params(network)
    assert subnet.macs(300) == count_macs(network, (1, 80, 300))


def test_registered_names() -> None:
    """The names of the manifest are the paper's networks."""
    for name, subnet in {"": BASE, "_mobile": MOBILE, "_small": SMALL}.items():
        with on_meta():
            assert create_model(f"audio/efficient_tdnn{name}", dims=1).subnet == subnet


@pytest.mark.parametrize("samples", [257, 16000, 24321])
def test_front_end(plain: Callable[[str], ModuleType], samples: int) -> None:
    """Equal to torchaudio's modules in a row, but for their float32 tables; normalised over time."""
    front, peer = SpeakerFeatures(), plain("efficient_tdnn").LogMelFbanks()
    x = 0.1 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(0))
    found = front(x)
    assert found.shape == (2, 1, 80, front.frames(samples))
    assert_near(found[:, 0], peer(x[:, 0]), 2e-3 if samples < 1000 else 1e-4)  # Of two frames only the difference is left.
    assert found.mean(3).abs().max() < 1e-4
    # A gain is a constant in each band, which changes nothing but where the floor counts.
    assert (front(10 * x) - found).abs().mean() < 0.01


def test_too_short() -> None:
    """Half a transform is mirrored at the ends."""
    with pytest.raises(InputError, match="257"):
        SpeakerFeatures()(torch.zeros(1, 1, 256))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("frames", [40, 61])
def test_equal_to_the_straightforward_version(
    plain: Callable[[str], ModuleType], dtype: torch.dtype, tolerance: float, frames: int
) -> None:
    """The same weights in both, by the authors' names."""
    peer = randomise(plain("efficient_tdnn").DynamicTDNN(TINY.depth, TINY.channels, TINY.kernels, TINY.cat)).eval()
    network = EfficientTDNN(channels=TINY.channels, kernels=TINY.kernels, cat=TINY.cat)
    weights = {f"module.__S__.{key}": value for key, value in peer.clone().state_dict().items()}
    front = {"module.__T__.torchfb.0.weight": torch.zeros(1), "module.__L__.W": torch.zeros(192, 3)}
    assert load_weights(network, weights | front) == "official"
    x = torch.randn(2, 80, frames, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert_near(network.eval().to(dtype).body(x), peer.to(dtype)(x), tolerance)


def test_from_waveform(plain: Callable[[str], ModuleType]) -> None:
    """The whole way, front end included."""
    code = plain("efficient_tdnn")
    peer = randomise(code.DynamicTDNN(TINY.depth, TINY.channels, TINY.kernels, TINY.cat)).eval()
    network = EfficientTDNN(channels=TINY.channels, kernels=TINY.kernels, cat=TINY.cat).eval()
    load_weights(network, peer.clone().state_dict())
    x = 0.1 * torch.randn(2, 1, 9000, generator=torch.Generator().manual_seed(1))
    assert_near(network(x), peer(code.LogMelFbanks()(x[:, 0])), 1e-4)


@pytest.mark.parametrize("text", ["3-512-512-512-512-5-3-3-3-1536", "2-256-256-256-3-3-3-400"])
def test_description_as_text(text: str) -> None:
    """As the authors' training script writes it."""
    assert str(SubNet.parse(text)) == text


@pytest.mark.parametrize("text", ["", "3-512", "2-256-256-256-3-3-3-401", "2-256-250-256-3-3-3-400", "2-256-256-256-3-2-3-400", "a-b"])
def test_descriptions_of_nothing(text: str) -> None:
    """Too few numbers, widths that eight does not divide, an even kernel."""
    with pytest.raises(ConfigError, match="accepted"):
        SubNet.parse(text)


def test_spaces_have_the_papers_sizes() -> None:
    """Coarse grid as printed; about 1e13 networks in steps of eight channels; 243 with kernels alone, 351 with depths."""
    coarse = Space.within(LARGEST)
    assert coarse.depths == (2, 3, 4) and coarse.kernels == (1, 3, 5)
    assert coarse.channels == (128, 176, 256, 384, 512) and coarse.cats == (384, 536, 768, 1152, 1536)
    fine = Space((2, 3, 4), tuple(range(128, 513, 8)), (1, 3, 5), tuple(range(384, 1537, 8)))
    assert f"{fine.size:.0e}" == "1e+13"
    kernels = Space.within(LARGEST, depths=(0,), widths=(1.0,))
    depths = Space.within(LARGEST, widths=(1.0,))
    assert (kernels.size, depths.size) == (243, 351)
    assert len(set(depths)) == depths.size

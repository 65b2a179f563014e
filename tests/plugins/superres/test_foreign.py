"""Networks of spandrel: recognised from their weights, equal to spandrel's own answer, saved under the same keys, tiled exactly."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cnnkit.checkpoint import Header, read_state, save_checkpoint
from cnnkit.errors import CheckpointError, ConfigError
from cnnkit.testing.compare import assert_near, randomise, stir
from cnnkit.weights import load_weights
from cnnkit_superres.foreign import ForeignNetwork, recognise
from cnnkit_superres.receptive import Reach, reach
from cnnkit_superres.tiling import upscale
from torch import Tensor, nn

spandrel = pytest.importorskip("spandrel")

SWIN = {"img_size": 16, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "mlp_ratio": 2.0, "upscale": 2}


def esrgan() -> nn.Module:
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(num_filters=6, num_blocks=1, scale=4)


def real_esrgan_x2() -> nn.Module:
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(in_nc=12, num_filters=6, num_blocks=1, scale=4, shuffle_factor=2)


def compact() -> nn.Module:
    from spandrel.architectures.Compact import Compact

    return Compact(num_feat=8, num_conv=2, upscale=2)


def grey() -> nn.Module:
    from spandrel.architectures.Compact import Compact

    return Compact(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=1, upscale=3)


def span() -> nn.Module:
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2)


def swinir() -> nn.Module:
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(upsampler="pixelshuffledirect", **SWIN)


def swin2sr() -> nn.Module:
    from spandrel.architectures.Swin2SR import Swin2SR

    return Swin2SR(upsampler="pixelshuffledirect", **SWIN)


def drct() -> nn.Module:
    from spandrel.architectures.DRCT import DRCT

    return DRCT(gc=4, upsampler="pixelshuffle", **{**SWIN, "depths": [2], "num_heads": [2]})


def dat() -> nn.Module:
    from spandrel.architectures.DAT import DAT

    size = {"img_size": 16, "embed_dim": 32, "depth": [2], "num_heads": [2], "split_size": [2, 4]}
    return DAT(**size, expansion_factor=2.0, upscale=2, upsampler="pixelshuffledirect")


# Name of the architecture, scale, channels, spandrel's advice, halo and period.
KNOWN: dict[Callable[[], nn.Module], tuple[str, int, int, str, Reach | None]] = {
    esrgan: ("ESRGAN", 4, 3, "supported", Reach(19, 1)),
    real_esrgan_x2: ("ESRGAN", 2, 3, "supported", Reach(40, 4)),
    compact: ("RealESRGAN Compact", 2, 3, "supported", Reach(4, 1)),
    grey: ("RealESRGAN Compact", 3, 1, "supported", Reach(3, 1)),
    span: ("SPAN", 2, 3, "supported", Reach(21, 1)),
    swinir: ("SwinIR", 2, 3, "discouraged", Reach(16, 4)),
    swin2sr: ("Swin2SR", 2, 3, "supported", Reach(16, 4)),
    drct: ("DRCT", 2, 3, "supported", Reach(16, 16)),
    dat: ("DAT", 2, 3, "supported", None),
}
"""By hand. ESRGAN: 3 x 3 once, 15 times in a block, once after it; then once at twice the size and three times at four times:
17 + 1/2 + 3/4 reach two pixels on. Compact: its convolutions. SPAN: 1 + 6 * 3 + 1 + 1. Pairs of plain and shifted windows of 4 reach 4 on,
twice, and 3 x 3 convolutions bring the rest to a multiple. DAT attends to channels by global means."""

NAMES = [build.__name__ for build in KNOWN]


@pytest.fixture(scope="module")
def inner() -> dict[str, nn.Module]:
    """spandrel's own modules with random weights, by name."""
    networks = {}
    for build in KNOWN:
        torch.manual_seed(0)
        networks[build.__name__] = stir(build()).eval()
    return networks


@pytest.fixture(scope="module")
def networks(inner) -> dict[str, ForeignNetwork]:
    """The same networks here, for tests that leave the weights as they are: what is known of their receptive field is known once."""
    return {name: recognise(model.state_dict()) for name, model in inner.items()}


def picture(*size: int, colours: int = 3) -> Tensor:
    return torch.rand(1, colours, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("build", "facts"), KNOWN.items(), ids=NAMES)
def test_it_is_recognised_and_answers_as_spandrel_does(build, facts, inner):
    state = inner[build.__name__].state_dict()
    network = recognise(state)
    assert (network.architecture, network.scale, network.in_chans, network.tiling) == facts[:4]
    descriptor = spandrel.ModelLoader().load_from_state_dict(copy.deepcopy(state))
    for size in ((24, 33), (17, 16), (1, 1), (3, 40)):
        x = picture(*size, colours=network.in_chans)
        with torch.no_grad():
            ours = network(x)
        assert ours.shape[2:] == (network.scale * size[0], network.scale * size[1])
        if network.size_multiple == 1 or min(size) > network.size_multiple:
            assert_near(ours.clamp(0, 1), descriptor(x), 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_the_architectures_and_files_open_on_both_sides(name, inner, tmp_path):
    state = inner[name].state_dict()
    network = recognise(state)
    assert list(network.state_dict()) == list(state)
    assert [key for key, _ in network.named_parameters()] == [key for key, _ in inner[name].named_parameters()]
    path = save_checkpoint(tmp_path / "net.safetensors", network.state_dict(), Header(task="superres", model="superres/foreign"))
    theirs = spandrel.ModelLoader().load_from_file(path)
    x = picture(24, 20, colours=network.in_chans)
    with torch.no_grad():
        expected = network(x)
        assert_near(theirs(x), expected.clamp(0, 1), 1e-6)
        torch.save(
            {"params": {key: 0 * value for key, value in state.items()}, "params_ema": theirs.model.state_dict()}, tmp_path / "net.pth"
        )
        for file in ("net.pth", "net.safetensors"):
            assert_near(recognise(read_state(tmp_path / file), source=file)(x), expected, 1e-6)


def new_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name ESRGAN's weights as Real-ESRGAN does."""
    import re

    tail = {"model.3": "conv_up1", "model.6": "conv_up2", "model.8": "conv_hr", "model.10": "conv_last"}
    names = {"model.0": "conv_first", "model.1.sub.1": "conv_body", **tail}
    renamed = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        block = re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", layer)
        renamed[f"body.{block[1]}.rdb{block[2]}.conv{block[3]}.{kind}" if block else f"{names[layer]}.{kind}"] = value
    return renamed


@pytest.mark.parametrize("name", ["esrgan"])
def test_the_new_names_of_esrgan(name, tmp_path):
    torch.manual_seed(0)
    from spandrel.architectures.ESRGAN import ESRGAN

    old = randomise(ESRGAN(num_filters=6, num_blocks=2, scale=4), gain=0.5).eval()
    state = old.state_dict()
    renamed = new_layout({key.replace("model.1.sub.2.", "model.1.sub.1."): value for key, value in state.items() if "sub.2." in key})
    renamed |= new_layout({key: value for key, value in state.items() if "sub.2." not in key})
    torch.save({"params_ema": {f"module.{key}": value for key, value in renamed.items()}}, tmp_path / "RealESRGAN_x4plus.pth")
    network = recognise(read_state(tmp_path / "RealESRGAN_x4plus.pth"))
    x = picture(9, 12)
    with torch.no_grad():
        assert_near(network(x), old(x), 1e-6)
    other = recognise(randomise(copy.deepcopy(old), seed=3).state_dict())
    assert load_weights(other, renamed) == "spandrel"
    with torch.no_grad():
        assert_near(other(x), old(x), 1e-6)


@pytest.mark.parametrize(("build", "facts"), KNOWN.items(), ids=NAMES)
def test_the_receptive_field(build, facts, networks):
    assert reach(networks[build.__name__]) == facts[4]


@pytest.mark.parametrize("name", ["esrgan", "real_esrgan_x2", "span", "swinir", "swin2sr", "drct", "grey"])
def test_tiles_equal_the_whole_picture(name, networks):
    network = networks[name]
    halo = reach(network).halo
    pixels = picture(2 * halo + 21, 19, colours=network.in_chans)[0].permute(1, 2, 0).double().numpy()
    single = upscale(network.float(), pixels.astype(np.float32), tile=32)
    network.double()
    tiled, whole = upscale(network, pixels, tile=32), upscale(network, pixels)
    network.float()
    assert whole.std() > 0.01
    assert np.abs(tiled - whole).max() < 1e-12
    assert np.abs(single - whole).max() < 1e-5


def test_global_attention_is_refused_tiles(networks):
    pixels = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ConfigError, match="--approximate"):
        upscale(networks["dat"], pixels, tile=20)
    assert upscale(networks["dat"], pixels, tile=20, approximate=True).shape == (80, 80, 3)
    with pytest.raises(ConfigError, match=r"float16; accepted: torch.float32, torch.float64, torch.bfloat16"):
        upscale(networks["dat"], pixels, dtype=torch.float16)
    with pytest.raises(ConfigError, match="less overlap than the 16 pixels"):
        upscale(networks["swinir"], pixels, tile=20, overlap=8)


def test_it_is_a_module_like_any_other(inner):
    network = recognise(inner["span"].state_dict())
    assert isinstance(network, ForeignNetwork) and not network.training
    assert all(module.training for module in network.train().modules()) and network.__dict__["inner"].training
    twin = copy.deepcopy(network).eval()
    x = picture(8, 9)
    before = twin(x).detach()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), before), "a copy shares weights with its original"
    holder = nn.Sequential(twin)
    assert list(holder.state_dict()) == [f"0.{key}" for key in network.state_dict()]
    holder.load_state_dict({f"0.{key}": 0 * value for key, value in network.state_dict().items()})
    assert not twin(x).any()
    assert twin.double()(x.double()).dtype == torch.float64


def test_every_weight_learns(inner):
    network = recognise(inner["compact"].state_dict()).train()
    network(picture(8, 8)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def descriptor_of(purpose: str, scale: int = 2, colours: tuple[int, int] = (3, 3)) -> object:
    found = spandrel.ModelLoader().load_from_state_dict(compact().state_dict())
    found._purpose, found.scale, (found.input_channels, found.output_channels) = purpose, scale, colours
    return found


@pytest.mark.parametrize(
    ("purpose", "colours", "words"),
    [
        ("FaceSR", (3, 3), "RealESRGAN Compact for restoring faces"),
        ("Restoration", (3, 3), "for restoration at the same size"),
        ("SR", (4, 4), "maps 4 channels to 4; accepted: 3 to 3"),
        ("SR", (3, 1), "maps 3 channels to 1"),
    ],
)
def test_other_purposes_are_refused_by_name(purpose, colours, words):
    with pytest.raises(CheckpointError, match=words):
        ForeignNetwork(descriptor_of(purpose, colours=colours))


def test_a_denoiser_is_refused_with_the_files_name():
    from spandrel.architectures.Compact import Compact

    with pytest.raises(CheckpointError, match=r"noise\.pth cannot be used: .* RealESRGAN Compact for restoration at the same size"):
        recognise(Compact(num_feat=4, num_conv=1, upscale=1).state_dict(), source="noise.pth")


def test_unknown_and_incomplete_weights():
    with pytest.raises(
        CheckpointError, match=r"a\.pth holds weights of no architecture that spandrel [\d.]+ knows; it has fc\.weight, fc\.bias"
    ):
        recognise({"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}, source="a.pth")
    state = compact().state_dict()
    del state["body.2.weight"]
    with pytest.raises(CheckpointError, match="incomplete or altered"):
        recognise(state)


def test_without_spandrel(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(CheckpointError, match=r"x4\.pth .*pip install cnnkit-superres\[foreign\]"):
        recognise({"a": torch.zeros(1)}, source="x4.pth")


def test_importing_the_module_does_not_import_spandrel():
    code = "import sys, cnnkit_superres.foreign; sys.exit('spandrel' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

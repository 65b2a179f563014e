"""ESC against the straightforward version of its code, closed forms, and what a codec must keep."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from cnnkit.count import on_meta
from cnnkit.errors import CheckpointError, ConfigError, UsageError
from cnnkit.testing.compare import assert_near, randomise, without_gradient
from cnnkit.weights import load_weights
from cnnkit_audio.models.esc import ESC
from cnnkit_audio.models.esc_quantize import Codebook, ProductQuantiser, fit_codebook
from torch import Tensor

pytestmark = pytest.mark.paper("esc-codec")

SMALL: dict[str, Any] = {
    "channels": (6, 8, 8, 12),
    "heads": (2, 2, 4),
    "codebook_channels": (4, 4, 3, 3),
    "codebook_size": 32,
    "mlp_ratio": 2.0,
}
"""Four levels at 16 kHz: 64 rows of tokens down to 8, so windows are full at every scale."""
DEEP: dict[str, Any] = {**SMALL, "channels": (6, 6, 6, 6, 6, 8), "heads": (2, 2, 2, 2, 2), "codebook_channels": (4,) * 6, "depth": 3}
"""Six levels: two rows at the coarsest scale, fewer than a window has; and an odd number of blocks."""


def voice(samples: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise with some colour, ``(batch, 1, samples)``."""
    noise = torch.randn(batch, 1, samples + 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (0.1 * torch.nn.functional.avg_pool1d(noise, 9, 1)).to(dtype)


@pytest.fixture(params=[SMALL, DEEP], ids=["small", "deep"])
def pair(request: pytest.FixtureRequest, plain: Callable[[str], ModuleType]) -> tuple[ESC, Any]:
    """Our network and the straightforward one, with the same weights."""
    args = request.param
    names = {"channels": "h_dims", "heads": "swin_heads", "codebook_channels": "codebook_dims", "depth": "swin_depth"}
    theirs = plain("esc").PlainESC(**{names.get(key, key): value for key, value in args.items()})
    fixed = {key: value.clone() for key, value in theirs.state_dict().items() if key.endswith("ft.window")}
    randomise(theirs, spread={"embedding": 1.0, "bias_table": 1.0})
    theirs.load_state_dict({**theirs.state_dict(), **fixed})
    ours = ESC(**args)
    assert load_weights(ours, theirs.state_dict()) == "official"
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("frames", [2, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_the_straightforward_version(pair: tuple[ESC, Any], frames: int, dtype: torch.dtype, tolerance: float) -> None:
    """At every level: codes, decoded sound, and what training sees; also where a length does not fill the last code frame."""
    ours, theirs = (model.to(dtype) for model in pair)
    x = voice(320 * frames - 80, batch=1, dtype=dtype)
    for levels in range(1, ours.levels + 1):
        codes, shape = theirs.encode(x[:, 0], levels)
        # Neighbours in direction may change places by rounding in single precision.
        assert (ours.encode(x, levels) == codes).double().mean() >= (1 if dtype == torch.float64 else 0.99)
        assert_near(ours.decode(codes, x.shape[-1])[:, 0], theirs.decode(codes, shape), tolerance)
    if dtype == torch.float64:
        for levels in (1, ours.levels - 1):
            with torch.no_grad():
                mine, their = ours.train()(x, levels), theirs.train()(x[:, 0], levels)
            assert_near(mine.spectrum, their["spectrum"], tolerance)
            assert_near(mine.commitment, their["commitment"], tolerance)
            assert_near(mine.codebook, their["codebook"], tolerance)


def test_gradients_equal_the_straightforward_version(pair: tuple[ESC, Any]) -> None:
    """Through the straight-through choice, the two losses of the codes, and the inverse transform."""
    ours, theirs = (model.double().train() for model in pair)
    x = voice(320 * 6 - 80, dtype=torch.float64)
    mine, their = ours(x, 3), theirs(x[:, 0], 3)
    (mine.wave.square().sum() + 0.25 * mine.commitment.sum() + mine.codebook.sum()).backward()
    (their["wave"].square().sum() + 0.25 * their["commitment"].sum() + their["codebook"].sum()).backward()
    for key in ("encoder.patch_embed.proj.weight", "quantizers.1.vqs.2.embedding.weight", "quantizers.2.down_projs.0.weight"):
        gradient, expected = ours.get_parameter(key).grad, theirs.get_parameter(key).grad
        assert gradient is not None and expected is not None
        assert_near(gradient, expected, 1e-9)


@pytest.mark.parametrize("samples", [1, 100, 319, 320, 321, 5000, 5120 - 79, 5120])
def test_spectrum_and_back_is_exact(samples: int) -> None:
    """The way without a network, at any length: the transform has an exact inverse."""
    model = ESC(**SMALL).double()
    x = voice(samples, dtype=torch.float64)
    spectrum = model.spectrum(x)
    assert spectrum.shape == (2, 2, 192, 4 * -(-samples // 320))
    assert_near(model.waveform(spectrum, samples), x, 1e-12)


def test_pretraining_goes_around_the_codes() -> None:
    """Without quantisation the codebooks change nothing and get a gradient of zero; the projections stay."""
    model = ESC(**SMALL).double()
    x = voice(1600, dtype=torch.float64)
    before = model(x, quantise=False)
    assert not before.commitment.any() and not before.codebook.any()
    for quantiser in model.quantisers:
        for vq in quantiser.codebooks:
            torch.nn.init.normal_(vq.embedding.weight)
    after = model(x, quantise=False)
    assert torch.equal(before.wave, after.wave)
    (after.wave.sum() + after.codebook.sum()).backward()
    gradient = model.quantisers[0].codebooks[0].embedding.weight.grad
    assert gradient is not None and not gradient.any()
    assert not torch.equal(model(x).wave, after.wave)


@torch.no_grad()
def test_levels_are_nested_and_drawn_by_clip() -> None:
    """The first levels of a code are the code of the lower rate, and a batch may hold clips of several rates."""
    torch.manual_seed(0)
    model, x = ESC(**SMALL).double().eval(), voice(2000, batch=3, dtype=torch.float64)
    codes = model.encode(x)
    assert codes.shape == (3, 4, 3, 7)
    for levels in (1, 2, 3):
        assert torch.equal(model.encode(x, levels), codes[:, :levels])
    each = model(x, torch.tensor([1, 4, 2])).wave
    for item, levels in enumerate((1, 4, 2)):
        assert_near(each[item], model(x, levels).wave[item], 1e-12)
        assert_near(each[item], model.decode(codes[:, :levels], 2000)[item], 1e-12)


def test_every_parameter_gets_a_gradient() -> None:
    """Of the sound and of the two losses of the codes."""
    torch.manual_seed(0)
    model = ESC(**SMALL).train()
    coded = model(voice(3200))
    (coded.wave.square().sum() + coded.commitment.sum() + coded.codebook.sum()).backward()
    assert without_gradient(model) == []


def test_choice_is_the_nearest_direction() -> None:
    """By hand: lengths of vectors and of entries do not matter for the choice, and the entry keeps its length."""
    book = Codebook(3, 2)
    with torch.no_grad():
        book.embedding.weight.copy_(torch.tensor([[5.0, 0.0], [0.0, 0.1], [-1.0, -1.0]]))
    z = torch.tensor([[0.01, 0.001], [3.0, 4.0], [-9.0, -1.0], [-0.2, -0.1]])
    codes = book.encode(z)
    assert codes.tolist() == [0, 1, 2, 2]
    assert torch.equal(book.decode(codes)[1], torch.tensor([0.0, 0.1]))


def test_product_quantiser_in_closed_form() -> None:
    """With projections that are one another's inverse and an entry for every vector, nothing is lost, and both losses are zero."""
    quantiser = ProductQuantiser(2, 2, overlap=2, groups=2, size=4, code_channels=4)
    x = torch.randn(1, 2, 4, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for down, up in zip(quantiser.down_projs, quantiser.up_projs, strict=True):
            down.weight.copy_(torch.eye(4))
            up.weight.copy_(torch.eye(4))
        assert torch.equal(quantiser(x, quantise=False).features, x)
        for vq, z in zip(quantiser.codebooks, quantiser.project(x), strict=True):
            vq.embedding.weight.copy_(torch.cat([z[0], -z[0]]))
        coded = quantiser(x)
        assert_near(coded.features, x, 1e-6)
        assert float(coded.commitment) < 1e-10 and float(coded.codebook) < 1e-10
        assert_near(quantiser.decode(quantiser.encode(x)), x, 1e-6)
        # Moved by one in each of four dimensions, the squared distance is one in the mean.
        for vq in quantiser.codebooks:
            vq.embedding.weight.add_(1e-3)
        assert float(quantiser(x).commitment) == pytest.approx(1e-6, rel=1e-2)


def test_kmeans_finds_clusters_and_uses_every_entry() -> None:
    """Tight clusters in different directions are found to the last; of loose ones no entry is idle."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.cat([torch.eye(6), -2 * torch.eye(6)])
    vectors = (centres[:, None] + 0.01 * torch.randn(12, 50, 6, generator=generator)).flatten(0, 1)
    entries = fit_codebook(vectors, 12, generator=generator)
    assert float(torch.cdist(centres, entries).min(1).values.max()) < 0.02
    book = Codebook(64, 6)
    loose = torch.randn(2000, 6, generator=generator)
    with torch.no_grad():
        book.embedding.weight.copy_(fit_codebook(loose, 64, generator=generator))
    assert book.encode(loose).unique().numel() >= 63
    assert fit_codebook(loose[:3], 8, generator=generator).shape == (8, 6)


def test_codebooks_are_fitted_level_by_level() -> None:
    """k-means brings each level's codes nearer to what they stand for than the first draw, and says that it was done."""
    torch.manual_seed(0)
    model, waves = ESC(**SMALL), [voice(6400), voice(3000)]
    assert int(model.codebooks_fitted) == 0
    before = model(waves[0]).commitment.detach()
    model.fit_codebooks(waves)
    assert int(model.codebooks_fitted) == 1
    assert float(model(waves[0]).commitment.detach().sum()) < 0.5 * float(before.sum())
    again = ESC(**SMALL)
    load_weights(again, model.state_dict())
    assert int(again.codebooks_fitted) == 1


@pytest.mark.parametrize("args", [SMALL, DEEP], ids=["small", "deep"])
def test_pieces_give_the_codes_of_the_whole(args: dict[str, Any]) -> None:
    """What lies further from a border of a piece than the network reaches is the same there as in the whole."""
    torch.manual_seed(1)
    model = ESC(**args).double().eval()
    encode, decode, grid = model.reach
    assert encode % grid == decode % grid == 0
    x = voice(320 * (2 * encode + 3 * grid), batch=1, dtype=torch.float64)
    codes = model.encode(x)
    piece = model.encode(x[..., 320 * grid : -320 * grid])
    assert torch.equal(piece[..., encode:-encode], codes[..., grid + encode : -grid - encode])
    whole = model.decode(codes)
    cut = model.decode(codes[..., grid:-grid])
    assert_near(cut[..., 320 * decode : -320 * decode], whole[..., 320 * (grid + decode) : -320 * (grid + decode)], 1e-10)


def test_rates() -> None:
    """1.5 kbit/s for each of six levels."""
    with on_meta():
        base = ESC()
    assert (base.levels, base.bits, base.level_rate) == (6, 10, 1500.0)


def test_errors_say_what_to_do() -> None:
    """Sizes that do not fit, levels that there are not, and foreign weights."""
    with pytest.raises(ConfigError, match="n_fft=334 or 382"):
        ESC(**{**SMALL, "n_fft": 380})
    with pytest.raises(ConfigError, match="4 channels want 3 heads and 4"):
        ESC(**{**SMALL, "heads": (2, 2)})
    with pytest.raises(UsageError, match=r"no 5 levels; accepted: 1 \(0.75 kbit/s\)"):
        ESC(**SMALL).encode(voice(640), 5)
    with pytest.raises(CheckpointError, match="no layout"):
        load_weights(ESC(**SMALL), {"other.weight": torch.zeros(3)})

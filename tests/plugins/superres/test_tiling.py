"""Tiles: equal to the whole picture wherever they can be, refused where they cannot, smaller when memory runs out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError, InputError, UsageError
from cnnkit_superres import memory, tiling
from cnnkit_superres.memory import PROBE, SHARE, bytes_per_pixel
from cnnkit_superres.models._base import SuperResolver
from cnnkit_superres.models.espcn import ESPCN
from cnnkit_superres.receptive import reach
from cnnkit_superres.tiling import Cutting, upscale
from torch import Tensor, nn


class Net(SuperResolver):
    """Layers one after the other, kept in memory as far as ``limit`` pixels."""

    def __init__(self, *layers: nn.Module, scale: int = 1, in_chans: int = 3, size_multiple: int = 1) -> None:
        super().__init__(scale=scale, in_chans=in_chans, size_multiple=size_multiple)
        self.layers = nn.Sequential(*layers)
        self.limit, self.error = 10**9, "CUDA out of memory. Tried to allocate"
        self.windows: list[tuple[int, int]] = []

    def enlarge(self, x: Tensor) -> Tensor:
        if not x.isnan().any():
            if x[:, 0].numel() > self.limit:
                raise RuntimeError(self.error)
            self.windows.append((x.shape[2], x.shape[3]))
        return self.layers(x)


class Excite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True)


class Blocks(nn.Module):
    """Every block of 4 x 4 pixels is mixed, with another weight for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 48, 4, stride=4), nn.PixelShuffle(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


def build(name: str) -> SuperResolver:
    torch.manual_seed(0)
    if name == "espcn":
        return ESPCN(scale=3, in_chans=1, widths=(8, 6))
    if name == "plain":
        middle = [nn.Conv2d(8, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 12, 5, padding=4, dilation=2)]
        return Net(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(), *middle, nn.PixelShuffle(2), scale=2)
    if name == "strided":
        around = [
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.Conv2d(6, 12, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Conv2d(3, 3, 3, padding=1),
        ]
        return Net(*around, size_multiple=2)
    if name == "blocks":
        return Net(Blocks(), nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2), scale=2, size_multiple=4)
    return Net(nn.Conv2d(3, 3, 3, padding=1), Excite())


def picture(height: int, width: int, colours: int = 3, dtype: type = np.float64, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random((height, width, colours))
    peak = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    return (np.rint(values * peak) if peak > 1 else values).astype(dtype)


def whole(model: SuperResolver, pixels: np.ndarray, peak: float = 1.0) -> np.ndarray:
    """The network's answer to the whole picture, not clipped."""
    with torch.no_grad():
        return model.eval()(torch.from_numpy(pixels / peak).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


NAMES = ("espcn", "plain", "strided", "blocks")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("size", "tile"), [((41, 37), 11), ((64, 23), 16), ((3, 70), 9), ((15, 17), 1)])
def test_tiles_equal_the_whole_picture(name, dtype, tolerance, size, tile):
    model = build(name).to(dtype)
    pixels = picture(*size, colours=model.in_chans, dtype=np.float64 if dtype == torch.float64 else np.float32)
    calls: list[tuple[int, int]] = []
    tiled = upscale(model, pixels, tile=tile, progress=lambda done, total: calls.append((done, total)))
    expected = whole(model, pixels).clip(0, 1)
    assert len(calls) > 2 and calls[-1][0] == calls[-1][1] == len(calls)
    assert tiled.dtype == pixels.dtype and tiled.shape == expected.shape
    assert np.abs(tiled - expected).max() < tolerance


@pytest.mark.parametrize("name", NAMES)
def test_more_overlap_and_batches_change_nothing(name):
    model = build(name).double()
    pixels = picture(45, 50, colours=model.in_chans)
    expected = upscale(model, pixels)
    for options in ({"overlap": 30}, {"batch": 3}, {"overlap": reach(model).halo, "batch": 50}, {"approximate": True}):
        assert np.abs(upscale(model, pixels, tile=12, **options) - expected).max() < 1e-12


def test_a_halo_that_is_one_pixel_short_is_seen():
    """The exactness test can fail: without blending, a pixel less than the radius leaves a seam."""
    model = build("plain").double()
    pixels, halo = picture(40, 40), reach(model).halo
    assert halo == 6
    expected = whole(model, pixels).clip(0, 1)
    for context, equal in ((halo, True), (halo - 1, False)):
        canvas = tiling._Canvas(pixels, 2, 1.0)
        spans = Cutting(context).spans(40, 14)
        with torch.no_grad():
            tiling._fill(model.eval(), canvas, spans, spans, 1, None)
        assert bool(np.abs(canvas.result - expected).max() < 1e-12) == equal


@pytest.mark.parametrize(("dtype", "peak"), [(np.uint8, 255), (np.uint16, 65535)])
def test_integers_are_rounded_and_kept_in_range(dtype, peak):
    model = build("plain")
    model.layers[-2].weight.data *= 12  # Beyond black and white.
    pixels = picture(33, 20, dtype=dtype)
    expected = whole(model.double(), pixels, peak) * peak
    assert expected.min() < -peak / 100 and expected.max() > peak
    tiled = upscale(model, pixels, tile=8)
    assert tiled.dtype == dtype
    assert np.array_equal(tiled, np.rint(expected.clip(0, peak)).astype(dtype))


def test_white_of_twelve_bits():
    pixels = (picture(9, 9, dtype=np.uint16) // 16).astype(np.uint16)
    model = build("plain").double()
    expected = np.rint((whole(model, pixels, 4095) * 4095).clip(0, 4095))
    assert np.array_equal(upscale(model, pixels, peak=4095), expected.astype(np.uint16))


def test_floating_point_keeps_an_end_open_if_the_picture_exceeds_it():
    model = Net(nn.Conv2d(3, 3, 1, bias=False), scale=1)
    nn.init.eye_(model.layers[0].weight.data[:, :, 0, 0])
    model.layers[0].weight.data *= 2
    pixels = np.array([[[0.2, 0.4, 0.9]]], np.float32)
    assert upscale(model, pixels).ravel() == pytest.approx([0.4, 0.8, 1.0])
    assert upscale(model, pixels * 2).ravel() == pytest.approx([0.8, 1.6, 3.6])
    assert upscale(model, pixels - 0.5).ravel() == pytest.approx([-0.6, -0.2, 0.8])


def test_less_overlap_is_blended():
    model = build("plain").double()
    pixels = np.tile(np.linspace(0.2, 0.8, 60)[:, None, None], (1, 50, 3))
    expected = whole(model, pixels).clip(0, 1)
    tiled = upscale(model, pixels, tile=16, overlap=3)
    canvas = tiling._Canvas(pixels, 2, 1.0)
    rows, columns = (Cutting(3).spans(side, 16) for side in (60, 50))
    with torch.no_grad():
        tiling._fill(model.eval(), canvas, rows, columns, 1, None)
    blended, hard = (np.abs(np.diff(result - expected, axis=0)).max() for result in (tiled, canvas.result))
    assert 1e-6 < blended < 0.7 * hard, "the steps between neighbouring pixels that the whole picture does not have"


@pytest.mark.parametrize("overlap", [1, 2, 5, 40])
@pytest.mark.parametrize(("size", "tile"), [((41, 37), 11), ((30, 64), 7), ((9, 9), 2)])
def test_weights_add_up_to_one(overlap, size, tile):
    """A network that looks at one pixel gives the same however tiles are faded into each other."""
    torch.manual_seed(0)
    model = Net(nn.Conv2d(3, 12, 1), nn.Sigmoid(), nn.PixelShuffle(2), Excite(), scale=2).double()
    model.layers[-1] = nn.Identity()
    model.tiling = "internal"  # So that it is blended.
    pixels = picture(*size)
    tiled = upscale(model, pixels, tile=tile, overlap=overlap, approximate=True)
    assert np.abs(tiled - whole(model, pixels)).max() < 1e-12


@pytest.mark.parametrize("side", [1, 7, 40, 41, 100, 255])
@pytest.mark.parametrize("tile", [1, 5, 16, 33, 300])
@pytest.mark.parametrize(
    ("context", "period", "minimum", "blend"), [(0, 1, 1, False), (6, 1, 16, False), (8, 4, 16, True), (3, 1, 1, True)]
)
def test_spans(side, tile, context, period, minimum, blend):
    cutting = Cutting(context, period, minimum, blend)
    spans = cutting.spans(side, tile)
    assert spans[0].start == 0 and spans[-1].stop == side
    assert all(one.stop == other.start and one.after == other.before for one, other in itertools.pairwise(spans))
    assert spans[0].before == spans[-1].after == 0
    cores = [span.stop - span.start for span in spans]
    assert max(cores) <= max(tile, period) and len(spans) == math.ceil(math.ceil(side / period) / max(tile // period, 1))
    assert max(cores[:-1], default=cores[-1]) - min(cores[:-1], default=cores[-1]) <= period, "uneven"
    assert cores[-1] > max(cores) - 2 * period, "a thin last tile"
    for span in spans:
        assert span.start % period == span.first % period == 0
        assert 0 <= span.first <= max(span.start - context, 0) and min(span.stop + context, side) <= span.last <= side
        assert span.last - span.first >= min(minimum, side)
        assert span.before + span.after <= span.stop - span.start and max(span.before, span.after) <= context
    if minimum == 1:
        assert all(span.last - span.first <= span.stop - span.start + 2 * context for span in spans), "wasted pixels"


@pytest.mark.parametrize("error", ["CUDA out of memory. Tried", "[enforce fail] DefaultCPUAllocator: not enough memory: you tried", None])
def test_smaller_tiles_when_memory_runs_out(error):
    model = build("plain").double()
    pixels = picture(150, 90)
    expected = whole(model, pixels).clip(0, 1)
    model.windows.clear()
    model.limit, model.error = 3700, error
    if error is None:
        model.register_forward_pre_hook(_refuse)
    tiled = upscale(model, pixels)
    assert np.abs(tiled - expected).max() < 1e-12
    assert len(model.windows) > 4 and max(h * w for h, w in model.windows) <= 3700


def _refuse(model: Net, args: tuple[Tensor]) -> None:
    if args[0][:, 0].numel() > model.limit and not args[0].isnan().any():
        raise MemoryError


def test_on_a_processor_tiles_are_chosen_before_memory_runs_out(monkeypatch):
    """There, no error comes in time: the system ends the process."""
    model = build("plain")
    pixels = picture(300, 280, dtype=np.float32)
    expected = whole(model, pixels).clip(0, 1)
    model.windows.clear()
    upscale(model, pixels)
    assert model.windows[-1] == (300, 280)
    # At least 8 + 12 maps in float32 at the end, and the result.
    free = 20 * 4 * 120 * 120 + 2 * 2 * pixels.nbytes
    monkeypatch.setattr("cnnkit_superres.memory.available", lambda: free / SHARE)
    model.windows.clear()
    tiled = upscale(model, pixels)
    assert np.abs(tiled - expected).max() < 1e-5
    sizes = [height * width for height, width in model.windows if (height, width) != (PROBE, PROBE)]
    assert 0.4 * 120**2 < max(sizes) <= 120**2  # Spread evenly, so smaller than the largest that fits.
    model.layers.append(Excite())
    assert upscale(model, pixels).shape == tiled.shape, "an estimate refuses nothing"


def test_bytes_per_pixel():
    layers = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 20, 1), nn.Conv2d(20, 3, 1))
    assert bytes_per_pixel(layers.eval(), 3) == 4 * (10 + 20)  # What is not needed any more is not counted.
    assert bytes_per_pixel(layers.double(), 3) == 8 * (10 + 20)


def test_what_the_machine_and_its_control_group_have(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  3 kB\n")
    assert memory._machine(tmp_path / "meminfo") == 3072
    assert memory._machine(tmp_path / "none") == memory._group(tmp_path) == math.inf
    for name, text in (("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", "anon 1\ninactive_file 50\n")):
        (tmp_path / name).write_text(text)
    assert memory._group(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._group(tmp_path) == math.inf


def test_finished_rows_are_kept_when_memory_runs_out_later(monkeypatch):
    model = build("plain").double()
    pixels = picture(170, 60)
    expected = whole(model, pixels).clip(0, 1)
    seen: list[tuple[int, int]] = []
    calls = itertools.count()

    def sometimes(net: Net, args: tuple[Tensor]) -> None:
        if not args[0].isnan().any():
            number = next(calls)
            seen.append(tuple(args[0].shape[2:]))
            if number == 2:  # The third row of tiles of 60.
                raise torch.OutOfMemoryError("CUDA out of memory")

    reach(model)
    model.register_forward_pre_hook(sometimes)
    reach(model)
    tiled = upscale(model, pixels, tile=60)
    assert np.abs(tiled - expected).max() < 1e-12
    height = sum(height for height, _ in seen[3:])
    assert len(seen) == 3 + 2 * 2 and height < 2 * (60 + 2 * 12), "rows were computed again"


def test_blended_tiles_start_anew_when_memory_runs_out():
    model = build("plain").double()
    pixels = picture(150, 90)
    model.limit = 2500
    tiled = upscale(model, pixels, overlap=2)
    model.limit = 10**9
    tile = 75
    while max(r.last - r.first for r in Cutting(2).spans(150, tile)) * max(c.last - c.first for c in Cutting(2).spans(90, tile)) > 2500:
        tile = math.ceil(tile / 2)
    assert np.array_equal(tiled, upscale(model, pixels, overlap=2, tile=tile))


def test_batches_shrink_first():
    model = build("plain").double()
    pixels = picture(64, 100)
    expected = whole(model, pixels).clip(0, 1)
    model.windows.clear()
    model.limit = 2 * 32 * (20 + 12)
    assert np.abs(upscale(model, pixels, tile=20, batch=8) - expected).max() < 1e-12
    # Per row the first, two together, one, the last; before that, twice the first alone, and three together that did not fit.
    assert len(model.windows) == 2 + 4 * 4


def test_memory_that_never_suffices():
    model = build("plain")
    model.limit = 10
    with pytest.raises(UsageError, match=r"37 x 37 pixels: tiles of at most 32, and 6 .*CUDA out of memory.*--overlap"):
        upscale(model, picture(100, 100, dtype=np.uint8))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    model = build("plain")
    model.limit, model.error = 10, "mat1 and mat2 shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match="mat1"):
        upscale(model, picture(100, 100, dtype=np.uint8))


def test_a_network_that_sees_the_whole_picture():
    model = build("global").double()
    pixels = picture(70, 65)
    expected = whole(model, pixels).clip(0, 1)
    assert np.abs(upscale(model, pixels) - expected).max() < 1e-12
    assert np.abs(upscale(model, pixels, tile=70) - expected).max() < 1e-12
    with pytest.raises(ConfigError, match=r"sees the whole picture at once.*65 x 70.*--approximate"):
        upscale(model, pixels, tile=30)
    tiled = upscale(model, pixels, tile=40, approximate=True)
    assert 0 < np.abs(tiled - expected).max() < 0.2 and np.abs(tiled - expected).mean() < 0.02
    model.limit = 2000
    with pytest.raises(ConfigError, match="--approximate"):
        upscale(model, pixels)
    model.limit = 4400
    assert np.array_equal(upscale(model, pixels, approximate=True), upscale(model, pixels, tile=35, approximate=True))


def test_advice_against_tiles_is_followed_where_they_are_not_exact():
    model, pixels = build("plain").double(), picture(40, 40)
    model.tiling = "discouraged"
    assert np.abs(upscale(model, pixels, tile=15) - whole(model, pixels).clip(0, 1)).max() < 1e-12
    with pytest.raises(ConfigError, match="less overlap than the 6 pixels"):
        upscale(model, pixels, tile=15, overlap=2)
    model.tiling = "internal"
    with pytest.raises(ConfigError, match="cuts the picture by itself"):
        upscale(model, pixels, tile=15)
    assert upscale(model, pixels, tile=15, approximate=True).shape == (80, 80, 3)


@pytest.mark.parametrize(("size", "tile"), [((1, 1), None), ((1, 1), 1), ((3, 200), 64), ((1, 9), 2)])
@pytest.mark.parametrize("name", NAMES)
def test_small_and_thin_pictures(name, size, tile):
    if name == "plain" and min(size) == 1:
        pytest.skip("reflection needs two pixels")
    model = build(name).double()
    pixels = picture(*size, colours=model.in_chans)
    assert np.abs(upscale(model, pixels, tile=tile) - whole(model, pixels).clip(0, 1)).max() < 1e-12


def test_modes_are_restored_also_after_an_error():
    model = build("plain")
    model.layers[2].eval()
    before = [module.training for module in model.modules()]
    upscale(model, picture(20, 20, dtype=np.uint8), tile=10)
    assert [module.training for module in model.modules()] == before
    model.limit, model.error = 1, "another"
    with pytest.raises(RuntimeError):
        upscale(model, picture(20, 20, dtype=np.uint8))
    assert [module.training for module in model.modules()] == before


def test_bad_arguments():
    model, pixels = build("plain"), picture(8, 8, dtype=np.uint8)
    for options, word in (
        ({"tile": 0}, "tile is 0"),
        ({"overlap": -1}, "overlap is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"peak": 300}, "peak"),
    ):
        with pytest.raises(ConfigError, match=word):
            upscale(model, pixels, **options)
    with pytest.raises(UsageError, match=r"shape \(8, 8, 1\).*3\)"):
        upscale(model, pixels[..., :1])
    with pytest.raises(UsageError, match=r"int64.*uint8, uint16"):
        upscale(model, pixels.astype(np.int64))
    with pytest.raises(InputError, match="0 x 8"):
        upscale(model, pixels[:, :0])
    for value in (np.nan, np.inf):
        broken = picture(8, 8, dtype=np.float32)
        broken[3, 3, 1] = value
        with pytest.raises(InputError, match="no numbers"):
            upscale(model, broken)
    model.dtypes = (torch.float32,)
    with pytest.raises(ConfigError, match=r"float16; accepted: torch.float32"):
        upscale(model, pixels, dtype=torch.float16)


def test_a_result_that_is_no_number_is_not_written():
    model = build("plain")
    model.layers[-2].weight.data *= torch.inf
    with pytest.raises(UsageError, match="no number"):
        upscale(model, picture(9, 9, dtype=np.uint8))


def test_half_precision_keeps_sixteen_bits_of_white():
    model = Net(nn.Identity())
    pixels = np.full((4, 4, 3), 65535, np.uint16)
    assert (upscale(model, pixels, dtype=torch.bfloat16) == 65535).all()
    model.layers[0] = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.eye_(model.layers[0].weight.data[:, :, 0, 0])
    assert (upscale(model, pixels, dtype=torch.bfloat16) == 65535).all()
    assert model.layers[0].weight.dtype == torch.bfloat16

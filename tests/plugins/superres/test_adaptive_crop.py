"""IMDN's adaptive cropping: the official crops, the whole picture where the network is local, any size, and less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_near, image, randomise
from cnnkit_superres.adaptive_crop import adaptive_crop, divide
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytestmark = pytest.mark.paper("imdn")


def pictures(*size: int) -> Tensor:
    return image(*size, batch=1).mul(0.3).add(0.5).double()


def local(model: Any) -> nn.Module:
    """Return IMDN without the attention, whose statistics are of the whole picture."""
    for index in range(1, 7):
        model.get_submodule(f"IMDB{index}").cca = nn.Identity()
    return model


def network(name: str, **arch: Any) -> Any:
    return randomise(create_model(f"superres/{name}", **arch)).double()


class Memory(TorchDispatchMode):
    """Bytes of the tensors that live at the same time, at their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.alive = {ref: size for ref, size in self.alive.items() if not ref.expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[StorageWeakRef(storage)] = storage.nbytes()
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def peak(run: Callable[[], object]) -> int:
    with torch.no_grad(), Memory() as memory:
        run()
    return memory.peak


@pytest.mark.parametrize("size", [(70, 82), (71, 83), (81, 90), (128, 64)])
def test_it_crops_as_the_official_code(plain, size):
    """Four patches with sides that are multiples of 4, for a network whose output has the size of its input."""
    model = network("imdn_as_x2", width=8)
    model.set_scale(1)
    x = pictures(*size)
    with torch.no_grad():
        assert_near(adaptive_crop(model, x), plain("imdn").crop_forward(x, model), 1e-12)


@pytest.mark.parametrize("parts", [2, 3])
def test_the_result_is_that_of_the_whole_picture_where_the_network_is_local(parts):
    """IMDN's convolutions reach 1 + 6 x 4 + 2 = 27 pixels."""
    model = local(network("imdn_x2", width=8))
    x = pictures(67, 80)
    with torch.no_grad():
        whole = model(x)
        for overlap in (27, 32):
            assert_near(adaptive_crop(model, x, parts=parts, overlap=overlap), whole, 1e-12)
        seams = (adaptive_crop(model, x, parts=parts, overlap=2) - whole).abs()[0].amax(0)
    assert seams.max() > 1e-4 * whole.abs().max()
    if parts == 2:  # A margin that is too small shows beside the seams, and nowhere beyond the receptive radius.
        assert seams[: 2 * (33 - 28), : 2 * (40 - 28)].max() <= 1e-12 * whole.abs().max()


def test_the_multi_scale_network_is_cropped_at_each_scale():
    model = network("carn_x2", width=8)
    x = pictures(50, 54)
    for scale in (2, 3, 4):
        model.set_scale(scale)
        with torch.no_grad():
            assert_near(adaptive_crop(model, x, overlap=22), model(x), 1e-12)


def test_the_attention_moves_the_result_a_little_everywhere():
    """It takes the statistics of a patch for those of the picture, here of a dark and a bright half."""
    model = network("imdn_x2", width=16)
    x = pictures(72, 72)
    x[..., :36] *= 0.3
    with torch.no_grad():
        whole = model(x)
        moved = (adaptive_crop(model, x) - whole).abs() / whole.abs().max()
    assert 1e-6 < moved.max() < 0.1
    assert moved[..., :4, :4].max() > 1e-8


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (5, 4), (2, 7), (9, 17)])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_any_size_is_covered_by_patches_that_fit(size, parts):
    sizes: list[tuple[int, ...]] = []

    def nearest(batch: Tensor) -> Tensor:
        sizes.append(tuple(batch.shape[2:]))
        return batch.repeat_interleave(3, 2).repeat_interleave(3, 3)

    x = pictures(*size)
    assert torch.equal(adaptive_crop(nearest, x, parts=parts, overlap=3, multiple=4), x.repeat_interleave(3, 2).repeat_interleave(3, 3))
    assert len(sizes) == 1 and all(side % 4 == 0 for side in sizes[0])


def test_parts_cover_a_side_once_within_their_patches():
    for side in range(4, 60):
        for parts in (1, 2, 3, 5):
            for overlap in (0, 1, 7, 32):
                for multiple in (1, 3, 4):
                    length, pieces = divide(side, parts, overlap=overlap, multiple=multiple)
                    assert length % multiple == 0 or len(pieces) == 1
                    assert [piece.begin for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
                    assert pieces[-1].end == side
                    assert all(0 <= p.start <= p.begin < p.end <= p.start + length <= side for p in pieces)


def test_one_patch_after_the_other_is_the_same_for_several_pictures():
    model = network("imdn_x3", width=8)
    x = torch.cat([pictures(20, 31), pictures(20, 31) * 0.5])
    with torch.no_grad():
        at_once = adaptive_crop(model, x, overlap=4)
        for number in (1, 3):
            assert_near(adaptive_crop(model, x, overlap=4, at_once=number), at_once, 1e-12)


def test_memory_falls_with_the_parts():
    """Patches of 40 x 40 and of 32 x 32 in a picture of 64 x 64."""
    model = network("imdn_x2", width=16)
    x = pictures(64, 64)
    whole = peak(lambda: model(x))
    four = peak(lambda: adaptive_crop(model, x, overlap=8, at_once=1))
    many = peak(lambda: adaptive_crop(model, x, parts=4, overlap=8, at_once=1))
    assert four < 0.6 * whole
    assert many < 0.8 * four


@pytest.mark.parametrize("argument", [{"parts": 0}, {"overlap": -1}, {"multiple": 0}, {"at_once": 0}])
def test_numbers_that_are_too_small_are_refused(argument):
    name, value = next(iter(argument.items()))
    with pytest.raises(ConfigError, match=rf"{name}={value} is too small; accepted: {value + 1} or more"):
        adaptive_crop(lambda x: x, pictures(4, 4), **argument)

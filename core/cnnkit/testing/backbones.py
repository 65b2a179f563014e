"""The contract of the backbones: cheap checks on every variant, costly ones on the smallest of each family."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones._base import FeaturePyramid
from cnnkit.checkpoint import Header, load_checkpoint, save_checkpoint
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import UsageError
from cnnkit.registry import Entry
from cnnkit.testing.compare import assert_same, stir, without_gradient
from cnnkit.weights import load_weights

Sizes = Mapping[int, tuple[tuple[int, ...], ...]]

SIZES: Sizes = {1: ((256,), (203,)), 2: ((64, 96), (75, 97)), 3: ((64, 32, 64), (67, 48, 75))}
"""Input sizes by dimension: one that every usual reduction divides, one that none does."""

TRAIN_SIZES: Mapping[int, tuple[int, ...]] = {1: (128,), 2: (64, 64), 3: (64, 64, 64)}
"""Input sizes of a pass with numbers: the coarsest level keeps several positions for a batch normalisation to work on."""


def smallest(names: Sequence[str]) -> list[str]:
    """Return the variant with the fewest parameters of each family."""
    families: dict[str, str] = {}
    for name in names:
        entry = model_entry(name)
        best = families.get(entry.family)
        if best is None or (entry.params or 0) < (model_entry(best).params or 0):
            families[entry.family] = name
    return sorted(families.values())


def _flat(name: str) -> int:
    """Return the number of dimensions of the costly checks: two, where the model has them."""
    dims = model_entry(name).dims
    return 2 if 2 in dims else dims[0]


@functools.lru_cache(maxsize=1)
def _built(name: str) -> nn.Module:
    """Return a model with numbers in it; drawing them is what costs most, so the checks of one family share it."""
    torch.manual_seed(0)
    return stir(create_model(name, dims=_flat(name), num_classes=3))


def last_decimal(figure: float) -> float:
    """Return half a unit of the last decimal that was printed: the precision of a published figure."""
    return 0.5 * 10.0 ** int(Decimal(repr(figure)).as_tuple().exponent)


class BackboneContract:
    """What every registered backbone keeps to.

    Attributes:
        names: The backbones; by default all that are registered.
        sizes: Two input sizes by dimension, for the families that need others than :data:`SIZES`.
        train_sizes: Input size of the backward pass by dimension, for the families that need another than :data:`TRAIN_SIZES`.
    """

    names: ClassVar[Sequence[str]] = ()
    sizes: ClassVar[Mapping[str, Sizes]] = {}
    train_sizes: ClassVar[Mapping[str, Mapping[int, tuple[int, ...]]]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make a test per variant (``variant``), per family (``name``), or per family and dimension (``name, dims``)."""
        names = list(self.names) or list_models()
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize("variant", names)
        elif "dims" in metafunc.fixturenames:
            cases = [(name, dims) for name in smallest(names) for dims in model_entry(name).dims]
            metafunc.parametrize(("name", "dims"), cases, ids=[f"{name}-{dims}d" for name, dims in cases])
        elif "name" in metafunc.fixturenames:
            metafunc.parametrize("name", smallest(names))

    def inputs(self, name: str, dims: int, channels: int) -> list[Tensor]:
        """Return an input on the present device for each size."""
        return [torch.randn(2, channels, *size) for size in {**SIZES, **self.sizes.get(model_entry(name).family, {})}[dims]]

    def train_input(self, name: str) -> Tensor:
        """Return a batch of two for a pass with real numbers."""
        dims = _flat(name)
        size = {**TRAIN_SIZES, **self.train_sizes.get(model_entry(name).family, {})}[dims]
        return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))

    def test_variant_has_the_published_figures_and_the_levels_that_it_states(self, variant: str) -> None:
        """Without arithmetic: the paper's parameters and multiply-adds to the precision that it printed; channels and reductions."""
        entry, dims = model_entry(variant), _flat(variant)
        with on_meta():
            model, x = create_model(variant, dims=dims).eval(), self.inputs(variant, dims, 3)[0]
            self.check_figures(entry, model, dims)
            self.check_levels(FeaturePyramid(model), x, exact=True)  # type: ignore[arg-type]

    def check_figures(self, entry: Entry, model: nn.Module, dims: int) -> None:
        """Hold a model against the figures of its entry."""
        figures, params = entry.figures, count_params(model)
        assert entry.params is None or params == entry.params, "the index is stale; run: python tools/index.py"
        stated = figures.params_m if figures.counted_params_m is None else figures.counted_params_m
        if stated is not None:
            assert params / 1e6 == pytest.approx(stated, abs=last_decimal(stated), rel=0)
        stated = figures.gmacs if figures.counted_gmacs is None else figures.counted_gmacs
        if stated is not None:
            macs = count_macs(model, (1, 3, *[figures.input_size] * dims))
            assert macs / 1e9 == pytest.approx(stated, abs=last_decimal(stated), rel=0)
        if figures.counted_params_m is not None or figures.counted_gmacs is not None:
            assert figures.note, "a figure that cannot be met needs its reason"

    def test_shapes(self, name: str, dims: int) -> None:
        """In every dimension, without arithmetic: two sizes, two numbers of channels, a backward pass that reaches every parameter."""
        with on_meta():
            large, odd = self.inputs(name, dims, 1)
            classifier = create_model(name, dims=dims, in_chans=1, num_classes=7)
            logits = classifier(large)
            assert logits.shape == classifier.eval()(odd).shape == (2, 7)
            logits.sum().backward()
            assert [key for key, parameter in classifier.named_parameters() if parameter.grad is None] == []
            bare = create_model(name, dims=dims, in_chans=4, num_classes=0).eval()
            x = self.inputs(name, dims, 4)[0]
            features = bare.forward_features(x)  # type: ignore[operator]
            assert features.shape[:2] == bare.forward_head(features).shape == (2, bare.num_features)  # type: ignore[operator]
            pyramid = FeaturePyramid(bare)  # type: ignore[arg-type]
            self.check_levels(pyramid, x, exact=True)
            self.check_levels(pyramid, self.inputs(name, dims, 4)[1], exact=False)

    def check_levels(self, pyramid: FeaturePyramid, x: Tensor, *, exact: bool) -> None:
        """Hold the levels against what the pyramid states; a size that a reduction does not divide is rounded either way."""
        levels = pyramid(x)
        assert len(levels) == len(pyramid.channels)
        for level, channels, reduction in zip(levels, pyramid.channels, pyramid.reductions, strict=True):
            assert level.shape[:2] == (x.shape[0], channels)
            for found, size in zip(level.shape[2:], x.shape[2:], strict=True):
                accepted = {size // reduction} if exact else {size // reduction, -(-size // reduction)}
                assert found in accepted, f"a side of {size} became {found} at the stated reduction {reduction}"

    def test_every_parameter_gets_a_gradient(self, name: str) -> None:
        """In training, a gradient that is finite and not zero; a parameter without one is not used."""
        model = _built(name).train()
        model(self.train_input(name)).square().sum().backward()
        assert without_gradient(model) == []
        model.zero_grad(set_to_none=True)

    def test_evaluation_is_deterministic_and_survives_a_file(self, name: str, tmp_path: Path) -> None:
        """The same output twice, and again from weights that were saved, wiped and loaded."""
        model, x = _built(name).eval(), self.train_input(name)
        save_checkpoint(tmp_path / "model.ckpt", model.state_dict(), Header(task="backbone", model=name))
        with torch.no_grad():
            first = model(x)
            assert bool(torch.isfinite(first).all())
            assert_same(model(x), first)
            for tensor in model.state_dict().values():
                tensor.zero_()
            assert not bool((model(x) == first).all())
            load_weights(model, load_checkpoint(tmp_path / "model.ckpt")[1])
            assert_same(model(x), first)

    def test_a_typing_error_is_refused(self, name: str) -> None:
        """An argument that the class does not know is answered with those that it does."""
        with pytest.raises(UsageError, match="no_such_argument"):
            create_model(name, dims=_flat(name), no_such_argument=1)

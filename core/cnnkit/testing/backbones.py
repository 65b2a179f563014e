"""The contract of the backbones: cheap checks on every variant, costly ones on the small member of each family."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from cnnkit.backbones import create_model, create_small, list_models, load_family, model_entry
from cnnkit.backbones._base import FeaturePyramid
from cnnkit.checkpoint import Header, load_checkpoint, save_checkpoint
from cnnkit.count import count_params, on_meta
from cnnkit.errors import InputError, UsageError
from cnnkit.registry import Entry
from cnnkit.testing.compare import assert_figures, assert_same, stir, without_gradient
from cnnkit.testing.onnx_program import through_onnx
from cnnkit.weights import load_weights

SIZES: Mapping[int, tuple[tuple[int, ...], ...]] = {1: ((256,), (203,)), 2: ((64, 96), (75, 97)), 3: ((64, 32, 64), (67, 48, 75))}
"""Input sizes by dimension: one that every usual reduction up to 32 divides, one that none does."""


def admitted(model: Any, size: Sequence[int]) -> tuple[int, ...]:
    """Return the next larger input size that a backbone admits, or the only one."""
    return model.fixed_size or tuple(-(-max(side, model.min_size) // model.size_multiple) * model.size_multiple for side in size)


def _flat(dims: Sequence[int]) -> int:
    """Return the number of dimensions of the costly checks: two, where the model has them."""
    return 2 if 2 in dims else dims[0]


@functools.lru_cache(maxsize=1)
def _built(family: str) -> Any:
    """Return the small member with numbers in it; the checks of one family share it."""
    torch.manual_seed(0)
    return stir(create_small(family, dims=_flat(load_family(family).dims), num_classes=3))


def _input(family: str, batch: int = 2) -> Tensor:
    declared = load_family(family)
    size = [declared.small_size] * _flat(declared.dims)
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


class BackboneContract:
    """What every registered backbone keeps to.

    Attributes:
        names: The backbones; by default all that are registered.
    """

    names: ClassVar[Sequence[str]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make a test per variant (``variant``), per family (``family``), or per family and dimension (``family, dims``)."""
        names = list(self.names) or list_models()
        families = sorted({model_entry(name).family for name in names} - {""})
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize("variant", names)
        elif "dims" in metafunc.fixturenames:
            cases = [(family, dims) for family in families for dims in load_family(family).dims]
            metafunc.parametrize(("family", "dims"), cases, ids=[f"{family}-{dims}d" for family, dims in cases])
        elif "family" in metafunc.fixturenames:
            metafunc.parametrize("family", families)

    def test_variant_has_the_published_figures_and_the_levels_that_it_states(self, variant: str) -> None:
        """Without arithmetic: the paper's parameters and multiply-adds to the precision that it printed; channels and reductions."""
        entry = model_entry(variant)
        dims = _flat(entry.dims)
        with on_meta():
            model: Any = create_model(variant, dims=dims).eval()
            self.check_figures(entry, model, dims)
            self.check_levels(FeaturePyramid(model), torch.empty(2, 3, *admitted(model, SIZES[dims][0])), exact=True)

    def check_figures(self, entry: Entry, model: nn.Module, dims: int) -> None:
        """Hold a model against the figures of its entry."""
        assert entry.params is None or count_params(model) == entry.params, "the index is stale; run: python tools/index.py"
        assert_figures(entry.figures, model, dims)

    def test_shapes(self, family: str, dims: int) -> None:
        """In every dimension, without arithmetic: two sizes, two numbers of channels, a backward pass that reaches every parameter."""
        with on_meta():
            classifier: Any = create_small(family, dims=dims, in_chans=1, num_classes=7)
            large, odd = (admitted(classifier, size) for size in SIZES[dims])
            logits = classifier(torch.empty(2, 1, *large))
            assert logits.shape == classifier.eval()(torch.empty(2, 1, *odd)).shape == (2, 7)
            logits.sum().backward()
            assert [key for key, parameter in classifier.named_parameters() if parameter.grad is None] == []
            bare: Any = create_small(family, dims=dims, in_chans=4, num_classes=0).eval()
            features = bare.forward_features(torch.empty(2, 4, *large))
            assert bare.forward_head(features).shape == (2, bare.num_features)
            pyramid = FeaturePyramid(bare)
            self.check_levels(pyramid, torch.empty(2, 4, *large), exact=True)
            self.check_levels(pyramid, torch.empty(2, 4, *odd), exact=False)

    def check_levels(self, pyramid: FeaturePyramid, x: Tensor, *, exact: bool) -> None:
        """Hold the levels against what the pyramid states; a size that a reduction does not divide is rounded either way."""
        levels = pyramid(x)
        assert len(levels) == len(pyramid.channels)
        for level, channels, reduction in zip(levels, pyramid.channels, pyramid.reductions, strict=True):
            assert level.shape[:2] == (x.shape[0], channels)
            for found, size in zip(level.shape[2:], x.shape[2:], strict=True):
                slack = pyramid.backbone.size_slack
                divides = exact and size % reduction == 0
                low, high = size // reduction - slack, (size // reduction if divides else -(-size // reduction)) + slack
                assert low <= found <= high, f"a side of {size} became {found} at the stated reduction {reduction}"

    def test_a_size_that_is_not_admitted_is_refused(self, family: str) -> None:
        """With the sizes that are; a family that admits all says so."""
        model = _built(family).eval()
        wrong = torch.zeros(1, 3, *(side + 1 for side in _input(family).shape[2:]))
        if model.fixed_size is None and model.size_multiple == 1:
            with torch.no_grad():
                assert model(wrong).shape == (1, 3)
            return
        with pytest.raises(InputError, match="does not fit"):
            model(wrong)

    def test_every_parameter_gets_a_gradient(self, family: str) -> None:
        """In training, a gradient that is finite and not zero; a parameter without one is not used."""
        model = _built(family).train()
        torch.manual_seed(2)  # Of dropout and stochastic depth.
        model(_input(family, batch=4)).square().sum().backward()
        assert without_gradient(model) == []
        model.zero_grad(set_to_none=True)

    def test_checkpointing_changes_no_gradient(self, family: str) -> None:
        """Recomputed activations are the same ones; a family that has no stages keeps them, and then nothing changes either."""
        torch.manual_seed(0)
        model: Any = stir(create_small(family, dims=_flat(load_family(family).dims), num_classes=3)).double()
        x, gradients = _input(family).double(), []
        for enable in (False, True):
            model.zero_grad()
            model.set_grad_checkpointing(enable)
            torch.manual_seed(3)
            model(x).square().sum().backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)

    def test_evaluation_is_deterministic_and_survives_a_file(self, family: str, tmp_path: Path) -> None:
        """The same output twice, and again from weights that were saved, wiped and loaded."""
        model, x = _built(family).eval(), _input(family)
        save_checkpoint(tmp_path / "model.ckpt", model.state_dict(), Header(task="backbone", model=family))
        with torch.no_grad():
            first = model(x)
            assert bool(torch.isfinite(first).all())
            assert_same(model(x), first)
            wiped: Any = create_small(family, dims=model.dims, num_classes=3).eval()
            for tensor in wiped.state_dict().values():
                tensor.zero_()
            assert not bool((wiped(x) == first).all())
            load_weights(wiped, load_checkpoint(tmp_path / "model.ckpt")[1])
            assert_same(wiped(x), first)

    def test_fused_output_is_the_same(self, family: str) -> None:
        """With branches merged and batch normalisations folded, to 1e-5 of the output's scale in float32."""
        torch.manual_seed(0)
        model: Any = stir(create_small(family, dims=_flat(load_family(family).dims), num_classes=3))
        x = _input(family, batch=4)
        with torch.no_grad():
            model.train()(x)  # So that the running statistics are not the initial ones.
            expected = model.eval()(x)
            found = model.fuse()(x)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert not any(hasattr(module, "merged") for module in model.modules())

    def test_exported_programs_compute_the_same(self, family: str) -> None:
        """``torch.export`` and ONNX with a free batch, to 1e-4."""
        model, x = _built(family).eval(), _input(family)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
        with torch.no_grad():
            expected = model(torch.cat([x, x.flip(0)]))
        scale = float(expected.abs().max())
        torch.testing.assert_close(program.module()(torch.cat([x, x.flip(0)])), expected, rtol=0, atol=1e-4 * scale)
        torch.testing.assert_close(through_onnx(program)(torch.cat([x, x.flip(0)])), expected, rtol=0, atol=1e-4 * scale)

    def test_a_typing_error_is_refused(self, family: str) -> None:
        """An argument that the class does not know is answered with those that it does."""
        declared = load_family(family)
        with pytest.raises(UsageError, match="no_such_argument"):
            create_model(declared.small[0], dims=_flat(declared.dims), no_such_argument=1)

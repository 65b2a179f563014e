"""The contract of a plugin's models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from cnnkit.backbones import create_model, model_entry
from cnnkit.checkpoint import Header, load_checkpoint, save_checkpoint
from cnnkit.errors import UsageError
from cnnkit.testing.compare import assert_same, stir, tensors_in, without_gradient
from cnnkit.weights import load_weights

SIZES: Mapping[int, tuple[int, ...]] = {1: (64,), 2: (32, 32), 3: (16, 16, 16)}


@dataclass(frozen=True)
class SmallModel:
    """A model of a plugin at a size that a test can pay.

    Args:
        args: Architecture arguments that make it small.
        in_chans: Channels of the input.
        num_classes: Outputs.
        batch: Size of the batch.
        sizes: Spatial size of the input by number of dimensions, where the default does not suit the model.
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    in_chans: int = 2
    num_classes: int = 3
    batch: int = 2
    sizes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def build(self, name: str, dims: int) -> nn.Module:
        """Return the model with weights that do not depend on what ran before."""
        torch.manual_seed(0)
        return create_model(name, dims=dims, in_chans=self.in_chans, num_classes=self.num_classes, **self.args)

    def input(self, dims: int) -> Tensor:
        """Return an input, ``(batch, in_chans, *spatial)``."""
        size = {**SIZES, **self.sizes}[dims]
        return torch.randn(self.batch, self.in_chans, *size, generator=torch.Generator().manual_seed(1))


class ModelContract:
    """Every model in a plugin's manifest builds in each of its dimensions, runs, learns, and survives a file.

    A subclass sets the class attributes; for models whose input is not one tensor ``(B, C, *spatial)`` it overrides
    :meth:`forward`.

    Attributes:
        plugin: Name of the plugin.
        small: A :class:`SmallModel` for each name in the manifest.
    """

    plugin: ClassVar[str] = ""
    small: ClassVar[Mapping[str, SmallModel]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make one test per model, and where it matters per dimension."""
        from cnnkit.plugin import get

        models = get(self.plugin).models
        if "dims" in metafunc.fixturenames:
            cases = [(name, dims) for name in models for dims in models[name].dims if name in self.small]
            metafunc.parametrize(("name", "dims"), cases, ids=[f"{name}-{dims}d" for name, dims in cases])
        elif "name" in metafunc.fixturenames:
            metafunc.parametrize("name", [name for name in models if name in self.small])

    def forward(self, model: nn.Module, x: Tensor) -> list[Tensor]:
        """Return the outputs of a model for one input."""
        return tensors_in(model(x))

    def check_output(self, small: SmallModel, x: Tensor, outputs: list[Tensor]) -> None:
        """Check the outputs in evaluation; by default the first has the batch and the classes as its first two axes."""
        assert outputs[0].shape[:2] == (small.batch, small.num_classes)

    def test_every_model_of_the_manifest_has_a_small_form(self) -> None:
        """A model that is not named in ``small`` would not be tested."""
        from cnnkit.plugin import get

        assert set(self.small) == set(get(self.plugin).models)

    def test_output(self, name: str, dims: int) -> None:
        """The output in evaluation has its shape, is finite, and is the same a second time."""
        small = self.small[name]
        model, x = small.build(name, dims).eval(), small.input(dims)
        with torch.no_grad():
            outputs = self.forward(model, x)
            self.check_output(small, x, outputs)
            assert all(bool(torch.isfinite(output).all()) for output in outputs)
            assert_same(self.forward(model, x), outputs)

    def test_every_parameter_gets_a_gradient(self, name: str, dims: int) -> None:
        """A parameter without a gradient is not used, and breaks training over several processes."""
        small = self.small[name]
        model = stir(small.build(name, dims).train())
        torch.stack([output.square().mean() for output in self.forward(model, small.input(dims))]).sum().backward()
        assert without_gradient(model) == []

    def test_state_survives_a_file(self, name: str, tmp_path: Path) -> None:
        """Weights that are saved and loaded into a new model give the same output."""
        small, dims = self.small[name], model_entry(name).dims[-1]
        model, x = stir(small.build(name, dims)).eval(), small.input(dims)
        save_checkpoint(tmp_path / "model.ckpt", model.state_dict(), Header(task=self.plugin, model=name))
        again = small.build(name, dims)
        load_weights(again, load_checkpoint(tmp_path / "model.ckpt")[1])
        with torch.no_grad():
            assert_same(self.forward(again.eval(), x), self.forward(model, x))

    def test_a_typing_error_is_refused(self, name: str) -> None:
        """An argument that the model does not know is an error."""
        with pytest.raises((UsageError, TypeError), match="no_such_argument"):
            create_model(name, dims=model_entry(name).dims[0], no_such_argument=1)

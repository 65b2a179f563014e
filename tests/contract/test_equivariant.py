"""The equivariant plugin keeps the contracts of tasks and models."""

from __future__ import annotations

import pytest
import torch
from cnnkit.testing import ModelContract, SmallModel
from torch import Tensor, nn

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.models._base import Potential
from torch_geometric.data import Data

SMALL: dict[str, SmallModel] = {
    "equivariant/spherical_cnn": SmallModel(args={"widths": (4, 4, 6), "bandwidths": (8, 8, 4), "knots": (4, 4, 3)}, sizes={2: (16, 18)}),
    "equivariant/spherical_cnn_zonal": SmallModel(args={"widths": (4, 6), "bandwidths": (8, 4), "knots": (4, 3)}, sizes={2: (16, 16)}),
    "equivariant/spherical_cnn_spin": SmallModel(args={"widths": (4, 6), "bandwidths": (8, 4), "knots": (4, 3)}, sizes={2: (16, 16)}),
}
"""The small form of each network of the manifest."""


def molecule(x: Tensor) -> Data:
    """Place as many atoms as the input has values in a row, each seeing the others."""
    count = x.numel()
    positions = torch.stack([torch.arange(count), 0.3 * x.flatten(), (torch.arange(count) % 2).to(x)], 1).to(x)
    source, target = torch.nonzero(~torch.eye(count, dtype=torch.bool), as_tuple=True)
    return Data(
        pos=positions,
        z=torch.tensor([29, 8])[torch.arange(count) % 2],
        edge_index=torch.stack([source, target]),
        shifts=torch.zeros(len(source), 3),
        cell=torch.zeros(1, 3, 3),
        pbc=torch.zeros(1, 3, dtype=torch.bool),
        batch=torch.zeros(count, dtype=torch.long),
    )


class TestModels(ModelContract):
    plugin = "equivariant"
    small = SMALL

    def forward(self, model: nn.Module, x: Tensor) -> list[Tensor]:
        """A potential takes atoms."""
        return list(model(molecule(x)).values()) if isinstance(model, Potential) else super().forward(model, x)

    def check_output(self, small: SmallModel, x: Tensor, outputs: list[Tensor]) -> None:
        """A potential has one energy for the structure and a force for each atom."""
        if len(outputs) == 2:
            assert outputs[0].shape == (1,) and outputs[1].shape == (x.numel(), 3)
        else:
            super().check_output(small, x, outputs)

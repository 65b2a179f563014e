"""The equivariant plugin keeps the contracts of tasks and models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cnnkit.testing import ModelContract, SmallModel, TaskContract
from torch import Tensor, nn

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.models._base import Potential
from torch_geometric.data import Data

_ATOMS = {"in_chans": 1, "batch": 1, "sizes": {3: (2, 2, 2)}}
_ESCN = {"elements": ("Cu", "O"), "sphere_channels": 4, "hidden_channels": 6, "edge_channels": 5, "gaussians": 6, "num_layers": 2}
_ESCN |= {"cutoff": 5.0, "lmax": 2, "mmax": 2}
SMALL: dict[str, SmallModel] = {
    **{f"equivariant/{name}": SmallModel(_ESCN, **_ATOMS) for name in ("escn", "escn_direct", "escn_l4_m2", "escn_l6_m2", "escn_l6_m3")},
    "equivariant/invariant": SmallModel({"elements": ("Cu", "O"), "channels": 6, "layers": 2, "gaussians": 6}, **_ATOMS),
    "equivariant/scale_fourier": SmallModel(args={"channels": (4, 6), "hidden": 8}, sizes={2: (9, 9)}),
    # (B, S, C, 2, 2) segments of each channel's outline: as many as there are channels.
    "equivariant/nuft_cnn": SmallModel({"size": 12, "widths": (4, 6)}, batch=4, sizes={2: (2, 2, 2)}),
    "equivariant/spherical_cnn": SmallModel(args={"widths": (4, 4, 6), "bandwidths": (8, 8, 4), "knots": (4, 4, 3)}, sizes={2: (16, 18)}),
    "equivariant/spherical_cnn_zonal": SmallModel(args={"widths": (4, 6), "bandwidths": (8, 4), "knots": (4, 3)}, sizes={2: (16, 16)}),
    "equivariant/spherical_cnn_spin": SmallModel(args={"widths": (4, 6), "bandwidths": (8, 4), "knots": (4, 3)}, sizes={2: (16, 16)}),
    **{
        f"equivariant/{name}": SmallModel(args={"depths": (1, 1), "widths": (4, 6)})
        for name in ("lorentz_resnet18", "hybrid_resnet18", "euclidean_resnet18", "lorentz_resnet_small")
    },
    "equivariant/spherical_molecule": SmallModel(
        args={"elements": ("Cu", "O"), "types": 2, "widths": (4, 4), "bandwidths": (3, 2), "knots": (2, 2), "hidden": 8},
        sizes={3: (1, 2, 1)},
    ),
    "equivariant/spherical_molecule_qm9": SmallModel(
        args={"elements": ("Cu", "O"), "types": 2, "widths": (4, 4), "bandwidths": (3, 2), "knots": (2, 2), "hidden": 8},
        sizes={3: (1, 2, 1)},
    ),
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


class TestClassification(TaskContract):
    plugin = "equivariant"
    config = {
        "network": {"name": "equivariant/lorentz_resnet_small", "args": {"depths": [1], "widths": [6]}},
        "classification": {"size": 12},
    }

    def example_input(self, folder: Path) -> Path:
        np.save(folder / "digit.npy", np.random.default_rng(0).uniform(size=(8, 8)))
        return folder / "digit.npy"


class TestAtoms(TaskContract):
    plugin = "equivariant"
    config = {
        "network": {"name": "equivariant/invariant", "args": {"channels": 8, "layers": 2, "gaussians": 8, "cutoff": 4.0}},
        "atoms": {"elements": ["Cu", "O", "H"], "references": [-3.5, -4.0, -3.0], "scale": 0.5, "stress_weight": 1.0},
    }
    run_options = ("--stress", "--dtype", "float64")

    def example_input(self, folder: Path) -> Path:
        from ase.build import add_adsorbate, fcc111

        atoms = fcc111("Cu", (1, 1, 2), vacuum=4.0)
        add_adsorbate(atoms, "O", 1.5, "fcc")
        atoms.write(folder / "slab.extxyz")
        return folder / "slab.extxyz"

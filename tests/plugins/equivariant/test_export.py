"""What is exported: a potential as a program that gives energies and, by its gradient, forces; and what is refused before work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cnnkit.checkpoint import save_checkpoint
from cnnkit.cli import main
from cnnkit.config import from_dict
from cnnkit.engine.export import export_network
from cnnkit.engine.fit import header_for
from cnnkit.errors import UsageError
from cnnkit.plugin import get
from cnnkit.testing.compare import stir

pytest.importorskip("cnnkit_equivariant")

from ase import Atoms
from ase.build import fcc111
from cnnkit_equivariant import NETWORKS, PLUGIN, Calculator
from cnnkit_equivariant.atoms.structures import bare_graph
from torch_geometric.data import Batch

INVARIANT = {"name": "equivariant/invariant", "args": {"channels": 6, "layers": 1, "gaussians": 6, "cutoff": 4.0}}
SPHERE = {"name": "equivariant/spherical_cnn", "args": {"widths": [4], "bandwidths": [4], "knots": [3]}}


def checkpoint(path: Path, network: dict[str, Any], **sections: Any) -> Path:
    """A checkpoint of an untrained network."""
    kind = PLUGIN.load_task()
    task = kind(from_dict(kind.Config, {"network": network, **sections}))
    torch.manual_seed(0)
    model = stir(task.model())
    return save_checkpoint(path, model.state_dict(), header_for(task, model, PLUGIN, {}))


def surfaces() -> list[Atoms]:
    """Structures of other sizes than those of the example, one of a few atoms in a cell smaller than the cutoff."""
    made = [fcc111("Cu", (1, 1, 2), vacuum=4.0), fcc111("Cu", (2, 2, 2), vacuum=4.0), Atoms("OCu", [(0, 0, 0), (1.7, 0.2, 0.3)])]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.1, seed=seed)
    return made


def test_an_exported_potential_is_the_calculator(tmp_path: Path) -> None:
    """Energies, and forces as the program's gradient, of a batch of any number of structures, atoms and edges."""
    atoms = {"elements": ["Cu", "O"], "references": [-3.5, -4.0], "scale": 20.0}
    saved = checkpoint(tmp_path / "a.ckpt", INVARIANT, atoms=atoms, train={"precision": "64-true"})
    exported = export_network(saved, tmp_path / "a.pt2", plugin=get("equivariant"))
    assert exported.difference < 1e-12
    program = torch.export.load(tmp_path / "a.pt2").module()
    calculator = Calculator(saved, device="cpu", dtype="float64")
    for chosen in (surfaces(), surfaces()[:1]):
        graph = Batch.from_data_list([bare_graph(each, 4.0, dtype=torch.float64) for each in chosen])
        positions = graph.pos.clone().requires_grad_()
        rest = graph.z, graph.edge_index, graph.shifts, graph.cell.view(-1, 3, 3), graph.batch
        energies = program(positions, *rest)
        (slope,) = torch.autograd.grad(energies.sum(), positions)
        for each in chosen:
            each.calc = calculator
        expected = torch.tensor([each.get_potential_energy() for each in chosen], dtype=torch.float64)
        forces = torch.cat([torch.from_numpy(each.get_forces()) for each in chosen])
        torch.testing.assert_close(energies.detach(), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(-slope, forces, rtol=0, atol=1e-10)
        assert forces.abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="an element is not among those"):
        program(positions, rest[0] + 1, *rest[1:])


@pytest.mark.parametrize("name", [name for _, variants in NETWORKS for name in variants])
def test_formats_of_every_network(name: str) -> None:
    """torch.export takes all; ONNX has no complex products and no derivatives."""
    entry = PLUGIN.models[f"equivariant/{name}"].load()
    known = set() if entry.job == "classification" and not name.startswith("spherical") else {".onnx"}
    assert set(entry.not_exported) == known


@pytest.mark.parametrize(("network", "told"), [(SPHERE, "complex numbers"), (INVARIANT, r"derivatives .* cnnkit_equivariant\.Calculator")])
def test_what_onnx_cannot_hold_is_refused_before_work_starts(
    network: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    saved = checkpoint(tmp_path / "a.ckpt", network, atoms={"elements": ["Cu"], "references": [0.0], "scale": 1.0})
    monkeypatch.delattr("cnnkit.engine.export._write_onnx")
    with pytest.raises(UsageError, match=rf"{network['name']} cannot be exported as \.onnx: .*{told}.*; accepted: \.pt2 .* -o model\.pt2"):
        export_network(saved, tmp_path / "a.onnx", plugin=get("equivariant"))
    with pytest.raises(SystemExit) as stop:
        main(["export", "equivariant", "--ckpt", str(saved), "-o", str(tmp_path / "a.onnx")])
    assert stop.value.code == 2 and "accepted: .pt2" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]

"""The application on two metals: energies against ASE's own steps, the page, the table, and what fails without costing the others."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest

pytest.importorskip("cnnkit_equivariant")

from ase import Atoms
from ase.build import add_adsorbate, fcc100, fcc111, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.optimize import BFGS

SCRIPT = Path(__file__).parents[2] / "apps" / "materials" / "adsorption_screen.py"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    words = "--calculator emt --metals Cu,Pt,Rh --adsorbates O,H --sites ontop,fcc --size 1 --layers 2 --fmax 0.02"
    command = [sys.executable, str(SCRIPT), "-o", str(folder), *words.split()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 1, done.stderr  # EMT knows no rhodium.
    assert done.stdout.splitlines() == [str(folder / "screen.html")]
    assert "12/12 H on Rh, fcc: No EMT-potential for Rh" in done.stderr
    return folder


@pytest.fixture(scope="module")
def rows(output):
    return list(csv.DictReader((output / "screen.csv").read_text(encoding="utf-8").splitlines()))


def test_energies_are_those_of_the_steps_one_by_one(rows):
    """Clean slab, adsorbate and gas relaxed by hand with another optimizer, at EMT's own lattice constant of copper."""

    def relaxed(atoms):
        atoms.calc = EMT()
        BFGS(atoms, logfile=None).run(fmax=0.02)
        return atoms.get_potential_energy()

    slab = fcc111("Cu", (1, 1, 2), a=3.59, vacuum=8.0)
    slab.set_constraint(FixAtoms(mask=slab.get_tags() > 1))
    clean, gas = relaxed(slab), relaxed(molecule("O2")) / 2
    add_adsorbate(slab, "O", 1.3, "fcc")
    expected = relaxed(slab) - clean - gas
    (found,) = [row for row in rows if (row["Metal"], row["Adsorbate"], row["Start"]) == ("Cu", "O", "fcc")]
    assert float(found["Adsorption energy (eV)"]) == pytest.approx(expected, abs=5e-3)
    assert float(found["Height (A)"]) == pytest.approx(slab.positions[-1, 2] - slab.positions[:-1, 2].max(), abs=0.03)


def test_the_table(rows):
    """A row for each start in order; hollow sites bind better than those on top; what failed says why."""
    assert [(row["Metal"], row["Adsorbate"], row["Start"]) for row in rows][:3] == [
        ("Cu", "O", "ontop"),
        ("Cu", "O", "fcc"),
        ("Cu", "H", "ontop"),
    ]
    good = [row for row in rows if not row["Error"]]
    assert len(rows) == 12 and len(good) == 8
    assert all(float(row["Largest force (eV/A)"]) <= 0.02 for row in good)
    for ontop, fcc in zip(good[::2], good[1::2], strict=True):
        assert (ontop["End"], fcc["End"]) == ("ontop", "fcc")
        assert float(fcc["Adsorption energy (eV)"]) < float(ontop["Adsorption energy (eV)"])
    assert all(row["Error"] == "No EMT-potential for Rh" and row["Adsorption energy (eV)"] == "" for row in rows if row["Metal"] == "Rh")


def test_the_page(output, rows, read_page):
    """A volcano for each adsorbate with a point for each metal at its energy, and hydrogen's top where it is known to be."""
    text = (output / "screen.html").read_text(encoding="utf-8")
    page = read_page(text)
    assert text.count("<svg") == 2 and "top at -0.24 eV" in text and "top at the mean" in text
    points = page.all("circle")
    assert len(points) == 4
    for point in points:
        assert 60 <= float(point["cx"]) <= 830 and 40 <= float(point["cy"]) <= 270
    best = min(float(row["Adsorption energy (eV)"]) for row in rows if (row["Metal"], row["Adsorbate"]) == ("Pt", "H"))
    assert f"Pt: {best:.3f} eV on fcc" in page.text
    assert any("O on Rh, ontop: No EMT-potential for Rh" in part for part in page.text)


def test_the_structures(output, rows):
    """Each with its energy and forces, and the lower half where it was."""
    found = ase.io.read(output / "relaxed.extxyz", ":")
    assert len(found) == 8 and [atoms.info["site"] for atoms in found[:2]] == ["ontop", "fcc"]
    for atoms in found:
        assert isinstance(atoms.calc, SinglePointCalculator)
        assert atoms.get_forces(apply_constraint=False).shape == (3, 3) and len(atoms.constraints[0].index) == 1
        twin = atoms.copy()
        twin.calc = EMT()
        assert twin.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-5)


def test_where_an_adsorbate_ended(app):
    """Every site of both surfaces, on every lattice point and all bridges that symmetry makes equal, is told by its name."""
    for build, extra in ((fcc111, [("bridge", (0, 0.5)), ("bridge", (0.5, 0.5))]), (fcc100, [("bridge", (0, 0.5))])):
        slab = build("Cu", (2, 2, 2), vacuum=5.0)
        for name, place in [*slab.info["adsorbate_info"]["sites"].items(), *extra]:
            for offset in ((0, 0), (1, 0), (-3, 5)):
                atoms = slab.copy()
                shift = (np.array(place) + offset) @ slab.info["adsorbate_info"]["cell"]
                atoms += Atoms("O", [(*(slab.positions[-4, :2] + shift + 0.1), 9.0)])
                assert app.ended(atoms, len(slab)) == name


class Spring(Calculator):
    """Pulls the first atom above a slab up, away from it, as strongly as its element says."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, *args):
        super().calculate(*args)
        heights = self.atoms.positions[:, 2]
        away = self.atoms.numbers == 8
        forces = np.zeros((len(self.atoms), 3))
        forces[away, 2] = 0.1 * (30 - heights[away])
        self.results = {"energy": float(self.atoms.numbers.max()), "forces": forces, "stress": np.zeros(6)}


def test_what_leaves_the_surface_has_no_volcano(app, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "make_calculator", lambda settings: Spring())
    settings = app.Settings(tmp_path, ("Cu",), ("O",), ("fcc",), size=1, layers=2, reference="atom", progress=False)
    assert app.run(settings) == 0
    assert ",left," in (tmp_path / "screen.csv").read_text()
    assert "It stayed on none of the surfaces" in (tmp_path / "screen.html").read_text()


def test_energies_from_the_strongest(app):
    """The lowest of each adsorbate is the zero of its energies."""
    made = [app.Bound("Cu", "O", "fcc", "fcc", -3.0), app.Bound("Cu", "O", "hcp", "left", -9.0), app.Bound("Pt", "O", "fcc", "fcc", -2.5)]
    made += [app.Bound("Cu", "H", "fcc", "fcc", 1.0), app.Bound("Pt", "H", "fcc", error="lost")]
    found = app.from_strongest(made)
    assert [one.energy for one in found[:4]] == [0.0, -6.0, 0.5, 0.0] and found[4].error == "lost"


def test_with_a_checkpoint(app, tmp_path):
    """A small untrained network through the same steps; a metal that it does not know fails, and costs no other."""
    import torch
    from cnnkit.backbones import create_model
    from cnnkit.checkpoint import Header, save_checkpoint

    torch.manual_seed(0)
    arguments = {"elements": ["Cu", "Pt", "O"], "channels": 6, "layers": 1, "gaussians": 6, "cutoff": 4.0}
    model = create_model("equivariant/invariant", dims=3, **arguments)
    header = Header(task="equivariant", config={"network": {"name": "equivariant/invariant", "args": arguments}})
    path = save_checkpoint(tmp_path / "small.ckpt", model.state_dict(), header)
    settings = app.Settings(tmp_path / "out", ("Cu", "Pt", "Ag"), ("O",), ("fcc", "hcp"), size=1, layers=2, checkpoint=path, device="cpu")
    assert app.run(replace(settings, reference="strongest", steps=3, progress=False)) == 1
    rows = list(csv.DictReader((tmp_path / "out" / "screen.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 6 and all("Ag: not among the elements" in row["Error"] for row in rows[4:])
    energies = [float(row["Adsorption energy (eV)"]) for row in rows[:4] if row["End"] != "left"]
    assert not energies or min(energies) == 0.0
    assert "small.ckpt" in (tmp_path / "out" / "screen.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--calculator emt --metals Cu,Fe", "Fe is no metal with a face-centred lattice"),
        ("--calculator emt --metals Xy", "Xy is no metal"),
        ("--calculator emt --metals Cu --adsorbates Kr", "Kr: not a known adsorbate of fcc111; accepted: H, N, O"),
        ("--calculator emt --sites hollow", "hollow: not a known site of fcc111; accepted: ontop, bridge, fcc, hcp"),
        ("--calculator emt --metals ,", "nothing to screen"),
        ("--ckpt nowhere.ckpt", "nowhere.ckpt does not exist"),
    ],
)
def test_what_cannot_start(app, tmp_path, capsys, monkeypatch, words, told):
    """One line, status 2, and nothing written."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "-o", str(tmp_path / "out"), *words.split()])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2 and told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_round_numbers(app):
    assert app.axis(-0.35, 0.35) == [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3]
    assert app.axis(-12.0, 3.0) == [-12.0, -10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0]

"""The synthetic structures: EMT's own labels, each a function of split, seed and number, and what is unseen stays unseen."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cnnkit_equivariant")

from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list
from cnnkit_equivariant.atoms import emt

COUNT = 30


@pytest.mark.paper("escn")
@pytest.mark.parametrize("split", emt.SPLITS)
def test_labels_are_those_of_ases_emt(split: emt.Split) -> None:
    for atoms in emt.structures(split, COUNT)[::5]:
        again = atoms.copy()
        again.calc = EMT()
        assert atoms.get_potential_energy() == pytest.approx(again.get_potential_energy(), abs=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), again.get_forces(), atol=1e-12)
        assert np.abs(atoms.get_forces()).max() <= emt.MOST_FORCE
        if atoms.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(), again.get_stress(), atol=1e-12)
        else:
            assert "stress" not in atoms.calc.results  # A slab's vacuum has no stress.


def test_a_structure_depends_on_split_seed_and_number_alone() -> None:
    few, many = emt.structures("train", 4), emt.structures("train", COUNT)
    for one, other in zip(few, many, strict=False):
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_array_equal(one.numbers, other.numbers)
    again, other = emt.structure("train", 3), emt.structure("train", 3, seed=1)
    np.testing.assert_array_equal(again.positions, many[3].positions)
    assert len(other) != len(again) or np.abs(other.positions - again.positions).max() > 1e-3
    assert {atoms.info["kind"] for atoms in many} == {"bulk", "alloy", "slab", "clean", "gas"}


def test_combinations_are_held_out_and_their_parts_are_not() -> None:
    train, val, test = (set(emt.adsorptions(split)) for split in emt.SPLITS)
    every = len(emt.METALS) * len(emt.FACETS) * len(emt.ADSORBATES)
    assert len(train) + len(val) + len(test) == every and not train & val and not train & test and not val & test
    assert len(test) >= every // 9 and len(val) >= 3
    for what in val | test:
        assert any((what.metal, what.adsorbate) == (other.metal, other.adsorbate) for other in train)
        assert any((what.metal, what.facet) == (other.metal, other.facet) for other in train)
        assert any((what.facet, what.adsorbate) == (other.facet, other.adsorbate) for other in train)


def test_slabs_of_a_split_are_its_own_combinations() -> None:
    for split in emt.SPLITS:
        for atoms in emt.structures(split, COUNT):
            if atoms.info["kind"] != "slab":
                continue
            found = set(atoms.get_chemical_symbols())
            metal, adsorbed = found & set(emt.METALS), tuple(symbol for symbol in atoms.get_chemical_symbols() if symbol in emt.RADII)
            facets = [item.facet for item in emt.adsorptions(split) if {item.metal} == metal and emt.ADSORBATES[item.adsorbate] == adsorbed]
            angle = 90 if abs(atoms.cell.angles()[2] - 90) < 15 else 60
            assert any((facet == "100") == (angle == 90) for facet in facets)


def test_alloys_have_two_metals_in_training_and_three_in_the_test() -> None:
    for split, number in (("train", 2), ("val", 2), ("test", 3)):
        alloys = [atoms for atoms in emt.structures(split, COUNT) if atoms.info["kind"] == "alloy"]
        assert alloys and all(len(set(atoms.numbers)) == number for atoms in alloys)


def test_clean_slabs_of_the_test_are_thicker_and_gases_repeat_nowhere() -> None:
    for split, layers in (("train", {8, 12}), ("test", {16})):
        of_kind = {kind: [atoms for atoms in emt.structures(split, COUNT) if atoms.info["kind"] == kind] for kind in ("clean", "gas")}
        assert {len(atoms) for atoms in of_kind["clean"]} <= layers and of_kind["clean"] and of_kind["gas"]
        assert not any(set(atoms.get_chemical_symbols()) & set(emt.RADII) for atoms in of_kind["clean"])
        assert all(set(atoms.get_chemical_symbols()) <= set(emt.RADII) and not atoms.pbc.any() for atoms in of_kind["gas"])


@pytest.mark.parametrize("stretch", [1.0, 1.3])
@pytest.mark.parametrize("site", emt.SITES["111"])
def test_an_adsorbate_stands_at_its_distance(site: str, stretch: float) -> None:
    atoms = emt.slab(emt.Adsorption("Cu", "111", "CO"), site, stretch=stretch, bond=1.1)
    assert atoms.get_chemical_symbols()[-2:] == ["C", "O"] and len(atoms) == 14 and atoms.pbc.tolist() == [True, True, False]
    centre, distance = neighbor_list("id", atoms, 4.0)
    carbon = distance[centre == 12]
    assert carbon.min() == pytest.approx(1.1 * emt.BONDS["CO"], abs=1e-9)
    to_metal = np.sort(carbon)[1]
    assert to_metal == pytest.approx(stretch * (emt.METALS["Cu"] / 8**0.5 + emt.RADII["C"]), abs=1e-9)


def test_slabs_repeat_sideways() -> None:
    """An adsorbate near the edge of the cell keeps its distance from the atoms beyond it."""
    what = emt.Adsorption("Pt", "100", "O")
    here, there = emt.slab(what, "ontop"), emt.slab(what, "ontop", shift=(-0.01, 0.0))
    assert here.positions[-1, 2] == pytest.approx(there.positions[-1, 2], abs=1e-3)

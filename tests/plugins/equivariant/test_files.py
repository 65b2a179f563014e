"""Files of structures: each format in, damaged frames that cost no other, pickles that are not opened, and what is written."""

from __future__ import annotations

import csv
import io
import pickle
import sqlite3
import warnings
from dataclasses import dataclass

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength
from cnnkit.errors import InputError, InputWarning, UsageError
from cnnkit_equivariant.args import STRUCTURES
from cnnkit_equivariant.atoms import files
from cnnkit_equivariant.atoms.extxyz import spans
from cnnkit_equivariant.atoms.files import parse_frames, read_frames, read_structures, write_structures, write_table
from cnnkit_equivariant.atoms.structures import references


@dataclass
class Found:
    """A prediction."""

    energy: float
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None


def labelled(count=3):
    """Cells of copper with EMT's results, and something more that is said of them."""
    made = []
    for seed in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=seed)
        atoms.info["config_type"] = f"run {seed}"
        atoms.calc = EMT()
        atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces(), stress=atoms.get_stress())
        made.append(atoms)
    return made


def texts(count=3):
    """Frames of an extxyz file, one by one."""
    made = []
    for atoms in labelled(count):
        stream = io.StringIO()
        ase.io.write(stream, atoms, format="extxyz")
        made.append(stream.getvalue())
    return made


@pytest.mark.parametrize("suffix", [".extxyz", ".xyz", ".traj", ".db"])
def test_formats_that_hold_many_structures(tmp_path, suffix):
    """With energies, forces and stresses, and any slice of them."""
    path, made = tmp_path / f"a{suffix}", labelled(5)
    ase.io.write(path, made, format="extxyz" if "xyz" in suffix else suffix[1:])
    for slice_, numbers in ((":", range(5)), ("-1", [4]), ("2", [2]), ("::2", [0, 2, 4]), ("3:0:-1", [3, 2, 1])):
        frames = read_frames(path, slice_)
        assert [frame.number for frame in frames] == list(numbers)
        for frame in frames:
            expected, found = references(made[frame.number]), references(frame.atoms)
            assert np.allclose(frame.atoms.positions, made[frame.number].positions, atol=1e-7)
            assert np.isclose(found.energy, expected.energy, atol=1e-9)
            assert np.allclose(found.forces, expected.forces, atol=1e-7)
            assert np.allclose(found.stress, expected.stress, atol=1e-9)
    assert len(read_structures(path)) == 5


@pytest.mark.parametrize(("suffix", "form"), [(".cif", "cif"), (".vasp", "vasp"), (".POSCAR", "vasp")])
def test_formats_that_hold_one(tmp_path, suffix, form):
    path, atoms = tmp_path / f"a{suffix}", bulk("Cu", cubic=True)
    ase.io.write(path, atoms, format=form)
    (found,) = read_structures(path)
    assert np.allclose(found.positions, atoms.positions, atol=1e-6) and found.pbc.all()
    path.write_text("this is nothing of the kind\n" * 3)
    with pytest.raises(InputError, match=r"a.(cif|vasp|POSCAR)"):
        read_structures(path)


def test_every_accepted_ending_is_read():
    assert set(files.READERS) == set(STRUCTURES)


def test_the_key_value_pairs_of_a_data_base(tmp_path):
    path = tmp_path / "a.db"
    with ase.db.connect(path) as database:
        database.write(molecule("H2O"), config_type="wet")
        database.write(molecule("CO"))
        database.write(molecule("N2"))
        del database[2]
    first, second = read_frames(path)
    assert first.atoms.info["config_type"] == "wet" and second.atoms.get_chemical_formula() == "N2" and second.number == 1


def test_foreign_and_damaged_containers(tmp_path):
    """They end in one message each, and a data base of somebody else is not written to."""
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(InputError, match="cannot be read as db: OperationalError: no such table: systems"):
        read_structures(path)
    assert path.read_bytes() == before
    for suffix in (".db", ".traj"):
        path = tmp_path / f"b{suffix}"
        path.write_bytes(b"- of UlmASE-Trajectory" + bytes(100))
        with pytest.raises(InputError, match=f"cannot be read as {suffix[1:]}"):
            read_structures(path)


class Bomb:
    """A pickle of it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickles_are_not_opened(tmp_path):
    """Neither under an accepted ending, nor as ASE's old trajectories, nor inside a trajectory of today."""
    mark = tmp_path / "mark"
    data = pickle.dumps(Bomb(mark))
    for suffix in (*STRUCTURES, ".pckl"):
        path = tmp_path / f"a{suffix}"
        for start in (data, b"PickleTrajectory" + data):
            path.write_bytes(start)
            with pytest.raises(InputError, match=r"is a pickle, which can run any code|no file of structures"):
                read_structures(path)
    path = tmp_path / "b.traj"
    ase.io.write(path, labelled(1))
    raw = path.read_bytes().replace(b'"float64"', b'"object" ')
    path.write_bytes(raw)
    with pytest.raises(InputError):
        read_structures(path)
    assert not mark.exists()


# Damaged frames.


def read_with_warnings(path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = read_frames(path)
    return [frame.number for frame in frames], [str(each.message) for each in caught if each.category is InputWarning]


BROKEN = {
    "a header that is no key=value": lambda text: text.replace('Lattice="', 'Lattice="oops '),
    "a header with unknown columns": lambda text: text.replace("species:S:1:pos:R:3", "species:Q:1:pos:R:3"),
    "a row that is cut off": lambda text: "\n".join([*text.splitlines()[:-1], "Cu 1.0"]) + "\n",
    "a row too few": lambda text: "".join(text.splitlines(keepends=True)[:-1]),
    "a row too many": lambda text: text + text.splitlines()[-1] + "\n",
    "a number of atoms that is none": lambda text: "four" + text[1:],
    "a word for a number": lambda text: text.replace(text.splitlines()[3].split()[1], "abc"),
    "an element that there is not": lambda text: text.replace("\nCu", "\nQq", 1),
    "a position that is not finite": lambda text: text.replace(text.splitlines()[3].split()[1], "nan"),
    "two atoms at one place": lambda text: text.replace(text.splitlines()[3], text.splitlines()[2]),
    "no atoms": lambda text: "0\n\n",
    "a cell without a volume": lambda text: text.replace('Lattice="3.61 0.0 0.0 0.0 3.61', 'Lattice="3.61 0.0 0.0 3.61 0.0'),
    "bytes that are no text": lambda text: text.replace("\nCu", "\n\udcff\udcfe", 1),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_frame_never_loses_the_others(tmp_path, how, place):
    """Wherever it stands; the warning says which it was."""
    frames = texts(3)
    spoilt = BROKEN[how](frames[place])
    assert spoilt != frames[place]
    frames[place] = spoilt
    path = tmp_path / "a.extxyz"
    path.write_text("".join(frames), encoding="utf-8", errors="surrogateescape")
    numbers, told = read_with_warnings(path)
    assert numbers == [number for number in range(3) if number != place]
    assert len(told) == 1 and f"a.extxyz: frame {place} is left out: " in told[0]
    path.write_text(spoilt, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match="no structure can be used; frame 0: "):
        read_frames(path)


def test_many_bad_frames_are_told_together(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(texts(1)[0] + 20 * "1\n\nCu nan 0 0\n")
    numbers, told = read_with_warnings(path)
    assert numbers == [0] and len(told) == 6 and "15 more of 21 frames" in told[-1]


def test_a_bad_row_of_a_trajectory_and_of_a_data_base(tmp_path):
    good, bad = bulk("Cu", cubic=True), Atoms("Cu", [(0, 0, np.nan)])
    for path in (tmp_path / "a.traj", tmp_path / "a.db"):
        ase.io.write(path, [good, bad, good])
        assert read_with_warnings(path)[0] == [0, 2]


def test_what_plain_xyz_files_look_like(tmp_path):
    """Comments of any kind, a number among them; blank lines; Windows' line ends; a byte order mark; cell vectors as rows."""
    path = tmp_path / "a.xyz"
    path.write_bytes(b"\xef\xbb\xbf1\r\n12\r\nCu 0 0 0\r\n\r\n\r\n  2 \r\nwater, almost\r\nO 0 0 0\r\nH 0 0 1\r\n")
    assert [frame.atoms.get_chemical_formula() for frame in read_frames(path)] == ["Cu", "HO"]
    path.write_text("1\ncell\nCu 0 0 0\nVEC1 3 0 0\nVEC2 0 3 0\nVEC3 0 0 3\n1\n\nO 0 0 0")
    first, second = read_structures(path)
    assert first.pbc.all() and np.allclose(first.cell, 3 * np.eye(3)) and not second.pbc.any()


def test_spans():
    found = spans(io.BytesIO(b"\n2\nx\nH 0 0 0\n1\nx\nH 0 0 0\nnoise\n1\n7\nH 0 0 0\n"))
    assert [(span.start, bool(span.problem)) for span in found] == [(1, True), (13, False), (25, True), (31, False)]
    assert "has 1" in found[0].problem and "number of atoms is expected" in found[2].problem
    (more,) = spans(io.BytesIO(b"1\nx\nH 0 0 0\nH 0 0 1\n"))
    assert "more lines" in more.problem
    assert spans(io.BytesIO(b"\n\n")) == []


def test_no_file_no_structure_no_frame(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_structures(tmp_path / "a.xyz")
    for content, told in ((b"", "is empty"), (b"\n \n", "holds no structure"), (b"nothing\nof the kind\n", "number of atoms is expected")):
        (tmp_path / "a.xyz").write_bytes(content)
        with pytest.raises(InputError, match=told):
            read_structures(tmp_path / "a.xyz")
    with pytest.raises(InputError, match=r"no file of structures; accepted: .extxyz, "):
        read_structures(tmp_path / "a.pdb")
    (tmp_path / "a.xyz").write_text("".join(texts(3)))
    for which, told in (("3", "holds 3 structures, counted from 0; there is no frame 3"), ("5:", "none of them")):
        with pytest.raises(InputError, match=told):
            read_structures(tmp_path / "a.xyz", which)


@pytest.mark.parametrize("text", ["", "a", "1:b", "::0", "1:2:3:4", "1.5"])
def test_frames_that_are_no_slice(text):
    with pytest.raises(UsageError, match="is no slice"):
        parse_frames(text)


def test_references_in_kilocalories_are_warned_of(tmp_path):
    made = labelled(2)
    for atoms in made:
        atoms.calc = SinglePointCalculator(atoms, forces=100 * atoms.get_forces())
    ase.io.write(tmp_path / "a.extxyz", made)
    with pytest.warns(InputWarning, match="a.extxyz: the forces' root mean square .* kcal/mol"):
        read_structures(tmp_path / "a.extxyz")


# Writing.


def test_predictions_stand_where_ase_reads_them(tmp_path):
    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    slab.set_constraint([FixAtoms([0, 1]), FixBondLength(2, 3)])
    slab.info |= {"name": "two\nlines", "spacegroup": object(), "weights": [1.0, 2.0], "ok": True}
    slab.arrays["mark"] = np.arange(8)
    water = molecule("H2O")
    rng = np.random.default_rng(0)
    made = [Found(-1.5, rng.normal(size=(8, 3)), np.diag([1.0, 2, 3]) + 0.1), Found(2.0)]
    path = write_structures(tmp_path / "out" / "a.extxyz", [slab, water], made)
    first, second = read_structures(path)
    assert references(first).energy == -1.5 and np.allclose(references(first).forces, made[0].forces, atol=1e-7)
    assert np.allclose(references(first).stress, made[0].stress)
    assert references(second).energy == 2.0 and np.isnan(references(second).forces).all()
    assert (
        first.info["name"] == "two lines" and "spacegroup" not in first.info and first.info["ok"] and list(first.info["weights"]) == [1, 2]
    )
    assert list(first.constraints[0].index) == [0, 1] and list(first.arrays["mark"]) == list(range(8))
    assert not first.pbc[2] and np.allclose(first.cell, slab.cell)
    assert slab.info["name"] == "two\nlines" and slab.calc is None, "what was given is left as it was"
    assert [each.name for each in path.parent.iterdir()] == ["a.extxyz"]


def test_predictions_beside_references(tmp_path):
    """References keep their names; a second pass over the file replaces the predictions."""
    made = [*labelled(2), molecule("H2O")]
    path = tmp_path / "a.extxyz"
    for energy in (1.0, 2.0):
        write_structures(path, made, [Found(energy, np.full((len(atoms), 3), energy), np.eye(3)) for atoms in made])
        found = read_structures(path)
        for before, after in zip(made[:2], found[:2], strict=True):
            assert np.isclose(references(before).energy, references(after).energy)
            assert np.allclose(references(before).forces, references(after).forces, atol=1e-7)
        for after in found:
            assert after.info["cnnkit_energy"] == energy and np.allclose(after.arrays["cnnkit_forces"], energy)
            assert np.allclose(np.reshape(after.info["cnnkit_stress"], (3, 3)), np.eye(3))
        assert not references(found[2]).any
        made = found


def test_a_writing_that_fails_leaves_nothing(tmp_path):
    class Half:
        energy, forces, stress = 1.0, "no forces", None

    with pytest.raises(Exception):  # noqa: B017 - whatever the writer says.
        write_structures(tmp_path / "a.extxyz", [molecule("H2O")], [Half()])
    assert list(tmp_path.iterdir()) == []


def test_the_table(tmp_path):
    made = [*labelled(1), molecule("H2O")]
    forces = made[0].get_forces()
    found = [Found(references(made[0]).energy + 0.4, forces + 0.01, -0.1 * np.eye(3)), Found(-14.0)]
    rows = list(csv.DictReader(write_table(tmp_path / "a.csv", made, found, [0, 7]).read_text().splitlines()))
    assert [row["Frame"] for row in rows] == ["0", "7"] and [row["Formula"] for row in rows] == ["Cu4", "H2O"]
    assert float(rows[0]["Error per atom (meV)"]) == pytest.approx(100) and rows[1]["Error per atom (meV)"] == ""
    assert float(rows[0]["Mean error of forces (meV/A)"]) == pytest.approx(10) and float(rows[0]["Pressure (GPa)"]) == pytest.approx(
        16.0218, abs=1e-3
    )
    assert float(rows[0]["Largest force (eV/A)"]) == pytest.approx(np.linalg.norm(forces + 0.01, axis=1).max(), abs=1e-6)
    assert rows[1]["Energy per atom (eV)"] == "-4.666667" and rows[1]["Largest force (eV/A)"] == ""
    plain = write_table(tmp_path / "b.csv", made[1:], found[1:]).read_text()
    assert "Reference" not in plain and plain.splitlines()[1].startswith("0,H2O,3,-14.000000,")

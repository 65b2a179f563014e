"""Files of structures: extxyz, xyz, cif, VASP, ASE's trajectories and data bases in; extxyz and tables out.

A frame that is damaged never costs the others: it is left out with a warning. Nothing is ever unpickled: ASE's trajectories and data
bases hold JSON and numbers, and older ones that hold pickles are refused.
"""

from __future__ import annotations

import io
import math
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from cnnkit.checkpoint import is_pickle
from cnnkit.engine.files import atomic_path, write_rows
from cnnkit.errors import InputError, InputWarning, UsageError

from cnnkit_equivariant.atoms.extxyz import spans
from cnnkit_equivariant.atoms.structures import check_structure, references, voigt, warn_of_units

PREFIX = "cnnkit_"
"""What stands before the names of predictions in files whose structures came with references."""
MOST_TOLD = 5
"""Bad frames that are told one by one."""


class Predicted(Protocol):
    """What is written of a structure: eV, eV/A ``(N, 3)``, eV/A^3 ``(3, 3)``; ``None`` for what was not asked for."""

    energy: float
    forces: np.ndarray | None
    stress: np.ndarray | None


@dataclass(frozen=True)
class Frame:
    """One structure of a file.

    Args:
        number: Its place in the file, from 0.
        atoms: The structure.
    """

    number: int
    atoms: Atoms


def read_structures(path: str | Path, frames: str = ":") -> list[Atoms]:
    """Read structures; see :func:`read_frames`."""
    return [frame.atoms for frame in read_frames(path, frames)]


def read_frames(path: str | Path, frames: str = ":") -> list[Frame]:
    """Read structures with their places in the file.

    Energies, forces and stresses that the file states come as results of a calculator that computes nothing. Frames that cannot be used
    are left out with an :class:`~cnnkit.errors.InputWarning`; another warns of references that look like another unit's.

    Args:
        path: An extxyz, xyz, cif, vasp, poscar, traj or db file, told by its ending.
        frames: Which, as ASE counts them: ``":"`` for all, ``"-1"`` for the last, ``"::10"`` for every tenth.

    Raises:
        UsageError: If ``frames`` is no number or slice.
        InputError: If the file cannot be read, or none of the frames can be used.
    """
    path = Path(path)
    which = parse_frames(frames)
    opened = READERS.get(path.suffix.lower())
    if opened is None:
        raise InputError(f"{path} is no file of structures; accepted: {', '.join(READERS)}")
    _refuse_pickles(path)
    with opened(path) as reader:
        chosen = _chosen(which, reader.count, path)
        good, bad = [], {}
        for number in chosen:
            try:
                atoms = reader.read(number)
                check_structure(atoms)
                good.append(Frame(number, atoms))
            except Exception as error:  # What a damaged frame ends in is up to its bytes.
                bad[number] = str(error) if isinstance(error, InputError) else f"cannot be read ({_line(error)})"
    if not good:
        number, cause = next(iter(bad.items()))
        raise InputError(f"{path}: no structure can be used; frame {number}: {cause}")
    for number, cause in list(bad.items())[:MOST_TOLD]:
        warnings.warn(f"{path.name}: frame {number} is left out: {cause}", InputWarning, stacklevel=2)
    if len(bad) > MOST_TOLD:
        warnings.warn(f"{path.name}: {len(bad) - MOST_TOLD} more of {len(chosen)} frames are left out", InputWarning, stacklevel=2)
    warn_of_units([frame.atoms for frame in good], path.name)
    return good


def parse_frames(text: str) -> int | slice:
    """Return the number or slice that a text says.

    Raises:
        UsageError: If it is neither.
    """
    try:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError:
        parts = []
    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] == 0):
        raise UsageError(f"--frames {text!r} is no slice; type for example : for all, -1 for the last, 0:100 or ::10")
    return slice(*parts)


def _chosen(which: int | slice, count: int, path: Path) -> Sequence[int]:
    if count == 0:
        raise InputError(f"{path} holds no structure")
    try:
        chosen = range(count)[which]
    except IndexError as error:
        raise InputError(f"{path} holds {count} structures, counted from 0; there is no frame {which}") from error
    numbers = [chosen] if isinstance(chosen, int) else list(chosen)
    if not numbers:
        raise InputError(f"{path} holds {count} structures; the chosen frames are none of them")
    return numbers


# Reading.


@dataclass(frozen=True)
class _Reader:
    """How many structures there are, and how to read one."""

    count: int
    read: Callable[[int], Atoms]


@contextmanager
def _open_xyz(path: Path) -> Iterator[_Reader]:
    from ase.io.extxyz import read_xyz

    with open(path, "rb") as stream:
        found = spans(stream)

        def read(number: int) -> Atoms:
            span = found[number]
            if span.problem:
                raise InputError(span.problem)
            stream.seek(span.start)
            text = stream.read(span.stop - span.start).decode("utf-8-sig", "replace")
            return next(iter(read_xyz(io.StringIO(text), 0)))

        yield _Reader(len(found), read)


@contextmanager
def _open_trajectory(path: Path) -> Iterator[_Reader]:
    from ase.io.trajectory import TrajectoryReader

    with _reading(path):
        trajectory = TrajectoryReader(str(path))
    with closing(trajectory):
        yield _Reader(len(trajectory), trajectory.__getitem__)


@contextmanager
def _open_database(path: Path) -> Iterator[_Reader]:
    from ase.db import connect

    with _reading(path):
        # Looked at first without the right to write: ASE would add its tables to a data base of somebody else.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            ids = [row[0] for row in connection.execute("SELECT id FROM systems ORDER BY id")]
        database = connect(str(path), type="db", use_lock_file=False)

    def read(number: int) -> Atoms:
        row = database.get(id=ids[number])
        atoms = row.toatoms()
        atoms.info.update(row.key_value_pairs)
        return atoms

    yield _Reader(len(ids), read)


def _whole(form: str) -> Callable[[Path], Any]:
    """Return what opens files of a format that are read as a whole."""

    @contextmanager
    def opened(path: Path) -> Iterator[_Reader]:
        from ase.io import read

        with _reading(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of ASE's, about cell parameters that it rounds.
            found: list[Atoms] = read(path, index=":", format=form)  # type: ignore[assignment]
        yield _Reader(len(found), found.__getitem__)

    return opened


READERS: dict[str, Callable[[Path], Any]] = {
    ".extxyz": _open_xyz,
    ".xyz": _open_xyz,
    ".cif": _whole("cif"),
    ".vasp": _whole("vasp"),
    ".poscar": _whole("vasp"),
    ".traj": _open_trajectory,
    ".db": _open_database,
}
"""What opens a file, by its ending."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file ends in into one line."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{path} cannot be read as {path.suffix[1:]}: {_line(error)}") from error


def _refuse_pickles(path: Path) -> None:
    try:
        with open(path, "rb") as stream:
            start = stream.read(16)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise InputError(f"{path} is empty")
    if start.startswith(b"PickleTrajectory") or is_pickle(start):
        raise InputError(f"{path} is a pickle, which can run any code when it is opened, and is never opened here; save it as extxyz")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# Writing.


def write_structures(path: str | Path, structures: Sequence[Atoms], predictions: Sequence[Predicted]) -> Path:
    """Write structures with what was predicted of them as extxyz, atomically.

    Predictions stand as ``energy``, ``forces`` and ``stress``, as ASE writes and reads them; if any of the structures came with such
    references, those keep their names and the predictions are ``cnnkit_energy``, ``cnnkit_forces`` and ``cnnkit_stress``. What else the
    structures say of themselves stays, as far as extxyz can hold it.

    Args:
        path: The file.
        structures: As they were read.
        predictions: One for each.

    Returns:
        The path.
    """
    from ase.io.extxyz import write_xyz

    own = [_stated(atoms) for atoms in structures]
    prefix = PREFIX if any(own) else ""
    images = [_image(atoms, known, found, prefix) for atoms, known, found in zip(structures, own, predictions, strict=True)]
    with atomic_path(path) as part, open(part, "w", encoding="utf-8") as stream:
        write_xyz(stream, images)
    return Path(path)


def _stated(atoms: Atoms) -> dict[str, Any]:
    """Return the references that a structure's calculator has."""
    if atoms.calc is None:
        return {}
    found = {name: atoms.calc.get_property(name, atoms, allow_calculation=False) for name in ("energy", "forces", "stress")}
    return {name: value for name, value in found.items() if value is not None and np.isfinite(value).any()}


def _image(atoms: Atoms, known: dict[str, Any], found: Predicted, prefix: str) -> Atoms:
    image = atoms.copy()
    image.info = {key: _plain(value) for key, value in atoms.info.items() if _plain(value) is not None}
    image.set_constraint([each for each in atoms.constraints if isinstance(each, (FixAtoms, FixCartesian))])
    for name in ("energy", "forces", "stress"):  # A name that is about to be written must not stand there already.
        image.info.pop(prefix + name, None)
        image.arrays.pop(prefix + name, None)
    results = {"energy": found.energy, "forces": found.forces, "stress": None if found.stress is None else voigt(found.stress)}
    results = {name: value for name, value in results.items() if value is not None}
    image.calc = SinglePointCalculator(image, **(known if prefix else results))
    if prefix:
        image.info[f"{prefix}energy"] = found.energy
        if found.forces is not None:
            image.arrays[f"{prefix}forces"] = np.asarray(found.forces, float)
        if found.stress is not None:
            image.info[f"{prefix}stress"] = np.asarray(found.stress, float)
    return image


def _plain(value: Any) -> Any:
    """Return a value that the second line of a frame can hold, or ``None``."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return value
    array = np.asarray(value) if isinstance(value, (list, tuple, np.ndarray)) else np.zeros(0)
    return array if array.size and array.dtype.kind in "bif" and array.ndim <= 2 else None


def write_table(path: str | Path, structures: Sequence[Atoms], predictions: Sequence[Predicted], numbers: Sequence[int] = ()) -> Path:
    """Write a row for each structure as CSV, atomically; beside references, if any structure has some.

    Args:
        path: The file.
        structures: As they were read.
        predictions: One for each.
        numbers: Their places in the file; 0, 1, ... by default.

    Returns:
        The path.
    """
    known = [references(atoms) for atoms in structures]
    head = ["Frame", "Formula", "Atoms", "Energy (eV)", "Energy per atom (eV)", "Largest force (eV/A)", "Pressure (GPa)"]
    compared = any(each.any for each in known)
    head += ["Reference energy (eV)", "Error per atom (meV)", "Mean error of forces (meV/A)"] * compared
    rows = []
    for number, atoms, one, found in zip(numbers or range(len(structures)), structures, known, predictions, strict=True):
        count = len(atoms)
        forces = float("nan") if found.forces is None else float(np.linalg.norm(found.forces, axis=1).max())
        pressure = float("nan") if found.stress is None else -float(np.trace(found.stress)) / 3 * 160.21766208
        row = [str(number), atoms.get_chemical_formula(), str(count), *_numbers(found.energy, found.energy / count, forces, pressure)]
        if compared:
            error = float("nan") if found.forces is None else _mean(np.abs(found.forces - one.forces)) * 1e3
            row += _numbers(one.energy, (found.energy - one.energy) / count * 1e3, error)
        rows.append(row)
    return write_rows(path, [head, *rows])


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _numbers(*values: float) -> list[str]:
    return [f"{value:.6f}" if math.isfinite(value) else "" for value in values]

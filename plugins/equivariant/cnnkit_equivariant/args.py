"""Options of ``cnnkit run equivariant``. No torch, no numpy, no ASE: this is imported for ``--help``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cnnkit.errors import UsageError
from cnnkit.options import RunOptions, option

STRUCTURES = (".extxyz", ".xyz", ".cif", ".vasp", ".poscar", ".traj", ".db")
FIELDS = (".npy", ".png")


@dataclass(frozen=True)
class Run(RunOptions):
    """Predict energies and forces of structures (extxyz, xyz, cif, VASP, ASE), or classes of fields and pictures (npy, png)."""

    suffixes: ClassVar[tuple[str, ...]] = (*STRUCTURES, *FIELDS)
    writes: ClassVar[str] = "NAME.extxyz (eV, eV/A), NAME.csv; with --relax NAME.relaxed.extxyz and NAME.png; of fields NAME.csv"

    forces: bool = option(True, "Forces too; energies alone take less than half the time.")
    stress: bool = option(False, "The stress of periodic cells too, in eV/A^3.")
    frames: str = option(
        ":", "Which structures of a file, as ASE counts them: : for all, -1 for the last, ::10 for every tenth.", metavar="SLICE"
    )
    relax: bool = option(False, "Move the atoms until no force is larger than --fmax.")
    cell: bool = option(False, "With --relax, change the cell too.")
    fmax: float = option(0.05, "Largest force that a relaxed structure has, in eV/A.", metavar="FORCE")
    steps: int = option(200, "Steps of a relaxation at most.", metavar="N")
    dtype: Literal["float32", "float64"] = option(
        "float32", "Arithmetic; float64 for relaxations to small forces.", choices=("float32", "float64")
    )
    top: int = option(3, "Classes that are written for one field at most.", metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fmax > 0:
            raise UsageError(f"--fmax {self.fmax} is no force that a relaxation reaches; accepted: more than 0 eV/A")
        if self.steps < 1:
            raise UsageError(f"--steps {self.steps} would move nothing; accepted: 1 or more")
        if self.top < 1:
            raise UsageError(f"--top {self.top} would write nothing; accepted: 1 or more")
        if self.cell and not self.relax:
            raise UsageError("--cell changes the cell of a relaxation; add --relax, or leave --cell out")
        if self.relax and not self.forces:
            raise UsageError("--relax follows the forces; leave out --no-forces")

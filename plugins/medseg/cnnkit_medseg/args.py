"""Options of ``cnnkit run medseg``. No torch, no numpy: this is imported for ``--help``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cnnkit.errors import InputError
from cnnkit.options import RunOptions, option


@dataclass(frozen=True)
class Run(RunOptions):
    """Segment CT and MR volumes: NIfTI, NRRD, MHA, a DICOM series folder, or a folder of these."""

    writes: ClassVar[str] = "CASE.nii.gz (labels), CASE_overlay.png, CASE_statistics.json"

    overlap: float | None = option(None, "Share of the window that neighbouring windows share; the checkpoint's if not given.")
    grid: str | None = option(None, "Placement of the windows; the checkpoint's if not given.", choices=("nnunet", "monai"))
    mirror: bool | None = option(None, "Average over mirrored copies: slower, a little better.")
    largest_component: bool | None = option(None, "Keep the largest connected part of each class.")
    overlay: bool = option(True, "Write CASE_overlay.png.")
    statistics: bool = option(True, "Write CASE_statistics.json with volumes in millilitres.")
    save_probabilities: bool = option(False, "Write CASE_probabilities.nii.gz too (memory of classes x volume).")
    nonfinite: Literal["refuse", "zero"] = option("refuse", "What to do with NaN and infinite voxels.", choices=("refuse", "zero"))
    geometry: Literal["refuse", "sform", "qform"] = option(
        "refuse", "Which NIfTI geometry to trust if sform and qform differ.", choices=("refuse", "sform", "qform")
    )

    def group(self) -> Mapping[str, tuple[Path, ...] | InputError]:
        """Return the files of each case by name: channels of one case together, a DICOM series as its folder."""
        from cnnkit_medseg.cases import find_cases

        return find_cases(self.inputs)

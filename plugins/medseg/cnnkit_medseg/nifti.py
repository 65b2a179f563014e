"""NIfTI-1 and NIfTI-2 files: what the header claims is checked before it is believed, and written back as it was."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from cnnkit.engine.files import atomic_path
from cnnkit.errors import InputError
from numpy.typing import NDArray

from cnnkit_medseg.geometry import Affine, Grid, check_affine, from_ras, spacing_of

Geometry = Literal["refuse", "sform", "qform"]


def read_nifti(path: Path, geometry: Geometry = "refuse") -> tuple[NDArray[Any], float, float, Grid, list[str]]:
    """Read the stored values of a NIfTI file and its grid.

    A compressed file is decompressed to its end, so that its checksum is verified.

    Args:
        path: ``.nii``, ``.nii.gz``, or either half of a ``.hdr``/``.img`` pair.
        geometry: What to do if sform and qform contradict each other: refuse the file, or believe one of them.

    Returns:
        Stored values ``(*spatial)`` or ``(*spatial, C)``, slope and intercept of their scale, grid, and warnings.

    Raises:
        InputError: If the file is damaged, is no NIfTI file, or holds no real-valued volume with a sound affine.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image: Any = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise InputError(
                f"{path}: not a NIfTI file but {type(image).__name__} (Analyze 7.5 cannot tell left from right); convert it to NIfTI"
            )
        header = _stored_header(image)
        _check_contents(path, image)
        affine, warnings = _choose_affine(path, header, image.header, geometry)
        values = _stored_values(path, image)
        proxy: Any = image.dataobj
        slope, inter = float(proxy.slope), float(proxy.inter)
    except (ImageFileError, HeaderDataError) as error:
        raise InputError(f"{path}: not a NIfTI file, or its header is damaged ({error})") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: truncated or damaged gzip file ({error}); copy or download it again") from error
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    x, y, z = (int(size) for size in image.shape[:3])
    return values, slope, inter, Grid((x, y, z), affine, _single_file_header(image.header), str(path)), warnings


def _stored_header(image: Any) -> Any:
    """Read the header as it is in the file: nibabel's own copy has zero spacings already replaced by 1."""
    holder = image.file_map.get("header", image.file_map["image"])
    with holder.get_prepare_fileobj("rb") as file:
        return image.header_class.from_fileobj(file, check=False)


def _check_contents(path: Path, image: Any) -> None:
    dtype, shape = image.get_data_dtype(), image.shape
    if dtype.fields is not None:
        raise InputError(f"{path}: RGB colour image (voxel type {dtype}); a volume of intensities is needed, one number per voxel")
    if dtype.kind == "c":
        raise InputError(f"{path}: complex voxels ({dtype}); store the magnitude as a real-valued volume")
    if len(shape) < 3:
        raise InputError(f"{path}: {len(shape)}-D image of shape {shape}; a 3-D volume is needed")
    if min(shape) < 1:
        raise InputError(f"{path}: empty volume of shape {shape}")
    if len(shape) > 5 or (len(shape) == 5 and shape[3] != 1):
        raise InputError(
            f"{path}: {len(shape)}-D image of shape {shape}; accepted are (X, Y, Z), (X, Y, Z, C) and (X, Y, Z, 1, C) with channels C"
        )


def _choose_affine(path: Path, stored: Any, header: Any, geometry: Geometry) -> tuple[Affine, list[str]]:
    """Take the affine that the codes point to; refuse two that contradict each other unless ``geometry`` decides."""
    has_sform, has_qform = int(stored["sform_code"]) > 0, int(stored["qform_code"]) > 0
    sizes = np.asarray(stored["pixdim"][1:4], np.float64)
    if not has_sform and (not np.isfinite(sizes).all() or (sizes == 0).any()):
        raise InputError(f"{path}: zero spacing: the header gives voxels of {sizes.tolist()} mm; set the true voxel size in the header")
    warnings = []
    if not has_sform and not has_qform:
        warnings.append("the header states no orientation (sform and qform codes are 0); axes are taken as left, anterior, superior")
    unit = header.get_xyzt_units()[0]
    if unit in ("meter", "micron"):
        warnings.append(f"the header gives lengths in {unit}s; they are read as mm")
    affine = header.get_best_affine()
    if has_sform and geometry == "qform" and has_qform:
        affine = header.get_qform()
    elif has_sform and has_qform and geometry == "refuse":
        sform, qform = check_affine(header.get_sform(), path), header.get_qform()
        if _differ(sform, qform):
            raise InputError(
                f"{path}: sform and qform contradict each other (by up to {np.abs(sform - qform).max():.3g} mm); "
                "choose the right one with --geometry sform or --geometry qform, or repair the header"
            )
    return check_affine(affine, path), warnings


def _differ(first: Affine, second: Affine, relative: float = 1e-3) -> bool:
    axes = np.abs(first[:3, :3] - second[:3, :3]).max() > relative * max(spacing_of(first))
    return bool(axes or np.abs(first[:3, 3] - second[:3, 3]).max() > relative * max(1.0, np.abs(first[:3, 3]).max()))


def _stored_values(path: Path, image: Any) -> NDArray[Any]:
    """Return the unscaled values in the file's axis order, ``(*spatial)`` or ``(*spatial, C)``, without a copy."""
    proxy = image.dataobj
    file = Path(image.file_map["image"].filename)
    needed = proxy.offset + int(np.prod(image.shape, dtype=np.int64)) * proxy.dtype.itemsize
    if file.suffix.lower() == ".gz":
        data = gzip.decompress(file.read_bytes())
        _check_size(path, len(data), needed)
        values = np.ndarray(image.shape, proxy.dtype, buffer=data, offset=proxy.offset, order="F")
    else:
        _check_size(path, file.stat().st_size, needed)
        values = proxy.get_unscaled()
    return values[:, :, :, 0] if values.ndim == 5 else values


def _check_size(path: Path, size: int, needed: int) -> None:
    if size < needed:
        raise InputError(f"{path}: truncated: the header promises {needed} bytes, the file has {size}; copy or download it again")


def _single_file_header(header: Any) -> Any:
    """Return a copy that can head a ``.nii`` file, with the geometry's bytes untouched and nothing that describes the source's values."""
    import nibabel as nib

    kind = nib.Nifti2Header if isinstance(header, nib.Nifti2Header) else nib.Nifti1Header
    copy = kind(header.binaryblock, endianness=header.endianness, check=False)
    copy["magic"] = copy.single_magic
    for key in ("descrip", "aux_file", "intent_name"):
        copy[key] = b""
    for key in ("cal_max", "cal_min", "intent_code", "intent_p1", "intent_p2", "intent_p3"):
        copy[key] = 0
    return copy


def write_nifti(path: str | Path, values: NDArray[Any], grid: Grid, *, scale: float = 1.0, names: Mapping[int, str] | None = None) -> Path:
    """Write stored values, given in RAS order, on the grid of the source, atomically.

    For a NIfTI source, qform, sform, their codes and the voxel sizes are written bit for bit as they were. Gzip level 1 is
    used (nibabel's default): on label maps it is several times faster than level 6 and the files stay small.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        values: ``(X, Y, Z)`` or ``(C, X, Y, Z)`` in RAS order, of the type to be stored.
        grid: Grid of the source volume.
        scale: What a reader multiplies the stored values by.
        names: Names of the labels, stored in a header extension.

    Raises:
        InputError: If the shape is not that of the grid, or the suffix is not NIfTI's.
    """
    import nibabel as nib

    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: results are written as .nii or .nii.gz")
    if tuple(values.shape[-3:]) != grid.ras_shape:
        source = grid.source or "the source"
        raise InputError(f"{path}: values of shape {values.shape} do not fit the grid of {source}, {grid.ras_shape} in RAS order")
    stored = from_ras(values, grid.orientation)
    if stored.ndim == 4:
        stored = np.moveaxis(stored, 0, -1)
    if grid.header is None:
        image = nib.Nifti1Image(stored, grid.affine, dtype=stored.dtype)
        image.set_sform(grid.affine, code="scanner")
        image.set_qform(grid.affine, code="scanner")
        image.header.set_xyzt_units("mm")
    else:
        header = grid.header.copy()
        header.set_data_dtype(stored.dtype)
        header.set_data_shape(stored.shape)
        # The header's own affine keeps nibabel from writing qform and sform anew, also where another affine was believed.
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(stored, header.get_best_affine(), header)
    image.header["descrip"] = b"cnnkit"
    image.header.set_slope_inter(scale, 0.0)
    if names:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, _names_to_xml(names)))
    with atomic_path(path) as part:
        nib.save(image, part)
    return path


def _names_to_xml(names: Mapping[int, str]) -> bytes:
    """Compose the label table in the XML of Caret, which TotalSegmentator writes and viewers understand."""
    from cnnkit_medseg.overlay import palette

    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    for (label, name), colour in zip(sorted(names.items()), palette(len(names)), strict=True):
        red, green, blue = (f"{value / 255:.4f}" for value in colour)
        ElementTree.SubElement(table, "Label", Key=str(label), Red=red, Green=green, Blue=blue, Alpha="1").text = name
    ElementTree.SubElement(volume, "StudyMetaDataLinkSet")
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    return ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)


def read_label_names(path: str | Path) -> dict[int, str]:
    """Return the label names in the header extension of a NIfTI file; empty if it has none.

    Raises:
        InputError: If the file is no NIfTI file.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        extensions = getattr(nib.load(path).header, "extensions", [])
    except (ImageFileError, OSError) as error:
        raise InputError(f"{path}: not a NIfTI file ({error})") from error
    for extension in extensions:
        content = extension.get_content()
        content = content if isinstance(content, bytes) else str(content).encode()
        if b"<LabelTable" in content:
            root = ElementTree.fromstring(content.rstrip(b"\0 \n"))
            return {int(label.attrib["Key"]): (label.text or "").strip() for label in root.iter("Label")}
    return {}

"""Reading and writing volumes. Oracles: nibabel for NIfTI, SimpleITK for the other formats."""

from __future__ import annotations

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from cnnkit.errors import InputError
from cnnkit_medseg.io import Labels, read_label_names, read_labels, read_volume, write_labels, write_probabilities

RNG = np.random.default_rng(7)
COS, SIN = np.cos(0.3), np.sin(0.3)
OBLIQUE = np.array([[COS, -SIN, 0], [SIN, COS, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, COS, -SIN], [0, SIN, COS]])
GEOMETRY_FIELDS = [
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
]


def affine_of(axes=(0, 1, 2), signs=(1, 1, 1), turn=OBLIQUE) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.eye(3)[:, axes] * signs * (0.7, 1.25, 3.0)
    affine[:3, 3] = (-91.3, 12.5, 40.1)
    return affine


def save(path: Path, values, affine=None, *, kind=nib.Nifti1Image, sform: int = 1, qform: int = 1) -> Path:
    image = kind(values, affine_of() if affine is None else affine, dtype=np.asarray(values).dtype)
    image.set_sform(image.affine, sform)
    image.set_qform(image.affine, qform)
    nib.save(image, path)
    return path


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


# Reading NIfTI


@pytest.mark.parametrize("turn", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_round_trip_of_every_orientation_is_exact(tmp_path, axes, turn):
    for index, signs in enumerate(product((1, -1), repeat=3)):
        affine = affine_of(axes, signs, turn)
        values = RNG.integers(0, 9, (5, 3, 4)).astype(np.uint8)
        path = save(tmp_path / f"{index}.nii", values, affine, sform=index % 3 + 1, qform=index % 2)
        volume = read_volume([path])
        expected = nib.as_closest_canonical(nib.load(path))
        np.testing.assert_array_equal(volume.array[0], expected.get_fdata())
        np.testing.assert_allclose(volume.affine, expected.affine, rtol=0, atol=1e-12)
        np.testing.assert_allclose(volume.spacing, expected.header.get_zooms(), rtol=1e-6)
        assert volume.array.dtype == np.float32 and volume.array.flags.c_contiguous
        out = write_labels(tmp_path / "out.nii.gz", volume.array[0].astype(np.int64), volume.grid)
        source, written = nib.load(path), nib.load(out)
        np.testing.assert_array_equal(written.get_fdata(), values)
        for key in GEOMETRY_FIELDS:
            assert source.header[key].tobytes() == written.header[key].tobytes(), key
        assert written.affine.tobytes() == source.affine.tobytes()


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_values_are_those_of_nibabel(tmp_path, dtype, suffix):
    path = save(tmp_path / f"a.{suffix}", (RNG.random((5, 37, 41)) * 200).astype(dtype))
    np.testing.assert_array_equal(read_volume([path]).array[0], nib.load(path).get_fdata().astype(np.float32))


def test_scale_of_the_header_is_applied(tmp_path):
    image = nib.Nifti1Image(RNG.integers(-1000, 3000, (5, 6, 40)).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.37, -1024.5)
    nib.save(image, tmp_path / "a.nii.gz")
    oracle = nib.load(tmp_path / "a.nii.gz").get_fdata().astype(np.float32)
    assert oracle.min() < -1100  # The scale is in effect.
    np.testing.assert_array_equal(read_volume([tmp_path / "a.nii.gz"]).array[0], oracle)


def test_channels_in_the_last_axis(tmp_path):
    values = noise(4, 5, 6, 3)
    four, five = save(tmp_path / "four.nii.gz", values), save(tmp_path / "five.nii.gz", values[:, :, :, None])
    for path in (four, five):
        np.testing.assert_array_equal(read_volume([path], channels=3).array, np.moveaxis(values, -1, 0))
    with pytest.raises(InputError, match=r"four\.nii\.gz: 3 channels; the model takes 1"):
        read_volume([four], channels=1)
    out = nib.load(write_labels(tmp_path / "out.nii", np.ones((4, 5, 6), int), read_volume([four]).grid))
    assert out.shape == (4, 5, 6)


@pytest.mark.parametrize("kind", [nib.Nifti2Image, nib.Nifti1Pair])
def test_other_kinds_of_nifti(tmp_path, kind):
    path = save(tmp_path / ("a.hdr" if kind is nib.Nifti1Pair else "a.nii"), noise(3, 4, 5), kind=kind)
    volume = read_volume([path])
    np.testing.assert_array_equal(volume.array[0], nib.load(path).get_fdata())
    out = nib.load(write_labels(tmp_path / "out.nii.gz", np.ones((3, 4, 5), np.uint8), volume.grid))
    assert isinstance(out, nib.Nifti2Image if kind is nib.Nifti2Image else nib.Nifti1Image)
    assert out.affine.tobytes() == nib.load(path).affine.tobytes()


def test_big_endian(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nib.save(nib.Nifti1Image(RNG.integers(0, 99, (3, 4, 5)).astype(">i2"), np.eye(4), header), tmp_path / "a.nii.gz")
    volume = read_volume([tmp_path / "a.nii.gz"])
    np.testing.assert_array_equal(volume.array[0], nib.load(tmp_path / "a.nii.gz").get_fdata())
    out = nib.load(write_labels(tmp_path / "o.nii", volume.array[0].astype(int) + 300, volume.grid))
    np.testing.assert_array_equal(out.get_fdata(), volume.array[0] + 300)


def test_multi_file_channels(tmp_path):
    a, b = noise(4, 5, 6), noise(4, 5, 6)
    files = [save(tmp_path / "p_0000.nii.gz", a), save(tmp_path / "p_0001.nii.gz", b)]
    volume = read_volume(files, channels=2)
    np.testing.assert_array_equal(volume.array, [a, b])
    assert volume.name == "p" and volume.files == tuple(files)
    moved = affine_of()
    moved[0, 3] += 0.5
    for other in (save(tmp_path / "moved.nii.gz", a, moved), save(tmp_path / "small.nii.gz", noise(4, 5, 5))):
        with pytest.raises(InputError, match=rf"{other.name}.* and .*p_0000\.nii\.gz"):
            read_volume([files[0], other])
    with pytest.raises(InputError, match="2 channels in one of 2"):
        read_volume([files[0], save(tmp_path / "two.nii.gz", noise(4, 5, 6, 2))])


# Refusals


def truncated(folder: Path) -> Path:
    path = save(folder / "a.nii.gz", noise(20, 20, 20))
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def wrong_checksum(folder: Path) -> Path:
    path = save(folder / "a.nii.gz", noise(8, 8, 8))
    data = bytearray(path.read_bytes())
    data[-8] ^= 0xFF
    path.write_bytes(data)
    return path


def short(folder: Path) -> Path:
    path = save(folder / "a.nii", noise(8, 8, 8))
    path.write_bytes(path.read_bytes()[:-100])
    return path


def short_gz(folder: Path) -> Path:
    path = save(folder / "b.nii", noise(8, 8, 8))
    (folder / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()[:-100]))
    return folder / "a.nii.gz"


def text(folder: Path) -> Path:
    (folder / "a.nii.gz").write_bytes(b"this is no volume" * 100)
    return folder / "a.nii.gz"


def edited(folder: Path, **fields) -> Path:
    path = save(folder / "a.nii", noise(3, 4, 5))
    data = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for key, value in fields.items():
        header[key] = value
    data[:348] = header.binaryblock
    path.write_bytes(data)
    return path


REFUSED = {
    "truncated gzip": (truncated, "truncated or damaged gzip"),
    "wrong checksum": (wrong_checksum, "CRC"),
    "shorter than promised": (short, "truncated: the header promises"),
    "shorter than promised, gzip": (short_gz, "truncated: the header promises"),
    "not NIfTI": (text, "not a NIfTI|gzip"),
    "not NIfTI, plain": (lambda f: text(f).rename(f / "t.nii"), "not a NIfTI"),
    "empty file": (lambda f: ((f / "a.nii").touch(), f / "a.nii")[1], "not a NIfTI"),
    "Analyze": (lambda f: save_analyze(f / "a.img"), "Analyze"),
    "2-D": (lambda f: save(f / "a.nii", noise(4, 5)), "2-D image"),
    "time series of vectors": (lambda f: save(f / "a.nii", noise(3, 4, 5, 2, 2)), "5-D image"),
    "RGB": (lambda f: save(f / "a.nii", np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "RGB"),
    "complex": (lambda f: save(f / "a.nii", noise(3, 4, 5).astype(np.complex64)), "complex"),
    "zero spacing": (lambda f: edited(f, sform_code=0, pixdim=[1, 0, 1, 1, 1, 1, 1, 1]), "zero spacing"),
    "NaN in affine": (lambda f: edited(f, qform_code=0, srow_x=[np.nan, 0, 0, 0]), "not finite"),
    "sheared sform": (lambda f: edited(f, qform_code=0, srow_x=[1, 0.5, 0, 0]), "non-orthonormal"),
    "sform against qform": (lambda f: edited(f, qoffset_x=50), "contradict each other.*--geometry"),
    "no such file": (lambda f: f / "a.nii", "no such file"),
    "unknown suffix": (lambda f: text(f).rename(f / "a.xyz"), "accepted are"),
    "NRRD that is none": (lambda f: text(f).rename(f / "a.nrrd"), "cannot be read"),
    "MHA without its data": (lambda f: save_itk(f / "a.mhd").with_suffix(".raw").unlink() or f / "a.mhd", "cannot be read"),
    "2-D MHA": (lambda f: save_itk(f / "a.mha", np.zeros((4, 5))), "2-D image"),
}


def save_analyze(path: Path) -> Path:
    nib.save(nib.AnalyzeImage(noise(3, 4, 5), np.eye(4)), path)
    return path


def save_itk(path: Path, values=None) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(noise(3, 4, 5) if values is None else values), str(path))
    return path


@pytest.mark.parametrize("reason", REFUSED)
def test_bad_file_is_refused_with_its_name_and_the_cause(tmp_path, reason):
    make, cause = REFUSED[reason]
    path = make(tmp_path)
    with pytest.raises(InputError, match=f"(?s){path.name}.*({cause})"):
        read_volume([path])


def test_no_files():
    with pytest.raises(InputError, match="has no files"):
        read_volume([], name="p")


def test_nonfinite_voxels_are_refused_or_replaced(tmp_path):
    values = noise(4, 5, 6)
    values[0, 0, 0], values[1, 2, 3], values[3, 4, 5] = np.nan, np.inf, -np.inf
    path = save(tmp_path / "a.nii.gz", values)
    with pytest.raises(InputError, match=r"a\.nii\.gz: 3 of 120 voxels"):
        read_volume([path])
    volume = read_volume([path], nonfinite="zero")
    np.testing.assert_array_equal(volume.array[0], np.where(np.isfinite(values), values, 0))
    assert len(volume.warnings) == 1 and "3 of 120 voxels" in volume.warnings[0]


def test_values_beyond_float32_are_not_silently_infinite(tmp_path):
    values = np.ones((3, 4, 5))
    values[1, 1, 1] = 1e300
    with pytest.raises(InputError, match="1 of 60"):
        read_volume([save(tmp_path / "a.nii", values)])


def test_contradicting_forms_can_be_decided(tmp_path):
    path = edited(tmp_path, qoffset_x=50)
    header = nib.load(path).header
    for choice, affine in (("sform", header.get_sform()), ("qform", header.get_qform())):
        volume = read_volume([path], geometry=choice)
        np.testing.assert_array_equal(volume.grid.affine, affine)
        written = nib.load(write_labels(tmp_path / "o.nii", np.ones(volume.array.shape[1:], int), volume.grid)).header
        assert all(written[key].tobytes() == header[key].tobytes() for key in GEOMETRY_FIELDS)


def test_warnings_for_what_is_odd_but_readable(tmp_path):
    assert "constant image" in read_volume([save(tmp_path / "a.nii", np.ones((3, 4, 5), np.uint8))]).warnings[0]
    assert "no orientation" in read_volume([save(tmp_path / "b.nii", noise(3, 4, 5), np.eye(4), sform=0, qform=0)]).warnings[0]
    assert "micron" in read_volume([edited(tmp_path, xyzt_units=3)]).warnings[0]


# NRRD, MetaImage, GIPL


@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd", "gipl"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_other_formats_place_every_voxel_where_simpleitk_does(tmp_path, suffix, axes):
    values = noise(4, 5, 6)
    image = sitk.GetImageFromArray(values)
    if suffix != "gipl":  # The format has no directions.
        image.SetDirection((OBLIQUE[:, axes] * (1, -1, 1)).ravel())
    image.SetSpacing((0.7, 1.25, 3.0))
    image.SetOrigin((-10.5, 20.25, 30))
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(image, str(path))
    volume = read_volume([path])
    for index in [(0, 0, 0), (5, 4, 3), (1, 3, 2)]:
        ras = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        voxel = np.linalg.solve(volume.affine, [*ras, 1])[:3]
        place = tuple(voxel.round().astype(int))
        np.testing.assert_allclose(voxel, place, atol=1e-4)
        assert volume.array[(0, *place)] == values[index[::-1]]
    out = write_labels(tmp_path / "o.nii.gz", (volume.array[0] > 0).astype(np.uint8), volume.grid)
    again = sitk.ReadImage(str(out))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), values > 0)
    np.testing.assert_allclose(again.GetOrigin(), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(again.GetDirection(), sitk.ReadImage(str(path)).GetDirection(), atol=1e-5)


def test_vectors_and_fourth_axis_are_channels(tmp_path):
    values = noise(4, 5, 6, 2)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), str(tmp_path / "a.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(np.moveaxis(values, -1, 0).copy(), isVector=False), str(tmp_path / "b.nrrd"))
    vectors, four = (read_volume([tmp_path / name], channels=2) for name in ("a.nrrd", "b.nrrd"))
    np.testing.assert_array_equal(vectors.array, four.array)
    # LPS in the file, RAS here: x and y run the other way.
    np.testing.assert_array_equal(vectors.array, values.transpose(3, 2, 1, 0)[:, ::-1, ::-1])


# Labels and probabilities


def test_labels_unpack_and_lie_as_the_volume_does(tmp_path):
    values = RNG.integers(0, 5, (4, 5, 6)).astype(np.float32)
    path = save(tmp_path / "a.nii.gz", values, affine_of((2, 0, 1), (-1, 1, -1)))
    labels, volume = read_labels(path), read_volume([path])
    assert isinstance(labels, Labels)
    array, spacing, affine = labels
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array, volume.array[0])
    np.testing.assert_array_equal(affine, volume.affine)
    assert spacing == volume.spacing


@pytest.mark.parametrize(("value", "text"), [(0.25, "0.25"), (np.nan, "nan"), (np.inf, "inf")])
def test_labels_that_are_no_integers_are_refused(tmp_path, value, text):
    values = np.ones((3, 4, 5), np.float32)
    values[1, 2, 3] = value
    with pytest.raises(InputError, match=rf"a\.nii: values such as {text}"):
        read_labels(save(tmp_path / "a.nii", values))


def test_large_labels_and_channels(tmp_path):
    values = np.full((3, 4, 5), 100_000, np.int32)
    assert read_labels(save(tmp_path / "a.nii", values)).array.max() == 100_000
    with pytest.raises(InputError, match="2 channels"):
        read_labels(save(tmp_path / "b.nii", noise(3, 4, 5, 2)))


@pytest.mark.parametrize(("high", "dtype"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_smallest_type_is_written_with_scale_one(tmp_path, high, dtype):
    volume = read_volume([save(tmp_path / "a.nii", noise(3, 4, 5))])
    labels = np.zeros((3, 4, 5), np.int64)
    labels[1, 2, 3] = high
    out = nib.load(write_labels(tmp_path / "deep" / "o.nii.gz", labels, volume.grid))
    assert out.get_data_dtype() == dtype and out.dataobj.slope == 1 and out.dataobj.inter == 0
    np.testing.assert_array_equal(out.dataobj, labels)


def test_source_scale_and_private_text_do_not_reach_the_result(tmp_path):
    image = nib.Nifti1Image(RNG.integers(0, 99, (3, 4, 5)).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(2.5, 7)
    image.header["descrip"], image.header["cal_max"] = b"Doe^Jane", 400
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"Doe^Jane"))
    nib.save(image, tmp_path / "a.nii")
    path = write_labels(tmp_path / "o.nii", np.ones((3, 4, 5), int), read_volume([tmp_path / "a.nii"]).grid)
    assert b"Doe" not in path.read_bytes()
    out = nib.load(path)
    np.testing.assert_array_equal(out.dataobj, 1)
    assert out.header["cal_max"] == 0


def test_names_travel_in_the_header(tmp_path):
    volume = read_volume([save(tmp_path / "a.nii", noise(3, 4, 5))])
    names = {1: "liver", 2: 'spleen & "gut" <é>', 7: "left kidney"}
    path = write_labels(tmp_path / "o.nii.gz", np.ones((3, 4, 5), int), volume.grid, names=names)
    assert read_label_names(path) == names
    np.testing.assert_array_equal(nib.load(path).dataobj, 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), 1)
    assert read_label_names(tmp_path / "a.nii") == {}


def test_results_that_do_not_fit_are_refused_and_leave_nothing(tmp_path):
    grid = read_volume([save(tmp_path / "a.nii", noise(3, 4, 5))]).grid
    for labels, cause in [
        (np.ones((3, 4, 6), int), "do not fit the grid"),
        (np.full((3, 4, 5), -1), "range from -1"),
        (np.full((3, 4, 5), 70000), "70000"),
        (np.ones((3, 4, 5)), "must be integers"),
    ]:
        with pytest.raises(InputError, match=cause):
            write_labels(tmp_path / "o.nii.gz", labels, grid)
    with pytest.raises(InputError, match=r"\.nii or \.nii\.gz"):
        write_labels(tmp_path / "o.nrrd", np.ones((3, 4, 5), int), grid)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    grid = read_volume([save(tmp_path / "a.nii", noise(3, 4, 5))]).grid
    path = write_labels(tmp_path / "o.nii.gz", np.ones((3, 4, 5), int), grid)
    before = path.read_bytes()

    def full_disk(image, target):
        Path(target).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_labels(path, np.zeros((3, 4, 5), int), grid)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("uint16", 0.5 / 65535 + 1e-7)])
def test_probabilities(tmp_path, dtype, tolerance):
    affine = affine_of((2, 0, 1), (-1, 1, -1))
    path = save(tmp_path / "a.nii.gz", noise(4, 5, 6), affine)
    volume = read_volume([path])
    probabilities = RNG.random((3, *volume.array.shape[1:])).astype(np.float32)
    out = write_probabilities(tmp_path / "p.nii.gz", probabilities, volume.grid, dtype=dtype)
    assert nib.load(out).shape == (4, 5, 6, 3) and nib.load(out).get_data_dtype() == dtype
    assert nib.load(out).affine.tobytes() == nib.load(path).affine.tobytes()
    np.testing.assert_allclose(read_volume([out]).array, probabilities, rtol=0, atol=tolerance)

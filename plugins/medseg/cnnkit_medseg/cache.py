"""Every training case is read, checked and preprocessed once, and then memory-mapped.

An entry is a folder whose name carries a digest of the case's files (size and time of change) and of the preprocessing, so what is
stale is not found. It is renamed into place when it is complete, so what is found is whole. No torch: worker processes start fast.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cnnkit.config import from_dict, to_dict
from cnnkit.engine.files import writable_folder, write_json
from cnnkit.errors import InputError
from numpy.typing import NDArray

from cnnkit_medseg.config import Config
from cnnkit_medseg.dataset import OUTSIDE, Case
from cnnkit_medseg.io import Volume, read_labels, read_volume
from cnnkit_medseg.plan import Fingerprint
from cnnkit_medseg.preprocess import crop_to_nonzero, intensity_statistics, normalise, resample_image, resample_labels

_FORMAT = 1  # Raise it when entries change.
_LOCATIONS = 10_000
_LOCATION_SEED = 1234
_INTENSITIES = 10_000_000  # Over all cases,
_INTENSITIES_OF_ONE = 100_000  # and of one.
_TOLERANCE = 0.1  # Voxels by which the grids of image and reference may differ: headers are rounded.

T = TypeVar("T")
_Measured = tuple[tuple[float, float, float], tuple[int, int, int], float, NDArray[np.float32]]


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case on disk.

    Args:
        name: Name of the case.
        folder: Folder of the entry.
        shape: Voxels on the network's grid.
        classes: Names of the foreground classes, in the configuration's order.
        offsets: Where the voxels of each class begin and end in the list of locations; the name ``""`` has what is annotated.
    """

    name: str
    folder: Path
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    offsets: dict[str, tuple[int, int]]

    @property
    def image(self) -> NDArray[np.float32]:
        """Image ``(C, X, Y, Z)``, memory-mapped."""
        return np.load(self.folder / "image.npy", mmap_mode="r")

    @property
    def label(self) -> NDArray[np.int16]:
        """Labels ``(X, Y, Z)``, memory-mapped; :data:`~cnnkit_medseg.dataset.OUTSIDE` beyond the mask, if there is one."""
        return np.load(self.folder / "label.npy", mmap_mode="r")

    @cached_property
    def _locations(self) -> NDArray[np.int32]:
        return np.load(self.folder / "locations.npy", mmap_mode="r")

    def locations(self, name: str) -> NDArray[np.int32]:
        """Return voxels ``(n, 3)`` of a class, 10 000 at most; for ``""``, of whatever is annotated."""
        start, stop = self.offsets[name]
        return self._locations[start:stop]

    def __getstate__(self) -> dict[str, Any]:  # A memory map would be copied into each worker.
        return {key: value for key, value in self.__dict__.items() if key != "_locations"}


def prepare_cases(cfg: Config, cases: Sequence[Case], cache: Path, *, progress: bool = True) -> tuple[CachedCase, ...]:
    """Preprocess the cases that the cache does not hold, ``data.workers`` at a time, and return all of them.

    Args:
        cfg: The experiment, complete.
        cases: The cases.
        cache: Folder of the cache.
        progress: Show progress on stderr.

    Raises:
        InputError: Naming every case that cannot be used; none is left out in silence.
    """
    folders = [cache / f"{case.name}-{_digest(cfg, case)}" for case in cases]
    missing = [(case, folder) for case, folder in zip(cases, folders, strict=True) if not (folder / "case.json").is_file()]
    if missing:
        writable_folder(cache)
        _each(partial(_build_entry, cfg), missing, cfg.data.workers, "preprocessing", progress)
    return tuple(_read_entry(folder) for folder in folders)


def fingerprint(cfg: Config, cases: Sequence[Case], cache: Path, *, progress: bool = True) -> Fingerprint:
    """Check every case, and measure what the plan needs to know of them; kept in the cache until a file changes.

    Args:
        cfg: The experiment, with its labels and channels.
        cases: All training cases.
        cache: Folder of the cache.
        progress: Show progress on stderr.

    Raises:
        InputError: Naming every case that cannot be read, or whose image, reference and labels do not fit together.
    """
    own = [_stats(case) for case in cases]
    file = cache / f"fingerprint-{_hash([_FORMAT, own, len(cfg.channels), sorted(known_labels(cfg)), cfg.preprocess.crop_nonzero])}.json"
    if file.is_file():
        return from_dict(Fingerprint, json.loads(file.read_text(encoding="utf-8")), source=str(file))
    writable_folder(cache)
    samples = min(_INTENSITIES_OF_ONE, max(1, _INTENSITIES // max(1, len(cases))))
    measured = _each(partial(_measure, cfg, samples), list(cases), cfg.data.workers, "checking cases", progress)
    intensities = np.concatenate([values for *_, values in measured], axis=1)
    result = Fingerprint(
        spacings=tuple(spacing for spacing, *_ in measured),
        shapes=tuple(shape for _, shape, *_ in measured),
        relative_sizes=tuple(share for _, _, share, _ in measured),
        intensity=tuple(map(intensity_statistics, intensities)) if intensities.shape[1] else (),
    )
    write_json(file, asdict(result))
    return result


def known_labels(cfg: Config) -> frozenset[int]:
    """Return the values that references may hold: background, those of the classes, and the ignore label."""
    values = {value for members in cfg.foreground.values() for value in members}
    return frozenset({0, *values, *([] if cfg.ignore_label is None else [cfg.ignore_label])})


def check_pair(case: Case, channels: int, known: frozenset[int]) -> tuple[Volume, NDArray[np.integer[Any]]]:
    """Read the image and the reference of a case.

    Args:
        case: The case.
        channels: Number of channels that the image must have.
        known: Values that the reference may hold.

    Returns:
        The volume, and the labels ``(X, Y, Z)`` on its RAS grid.

    Raises:
        InputError: If a file cannot be read, the grids differ, or the reference has other values.
    """
    volume = read_volume(case.images, name=case.name, channels=channels)
    if case.label is None:
        raise InputError(f"case {case.name!r} has no reference")
    labels, _, affine = read_labels(case.label)
    if labels.shape != volume.array.shape[1:]:
        raise InputError(
            f"{case.label}: shape {labels.shape} in RAS order, but the image {case.images[0]} has {volume.array.shape[1:]}; "
            "image and reference must lie on one grid"
        )
    corners = np.array(list(itertools.product(*((0, edge - 1) for edge in volume.array.shape[1:])))).T
    apart = np.abs((affine - volume.affine)[:3, :3] @ corners + (affine - volume.affine)[:3, 3:]).max()
    if apart > _TOLERANCE * min(volume.spacing):
        raise InputError(
            f"{case.label} lies up to {apart:.3g} mm away from its image {case.images[0]}, by their affines; "
            "resample the reference onto the image's grid, or copy the right header"
        )
    other = sorted(set(np.unique(labels).tolist()) - known)
    if other:
        raise InputError(f"{case.label}: labels {other} are not among those of dataset.json, {sorted(known)}")
    return volume, labels


def sample_locations(label: NDArray[Any], classes: Sequence[Sequence[int]], *, limit: int = _LOCATIONS) -> list[NDArray[np.int32]]:
    """Return voxels ``(n, 3)`` of each class, drawn without repetition by a fixed seed where there are more than ``limit``.

    Args:
        label: ``(X, Y, Z)`` integers.
        classes: Label values of each class.
        limit: Most voxels per class.
    """
    rng = np.random.default_rng(_LOCATION_SEED)
    found = []
    for values in classes:
        places = np.flatnonzero(np.isin(label, values))
        if len(places) > limit:
            places = np.sort(rng.choice(places, limit, replace=False))
        found.append(np.stack(np.unravel_index(places, label.shape), axis=1).astype(np.int32))
    return found


def _build_entry(cfg: Config, item: tuple[Case, Path]) -> None:
    case, folder = item
    volume, labels = check_pair(case, len(cfg.channels), known_labels(cfg))
    image, label = _preprocess(cfg, volume, labels)
    annotated = sorted(known_labels(cfg) - {cfg.ignore_label}) if cfg.ignore_label is not None else []
    names = [*cfg.foreground, ""]
    locations = sample_locations(label, [*cfg.foreground.values(), annotated])
    ends = np.cumsum([0, *map(len, locations)]).tolist()
    properties = {
        "name": case.name,
        "files": [str(path) for path in (*case.images, case.label)],
        "shape": list(label.shape),
        "classes": list(cfg.foreground),
        "offsets": {name: [ends[index], ends[index + 1]] for index, name in enumerate(names)},
        "warnings": list(volume.warnings),
    }
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        np.save(part / "image.npy", image)
        np.save(part / "label.npy", label)
        np.save(part / "locations.npy", np.concatenate(locations))
        write_json(part / "case.json", properties)
        part.chmod(0o777 & ~_umask())
        try:
            os.replace(part, folder)
        except OSError:
            if not (folder / "case.json").is_file():  # Otherwise another process has built the same entry meanwhile.
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _preprocess(cfg: Config, volume: Volume, labels: NDArray[np.integer[Any]]) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Return image ``(C, X, Y, Z)`` and labels ``(X, Y, Z)`` of the network's grid, in nnU-Net's order: crop, normalise, resample."""
    array, mask, box = _cropped(cfg, volume)
    settings = cfg.preprocess
    image = normalise(array, settings.normalise, settings.intensity, mask if settings.mask_zscore else None)
    label = labels[box].astype(np.int16)
    if settings.mask_zscore:
        label[(label == 0) & ~mask] = OUTSIDE
    if settings.spacing is not None:
        image = resample_image(image, volume.spacing, settings.spacing, order=settings.order)
        label = resample_labels(label[None], volume.spacing, settings.spacing)[0]
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(label, np.int16)


def _cropped(cfg: Config, volume: Volume) -> tuple[NDArray[np.float32], NDArray[np.bool_], tuple[slice, ...]]:
    """Return the cropped image, its mask of what is not zero, and the box that was cut out."""
    array, box, mask = crop_to_nonzero(volume.array)
    if cfg.preprocess.crop_nonzero:
        return array, mask, box
    whole = np.zeros(volume.array.shape[1:], bool)
    whole[box] = mask
    return volume.array, whole, (slice(None),) * whole.ndim


def _measure(cfg: Config, samples: int, case: Case) -> _Measured:
    """Return spacing, shape after the crop, the share that it kept, and intensities ``(C, samples)`` drawn from the foreground."""
    volume, labels = check_pair(case, len(cfg.channels), known_labels(cfg))
    array, _, box = _cropped(cfg, volume)
    inside = labels[box]
    foreground = np.flatnonzero((inside > 0) & (inside != (-1 if cfg.ignore_label is None else cfg.ignore_label)))
    if len(foreground):
        # With repetition, so that cases with little foreground count as much as the others.
        foreground = np.random.default_rng(_LOCATION_SEED).choice(foreground, samples)
    values = array.reshape(len(array), -1)[:, foreground]
    x, y, z = array.shape[1:]
    return volume.spacing, (x, y, z), inside.size / labels.size, values


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _read_entry(folder: Path) -> CachedCase:
    properties = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    x, y, z = properties["shape"]
    offsets = {name: (start, stop) for name, (start, stop) in properties["offsets"].items()}
    return CachedCase(properties["name"], folder, (x, y, z), tuple(properties["classes"]), offsets)


def _stats(case: Case) -> list[list[Any]]:
    """Return path, size and time of change of each file of a case."""
    files = [*case.images, *([case.label] if case.label else [])]
    try:
        return [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    except OSError as error:
        raise InputError(f"case {case.name!r}: {error.filename}: {error.strerror}") from error


def _digest(cfg: Config, case: Case) -> str:
    classes = {name: list(values) for name, values in cfg.foreground.items()}
    return _hash([_FORMAT, _stats(case), to_dict(cfg.preprocess), len(cfg.channels), classes, cfg.ignore_label])


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _each(function: Callable[[Any], T], items: Sequence[Any], workers: int, title: str, progress: bool) -> list[T]:
    """Call ``function`` on every item, in processes if ``workers`` says so, and raise one InputError for all that fail."""
    results: list[T] = []
    problems: list[str] = []
    with _pool(workers) as submit, _bar(len(items), title, progress) as advance:
        for get in [submit(function, item) for item in items]:
            try:
                results.append(get())
            except InputError as error:
                problems.append(str(error))
            advance()
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(f"{len(problems)} of {len(items)} cases cannot be used; repair them or take them out of the dataset:\n{listed}")
    return results


@contextmanager
def _pool(workers: int) -> Iterator[Callable[..., Callable[[], Any]]]:
    """Yield a function that hands out a call and returns how to get its result."""
    if workers < 1:
        yield partial
        return
    import multiprocessing

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, item: pool.submit(function, item).result


@contextmanager
def _bar(total: int, title: str, enabled: bool) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal; yield what advances it."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import track

    steps = iter(track(range(total + 1), title, total=total, console=Console(stderr=True), transient=True))
    next(steps)
    yield lambda: (next(steps), None)[1]

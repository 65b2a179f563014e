"""Which cases does a training folder hold, and which of them are held out? No torch, no numpy at import.

Two layouts are read. **nnU-Net**: ``dataset.json`` with ``channel_names``, ``labels``, ``numTraining``, ``file_ending``, beside
``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``, ``imagesTs``. **Decathlon** and **MONAI datalists**: a JSON file whose
``training`` lists ``{"image": ..., "label": ...}``; ``image`` may be a list with a file per channel, and the keys ``fold`` or a
list ``validation`` say what is held out. Paths in a JSON file may not leave the dataset's folder.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnnkit.engine.files import write_json
from cnnkit.errors import ConfigError, InputError, nearest

from cnnkit_medseg.cases import split_suffix
from cnnkit_medseg.config import DataConfig

SPLITS = "splits_final.json"
"""nnU-Net's file of folds: a list of ``{"train": [names], "val": [names]}``."""

ALL = -1
"""The fold that holds nothing out: every case is trained on and validated on, as nnU-Net's fold ``all``."""

OUTSIDE = -1
"""Label of voxels that a case does not have: beyond its border, or outside of the head or body where that is masked."""

_SPLIT_SEED = 12345


@dataclass(frozen=True)
class Case:
    """One subject: image files (one with all channels, or one per channel) and the reference."""

    name: str
    images: tuple[Path, ...]
    label: Path | None = None


_Listed = tuple[Case, int | None]  # A case of a datalist, and its fold if it has one.


@dataclass(frozen=True)
class Split:
    """The names of the cases to train on and of those to validate on."""

    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A dataset as its JSON file describes it.

    Args:
        name: Name of the dataset.
        root: Its folder.
        channels: Names of the image channels; empty if the file does not say.
        labels: Label value per class, or values per region, background included; empty if the file does not say.
        regions_class_order: Label written for each region; empty without regions.
        ignore_label: Value in the references that neither teaches nor counts.
        training: Cases with a reference, sorted by name.
        test: Cases without.
        splits: The folds that the file prescribes, if it does.
    """

    name: str
    root: Path
    channels: tuple[str, ...]
    labels: Mapping[str, int | tuple[int, ...]]
    regions_class_order: tuple[int, ...]
    ignore_label: int | None
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    splits: tuple[Split, ...] = ()


def read_dataset(data: DataConfig) -> Dataset:
    """Read the description of a dataset and find its files; no image is opened.

    Raises:
        ConfigError: If the folder or its JSON file is missing or says something that is not understood.
        InputError: If files are missing: a channel, a reference, or an image for a reference.
    """
    if data.root is None:
        raise ConfigError("data.root is not set; type --set data.root=FOLDER, a folder in nnU-Net's or the Decathlon's layout")
    root = Path(data.root)
    file = root / (data.datalist or "dataset.json")
    if not root.is_dir():
        raise ConfigError(f"data.root: {root} is not a folder")
    if not file.is_file():
        found = sorted(path.name for path in root.glob("*.json"))
        hint = f"; there is {', '.join(found)}: name it with --set data.datalist=..." if found else ""
        raise ConfigError(f"{file} does not exist; data.root must hold a dataset.json (nnU-Net, Decathlon) or a datalist{hint}")
    description = _read_json(file)
    if not isinstance(description, dict):
        raise ConfigError(f"{file} holds a {type(description).__name__}; an object of keys and values is expected")
    layout = data.layout if data.layout != "auto" else _layout(description, file)
    dataset = (_read_nnunet if layout == "nnunet" else _read_datalist)(root, file, description)
    for case in dataset.training:
        if Path(case.name).name != case.name:  # The cache has a folder of that name.
            raise ConfigError(f"{file}: {case.name!r} cannot be the name of a case; use a name without slashes")
    return dataset


def find_split(dataset: Dataset, data: DataConfig, *, folders: Sequence[Path] = ()) -> tuple[Split, tuple[Split, ...]]:
    """Return the split that ``data.fold`` asks for, and all splits.

    They come from ``splits_final.json`` in the dataset's folder or in one of ``folders``, else from the datalist, else they are
    nnU-Net's: :func:`kfold` over the sorted names. Fold -1 trains and validates on every case.

    Args:
        dataset: The dataset.
        data: Number of folds and the fold asked for.
        folders: Further places of ``splits_final.json``, such as the cache and the run's folder.

    Raises:
        ConfigError: If there is no such fold, fewer cases than folds, or the file names cases that do not exist.
    """
    names = sorted(case.name for case in dataset.training)
    if data.fold == ALL:
        every = Split(tuple(names), tuple(names))
        return every, (every,)
    file = next((folder / SPLITS for folder in (dataset.root, *folders) if (folder / SPLITS).is_file()), None)
    if file is not None:
        splits = _read_splits(file, names)
    elif dataset.splits:
        splits = dataset.splits
    else:
        if not 2 <= data.folds <= len(names):
            fits = f"type --set data.folds={len(names)}" if len(names) > 1 else "at least 2 cases make folds"
            raise ConfigError(
                f"data.folds={data.folds} does not fit the {len(names)} training cases of {dataset.root}: {fits}, "
                "or --set data.fold=-1 to train and validate on all of them"
            )
        splits = tuple(kfold(names, data.folds))
    if not 0 <= data.fold < len(splits):
        where = file or dataset.root
        raise ConfigError(f"data.fold={data.fold} does not exist; {where} has folds 0 to {len(splits) - 1}, and -1 for all cases")
    return splits[data.fold], splits


def write_splits(splits: Iterable[Split], folder: Path) -> Path:
    """Write ``splits_final.json`` in nnU-Net's form and return the file."""
    return write_json(folder / SPLITS, [{"train": list(split.train), "val": list(split.val)} for split in splits])


def kfold(names: Sequence[str], folds: int, *, seed: int = _SPLIT_SEED) -> list[Split]:
    """Split names as nnU-Net does: shuffled once, cut into parts whose sizes differ by one at most, order kept within each.

    Equal to scikit-learn's ``KFold(n_splits=folds, shuffle=True, random_state=seed)``.
    """
    import numpy as np

    order = np.random.RandomState(seed).permutation(len(names))
    splits = []
    for part in np.array_split(order, folds):
        held_out = set(part.tolist())
        splits.append(
            Split(
                tuple(name for index, name in enumerate(names) if index not in held_out),
                tuple(name for index, name in enumerate(names) if index in held_out),
            )
        )
    return splits


def pick(cases: Iterable[Case], names: Iterable[str]) -> tuple[Case, ...]:
    """Return the cases of these names, in the order of ``names``."""
    by_name = {case.name: case for case in cases}
    return tuple(by_name[name] for name in names)


def _layout(description: Mapping[str, Any], file: Path) -> str:
    if "channel_names" in description or "file_ending" in description:
        return "nnunet"
    if "training" in description:
        return "decathlon"
    raise ConfigError(
        f"{file} is neither nnU-Net's (keys channel_names, labels, numTraining, file_ending) nor a datalist (key training); "
        f"it has the keys {', '.join(sorted(map(str, description))) or 'none'}"
    )


def _read_nnunet(root: Path, file: Path, description: Mapping[str, Any]) -> Dataset:
    channels = tuple(_numbered(_needed(description, "channel_names", dict, file), file, "channel_names"))
    ending = _needed(description, "file_ending", str, file)
    labels, ignore = _labels(_needed(description, "labels", dict, file), file)
    order = tuple(description.get("regions_class_order", ()))
    if any(isinstance(value, tuple) for value in labels.values()) and not order:
        raise ConfigError(f"{file}: labels has regions (lists of values), so regions_class_order must give a label for each of them")
    if "dataset" in description:
        training = [_explicit_case(root, file, name, item, len(channels)) for name, item in sorted(description["dataset"].items())]
    else:
        training = _training_files(root, ending, len(channels))
    if not training:
        raise InputError(f"{root / 'imagesTr'} holds no file CASE_0000{ending}, as {file.name} says with file_ending and channel_names")
    expected = description.get("numTraining", len(training))
    if expected != len(training):
        warnings.warn(f"{file}: numTraining is {expected}, but there are {len(training)} training cases; all are used", stacklevel=3)
    test = [Case(name, _channel_files(root / "imagesTs", name, ending, len(channels))) for name in _case_names(root / "imagesTs", ending)]
    name = description.get("name") or root.resolve().name
    return Dataset(str(name), root, channels, labels, order, ignore, tuple(training), tuple(test))


def _training_files(root: Path, ending: str, channels: int) -> list[Case]:
    images, labels = root / "imagesTr", root / "labelsTr"
    names = _case_names(images, ending)
    references = {path.name[: -len(ending)] for path in _files(labels, ending)}
    without_image, without_label = sorted(references - set(names)), sorted(set(names) - references)
    if without_image or without_label:
        lines = [f"  {labels / (name + ending)} has no image {images / name}_0000{ending}" for name in without_image]
        lines += [f"  {images / name}_0000{ending} has no label {labels / (name + ending)}" for name in without_label]
        raise InputError("every training case needs an image and a label:\n" + "\n".join(lines))
    return [Case(name, _channel_files(images, name, ending, channels), labels / (name + ending)) for name in names]


def _files(folder: Path, ending: str) -> list[Path]:
    """Return the files of a folder with this ending, without the hidden ones that macOS scatters."""
    found = folder.glob("*" + ending) if folder.is_dir() else ()
    return sorted(path for path in found if not path.name.startswith("."))


def _case_names(folder: Path, ending: str) -> list[str]:
    """Return the names of which there is at least one channel file ``NAME_0000``."""
    stems = (path.name[: -len(ending)] for path in _files(folder, ending))
    return sorted({stem[:-5] for stem in stems if len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdigit()})


def _channel_files(folder: Path, name: str, ending: str, channels: int) -> tuple[Path, ...]:
    files = tuple(folder / f"{name}_{channel:04d}{ending}" for channel in range(channels))
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise InputError(f"case {name!r} lacks {', '.join(missing)}; channel_names in dataset.json names {channels} channels")
    return files


def _explicit_case(root: Path, file: Path, name: str, item: Any, channels: int) -> Case:
    """Read one entry of nnU-Net's optional ``dataset``: ``{"images": [...], "label": ...}``."""
    if not isinstance(item, dict) or not isinstance(item.get("images"), list) or "label" not in item:
        raise ConfigError(f"{file}: dataset.{name} must be an object with a list 'images' and a file 'label'")
    images = tuple(_inside(root, path, file, f"dataset.{name}.images") for path in item["images"])
    if len(images) not in (1, channels):
        raise InputError(f"{file}: dataset.{name} has {len(images)} images; channel_names names {channels} channels")
    return Case(name, images, _inside(root, item["label"], file, f"dataset.{name}.label"))


def _read_datalist(root: Path, file: Path, description: Mapping[str, Any]) -> Dataset:
    training = _listed(root, file, description, "training", labelled=True)
    validation = _listed(root, file, description, "validation", labelled=True)
    test = _listed(root, file, description, "testing" if "testing" in description else "test", labelled=False)
    if not training:
        raise InputError(f"{file}: the list 'training' is empty")
    if _repeated((*training, *validation)):  # As in subject_1/seg.nii.gz, subject_2/seg.nii.gz.
        training, validation = _named_by_folder(training), _named_by_folder(validation)
    twice = _repeated((*training, *validation))
    if twice:
        raise InputError(f"{file}: {', '.join(sorted(twice))} stands more than once in training and validation")
    expected = description.get("numTraining", len(training))
    if expected != len(training):
        warnings.warn(f"{file}: numTraining is {expected}, but 'training' lists {len(training)}; all of them are used", stacklevel=3)
    channel_names = description.get("channel_names", description.get("modality", {}))
    labels, ignore = _labels(description.get("labels", {}), file)
    return Dataset(
        name=str(description.get("name") or root.resolve().name),
        root=root,
        channels=tuple(_numbered(channel_names, file, "modality")),
        labels=labels,
        regions_class_order=tuple(description.get("regions_class_order", ())),
        ignore_label=ignore,
        training=tuple(sorted((case for case, _ in (*training, *validation)), key=lambda case: case.name)),
        test=tuple(case for case, _ in test),
        splits=_listed_splits(training, validation, file),
    )


def _listed(root: Path, file: Path, description: Mapping[str, Any], key: str, *, labelled: bool) -> list[_Listed]:
    """Return the cases of one list of a datalist, each with its fold if it has one."""
    found = []
    for number, item in enumerate(description.get(key, ())):
        entry = {"image": item} if isinstance(item, str) else item
        where = f"{key}[{number}]"
        if not isinstance(entry, dict) or "image" not in entry or (labelled and "label" not in entry):
            keys = '"image": a file or a list of files' + (', "label": a file' if labelled else "")
            raise ConfigError(f"{file}: {where} must be an object {{{keys}}}")
        paths = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        images = tuple(_inside(root, path, file, where + ".image") for path in paths)
        label = _inside(root, entry["label"], file, where + ".label") if labelled else None
        fold = entry.get("fold")
        if fold is not None and (not isinstance(fold, int) or fold < 0):
            raise ConfigError(f"{file}: {where}.fold is {fold!r}; a whole number from 0 is expected")
        # The reference is named for the subject; channel files often are not.
        found.append((Case(split_suffix(label or images[0])[0], images, label), fold))
    return found


def _repeated(listed: Iterable[_Listed]) -> list[str]:
    return [name for name, count in Counter(case.name for case, _ in listed).items() if count > 1]


def _named_by_folder(listed: Iterable[_Listed]) -> list[_Listed]:
    return [(replace(case, name=f"{(case.label or case.images[0]).parent.name}_{case.name}"), fold) for case, fold in listed]


def _listed_splits(training: Sequence[_Listed], validation: Sequence[_Listed], file: Path) -> tuple[Split, ...]:
    names = tuple(case.name for case, _ in training)
    if validation:
        return (Split(names, tuple(case.name for case, _ in validation)),)
    folds = [fold for _, fold in training]
    if all(fold is None for fold in folds):
        return ()
    if None in folds:
        raise ConfigError(f"{file}: {training[folds.index(None)][0].name!r} in training has no 'fold', although others have one")
    splits = []
    for own in range(max(fold for fold in folds if fold is not None) + 1):
        held_out = tuple(name for name, fold in zip(names, folds, strict=True) if fold == own)
        if not held_out or len(held_out) == len(names):
            raise ConfigError(f"{file}: fold {own} holds {len(held_out)} of {len(names)} cases; folds are numbered from 0 without gaps")
        splits.append(Split(tuple(name for name in names if name not in set(held_out)), held_out))
    return tuple(splits)


def _labels(described: Any, file: Path) -> tuple[dict[str, int | tuple[int, ...]], int | None]:
    """Read ``{"liver": 1, "all": [1, 2], "ignore": 3}``, or the older ``{"1": "liver"}``; return classes and ignore label."""
    if not isinstance(described, dict):
        raise ConfigError(f"{file}: labels must be an object, not {type(described).__name__}")
    if described and all(isinstance(value, str) for value in described.values()):
        described = {name: int(value) if value.isdigit() else value for value, name in described.items()}
    labels: dict[str, int | tuple[int, ...]] = {}
    for name, value in described.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in values):
            raise ConfigError(f"{file}: labels.{name} is {value!r}; a whole number from 0, or a list of them for a region, is expected")
        labels[name] = tuple(value) if isinstance(value, list) else value
    if labels and labels.get("background") != 0:
        raise ConfigError(f"{file}: labels must name 'background' with the value 0")
    ignore = labels.pop("ignore", None)
    if isinstance(ignore, tuple):
        raise ConfigError(f"{file}: labels.ignore is {list(ignore)}; one whole number is expected")
    return labels, ignore


def _numbered(names: Any, file: Path, key: str) -> list[str]:
    """Return channel names by their number: ``{"0": "CT"}``, a list, or one string."""
    if isinstance(names, str):
        return [names]
    if isinstance(names, list):
        return [str(name) for name in names]
    if not isinstance(names, dict) or sorted(names) != sorted(str(number) for number in range(len(names))):
        raise ConfigError(f'{file}: {key} must number the channels from 0, as in {{"0": "T1", "1": "FLAIR"}}; it is {names!r}')
    return [str(names[str(number)]) for number in range(len(names))]


def _needed(description: Mapping[str, Any], key: str, kind: type, file: Path) -> Any:
    if key not in description:
        close = nearest(key, [str(item) for item in description], limit=1)
        raise ConfigError(f"{file} lacks the key {key!r}" + (f"; did you mean it by {close[0]!r}?" if close else ""))
    if not isinstance(description[key], kind) or not description[key]:
        expected = "an object that is not empty" if kind is dict else "a text that is not empty"
        raise ConfigError(f"{file}: {key} must be {expected}, not {description[key]!r}")
    return description[key]


def _inside(root: Path, path: Any, file: Path, where: str) -> Path:
    """Return the file that a JSON file names, if it lies in the dataset's folder and exists."""
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{file}: {where} must be the path of a file, not {path!r}")
    base = os.path.abspath(root)
    full = os.path.normpath(os.path.join(base, path))
    if os.path.commonpath([base, full]) != base or full == base:
        raise ConfigError(f"{file}: {where} is {path!r}, which leaves the dataset's folder {root}; only files inside of it are read")
    if not os.path.exists(full):
        raise InputError(f"{file}: {where} names {path!r}, but there is no such file in {root}")
    return root / os.path.relpath(full, base)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from error


def _read_splits(file: Path, names: Sequence[str]) -> tuple[Split, ...]:
    described = _read_json(file)
    valid = (
        isinstance(described, list)
        and described
        and all(
            isinstance(item, dict) and all(isinstance(item.get(key), list) and item[key] for key in ("train", "val")) for item in described
        )
    )
    if not valid:
        raise ConfigError(f'{file} must be a list of {{"train": [case names], "val": [case names]}}, neither of them empty')
    unknown = sorted({str(name) for item in described for key in ("train", "val") for name in item[key]} - set(names))
    if unknown:
        raise ConfigError(f"{file} names cases that the dataset does not have: {', '.join(unknown[:10])}")
    return tuple(Split(tuple(item["train"]), tuple(item["val"])) for item in described)

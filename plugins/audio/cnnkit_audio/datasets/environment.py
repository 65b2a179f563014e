"""Data sets of environmental sounds: ESC-50, UrbanSound8K, FSD50K."""

from __future__ import annotations

from pathlib import Path

from cnnkit.errors import InputError

from cnnkit_audio.datasets.clips import Clip, Files, ordered, read_rows, whole_number

ESC50 = "ESC-50: meta/esc50.csv (filename, fold, target, category, esc10) and audio/FILENAME"
URBANSOUND8K = "UrbanSound8K: metadata/UrbanSound8K.csv (slice_file_name, fold, classID, class) and audio/foldN/FILENAME"
FSD50K = (
    "FSD50K: FSD50K.ground_truth/dev.csv (fname, labels, split), eval.csv (fname, labels) and vocabulary.csv, "
    "FSD50K.dev_audio/FNAME.wav and FSD50K.eval_audio/FNAME.wav"
)


def esc50(folder: Path, *, esc10: bool = False) -> list[Clip]:
    """Return the clips of ESC-50 in the order of its table, with their folds 1 to 5.

    Args:
        folder: Its root.
        esc10: Only the clips of the ten classes of ESC-10.

    Raises:
        ConfigError: If there is no such data set.
        InputError: If a row is wrong or its file is missing.
    """
    files, clips = Files(folder, expected=ESC50), []
    table = folder / "meta" / "esc50.csv"
    for line, row in read_rows(table, ("filename", "fold", "category", "esc10"), expected=ESC50):
        where = f"{table} row {line}"
        if esc10 and row["esc10"] != "True":
            continue
        path = files.require(files.inside(row["filename"], where, folder="audio"), where)
        clips.append(Clip(path, (row["category"],), fold=whole_number(row, "fold", where, least=1)))
    files.check()
    return clips


def esc50_labels(folder: Path, *, esc10: bool = False) -> tuple[str, ...]:
    """Return the categories in the order of the column ``target``."""
    table = folder / "meta" / "esc50.csv"
    rows = read_rows(table, ("target", "category", "esc10"), expected=ESC50)
    numbers = {
        row["category"]: whole_number(row, "target", f"{table} row {line}") for line, row in rows if not esc10 or row["esc10"] == "True"
    }
    return ordered(numbers, table)


def urbansound8k(folder: Path) -> list[Clip]:
    """Return the clips of UrbanSound8K in the order of its table, with their folds 1 to 10.

    The times of its table are those in the recordings that the clips were cut from, so each file is meant from its start to its end.

    Raises:
        ConfigError: If there is no such data set.
        InputError: If a row is wrong or its file is missing.
    """
    files, clips = Files(folder, expected=URBANSOUND8K), []
    table = folder / "metadata" / "UrbanSound8K.csv"
    for line, row in read_rows(table, ("slice_file_name", "fold", "class"), expected=URBANSOUND8K):
        where = f"{table} row {line}"
        fold = whole_number(row, "fold", where, least=1)
        path = files.require(files.inside(row["slice_file_name"], where, folder=f"audio/fold{fold}"), where)
        clips.append(Clip(path, (row["class"],), fold=fold))
    files.check()
    return clips


def urbansound8k_labels(folder: Path) -> tuple[str, ...]:
    """Return the classes in the order of the column ``classID``."""
    table = folder / "metadata" / "UrbanSound8K.csv"
    rows = read_rows(table, ("classID", "class"), expected=URBANSOUND8K)
    return ordered({row["class"]: whole_number(row, "classID", f"{table} row {line}") for line, row in rows}, table)


def fsd50k(folder: Path) -> list[Clip]:
    """Return the clips of FSD50K: ``"train"`` and ``"val"`` of its development part, ``"test"`` of its evaluation part.

    Raises:
        ConfigError: If there is no such data set.
        InputError: If a row is wrong or its file is missing.
    """
    files, clips = Files(folder, expected=FSD50K), []
    for part, columns in (("dev", ("fname", "labels", "split")), ("eval", ("fname", "labels"))):
        table = folder / "FSD50K.ground_truth" / f"{part}.csv"
        for line, row in read_rows(table, columns, expected=FSD50K):
            where = f"{table} row {line}"
            split = row["split"] if part == "dev" else "test"
            if split not in ("train", "val", "test"):
                raise InputError(f"{where}: split={split!r}; accepted: train, val")
            path = files.require(files.inside(f"{row['fname']}.wav", where, folder=f"FSD50K.{part}_audio"), where)
            clips.append(Clip(path, tuple(filter(None, row["labels"].split(","))), split=split))
    files.check()
    return clips


def fsd50k_labels(folder: Path) -> tuple[str, ...]:
    """Return the 200 classes in the order of ``vocabulary.csv``."""
    table = folder / "FSD50K.ground_truth" / "vocabulary.csv"
    rows = read_rows(table, ("index", "label", "mid"), expected=FSD50K, header=False)
    return ordered(
        {row["label"]: whole_number(row, "index", f"{table} row {line}") for line, row in rows if row["index"] != "index"}, table
    )

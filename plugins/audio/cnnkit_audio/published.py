"""Tell which network of this plugin bare weights belong to: by the keys and shapes of every layout that it understands."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cnnkit.backbones import create_model
from cnnkit.count import on_meta
from cnnkit.errors import CheckpointError, InputWarning
from cnnkit.plugin import get
from cnnkit.weights import load_weights
from torch import Tensor

from cnnkit_audio.models._base import Tagger

AUDIOSET = "class_labels_indices.csv"
"""AudioSet's table of labels (index, mid, display_name): read if it lies beside the weights."""


@runtime_checkable
class FromShapes(Protocol):
    """A class of taggers whose weights in the official layout tell their arguments, as those of pruned networks must."""

    multilabel: bool

    def arguments_of(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the arguments, ``num_classes`` among them; ``None`` if the weights are not of this layout."""


def recognise(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return the configuration for bare weights.

    Args:
        state: Tensors by name.
        source: The file's name, for messages, and to find AudioSet's labels beside it.

    Raises:
        CheckpointError: If they fit no network of this plugin.
    """
    shapes = {key: value.to("meta") for key, value in state.items()}
    # The classifier comes last, wherever it is: its outputs are the labels.
    sizes = list(dict.fromkeys(value.shape[0] for value in reversed(list(shapes.values())) if value.ndim))[:6]
    for name, entry in get("audio").models.items():
        tagger = issubclass(entry.load(), Tagger)
        for classes in sizes if tagger else [0]:
            args = {"num_classes": classes} if tagger else {}
            if _fits(name, shapes, args):
                _say_alike(name, shapes, args, Path(source).name)
                network = {"network": {"name": name}}
                return {**network, "tagging": _tagging(entry.load(), classes, Path(source))} if tagger else network
    for name, entry in get("audio").models.items():
        kind = entry.load()
        told = kind.arguments_of(shapes) if isinstance(kind, FromShapes) else None
        if told is not None and _fits(name, shapes, told):
            classes = told.pop("num_classes")
            _say_told(name, told, Path(source).name)
            return {"network": {"name": name, "args": told}, "tagging": _tagging(kind, classes, Path(source))}
    shown = ", ".join(sorted({entry.paper for entry in get("audio").models.values()}))
    raise CheckpointError(
        f"{source} fits no network of audio as it stands; weights of these papers are understood in their published sizes: {shown}. "
        "For another size name it: --config FILE with network.name and network.args"
    )


def _fits(name: str, shapes: Mapping[str, Tensor], args: Mapping[str, Any]) -> bool:
    """Tell whether weights of these shapes load into a network, in any layout that it understands."""
    try:
        with on_meta():
            load_weights(create_model(name, dims=1, **args), shapes)
    except (CheckpointError, RuntimeError, KeyError):  # A layout's conversion may read what a foreign file lacks.
        return False
    return True


def _say_alike(name: str, shapes: Mapping[str, Tensor], args: Mapping[str, Any], file: str) -> None:
    """Name the networks that have the same weights by shape and compute something else, as a causal network and one that is not."""
    models = get("audio").models
    others = [other for other in models if other != name and models[other].target == models[name].target and _fits(other, shapes, args)]
    if others:
        text = f"{file} fits {name} and {', '.join(others)} alike; the first is taken; if it is another, name it: --config FILE with "
        warnings.warn(f"{text}network.name", InputWarning, stacklevel=3)


def _say_told(name: str, args: Mapping[str, Any], file: str) -> None:
    """Say what was read from the shapes of weights, and what they could not tell."""
    text = f"{file} fits {name} with {', '.join(f'{key}={value}' for key, value in args.items())}"
    more = "the length and the rate of its sounds, which weights do not tell, are taken to be the paper's; if they are others, name them"
    warnings.warn(f"{text}; {more}: --config FILE with network.args", InputWarning, stacklevel=3)


def _tagging(kind: FromShapes | type[Tagger], classes: int, source: Path) -> dict[str, Any]:
    labels = audioset_names(source.with_name(AUDIOSET)) if classes == 527 else []
    if len(labels) != classes:
        text = f"{source.name} does not name its {classes} labels: they are numbered; name them by --config FILE with tagging.labels"
        warnings.warn(text + (f", or put AudioSet's {AUDIOSET} beside it" if classes == 527 else ""), InputWarning, stacklevel=2)
        labels = [f"label {number}" for number in range(classes)]
    return {"labels": labels, "multilabel": kind.multilabel}


def audioset_names(table: Path) -> list[str]:
    """Return AudioSet's labels by index; none if the table is not there."""
    if not table.is_file():
        return []
    with open(table, encoding="utf-8", newline="") as stream:
        return [row["display_name"] for row in sorted(csv.DictReader(stream), key=lambda row: int(row["index"]))]

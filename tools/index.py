"""Write the indexes of backbones and layers, which let ``cnnkit`` list and find them without importing torch.

Type ``python tools/index.py`` after any change to a family or to a layer's ``LAYERS``; with ``--check`` it only compares.
Give names of families to renew only theirs, which is faster.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnkit.backbones import INDEX
from cnnkit.backbones._base import Backbone, Family
from cnnkit.count import count_params, on_meta
from cnnkit.errors import RegistryError
from cnnkit.registry import Entry, Registry

LAYERS_INDEX = INDEX.parents[1] / "layers" / "_index.json"


def families(folder: Path = INDEX.parent, names: Sequence[str] = ()) -> list[Family]:
    """Import the family files of the folder and return the declarations, in the order of the files' names.

    Args:
        folder: Where the files are.
        names: Only these families; all if empty.

    Raises:
        RegistryError: If a file declares no ``FAMILY``, or one under another name than its own.
    """
    found = []
    for path in sorted(folder.glob("[!_]*.py")):
        if names and path.stem not in names:
            continue
        family = getattr(importlib.import_module(f"cnnkit.backbones.{path.stem}"), "FAMILY", None)
        if not isinstance(family, Family):
            raise RegistryError(f"{path.name} declares no FAMILY = Family(...); give a file without a family a leading underscore")
        if family.name != path.stem:
            raise RegistryError(f"{path.name} declares the family {family.name!r}; name the family as its file")
        found.append(family)
    return found


def counted(entry: Entry) -> Entry:
    """Return the entry with the parameters and the admitted sizes of the model that it builds with default arguments."""
    with on_meta():
        dims = 2 if 2 in entry.dims else entry.dims[0]
        model = entry.load()(dims=dims, **entry.args)
    return dataclasses.replace(entry, params=count_params(model), sizes=admitted_sizes(model))


def admitted_sizes(model: Backbone) -> dict[str, Any]:
    """Return which input sizes a backbone admits, as :class:`Entry` states them: nothing where every size is."""
    if model.fixed_size is not None:
        return {"fixed": model.fixed_size}
    stated = {"multiple": model.size_multiple, "least": model.min_size}
    # A least side that is also the step says nothing more: no multiple is smaller.
    return {key: value for key, value in stated.items() if value > 1 and not (key == "least" and value <= model.size_multiple)}


def text(names: Sequence[str] = ()) -> str:
    """Return the index of the backbones as JSON.

    Args:
        names: Families to count anew; the others stay as they are in the index. All if empty.
    """
    registry = Registry("model")
    for name, data in json.loads(INDEX.read_text(encoding="utf-8")).items() if names else ():
        if data["family"] not in names:
            registry.add(name, Entry.from_json(data))
    for family in families(names=names):
        for name, entry in family.entries().items():
            registry.add(name, counted(entry))
    return as_lines(registry)


def layers(folder: Path = LAYERS_INDEX.parent) -> Registry:
    """Return what the layer files of the folder declare in ``LAYERS``, under ``"layers/NAME"``."""
    registry = Registry("layer")
    for path in sorted(folder.glob("[!_]*.py")):
        for name, entry in getattr(importlib.import_module(f"cnnkit.layers.{path.stem}"), "LAYERS", {}).items():
            registry.add(f"layers/{name}", entry)
    return registry


def as_lines(registry: Registry) -> str:
    """Return a registry as JSON, one line for each entry, so that two branches that add one merge."""
    return (
        "{\n"
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(entry.to_json(), sort_keys=True)}" for name, entry in registry.items())
        + "\n}\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit status 1 if the index is stale")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="renew only these families")
    args = parser.parse_args(argv)
    wanted = {INDEX: text(args.families), LAYERS_INDEX: as_lines(layers())}
    stale = {file: new for file, new in wanted.items() if not file.exists() or file.read_text(encoding="utf-8") != new}
    for file, new in stale.items():
        if args.check:
            print(f"{file.parent.name}/{file.name} is stale; run: python tools/index.py", file=sys.stderr)
        else:
            file.write_text(new, encoding="utf-8")
            print(f"wrote {file.parent.name}/{file.name}: {new.count(chr(10)) - 2} entries", file=sys.stderr)
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

"""Write the index of the backbones, which lets ``cnnkit`` list and find them without importing torch.

Type ``python tools/index.py`` after any change to a family; with ``--check`` it only compares.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path

from cnnkit.backbones import INDEX
from cnnkit.backbones._base import Family
from cnnkit.count import count_params, on_meta
from cnnkit.errors import RegistryError
from cnnkit.registry import Entry, Registry


def families(folder: Path = INDEX.parent) -> list[Family]:
    """Import every family file of the folder and return the declarations, in the order of the files' names.

    Raises:
        RegistryError: If a file declares no ``FAMILY``, or one under another name than its own.
    """
    found = []
    for path in sorted(folder.glob("[!_]*.py")):
        family = getattr(importlib.import_module(f"cnnkit.backbones.{path.stem}"), "FAMILY", None)
        if not isinstance(family, Family):
            raise RegistryError(f"{path.name} declares no FAMILY = Family(...); give a file without a family a leading underscore")
        if family.name != path.stem:
            raise RegistryError(f"{path.name} declares the family {family.name!r}; name the family as its file")
        found.append(family)
    return found


def counted(entry: Entry) -> Entry:
    """Return the entry with the parameters of the model that it builds with default arguments."""
    with on_meta():
        dims = 2 if 2 in entry.dims else entry.dims[0]
        model = entry.load()(dims=dims, **entry.args)
    return dataclasses.replace(entry, params=count_params(model))


def text() -> str:
    """Return the index as JSON, one line for each model, so that two branches that add one merge."""
    registry = Registry("model")
    for family in families():
        for name, entry in family.entries().items():
            registry.add(name, counted(entry))
    lines = [f"{json.dumps(name)}: {json.dumps(entry.to_json(), sort_keys=True)}" for name, entry in registry.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit status 1 if the index is stale")
    check = parser.parse_args(argv).check
    new = text()
    if INDEX.exists() and INDEX.read_text(encoding="utf-8") == new:
        return 0
    if check:
        print(f"{INDEX.name} is stale; run: python tools/index.py", file=sys.stderr)
        return 1
    INDEX.write_text(new, encoding="utf-8")
    print(f"wrote {INDEX.name}: {new.count(chr(10)) - 2} models", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

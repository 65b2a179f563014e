"""What exists here, by paper: the registries of the core and of all usable plugins in one view.

Standard library only.
"""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from cnnkit import plugin as plugins
from cnnkit.registry import Entry


@dataclass(frozen=True)
class Paper:
    """A paper that the project answers for.

    Args:
        slug: Its short name.
        title: Its title.
        home: Where in the repository it lives, or will live.
        names: Registered names that implement it; none if it is not built here, or its plugin is not installed.
    """

    slug: str
    title: str
    home: str
    names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the row of ``cnnkit list papers --json``."""
        return {"slug": self.slug, "title": self.title, "home": self.home, "built": bool(self.names), "names": list(self.names)}


@cache
def titles() -> dict[str, dict[str, str]]:
    """Return title and home of every paper by its slug."""
    return json.loads((importlib.resources.files("cnnkit") / "papers.json").read_text(encoding="utf-8"))


@cache
def layers() -> dict[str, Entry]:
    """Return the layers of the core that stand for a paper, by name (``"layers/involution"``)."""
    data = json.loads((importlib.resources.files("cnnkit") / "layers" / "_index.json").read_text(encoding="utf-8"))
    return {name: Entry.from_json(row) for name, row in data.items()}


def entries() -> dict[str, Entry]:
    """Return everything that is registered, by name: layers and backbones of the core, models and other parts of plugins."""
    from cnnkit.backbones import list_models, model_entry

    return {**layers(), **{name: model_entry(name) for name in list_models()}, **plugins.models(), **plugins.parts()}


def papers() -> list[Paper]:
    """Return every paper with the names that implement it, by slug."""
    names: dict[str, list[str]] = {}
    for name, entry in entries().items():
        names.setdefault(entry.paper, []).append(name)
    return [Paper(slug, row["title"], row["home"], tuple(sorted(names.get(slug, ())))) for slug, row in titles().items()]

"""What the tests of the applications share: a script as a module, and a page as a parser sees it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

VOID = {"meta", "img", "input", "br"}
"""Tags of these pages that are never closed."""


@pytest.fixture(scope="module")
def app(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The application that ``SCRIPT`` of the test's module leads to."""
    script: Path = request.module.SCRIPT
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module  # Where dataclasses look up their annotations.
    spec.loader.exec_module(module)
    yield module
    del sys.modules[script.stem]


class Page(HTMLParser):
    """Checks that every tag is closed by its own, and collects tags with their attributes, texts and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    @property
    def ids(self) -> list[str | None]:
        """The ids in the order of the page."""
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="session")
def read_page() -> type[Page]:
    """The class that reads a page."""
    return Page

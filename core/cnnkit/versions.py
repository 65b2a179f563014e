"""Versions of installed distributions. Standard library only."""

from __future__ import annotations

import importlib.metadata


def version_of(distribution: str) -> str:
    """Return the installed version of a distribution, or ``"not installed"``."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

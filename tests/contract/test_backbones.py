"""Every backbone keeps the contract."""

from __future__ import annotations

from cnnkit.testing import BackboneContract


class TestBackbones(BackboneContract):
    pass

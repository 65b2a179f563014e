"""Equivariant networks: atoms, fields on the sphere, scales, meshes, hyperbolic space. The manifest of the plugin, and nothing else."""

from __future__ import annotations

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry, Figures

# What builds a network, and its variants by name: what it is, its figures, its arguments.
NETWORKS: tuple[tuple[Entry, dict[str, tuple[str, Figures, dict[str, object]]]], ...] = ()

PARTS: dict[str, Entry] = {}

PLUGIN = Plugin(
    name="equivariant",
    api=1,
    summary="Energies and forces of atoms, and classes of fields on spheres, at any scale, on meshes and in hyperbolic space.",
    task="cnnkit_equivariant.task:Equivariant",
    run="cnnkit_equivariant.args:Run",
    requires=("ase", "scipy", "sklearn", "torch_geometric"),
    models={
        f"equivariant/{name}": entry.variant(figures, summary=summary, **args)
        for entry, variants in NETWORKS
        for name, (summary, figures, args) in variants.items()
    },
    parts=PARTS,
)

"""Equivariant networks: atoms, fields on the sphere, scales, meshes, hyperbolic space. The manifest of the plugin, and nothing else."""

from __future__ import annotations

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry, Figures

_SPHERES = (32, 32, 16, 16, 8, 8)
_PLAIN: dict[str, object] = {"residual": False, "nonlinearity": "magnitude"}

# What builds a network, and its variants by name: what it is, its figures, its arguments.
NETWORKS: tuple[tuple[Entry, dict[str, tuple[str, Figures, dict[str, object]]]], ...] = (
    (
        Entry("cnnkit_equivariant.models.spherical_cnn:SphericalCNN", paper="scaling-spherical-cnn"),
        {
            "spherical_cnn": ("Spherical CNN: residual blocks of spins 0 and 1 with phase collapse.", Figures(), {}),
            "spherical_cnn_zonal": (
                "Spherical CNN of spin 0 alone, whose filters are symmetric about an axis.",
                Figures(),
                {"spins": (0,), "widths": (16, 16, 32, 32, 58, 58), "bandwidths": _SPHERES, "knots": (8,) * 6} | _PLAIN,
            ),
            "spherical_cnn_spin": (
                "The spin-weighted CNN of six layers that the paper's code trains on spherical digits, with thresholds of the modulus.",
                Figures(params_m=0.039146, counted_params_m=0.077506, note="the code counts complex numbers once, we count their parts"),
                {"widths": (16, 16, 20, 24, 28, 32), "bandwidths": _SPHERES, "knots": (6, 6, 4, 4, 3, 3)} | _PLAIN,
            ),
        },
    ),
)

PARTS: dict[str, Entry] = {
    "equivariant/spherical_unet": Entry(
        "cnnkit_equivariant.models.spherical_cnn:SphericalUNet",
        paper="scaling-spherical-cnn",
        summary="Maps fields on the sphere to fields, equivariant to rotations: weather and other states of a globe.",
    ),
}

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

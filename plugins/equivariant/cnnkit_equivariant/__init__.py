"""Equivariant networks: atoms, fields on the sphere, scales, meshes, hyperbolic space. The manifest of the plugin, and nothing else."""

from __future__ import annotations

from typing import Any

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry, Figures

_SPHERES = (32, 32, 16, 16, 8, 8)
_PLAIN: dict[str, object] = {"residual": False, "nonlinearity": "magnitude"}

_OC20: dict[str, object] = {
    "cutoff": 12.0,
    "direct": True,
    "mmax": 2,
    "num_layers": 12,
    "sphere_channels": 128,
    "hidden_channels": 256,
    "edge_channels": 128,
    "gaussians": 600,
    "basis_width": 2.0,
    "taper": None,
    "neighbors": 1.0,
    "message_act": "sphere",
    "mirror": False,
}

# What builds a network, and its variants by name: what it is, its figures, its arguments.
NETWORKS: tuple[tuple[Entry, dict[str, tuple[str, Figures, dict[str, object]]]], ...] = (
    (
        Entry("cnnkit_equivariant.models.escn:ESCN", paper="escn", dims=(3,), layouts=("official",)),
        {
            "escn": (
                "eSCN for CPUs: forces are the energy's gradient, messages end smoothly, mirror images are alike.",
                Figures(),
                {},
            ),
            "escn_direct": ("The same with forces that are predicted by themselves.", Figures(), {"direct": True}),
            "escn_l4_m2": (
                "eSCN-L4-M2-Lay12 of OC20, with direct forces; messages end abruptly at the cutoff, as published.",
                Figures(quality="OC20 2M: forces 19.1 meV/A in validation"),
                {**_OC20, "lmax": 4, "resolution": 11},
            ),
            "escn_l6_m2": (
                "eSCN-L6-M2-Lay12 of OC20, with direct forces; messages end abruptly at the cutoff, as published.",
                Figures(quality="OC20 2M: forces 18.6 meV/A in validation; All+MD: 16.1"),
                {**_OC20, "lmax": 6, "resolution": 15},
            ),
            "escn_l6_m3": (
                "eSCN-L6-M3-Lay20 of OC20, with direct forces; messages end abruptly at the cutoff, as published.",
                Figures(quality="OC20 All+MD: forces 13.9 meV/A in validation"),
                {**_OC20, "lmax": 6, "resolution": 15, "mmax": 3, "num_layers": 20, "sphere_channels": 160, "hidden_channels": 384},
            ),
        },
    ),
    (
        Entry("cnnkit_equivariant.models.invariant:Invariant", dims=(3,)),
        {"invariant": ("Distances alone, as SchNet: what an equivariant network of its size has to beat.", Figures(), {})},
    ),
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
    (
        Entry("cnnkit_equivariant.models.scale_fourier:ScaleFourier", paper="scale-fourier"),
        {
            "scale_fourier": (
                "Pictures of any odd size: features commute exactly with down-scaling, by shells of the spectrum.",
                Figures(quality="98.89 % on MNIST-scale, 73.32 % on STL10-scale, equivariance error 0.00"),
                {},
            ),
        },
    ),
    (
        Entry("cnnkit_equivariant.models.hcnn:HyperbolicResNet", paper="hcnn", layouts=("official",)),
        {
            "lorentz_resnet18": (
                "ResNet-18 with every layer in hyperbolic space (Bdeir et al., 2024).",
                Figures(quality="95.14 % on CIFAR-10, 78.07 % on CIFAR-100, 65.71 % on Tiny-ImageNet"),
                {},
            ),
            "hybrid_resnet18": (
                "ResNet-18 in flat space with a classifier in hyperbolic space.",
                Figures(quality="94.98 % on CIFAR-10, 78.03 % on CIFAR-100, 65.63 % on Tiny-ImageNet"),
                {"encoder": "euclidean"},
            ),
            "euclidean_resnet18": (
                "The same ResNet-18 in flat space, to compare with.",
                Figures(quality="95.14 % on CIFAR-10, 77.72 % on CIFAR-100, 65.19 % on Tiny-ImageNet"),
                {"encoder": "euclidean", "head": "euclidean"},
            ),
            "lorentz_resnet_small": (
                "Three residual blocks in hyperbolic space, for digits and other small pictures.",
                Figures(),
                {"depths": (1, 1, 1), "widths": (16, 32, 64)},
            ),
        },
    ),
    (
        Entry("cnnkit_equivariant.models.nuft_cnn:NUFTCNN", paper="nuft-cnn"),
        {"nuft_cnn": ("Outlines by their exact spectrum: the number and order of their vertices mean nothing.", Figures(), {})},
    ),
    (
        Entry("cnnkit_equivariant.models.spherical_molecule:SphericalMolecule", paper="scaling-spherical-cnn", dims=(3,)),
        {
            "spherical_molecule": ("Spherical CNN for atoms: energies from pictures of the neighbours on a sphere.", Figures(), {}),
            "spherical_molecule_qm9": (
                "The same with the blocks that the paper's code trains on QM9, and its phase collapse.",
                Figures(),
                {
                    "widths": (64, 128, 128, 256, 256),
                    "bandwidths": (16, 8, 8, 4, 4),
                    "knots": (8, 8, 8, 4, 4),
                    "hidden": 256,
                    "nonlinearity": "phase_collapse",
                    "oversampling": 1.0,
                },
            ),
        },
    ),
)

PARTS: dict[str, Entry] = {
    "equivariant/so2_linear": Entry(
        "cnnkit_equivariant.so3.convolution:SO2Linear",
        paper="escn",
        summary="All linear maps that commute with rolls about an edge: the tensor product with its harmonics, in its frame.",
        dims=(3,),
    ),
    "equivariant/simplex_raster": Entry(
        "cnnkit_equivariant.simplex:SimplexRaster",
        paper="nuft-cnn",
        summary="Points, lines, triangles and tetrahedra on a grid by their exact spectrum, with gradients to vertices.",
        dims=(2, 3),
    ),
    "equivariant/nuft_mesh_encoder": Entry(
        "cnnkit_equivariant.models.nuft_cnn:NUFTMeshEncoder",
        paper="nuft-cnn",
        summary="Embeds triangle meshes by their exact spectrum, for retrieval.",
        dims=(3,),
    ),
    **{
        f"equivariant/{name}": Entry(f"cnnkit_equivariant.hyperbolic:{target}", paper="hcnn", summary=summary, dims=dims)
        for name, target, summary, dims in (
            ("lorentz_conv", "LorentzConv", "A convolution of points of hyperbolic space.", (1, 2, 3)),
            ("lorentz_linear", "LorentzLinear", "A fully connected layer of hyperbolic space.", (1, 2, 3)),
            ("lorentz_batch_norm", "LorentzBatchNorm", "Batch normalisation by the centroid and the mean distance from it.", (1, 2, 3)),
            ("lorentz_regression", "LorentzRegression", "Logistic regression by distances from hyperplanes.", (1, 2, 3)),
        )
    },
    **{
        f"equivariant/{name}": Entry(f"cnnkit_equivariant.scale:{target}", paper="scale-fourier", summary=summary)
        for name, target, summary in (
            (
                "fourier_conv",
                "FourierConv",
                "A convolution whose kernel keeps its extent relative to the picture; commutes with down-scaling.",
            ),
            ("frequency_mixer", "FrequencyMixer", "Mixes each frequency with those below it; commutes with down-scaling."),
            ("shell_activation", "ShellActivation", "Activation, normalisation and pooling at every resolution, put together by shells."),
        )
    },
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
    checkpoint="weights/emt.ckpt",
    models={
        f"equivariant/{name}": entry.variant(figures, summary=summary, **args)
        for entry, variants in NETWORKS
        for name, (summary, figures, args) in variants.items()
    },
    parts=PARTS,
)


def __getattr__(name: str) -> Any:
    """Import the calculator when it is asked for: the manifest itself needs neither torch nor ASE."""
    if name == "Calculator":
        from cnnkit_equivariant.atoms.calculator import Calculator

        return Calculator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Super-resolution of pictures and videos: the manifest of the plugin, and nothing else."""

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry, Figures

# Each network with its figures by scale; multiply-adds are for an output of 1280 x 720.
NETWORKS = {
    "espcn": (
        Entry(
            "cnnkit_superres.models.espcn:ESPCN",
            paper="espcn",
            summary="Three convolutions at low resolution and a sub-pixel shuffle; luminance.",
        ),
        {2: Figures(params_m=0.021284), 3: Figures(params_m=0.022729), 4: Figures(params_m=0.024752)},
    ),
}

PLUGIN = Plugin(
    name="superres",
    api=1,
    summary="Enlarge pictures and videos by two, three or four, in seamless tiles.",
    task="cnnkit_superres.task:SuperRes",
    run="cnnkit_superres.args:Run",
    requires=("kornia", "PIL", "scipy", "skimage", "tifffile"),
    checkpoint="weights/photo_x2.ckpt",
    models={
        f"superres/{name}_x{scale}": entry.variant(figures, scale=scale)
        for name, (entry, scales) in NETWORKS.items()
        for scale, figures in scales.items()
    },
)

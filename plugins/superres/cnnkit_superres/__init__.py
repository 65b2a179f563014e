"""Super-resolution of pictures and videos: the manifest of the plugin, and nothing else."""

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry, Figures

_CFSR = "The paper counts the merged network, as fuse() makes it; its multiply-adds are more than those of the convolutions (x4)."

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
    "cfsr": (
        Entry(
            "cnnkit_superres.models.cfsr:CFSR",
            paper="cfsr",
            summary="Large depthwise kernels in a transformer's layout, and a feed-forward network that keeps edges.",
            layouts=("official",),
        ),
        {
            2: Figures(params_m=0.291, counted_params_m=0.298236, note=_CFSR),
            3: Figures(params_m=0.298, counted_params_m=0.304731, note=_CFSR),
            4: Figures(0.307, 17.5, (180, 320), "32.33 dB Set5", counted_params_m=0.313824, counted_gmacs=17.161, note=_CFSR),
        },
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

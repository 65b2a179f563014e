"""Super-resolution of pictures and videos: the manifest of the plugin, and nothing else."""

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry, Figures


def _scales(
    name: str, target: str, paper: str, summary: str, figures: dict[int, Figures], layouts: tuple[str, ...] = ()
) -> dict[str, Entry]:
    """Return an entry for every scale of a network, under ``superres/NAME_x2`` and so on."""
    return {
        f"superres/{name}_x{scale}": Entry(
            f"cnnkit_superres.models.{target}", paper=paper, summary=summary, args={"scale": scale}, figures=figure, layouts=layouts
        )
        for scale, figure in figures.items()
    }


PLUGIN = Plugin(
    name="superres",
    api=1,
    summary="Enlarge pictures and videos by two, three or four, in seamless tiles.",
    task="cnnkit_superres.task:SuperRes",
    run="cnnkit_superres.args:Run",
    requires=("kornia", "PIL", "scipy", "skimage", "tifffile"),
    models={
        **_scales(
            "espcn",
            "espcn:ESPCN",
            "espcn",
            "Three convolutions at low resolution and a sub-pixel shuffle; luminance.",
            {scale: Figures(params_m=params) for scale, params in {2: 0.021284, 3: 0.022729, 4: 0.024752}.items()},
        ),
    },
)

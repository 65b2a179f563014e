"""Super-resolution of pictures and videos: the manifest of the plugin, and nothing else."""

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry, Figures

_CFSR = "The paper counts the merged network, as fuse() makes it; its multiply-adds are more than those of the convolutions (x4)."
_CFSR_READ = (
    "The paper counts the merged network, as fuse() makes it; its multiply-adds at this scale could not be read, these are our count."
)
_SPAN = "The paper counts the merged network, as fuse() makes it."
_CARN_M = "The paper's 412 K are the weights without the biases (412,050), which it counts for CARN; the official code and file have these."
_SCNET = "The authors' 557 K, in a thread of the official repository, is cut, not rounded."

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
            2: Figures(0.291, input_size=(360, 640), counted_params_m=0.298236, counted_gmacs=65.061, note=_CFSR_READ),
            3: Figures(0.298, input_size=(240, 427), counted_params_m=0.304731, counted_gmacs=29.603, note=_CFSR_READ),
            4: Figures(0.307, 17.5, (180, 320), "32.33 dB Set5", counted_params_m=0.313824, counted_gmacs=17.161, note=_CFSR),
        },
    ),
    "a2n": (
        Entry(
            "cnnkit_superres.models.a2n:A2N",
            paper="a2n",
            summary="Blocks weigh a branch with attention against one without, as the picture needs.",
            layouts=("official",),
        ),
        {2: Figures(params_m=1.036443), 3: Figures(params_m=1.036443), 4: Figures()},  # As many as the official files hold.
    ),
    "a2n_m": (
        Entry(
            "cnnkit_superres.models.a2n:A2N",
            paper="a2n",
            summary="A2N with a 1x1 convolution in the branch without attention.",
            args={"plain_kernel": 1},
            layouts=("official",),
        ),
        {2: Figures(), 3: Figures(), 4: Figures()},
    ),
    "span": (
        Entry(
            "cnnkit_superres.models.span:SPAN",
            paper="dsclora",
            summary="Attention without parameters: what a block finds is its map of where to look; 52 features.",
            args={"channels": 52},
            layouts=("official",),
        ),
        {
            2: Figures(),
            4: Figures(0.498, quality="26.18 dB Urban100", counted_params_m=2.157136, note=_SPAN),
        },
    ),
    "span_s": (
        Entry(
            "cnnkit_superres.models.span:SPAN",
            paper="dsclora",
            summary="SPAN with 48 features, the size of most published weights.",
            args={"channels": 48},
            layouts=("official",),
        ),
        {2: Figures(), 4: Figures()},
    ),
    "dscf": (
        Entry(
            "cnnkit_superres.models.span:SPAN",
            paper="dsclora",
            summary="SPAN with 26 features and merged convolutions: first of the NTIRE 2025 challenge on efficiency, by DSCLoRA.",
            args={"channels": 26, "merged": True},
            layouts=("official",),
        ),
        {4: Figures(0.131, 8.54, 256, "26.92 dB DIV2K_LSDIR_valid")},
    ),
    # The paper counts a third of 1280 x 720 as 102,400 pixels, as many as 320 x 320 has.
    "carn": (
        Entry(
            "cnnkit_superres.models.carn:CARN",
            paper="carn",
            summary="Residual blocks whose outputs are all fused again; one set of weights for three scales.",
            layouts=("official",),
        ),
        {
            2: Figures(1.592, 222.8, (360, 640), "37.76 dB Set5"),
            3: Figures(1.592, 118.8, (320, 320), "34.29 dB Set5"),
            4: Figures(1.592, 90.9, (180, 320), "32.13 dB Set5"),
        },
    ),
    "carn_m": (
        Entry(
            "cnnkit_superres.models.carn:CARN",
            paper="carn",
            summary="CARN with convolutions in groups and one residual block used three times; one set of weights for three scales.",
            args={"efficient": True, "groups": 4},
            layouts=("official",),
        ),
        {
            2: Figures(0.412, 91.2, (360, 640), "37.53 dB Set5", counted_params_m=0.414811, note=_CARN_M),
            3: Figures(0.412, 46.1, (320, 320), "33.99 dB Set5", counted_params_m=0.414811, note=_CARN_M),
            4: Figures(0.412, 32.5, (180, 320), "31.92 dB Set5", counted_params_m=0.414811, note=_CARN_M),
        },
    ),
    "imdn": (
        Entry(
            "cnnkit_superres.models.imdn:IMDN",
            paper="imdn",
            summary="Blocks that keep a quarter of their channels at each step; attention by contrast.",
            layouts=("official",),
        ),
        {
            2: Figures(0.694, 158.8, (360, 640), "38.00 dB Set5"),
            3: Figures(0.703, 71.5, (240, 427), "34.36 dB Set5"),
            4: Figures(0.715, 40.9, (180, 320), "32.21 dB Set5"),
        },
    ),
    "imdn_as": (
        Entry(
            "cnnkit_superres.models.imdn:IMDNAS",
            paper="imdn",
            summary="IMDN for any scale, on pictures that a bicubic filter has enlarged; one set of weights.",
            layouts=("official",),
        ),
        {2: Figures(), 3: Figures(), 4: Figures()},
    ),
    # The figures of T and B are their authors', the latter from a thread of the official repository; of L none could be read.
    "scnet_t": (
        Entry(
            "cnnkit_superres.models.scnet:SCNet",
            paper="scnet-sr",
            summary="No kernel larger than 1x1: neighbours meet because groups of channels move by a pixel; tiny.",
            layouts=("official",),
        ),
        {2: Figures(quality="37.85 dB Set5"), 3: Figures(), 4: Figures()},
    ),
    "scnet_t_ps": (
        Entry(
            "cnnkit_superres.models.scnet:SCNet",
            paper="scnet-sr",
            summary="SCNet's tiny size, enlarging by pixel shuffles.",
            args={"pixel_shuffle": True},
            layouts=("official",),
        ),
        {2: Figures(), 3: Figures(), 4: Figures()},
    ),
    "scnet_b": (
        Entry(
            "cnnkit_superres.models.scnet:SCNet",
            paper="scnet-sr",
            summary="SCNet with 64 blocks.",
            args={"depth": 64, "pixel_shuffle": True},
            layouts=("official",),
        ),
        {2: Figures(params_m=0.557, quality="38.01 dB Set5", counted_params_m=0.557891, note=_SCNET), 3: Figures(), 4: Figures()},
    ),
    "scnet_l": (
        Entry(
            "cnnkit_superres.models.scnet:SCNet",
            paper="scnet-sr",
            summary="SCNet with 128 blocks; the size is ours, since the paper's could not be read.",
            args={"depth": 128, "pixel_shuffle": True},
        ),
        {2: Figures(), 3: Figures(), 4: Figures()},
    ),
    # The authors print parameters for factor four alone; the quality is that of their network, whose code is not published.
    "tcsr_b": (
        Entry(
            "cnnkit_superres.models.tcsr:TCSR",
            paper="tcsr",
            summary="Each pixel attends to the window around it; the feed-forward part moves channels by a pixel.",
        ),
        {2: Figures(), 3: Figures(), 4: Figures(params_m=0.682, quality="32.43 dB Set5")},
    ),
    "tcsr_l": (
        Entry(
            "cnnkit_superres.models.tcsr:TCSR",
            paper="tcsr",
            summary="TCSR with 23 blocks in place of 15.",
            args={"depth": 23},
        ),
        {2: Figures(), 3: Figures(), 4: Figures(params_m=1.03, quality="32.55 dB Set5")},
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
    commands={"cost": "cnnkit_superres.commands:cost", "merge": "cnnkit_superres.commands:merge"},
    models={
        f"superres/{name}_x{scale}": entry.variant(figures, scale=scale)
        for name, (entry, scales) in NETWORKS.items()
        for scale, figures in scales.items()
    },
    parts={
        "superres/dsclora": Entry(
            "cnnkit_superres.dsclora:add_adapters",
            paper="dsclora",
            summary="Low-rank adapters on the convolutions of any network here, trained under a teacher and merged without a trace.",
        ),
        "superres/samplingaug": Entry(
            "cnnkit_superres.sampling:InformativePatches",
            paper="samplingaug",
            summary="A sampler for any network: patches that bicubic interpolation restores worst, scored by an integral image.",
        ),
    },
)

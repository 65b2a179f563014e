"""Segment organs, tissues and lesions in CT and MR volumes: the manifest of the plugin, and nothing else."""

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry, Figures

PLUGIN = Plugin(
    name="medseg",
    api=1,
    summary="Segment organs, tissues and lesions in CT and MR volumes.",
    task="cnnkit_medseg.task:MedSeg",
    run="cnnkit_medseg.args:Run",
    requires=("monai", "nibabel", "SimpleITK", "pydicom", "scipy", "PIL", "nilearn"),
    checkpoint="weights/mni_tissue.ckpt",
    commands={"score": "cnnkit_medseg.commands:score"},
    models={
        "medseg/unet": Entry(
            "cnnkit_medseg.models.unet:UNet",
            summary="Plain or residual U-Net with deep supervision; any core backbone can be its encoder.",
            dims=(1, 2, 3),
            layouts=("nnunet", "monai-dynunet"),
        ),
        "medseg/dynunet": Entry("cnnkit_medseg.models.monai_nets:dynunet", summary="MONAI's DynUNet.", dims=(2, 3), layouts=("monai",)),
        "medseg/segresnet": Entry(
            "cnnkit_medseg.models.monai_nets:segresnet", summary="MONAI's SegResNet.", dims=(2, 3), layouts=("monai",)
        ),
        "medseg/swin_unetr": Entry(
            "cnnkit_medseg.models.swin_unetr:SwinUNETR",
            paper="swin-unetr",
            summary="Shifted-window transformer encoder with a convolutional decoder.",
            dims=(2, 3),
            figures=Figures(
                params_m=61.98,
                gmacs=394.84,
                input_size=96,
                quality="0.913 mean Dice, BraTS 2021, 5 folds",
                counted_params_m=62.19,
                counted_gmacs=321.75,
                note="4 channels, 3 regions, 48 features; the paper's counter passes over the 0.20 M entries of the tables of relative "
                "position, and states no input size for its multiply-adds (771.64 at 128^3)",
            ),
            layouts=("monai",),
        ),
        "medseg/swin_unetr_brats21": Entry(
            "cnnkit_medseg.models.swin_unetr:SwinUNETR",
            paper="swin-unetr",
            summary="For weights published before MONAI 1.5, whose patch merging read two neighbours twice.",
            dims=(2, 3),
            args={"downsample": "merging-0.9"},
            layouts=("monai",),
        ),
    },
)

"""Sound: tagging, speakers, effects, a codec and distant speech. The manifest of the plugin, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry, Figures

_AUDIO = (1,)
"""Every network takes waveforms, ``(B, channels, samples)``: its front end is part of it."""

_ACDNET = "The paper counts pooling, rectifiers and the softmax too; with these ours is the same (compress.sizes)."

_PANNS = "The paper counts multiplications and additions apart, and the Fourier transform as a convolution."
_TEN = (320_000,)
_CNN10 = {"widths": (64, 128, 256, 512), "pools": 4}
_CNN6 = {**_CNN10, "kernel_size": 5}


def _panns(summary: str, args: Mapping[str, Any], figures: Figures | None = None) -> Entry:
    figures = figures or Figures()
    target = "cnnkit_audio.models.panns:Pann"
    return Entry(target, "convnext-audioset", f"{summary}.", dims=_AUDIO, args=args, figures=figures, layouts=("official",))


MODELS: dict[str, Entry] = {
    "audio/wavemsnet": Entry(
        "cnnkit_audio.models.wavemsnet:WaveMsNet",
        paper="wavemsnet",
        summary="Filters of three sizes on the waveform make one picture (Zhu et al., 2018); phase 1 of its training.",
        dims=_AUDIO,
        figures=Figures(quality="70 % on ESC-50 and 88 % on ESC-10 by the waveform alone, as a review notes"),
        layouts=("official",),
    ),
    "audio/wavemsnet_logmel": Entry(
        "cnnkit_audio.models.wavemsnet:WaveMsNet",
        paper="wavemsnet",
        summary="WaveMsNet in phase 2: its filters frozen, a log-mel spectrogram beside them.",
        dims=_AUDIO,
        args={"phase": 2},
        figures=Figures(quality="79.10 % on ESC-50, 93.75 % on ESC-10"),
        layouts=("official",),
    ),
    "audio/convnext_tiny": Entry(
        "cnnkit_audio.models.convnext_audio:ConvNeXtAudio",
        paper="convnext-audioset",
        summary="ConvNeXt-Tiny on spectrograms of 224 bands; starts from ImageNet, gives embeddings (Pellegrini et al., 2023).",
        dims=_AUDIO,
        figures=Figures(params_m=28.222767, quality="0.471 mAP on AudioSet"),
        layouts=("official",),
    ),
    "audio/panns_cnn6": _panns(
        "CNN6 of PANNs (Kong et al., 2020)", _CNN6, Figures(4.837455, 21.986, _TEN, "0.343 mAP", None, 9.966, _PANNS)
    ),
    "audio/panns_cnn10": _panns("CNN10 of PANNs", _CNN10, Figures(5.219279, 28.166, _TEN, "0.380 mAP", None, 13.049, _PANNS)),
    "audio/panns_cnn14": _panns("CNN14 of PANNs", {}, Figures(80.753615, 42.22, _TEN, "0.431 mAP", None, 20.07, _PANNS)),
    "audio/panns_cnn6_dsc": _panns("CNN6 with depthwise-separable convolutions (Pellegrini et al., 2023)", {**_CNN6, "separable": True}),
    "audio/panns_cnn10_dsc": _panns("CNN10 with depthwise-separable convolutions", {**_CNN10, "separable": True}),
    "audio/panns_cnn14_dsc": _panns("CNN14 with depthwise-separable convolutions", {"separable": True}),
    "audio/acdnet": Entry(
        "cnnkit_audio.models.acdnet:ACDNet",
        paper="acdnet",
        summary="A learnt filter bank on the waveform, whose filters become the rows of a picture; made to be compressed.",
        dims=_AUDIO,
        figures=Figures(4.74, 0.544, (30225,), "87.10 % on ESC-50", counted_gmacs=0.542, note=_ACDNET),
        layouts=("official",),
    ),
    "audio/acdnet_micro": Entry(
        "cnnkit_audio.models.acdnet:ACDNet",
        paper="acdnet",
        summary="Micro-ACDNet: ACDNet with a fifth of its channels, for microcontrollers.",
        dims=_AUDIO,
        args={"channels": (7, 20, 10, 14, 22, 31, 35, 41, 51, 67, 69, 48)},
        figures=Figures(0.131, 0.0148, (30225,), "83.65 % on ESC-50", counted_gmacs=0.0143, note=_ACDNET),
        layouts=("official",),
    ),
    "audio/aclnet": Entry(
        "cnnkit_audio.models.aclnet:AclNet",
        paper="aclnet",
        summary="Two strided convolutions on the waveform in place of a spectrogram, then VGG (Huang and Alvarado Leanos, 2018).",
        dims=_AUDIO,
        figures=Figures(quality="85.65 % on ESC-50, the best configuration"),
    ),
    "audio/aclnet_small": Entry(
        "cnnkit_audio.models.aclnet:AclNet",
        paper="aclnet",
        summary="AclNet of half width with depthwise-separable convolutions: 155 thousand parameters.",
        dims=_AUDIO,
        args={"width": 0.5, "separable": True},
        figures=Figures(
            params_m=0.155,
            gmacs=0.0493,
            input_size=(44100,),
            quality="81.75 % on ESC-50",
            counted_gmacs=0.0483,
            note="multiply-adds of one second; the strides at 44.1 kHz are our reading, 2 % under the printed sum",
        ),
    ),
}

_TCN = Entry("cnnkit_audio.models.micro_tcn:MicroTCN", paper="micro-tcn", dims=_AUDIO, layouts=("official",))
_SIZES = {"100": (4, 5), "300": (4, 13), "1000": (5, 5)}
for _size, (_blocks, _kernel) in _SIZES.items():
    for _letter, _how in (("c", "causal"), ("n", "not causal")):
        MODELS[f"audio/micro_tcn_{_size}_{_letter}"] = replace(
            _TCN,
            summary=f"A compressor by {_blocks} convolutions whose dilation grows tenfold; {_size} ms, {_how}.",
            args={"blocks": _blocks, "kernel": _kernel, "causal": _letter == "c"},
        )
MODELS["audio/tcn_300_n"] = replace(
    _TCN,
    summary="The paper's larger baseline: ten convolutions whose dilation doubles.",
    args={"blocks": 10, "kernel": 15, "growth": 2, "causal": False},
)
MODELS["audio/lstm_32"] = Entry(
    "cnnkit_audio.models.micro_tcn:LSTMEffect",
    paper="micro-tcn",
    summary="The paper's recurrent baseline: one LSTM over samples.",
    dims=_AUDIO,
    layouts=("official",),
)

_TDNN = Entry(
    "cnnkit_audio.models.efficient_tdnn:EfficientTDNN",
    paper="efficienttdnn",
    summary="Speaker embeddings by an ECAPA-TDNN: the base of the paper, and what a search in its supernet cuts out.",
    dims=_AUDIO,
    layouts=("official",),
    figures=Figures(5.79, 1.45, (48000,), "0.94 % EER on VoxCeleb1-O with AS-norm"),
)
_TDNN_NOTE = "the paper counts two operations for each value of a batch normalisation, and leaves out the front end"
MODELS["audio/efficient_tdnn"] = _TDNN
MODELS["audio/efficient_tdnn_mobile"] = replace(
    _TDNN,
    summary="Speaker embeddings by the mobile network that the paper found in its supernet.",
    args={"channels": (384, 256, 256, 256), "kernels": (5, 3, 3, 3), "cat": 768},
    figures=Figures(2.42, 0.571, (48000,), "1.41 % EER on VoxCeleb1-O with AS-norm", counted_gmacs=0.5754, note=_TDNN_NOTE),
)
MODELS["audio/efficient_tdnn_small"] = replace(
    _TDNN,
    summary="Speaker embeddings by the small network that the paper found in its supernet.",
    args={"channels": (256, 256, 256), "kernels": (3, 3, 3), "cat": 400},
    figures=Figures(0.8992, 0.204, (48000,), "2.20 % EER on VoxCeleb1-O with AS-norm", counted_gmacs=0.2092, note=_TDNN_NOTE),
)
MODELS["audio/efficient_tdnn_supernet"] = replace(
    _TDNN,
    target="cnnkit_audio.models.efficient_tdnn_supernet:EfficientTDNNSupernet",
    summary="The supernet of EfficientTDNN: elastic depth, kernels and widths in one set of weights, to train once and search in.",
    figures=Figures(quality="1.44 % EER on VoxCeleb1-O as its largest network"),
)

_ESC = Entry(
    "cnnkit_audio.models.esc:ESC",
    paper="esc-codec",
    summary="Speech at 1.5 to 9 kbit/s: window attention on the complex spectrum, quantised scale by scale.",
    dims=_AUDIO,
    figures=Figures(params_m=8.39),
    layouts=("official",),
)
MODELS["audio/esc_base"] = _ESC
MODELS["audio/esc_large"] = _ESC.variant(Figures(params_m=15.58), depth=4)
MODELS["audio/acs_asr"] = Entry(
    "cnnkit_audio.models.acs_asr:ACSASR",
    paper="chime7-acs-asr",
    summary="Distant speech by any array: picks its microphones, lets them attend to each other, merges them, writes words.",
    dims=_AUDIO,
    figures=Figures(quality="40.1 % fewer errors (macro DA-WER) than the baseline on CHiME-7 Eval, oracle segmentation"),
)
_ENSEMBLE = Entry(
    "cnnkit_audio.models.image_cnn:ImageCNN",
    paper="audio-cnn-ensemble",
    summary="Any backbone for pictures on a mel, gammatone, constant-Q or Gabor image; a member of an ensemble (Nanni et al., 2021).",
    dims=_AUDIO,
)
MODELS["audio/image_cnn"] = _ENSEMBLE
MODELS["audio/cnn_ensemble"] = replace(
    _ENSEMBLE,
    target="cnnkit_audio.models.cnn_ensemble:CNNEnsemble",
    summary="Networks that tag sound, fused by the sum rule: any of them, by default a ResNet-50 on each of four images.",
)

PLUGIN = Plugin(
    name="audio",
    api=1,
    summary="Hear what sounds when, tell speakers apart, code speech, model effects, recognise distant words.",
    task="cnnkit_audio.task:Audio",
    run="cnnkit_audio.args:Run",
    requires=("scipy", "soundfile", "torchaudio"),
    models=MODELS,
    commands={
        "search": "cnnkit_audio.embedding.commands:search",
        "verify": "cnnkit_audio.embedding.commands:verify",
        "compress": "cnnkit_audio.compress_command:compress",
        "ensemble": "cnnkit_audio.ensemble_command:ensemble",
        "fuse": "cnnkit_audio.ensemble_command:fuse",
    },
)

"""Sound: tagging, speakers, effects, a codec and distant speech. The manifest of the plugin, and nothing else."""

from dataclasses import replace

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry, Figures

_AUDIO = (1,)
"""Every network takes waveforms, ``(B, channels, samples)``: its front end is part of it."""

_ACDNET = "The paper counts pooling, rectifiers and the softmax too; with these ours is the same (compress.sizes)."

MODELS: dict[str, Entry] = {
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

PLUGIN = Plugin(
    name="audio",
    api=1,
    summary="Hear what sounds when, tell speakers apart, code speech, model effects, recognise distant words.",
    task="cnnkit_audio.task:Audio",
    run="cnnkit_audio.args:Run",
    requires=("scipy", "soundfile", "torchaudio"),
    models=MODELS,
)

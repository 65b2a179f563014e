"""Sound: tagging, speakers, effects, a codec and distant speech. The manifest of the plugin, and nothing else."""

from __future__ import annotations

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry, Figures

_ACDNET = "The paper counts pooling, rectifiers and the softmax too; with these ours is the same (compress.sizes)."
_ACLNET = "multiply-adds of one second; the strides at 44.1 kHz are our reading, 2 % under the printed sum"
_PANNS = "The paper counts multiplications and additions apart, and the Fourier transform as a convolution."
_TDNN = "the paper counts two operations for each value of a batch normalisation, and leaves out the front end"
_CNN10 = {"widths": (64, 128, 256, 512), "pools": 4}
_CNN6 = {**_CNN10, "kernel_size": 5}

# What builds a network, and its variants by name: what it is, its figures, its arguments. All take waveforms, (B, channels, samples).
NETWORKS: tuple[tuple[Entry, dict[str, tuple[str, Figures, dict[str, object]]]], ...] = (
    (
        Entry("cnnkit_audio.models.wavemsnet:WaveMsNet", paper="wavemsnet", dims=(1,), layouts=("official",)),
        {
            "wavemsnet": (
                "Filters of three sizes on the waveform make one picture (Zhu et al., 2018); phase 1 of its training.",
                Figures(quality="70 % on ESC-50 and 88 % on ESC-10 by the waveform alone, as a review notes"),
                {},
            ),
            "wavemsnet_logmel": (
                "WaveMsNet in phase 2: its filters frozen, a log-mel spectrogram beside them.",
                Figures(quality="79.10 % on ESC-50, 93.75 % on ESC-10"),
                {"phase": 2},
            ),
        },
    ),
    (
        Entry("cnnkit_audio.models.convnext_audio:ConvNeXtAudio", paper="convnext-audioset", dims=(1,), layouts=("official",)),
        {
            "convnext_tiny": (
                "ConvNeXt-Tiny on spectrograms of 224 bands; starts from ImageNet, gives embeddings (Pellegrini et al., 2023).",
                Figures(params_m=28.222767, quality="0.471 mAP on AudioSet"),
                {},
            ),
        },
    ),
    (
        Entry("cnnkit_audio.models.panns:Pann", paper="convnext-audioset", dims=(1,), layouts=("official",)),
        {
            "panns_cnn6": (
                "CNN6 of PANNs (Kong et al., 2020).",
                Figures(4.837455, 21.986, (320_000,), "0.343 mAP", counted_gmacs=9.966, note=_PANNS),
                {**_CNN6},
            ),
            "panns_cnn10": (
                "CNN10 of PANNs.",
                Figures(5.219279, 28.166, (320_000,), "0.380 mAP", counted_gmacs=13.049, note=_PANNS),
                {**_CNN10},
            ),
            "panns_cnn14": (
                "CNN14 of PANNs.",
                Figures(80.753615, 42.22, (320_000,), "0.431 mAP", counted_gmacs=20.07, note=_PANNS),
                {},
            ),
            "panns_cnn6_dsc": (
                "CNN6 with depthwise-separable convolutions (Pellegrini et al., 2023).",
                Figures(),
                {**_CNN6, "separable": True},
            ),
            "panns_cnn10_dsc": ("CNN10 with depthwise-separable convolutions.", Figures(), {**_CNN10, "separable": True}),
            "panns_cnn14_dsc": ("CNN14 with depthwise-separable convolutions.", Figures(), {"separable": True}),
        },
    ),
    (
        Entry("cnnkit_audio.models.acdnet:ACDNet", paper="acdnet", dims=(1,), layouts=("official",)),
        {
            "acdnet": (
                "A learnt filter bank on the waveform, whose filters become the rows of a picture; made to be compressed.",
                Figures(4.74, 0.544, (30225,), "87.10 % on ESC-50", counted_gmacs=0.542, note=_ACDNET),
                {},
            ),
            "acdnet_micro": (
                "Micro-ACDNet: ACDNet with a fifth of its channels, for microcontrollers.",
                Figures(0.131, 0.0148, (30225,), "83.65 % on ESC-50", counted_gmacs=0.0143, note=_ACDNET),
                {"channels": (7, 20, 10, 14, 22, 31, 35, 41, 51, 67, 69, 48)},
            ),
        },
    ),
    (
        Entry("cnnkit_audio.models.aclnet:AclNet", paper="aclnet", dims=(1,)),
        {
            "aclnet": (
                "Two strided convolutions on the waveform in place of a spectrogram, then VGG (Huang and Alvarado Leanos, 2018).",
                Figures(quality="85.65 % on ESC-50, the best configuration"),
                {},
            ),
            "aclnet_small": (
                "AclNet of half width with depthwise-separable convolutions: 155 thousand parameters.",
                Figures(0.155, 0.0493, (44100,), "81.75 % on ESC-50", counted_gmacs=0.0483, note=_ACLNET),
                {"width": 0.5, "separable": True},
            ),
        },
    ),
    (
        Entry("cnnkit_audio.models.micro_tcn:MicroTCN", paper="micro-tcn", dims=(1,), layouts=("official",)),
        {
            "micro_tcn_100_c": (
                "A compressor by 4 convolutions whose dilation grows tenfold; 100 ms, causal.",
                Figures(),
                {"blocks": 4, "kernel": 5, "causal": True},
            ),
            "micro_tcn_100_n": (
                "A compressor by 4 convolutions whose dilation grows tenfold; 100 ms, not causal.",
                Figures(),
                {"blocks": 4, "kernel": 5, "causal": False},
            ),
            "micro_tcn_300_c": (
                "A compressor by 4 convolutions whose dilation grows tenfold; 300 ms, causal.",
                Figures(),
                {"blocks": 4, "kernel": 13, "causal": True},
            ),
            "micro_tcn_300_n": (
                "A compressor by 4 convolutions whose dilation grows tenfold; 300 ms, not causal.",
                Figures(),
                {"blocks": 4, "kernel": 13, "causal": False},
            ),
            "micro_tcn_1000_c": (
                "A compressor by 5 convolutions whose dilation grows tenfold; 1000 ms, causal.",
                Figures(),
                {"blocks": 5, "kernel": 5, "causal": True},
            ),
            "micro_tcn_1000_n": (
                "A compressor by 5 convolutions whose dilation grows tenfold; 1000 ms, not causal.",
                Figures(),
                {"blocks": 5, "kernel": 5, "causal": False},
            ),
            "tcn_300_n": (
                "The paper's larger baseline: ten convolutions whose dilation doubles.",
                Figures(),
                {"blocks": 10, "kernel": 15, "growth": 2, "causal": False},
            ),
        },
    ),
    (
        Entry("cnnkit_audio.models.micro_tcn:LSTMEffect", paper="micro-tcn", dims=(1,), layouts=("official",)),
        {"lstm_32": ("The paper's recurrent baseline: one LSTM over samples.", Figures(), {})},
    ),
    (
        Entry("cnnkit_audio.models.efficient_tdnn:EfficientTDNN", paper="efficienttdnn", dims=(1,), layouts=("official",)),
        {
            "efficient_tdnn": (
                "Speaker embeddings by an ECAPA-TDNN: the base of the paper, and what a search in its supernet cuts out.",
                Figures(5.79, 1.45, (48000,), "0.94 % EER on VoxCeleb1-O with AS-norm"),
                {},
            ),
            "efficient_tdnn_mobile": (
                "Speaker embeddings by the mobile network that the paper found in its supernet.",
                Figures(2.42, 0.571, (48000,), "1.41 % EER on VoxCeleb1-O with AS-norm", counted_gmacs=0.5754, note=_TDNN),
                {"channels": (384, 256, 256, 256), "kernels": (5, 3, 3, 3), "cat": 768},
            ),
            "efficient_tdnn_small": (
                "Speaker embeddings by the small network that the paper found in its supernet.",
                Figures(0.8992, 0.204, (48000,), "2.20 % EER on VoxCeleb1-O with AS-norm", counted_gmacs=0.2092, note=_TDNN),
                {"channels": (256, 256, 256), "kernels": (3, 3, 3), "cat": 400},
            ),
        },
    ),
    (
        Entry("cnnkit_audio.models.efficient_tdnn_supernet:EfficientTDNNSupernet", paper="efficienttdnn", dims=(1,), layouts=("official",)),
        {
            "efficient_tdnn_supernet": (
                "The supernet of EfficientTDNN: elastic depth, kernels and widths in one set of weights, to train once and search in.",
                Figures(quality="1.44 % EER on VoxCeleb1-O as its largest network"),
                {},
            ),
        },
    ),
    (
        Entry("cnnkit_audio.models.esc:ESC", paper="esc-codec", dims=(1,), layouts=("official",)),
        {
            "esc_base": (
                "Speech at 1.5 to 9 kbit/s: window attention on the complex spectrum, quantised scale by scale.",
                Figures(params_m=8.39),
                {},
            ),
            "esc_large": ("ESC with twice as many attention layers at each scale.", Figures(params_m=15.58), {"depth": 4}),
        },
    ),
    (
        Entry("cnnkit_audio.models.acs_asr:ACSASR", paper="chime7-acs-asr", dims=(1,)),
        {
            "acs_asr": (
                "Distant speech by any array: picks its microphones, lets them attend to each other, merges them, writes words.",
                Figures(quality="40.1 % fewer errors (macro DA-WER) than the baseline on CHiME-7 Eval, oracle segmentation"),
                {},
            ),
        },
    ),
    (
        Entry("cnnkit_audio.models.image_cnn:ImageCNN", paper="audio-cnn-ensemble", dims=(1,)),
        {
            "image_cnn": (
                "Any backbone for pictures on a mel, gammatone, constant-Q or Gabor image; a member of an ensemble (Nanni et al., 2021).",
                Figures(),
                {},
            ),
        },
    ),
    (
        Entry("cnnkit_audio.models.cnn_ensemble:CNNEnsemble", paper="audio-cnn-ensemble", dims=(1,)),
        {
            "cnn_ensemble": (
                "Networks that tag sound, fused by the sum rule: any of them, by default a ResNet-50 on each of four images.",
                Figures(),
                {},
            ),
        },
    ),
)

PLUGIN = Plugin(
    name="audio",
    api=1,
    summary="Hear what sounds when, tell speakers apart, code speech, model effects, recognise distant words.",
    task="cnnkit_audio.task:Audio",
    run="cnnkit_audio.args:Run",
    requires=("scipy", "soundfile", "torchaudio"),
    checkpoint="weights/sounds.ckpt",
    models={
        f"audio/{name}": entry.variant(figures, summary=summary, **args)
        for entry, variants in NETWORKS
        for name, (summary, figures, args) in variants.items()
    },
    commands={
        "search": "cnnkit_audio.embedding.commands:search",
        "verify": "cnnkit_audio.embedding.commands:verify",
        "score": "cnnkit_audio.recognition.commands:score",
        "compress": "cnnkit_audio.compress_command:compress",
        "ensemble": "cnnkit_audio.ensemble_command:ensemble",
        "fuse": "cnnkit_audio.ensemble_command:fuse",
    },
)

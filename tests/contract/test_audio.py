"""The audio plugin keeps the contracts of tasks and models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cnnkit.testing import ModelContract, SmallModel, TaskContract
from torch import Tensor, nn

pytest.importorskip("cnnkit_audio")

from cnnkit_audio.models._base import Effect
from cnnkit_audio.models.acs_asr import ACSASR
from cnnkit_audio.sound import write_sound

_ACDNET = {"channels": (3, 6, 4, 5, 4, 6, 5, 7, 6, 8, 7, 5), "length": 4000}
_TCN = SmallModel({"channels": 4, "blocks": 3, "kernel": 3, "growth": 3}, in_chans=1)
_TDNN = SmallModel({"channels": (16, 16), "kernels": (5, 3), "cat": 16}, in_chans=1, num_classes=192, sizes={1: (2000,)})
_ESC = {"channels": (6, 8, 12), "heads": (2, 2), "codebook_channels": (4, 4, 3), "codebook_size": 16, "groups": 2, "mlp_ratio": 2.0}
_ASR = {"sample_rate": 4000, "n_fft": 64, "win_length": 64, "hop": 32, "n_mels": 8, "width": 16, "heads": 2, "hidden": 16, "kernel": 3}
_ASR |= {"keep": (2, 2), "channel_layers": 1, "layers": 1, "decoder_layers": 1, "fusion_width": 2, "dropout": 0.0}
_IMAGE = {"sample_rate": 8000, "window": 0.5, "size": 40, "backbone": "resnet18", "backbone_args": {"widths": (4, 5, 6, 7)}}
_MEMBERS = [
    {"name": "audio/image_cnn", "args": {**_IMAGE, "image": "gammatone"}},
    {"name": "audio/panns_cnn6", "args": {"sample_rate": 4000, "widths": (4, 5), "pools": 2, "window": 0.4}},
]
SMALL: dict[str, SmallModel] = {
    **{
        f"audio/{name}": SmallModel({"filters": 8, "widths": (6, 7, 8, 9), "hidden": 20}, in_chans=1, batch=3, sizes={1: (66_150,)})
        for name in ("wavemsnet", "wavemsnet_logmel")
    },
    "audio/convnext_tiny": SmallModel({"depths": (1, 1, 1, 1), "widths": (8, 8, 12, 12)}, in_chans=1, sizes={1: (16_000,)}),
    **{
        f"audio/panns_{name}": SmallModel({"widths": (4, 5, 6, 7, 8, 9)[:blocks]}, in_chans=1, batch=4, sizes={1: (12_000,)})
        for name, blocks in {"cnn6": 4, "cnn6_dsc": 4, "cnn10": 4, "cnn10_dsc": 4, "cnn14": 6, "cnn14_dsc": 6}.items()
    },
    "audio/acdnet": SmallModel(_ACDNET, in_chans=1, batch=4, sizes={1: (4000,)}),
    "audio/acdnet_micro": SmallModel(_ACDNET, in_chans=1, batch=4, sizes={1: (4000,)}),
    "audio/aclnet": SmallModel({"width": 0.25}, in_chans=1, sizes={1: (9000,)}),
    "audio/aclnet_small": SmallModel({"width": 0.25}, in_chans=1, sizes={1: (9000,)}),
    **{name: _TCN for name in (*(f"audio/micro_tcn_{size}_{how}" for size in (100, 300, 1000) for how in "cn"), "audio/tcn_300_n")},
    "audio/lstm_32": SmallModel({"hidden": 4}, in_chans=1),
    **{f"audio/efficient_tdnn{size}": _TDNN for size in ("", "_mobile", "_small")},
    # The matrices that adapt shorter kernels get a gradient only where a kernel is shorter.
    "audio/efficient_tdnn_supernet": SmallModel({**_TDNN.args, "kernels": (1, 1)}, in_chans=1, num_classes=192, sizes={1: (2000,)}),
    "audio/esc_base": SmallModel(_ESC, in_chans=1, sizes={1: (1600,)}),
    "audio/esc_large": SmallModel(_ESC, in_chans=1, sizes={1: (1600,)}),
    "audio/image_cnn": SmallModel(_IMAGE, in_chans=1, batch=4, sizes={1: (4000,)}),
    "audio/cnn_ensemble": SmallModel({"members": _MEMBERS}, in_chans=1, batch=4, sizes={1: (4000,)}),
    "audio/acs_asr": SmallModel(_ASR, in_chans=3, num_classes=6, sizes={1: (3000,)}),
}
"""The small form of each network of the manifest. An audio network takes ``(B, 1, T)``: sizes = {1: (samples,)}."""


def recording(path: Path) -> Path:
    """Write two seconds of a chirp in noise."""
    time = np.arange(2 * 16000) / 16000
    noise = np.random.default_rng(0).standard_normal(time.size)
    return write_sound(path, (0.4 * np.sin(2 * np.pi * (200 + 300 * time) * time) + 0.02 * noise)[None].astype(np.float32), 16000)


class TestModels(ModelContract):
    plugin = "audio"
    small = SMALL

    def forward(self, model: nn.Module, x: Tensor) -> list[Tensor]:
        """An effect has knobs beside its input; a recogniser has a decoder, which reads what was written so far."""
        if isinstance(model, ACSASR):
            heard = model.hear(x)
            return [model(x), heard.ctc, model.attend(heard, torch.tensor([[1, 2, 3]] * len(x)))]
        return [model(x, torch.full((len(x), len(model.knobs)), 0.5))] if isinstance(model, Effect) else super().forward(model, x)

    def check_output(self, small: SmallModel, x: Tensor, outputs: list[Tensor]) -> None:
        """A tagger has scores for classes, a recogniser has them for each frame, an effect has one channel of sound."""
        batch, channels, *time = outputs[0].shape
        assert batch == small.batch and channels in ((1, small.num_classes) if time else (small.num_classes,)) and all(time)


class TestEmbedding(TaskContract):
    plugin = "audio"
    config = {
        "network": {"name": "audio/efficient_tdnn", "args": {"channels": [16, 16], "kernels": [3, 3], "cat": 16}},
        "embedding": {"speakers": 2},
    }

    def example_input(self, folder: Path) -> Path:
        from cnnkit_audio.sound import write_sound
        from cnnkit_audio.synth.voices import speech

        return write_sound(folder / "voice.wav", speech(np.random.default_rng(0), 1.0, 16000)[None], 16000)


class TestCodec(TaskContract):
    plugin = "audio"
    lr = 3e-3
    config = {
        "network": {
            "name": "audio/esc_base",
            "args": {key: list(value) if isinstance(value, tuple) else value for key, value in _ESC.items()},
        },
        "codec": {"init_vectors": 1, "pretrain_epochs": 2},
    }

    def example_input(self, folder: Path) -> Path:
        from cnnkit_audio.sound import write_sound
        from cnnkit_audio.synth.voices import speech

        return write_sound(folder / "voice.wav", speech(np.random.default_rng(0), 0.7, 16000)[None], 16000)


class TestEffectTask(TaskContract):
    plugin = "audio"
    config = {"network": {"name": "audio/micro_tcn_100_c", "args": {"channels": 6, "blocks": 3, "growth": 4, "sample_rate": 8000}}}
    run_options = ("--knobs", "limit=1,peak_reduction=0.5")

    def example_input(self, folder: Path) -> Path:
        return recording(folder / "drums.wav")


class TestTaggingTask(TaskContract):
    plugin = "audio"
    config = {"network": {"name": "audio/aclnet", "args": {"width": 0.25, "sample_rate": 16000, "strides": [2, 4], "window": 0.64}}}
    run_options = ("--embeddings", "--threshold", "0")

    def example_input(self, folder: Path) -> Path:
        return recording(folder / "chirp.wav")


class TestRecognitionTask(TaskContract):
    plugin = "audio"
    config = {
        "network": {
            "name": "audio/acs_asr",
            "args": {key: list(value) if isinstance(value, tuple) else value for key, value in _ASR.items()},
        }
    }

    def example_input(self, folder: Path) -> Path:
        sound = 0.1 * np.random.default_rng(0).standard_normal((3, 6000)).astype(np.float32)
        return write_sound(folder / "array.wav", sound, 4000)

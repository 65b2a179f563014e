"""Front ends: from waveforms to spectrograms, as parts of a network."""

from cnnkit_audio.frontends._base import Framing, FrontEnd
from cnnkit_audio.frontends.mel import Fbank, LogMel, Mfcc
from cnnkit_audio.frontends.presets import ast, beats, convnext_audioset, efficientat, kaldi_fbank, panns

__all__ = [
    "Fbank",
    "Framing",
    "FrontEnd",
    "LogMel",
    "Mfcc",
    "ast",
    "beats",
    "convnext_audioset",
    "efficientat",
    "kaldi_fbank",
    "panns",
]

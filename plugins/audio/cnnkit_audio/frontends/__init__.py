"""Front ends: from waveforms to spectrograms, as parts of a network."""

from cnnkit_audio.frontends._base import Framing, FrontEnd
from cnnkit_audio.frontends.mel import Fbank, LogMel, Mfcc
from cnnkit_audio.frontends.presets import ast, beats, convnext_audioset, efficientat, kaldi_fbank, panns
from cnnkit_audio.frontends.stft import InverseStft, Stft

__all__ = [
    "Fbank",
    "Framing",
    "FrontEnd",
    "InverseStft",
    "LogMel",
    "Mfcc",
    "Stft",
    "ast",
    "beats",
    "convnext_audioset",
    "efficientat",
    "kaldi_fbank",
    "panns",
]

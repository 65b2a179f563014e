"""Front ends: from waveforms to spectrograms, as parts of a network."""

from cnnkit_audio.frontends._base import Framing, FrontEnd
from cnnkit_audio.frontends.images import ConstantQ, Gabor, Gammatone
from cnnkit_audio.frontends.leaf import Leaf, Pcen
from cnnkit_audio.frontends.mel import Fbank, LogMel, Mfcc
from cnnkit_audio.frontends.presets import ast, beats, convnext_audioset, efficientat, kaldi_fbank, panns
from cnnkit_audio.frontends.stft import InverseStft, Stft

__all__ = [
    "ConstantQ",
    "Fbank",
    "Framing",
    "FrontEnd",
    "Gabor",
    "Gammatone",
    "InverseStft",
    "Leaf",
    "LogMel",
    "Mfcc",
    "Pcen",
    "Stft",
    "ast",
    "beats",
    "convnext_audioset",
    "efficientat",
    "kaldi_fbank",
    "panns",
]

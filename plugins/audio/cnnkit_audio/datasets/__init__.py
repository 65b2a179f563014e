"""Data sets as they are published: each layout gives the same :class:`Clip`, and :class:`ClipDataset` makes crops of them."""

from cnnkit_audio.datasets.audioset import audioset, audioset_labels
from cnnkit_audio.datasets.clips import Clip, Clips
from cnnkit_audio.datasets.crops import ClipDataset, balanced_weights
from cnnkit_audio.datasets.environment import esc50, esc50_labels, fsd50k, fsd50k_labels, urbansound8k, urbansound8k_labels
from cnnkit_audio.datasets.read import all_labels, by_fold, by_split, folders, read_dataset
from cnnkit_audio.datasets.speech import Trial, background_noise, chime, read_trials, speech_commands, voxceleb

__all__ = [
    "Clip",
    "ClipDataset",
    "Clips",
    "Trial",
    "all_labels",
    "audioset",
    "audioset_labels",
    "background_noise",
    "balanced_weights",
    "by_fold",
    "by_split",
    "chime",
    "esc50",
    "esc50_labels",
    "folders",
    "fsd50k",
    "fsd50k_labels",
    "read_dataset",
    "read_trials",
    "speech_commands",
    "urbansound8k",
    "urbansound8k_labels",
    "voxceleb",
]

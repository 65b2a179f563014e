"""Sound: tagging, speakers, effects, a codec and distant speech. The manifest of the plugin, and nothing else."""

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry

_AUDIO = (1,)
"""Every network takes waveforms, ``(B, channels, samples)``: its front end is part of it."""

MODELS: dict[str, Entry] = {}

PLUGIN = Plugin(
    name="audio",
    api=1,
    summary="Hear what sounds when, tell speakers apart, code speech, model effects, recognise distant words.",
    task="cnnkit_audio.task:Audio",
    run="cnnkit_audio.args:Run",
    requires=("scipy", "soundfile", "torchaudio"),
    models=MODELS,
)

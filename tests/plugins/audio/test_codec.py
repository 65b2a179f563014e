"""The job of codecs: pieces that join without a seam, files through the command line, data, and the stages of training."""

from __future__ import annotations

import copy
import functools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from cnnkit.checkpoint import save_checkpoint
from cnnkit.cli import main
from cnnkit.config import from_dict
from cnnkit.engine.export import export_network
from cnnkit.engine.fit import header_for
from cnnkit.errors import ConfigError, InputError, UsageError
from cnnkit.plugin import get
from cnnkit_audio.args import Run
from cnnkit_audio.codec.bitstream import HEADER_BYTES, open_bits, pack
from cnnkit_audio.codec.data import crop, find_sounds, whole_speech
from cnnkit_audio.codec.streaming import StreamDecoder, StreamEncoder
from cnnkit_audio.codec.task import Coding
from cnnkit_audio.config import Config
from cnnkit_audio.models.esc import ESC
from cnnkit_audio.sound import open_sound, write_sound
from cnnkit_audio.synth.voices import speech
from cnnkit_audio.task import Audio, open_input

pytestmark = pytest.mark.paper("esc-codec")

ARGS: dict[str, Any] = {
    "channels": [6, 8, 12],
    "heads": [2, 2],
    "codebook_channels": [4, 4, 3],
    "codebook_size": 64,
    "mlp_ratio": 2.0,
}
DATA = {"seconds": 0.2, "batch_size": 4, "clips_per_epoch": 8, "voices": 2}


def coding(**codec: Any) -> Coding:
    """The job with a small network."""
    task = Audio(from_dict(Config, {"network": {"name": "audio/esc_base", "args": ARGS}, "codec": {"data": DATA, **codec}}))
    assert isinstance(task, Coding)
    return task


@functools.cache
def fitted(seed: int) -> ESC:
    """The small network with codebooks that fit voices."""
    torch.manual_seed(seed)
    model = ESC(**ARGS).eval()
    model.fit_codebooks([voice(1.0)[None]])
    return model


def network(seed: int = 0) -> ESC:
    """A copy of the network, which a test may change."""
    return copy.deepcopy(fitted(seed))


def voice(seconds: float, seed: int = 0, rate: int = 16000) -> torch.Tensor:
    """Speech, ``(1, T)``."""
    return torch.from_numpy(speech(np.random.default_rng(seed), seconds, rate)[None])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint ``codec.ckpt``, another network ``other.ckpt``, and speech ``speech.wav`` at 22.05 kHz in stereo."""
    task = coding()
    for name, seed in (("codec", 0), ("other", 1)):
        model = network(seed)
        save_checkpoint(tmp_path / f"{name}.ckpt", model.state_dict(), header_for(task, model, get("audio"), {}))
    write_sound(tmp_path / "speech.wav", voice(1.3, rate=22050).repeat(2, 1).numpy(), 22050)
    return tmp_path


def run(folder: Path, source: str, output: str, *more: str, ckpt: str = "codec.ckpt") -> dict[str, Any]:
    """Run the command line and return the report's first input."""
    out = folder / output
    words = ["run", "audio", str(folder / source), "-o", str(out), "--ckpt", str(folder / ckpt), "--device", "cpu", "-q", *more]
    with pytest.raises(SystemExit):
        main(words)
    return json.loads((out / "report.json").read_text(encoding="utf-8"))["inputs"][0]


# Pieces.


@pytest.mark.parametrize("sizes", [[160], [3000, 7]])
def test_stream_gives_what_the_whole_gives(sizes: list[int]) -> None:
    """Whatever the blocks are: the same codes, and the same sound to rounding; pieces of 0.2 s."""
    model = network().double()
    wave = voice(0.73)[..., :11677]
    whole = model.encode(wave[None].double())
    encoder = StreamEncoder(model, seconds=0.2)
    codes: list[np.ndarray] = []
    place = 0
    while place < wave.shape[1]:
        size = sizes[place % len(sizes)]
        codes += encoder.push(wave[:, place : place + size].numpy())
        place += size
    codes += encoder.finish()
    assert len(codes) >= 3 and encoder.samples == 11677
    assert np.array_equal(np.concatenate(codes, axis=2), whole[0].numpy())
    decoder = StreamDecoder(model, seconds=0.2)
    sounds = [sound for block in codes for sound in decoder.push(block)] + list(decoder.finish(11677))
    assert len(sounds) >= 3
    np.testing.assert_allclose(np.concatenate(sounds, axis=1), model.decode(whole, 11677)[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 6400, 6401])
def test_stream_of_any_length(samples: int) -> None:
    """As many samples come out as went in."""
    model = network()
    encoder, decoder = StreamEncoder(model, 1, seconds=0.1), StreamDecoder(model, seconds=0.1)
    codes = [*encoder.push(voice(0.5)[:, :samples].numpy()), *encoder.finish()]
    sounds = [sound for block in codes for sound in decoder.push(block)] + list(decoder.finish(samples))
    assert sum(block.shape[2] for block in codes) == -(-samples // 320)
    assert sum(sound.shape[1] for sound in sounds) == samples


def test_memory_does_not_grow_with_the_sound() -> None:
    """What is held between blocks is a piece with its overlaps."""
    model = network()
    encoder = StreamEncoder(model, 1, seconds=0.5)
    block = voice(0.25).numpy()
    held = []
    tracemalloc.start()
    for _ in range(24):
        for _codes in encoder.push(block):
            pass
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(held[12:]) < 1.2 * max(held[:12])
    assert encoder._held.shape[1] < 16000 * 0.5 + 2 * model.reach[0] * model.frame + block.shape[1]


# Files.


@pytest.mark.parametrize("levels", [1, 3])
def test_sound_to_bits_and_back(folder: Path, levels: int) -> None:
    """The file is exactly as long as stated, and decodes to what was decoded at once, and to what the network gives in memory."""
    item = run(folder, "speech.wav", "out", "--levels", str(levels))
    assert item["status"] == "ok", item
    bits, sound = map(Path, item["outputs"])
    assert (bits.name, sound.name) == ("speech.esc", "speech.decoded.wav")
    found = open_bits(bits)
    assert found.header.samples == 1.3 * 16000 and found.header.frames == 65
    assert bits.stat().st_size == HEADER_BYTES + int(np.ceil(65 * levels * 3 * 6 / 8))
    assert found.header.bits_per_second == levels * 900

    model = network()
    wave = torch.from_numpy(open_sound(folder / "speech.wav", quiet=True).read(16000))
    codes = model.encode(wave[None], levels)
    assert bits.read_bytes()[HEADER_BYTES:] == pack(codes[0].numpy(), 6)
    decoded = model.decode(codes, wave.shape[1])[0].clamp(-1, 1).numpy()
    np.testing.assert_allclose(open_sound(sound).read(16000), decoded, atol=1.01 / 32768)

    again = run(folder, "out/speech.esc", "again")
    assert [Path(path).name for path in again["outputs"]] == ["speech.decoded.wav"]
    assert Path(again["outputs"][0]).read_bytes() == sound.read_bytes()


def test_fewer_levels_of_a_file(folder: Path) -> None:
    """A bit file holds the codes of every lower rate."""
    run(folder, "speech.wav", "all")
    run(folder, "speech.wav", "one", "--levels", "1")
    item = run(folder, "all/speech.esc", "cut", "--levels", "1")
    assert Path(item["outputs"][0]).read_bytes() == (folder / "one" / "speech.decoded.wav").read_bytes()
    item = run(folder, "one/speech.esc", "more", "--levels", "2")
    assert "speech.esc holds 1 levels, not 2; type --levels 1 or less" in item["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "bad.esc is cut off"),
        (lambda data: data[:60] + b"\x00\x01" + data[62:], "bad.esc is damaged"),
        (lambda data: b"ID3" + data[3:], "bad.esc is no bit file of this codec"),
    ],
)
def test_bad_bit_files_are_refused(folder: Path, change: Any, message: str) -> None:
    """With the reason, in the report; and nothing is written."""
    run(folder, "speech.wav", "out")
    (folder / "bad.esc").write_bytes(change((folder / "out" / "speech.esc").read_bytes()))
    item = run(folder, "bad.esc", "bad")
    assert item["status"] == "error" and message in item["error"] and "details" not in item
    assert not (folder / "bad" / "bad.decoded.wav").exists()


def test_bits_of_another_network_are_refused(folder: Path) -> None:
    """Codes mean nothing to another network."""
    run(folder, "speech.wav", "out")
    item = run(folder, "out/speech.esc", "other", ckpt="other.ckpt")
    assert item["status"] == "error" and "coded by another network" in item["error"] and "with --ckpt" in item["error"]


def test_what_other_networks_and_streams_are_told() -> None:
    """Bits are no sound until a codec has decoded them; a codec takes files."""
    with pytest.raises(InputError, match=r"a\.esc holds the bits of a codec .* decode it first: cnnkit run audio a\.esc --ckpt"):
        open_input(Path("in/a.esc"), Run())
    task = Audio(from_dict(Config, {"network": {"name": "audio/esc_base", "args": ARGS}}))
    with pytest.raises(UsageError, match="give a codec files"):
        list(task.read(Run(inputs=(Path("-"),), stream=True)))


def test_samples_that_are_not_finite_are_zero_if_asked(folder: Path) -> None:
    """As in every other job; without the option they are refused."""
    sound = np.zeros(4000, np.float32)
    sound[100:200] = np.nan
    soundfile.write(folder / "odd.wav", sound, 16000, subtype="FLOAT")
    assert "finite" in run(folder, "odd.wav", "refused")["error"]
    assert run(folder, "odd.wav", "taken", "--nonfinite", "zero")["status"] == "ok"


def test_levels_are_checked_before_the_first_sound(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number that the network does not have, and one that no network has."""
    words = ["run", "audio", str(folder / "speech.wav"), "-o", str(folder / "o"), "--ckpt", str(folder / "codec.ckpt"), "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--levels", "4"])
    text = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code and "this codec has no 4 levels; accepted: 1 (0.9 kbit/s), 2 (1.8" in text
    with pytest.raises(UsageError, match="--levels 0 would code nothing"):
        Run(levels=0)


# Training.


def test_clips_depend_on_their_position_alone() -> None:
    """On the seed, the epoch and the place; levels are drawn for each, and the stage of training is known by the epoch."""
    task = coding(level_dropout=1.0)
    loader: Any = task.loader("train")
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append(list(loader))
    assert len(epochs[0]) == 2 and epochs[0][0]["wave"].shape == (4, 1, 3200)
    assert all(torch.equal(one["wave"], other["wave"]) for one, other in zip(epochs[0], epochs[2], strict=True))
    assert not torch.equal(epochs[0][0]["wave"], epochs[1][0]["wave"])
    levels = torch.cat([batch["levels"] for epoch in epochs[:2] for batch in epoch])
    assert set(levels.tolist()) == {1, 2, 3}
    assert epochs[1][0]["epoch"].tolist() == [1] * 4


def test_recordings_are_found_and_cropped(tmp_path: Path) -> None:
    """In folders of any depth; of a long one only the stretch, a short one within silence."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    ramp = np.linspace(-0.9, 0.9, 16000, dtype=np.float32)[None]
    write_sound(tmp_path / "a" / "long.wav", ramp, 16000)
    write_sound(tmp_path / "a" / "b" / "short.flac", ramp[:, :800], 16000)
    files = find_sounds([str(tmp_path)], "train")
    assert [path.name for path in files] == ["short.flac", "long.wav"]
    rng = np.random.default_rng(0)
    piece = crop(files[1], 0.1, 16000, rng)
    assert piece.shape == (1, 1600)
    np.testing.assert_allclose(np.diff(piece), 1.8 / 15999, atol=1.01 / 32768)
    short = crop(files[0], 0.1, 16000, rng)
    assert short.shape == (1, 1600) and np.count_nonzero(short) >= 799 and (short[0, 0] == 0 or short[0, -1] == 0)
    whole = list(whole_speech(from_dict(Config, {"codec": {"data": {"val": [str(tmp_path)]}}}).codec.data, "val", rate=8000))
    assert [batch["name"] for batch in whole] == [["short.flac"], ["long.wav"]] and whole[1]["wave"].shape == (1, 1, 8000)
    with pytest.raises(ConfigError, match=r"codec.data.train: .*nothing is no folder"):
        find_sounds([str(tmp_path / "nothing")], "train")


def test_stages_of_training() -> None:
    """Nothing is quantised at first; then k-means sets the codebooks, once; and the sound is worse than without codes."""
    torch.manual_seed(0)
    task = coding(pretrain_epochs=1, init_vectors=60)
    model: Any = task.model().train()
    loader: Any = task.loader("train")
    batch = next(iter(loader))
    before = model.quantisers[0].codebooks[0].embedding.weight.clone()
    first = task.losses(model, batch)
    assert float(first["commitment"].detach()) == float(first["codebook"].detach()) == 0 and int(model.codebooks_fitted) == 0
    loader.set_epoch(1)
    later = next(iter(loader))
    second = task.losses(model, later)
    assert int(model.codebooks_fitted) == 1 and float(second["codebook"].detach()) > 0
    after = model.quantisers[0].codebooks[0].embedding.weight.clone()
    assert not torch.equal(before, after)
    task.losses(model, later)
    assert torch.equal(after, model.quantisers[0].codebooks[0].embedding.weight)


def test_codebooks_are_refitted_once_at_each_epoch_that_is_named() -> None:
    """k-means runs at the first batch of the epoch and not again, nor in evaluation; an entry that nothing is near comes back."""
    torch.manual_seed(0)
    task = coding(pretrain_epochs=0, refit_epochs=(2,), init_vectors=60)
    model: Any = task.model().train()
    loader: Any = task.loader("train")
    fits = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        for batch in list(loader)[:2]:
            task.losses(model, batch)
            fits.append(int(model.codebooks_fitted))
            if epoch == 1:
                with torch.no_grad():
                    model.quantisers[0].codebooks[0].embedding.weight[0] = 1e3
    assert fits == [1, 1, 1, 1, 2, 2, 2, 2]
    assert float(model.quantisers[0].codebooks[0].embedding.weight.detach().abs().max()) < 100
    with pytest.raises(ConfigError, match=r"refit_epochs has 3; accepted: epochs after codec.pretrain_epochs=5"):
        coding(pretrain_epochs=5, refit_epochs=(3,)).loader("train")


def test_measures_every_rate() -> None:
    """Validation gives the mel distance of each number of levels, the rate of packed codes, and the figure that picks the best."""
    task, model = coding(), network()
    metric = task.metric()
    for batch in task.loader("val"):  # type: ignore[union-attr]
        metric.update(task.predict(model, batch), batch)  # type: ignore[arg-type]
    figures = metric.compute()
    assert {"mel_distance/1", "mel_distance/2", "mel_distance/3", "si_sdr", "stft_log", "codebook_use"} <= set(figures)
    assert figures["bits_per_second"] == pytest.approx(2700, rel=0.01) and task.monitor[0] in figures
    assert task.preprocess()["bits_per_second"] == [900, 1800, 2700]


def test_export_is_refused_with_what_works(folder: Path) -> None:
    """A file holds one network, and a codec is two; nothing is written."""
    with pytest.raises(UsageError, match=r"an encoder and a decoder, .* cnnkit run audio; .* encode\(wave\), or its decode\(codes\)"):
        export_network(folder / "codec.ckpt", folder / "codec.pt2", plugin=get("audio"))
    assert not list(folder.glob("codec.pt2*")) and not (folder / "codec.json").exists()

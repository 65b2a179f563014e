"""Data sets in their published layouts, made small: what is read, how it is divided, and what is refused with the row that is wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from cnnkit.engine.sampling import EpochLoader, PositionSampler
from cnnkit.errors import CnnkitError, ConfigError, InputError, InputWarning
from cnnkit_audio.data_config import DataConfig
from cnnkit_audio.datasets import (
    Clip,
    ClipDataset,
    audioset,
    background_noise,
    balanced_weights,
    chime,
    esc50,
    esc50_labels,
    folders,
    fsd50k,
    read_dataset,
    read_trials,
    speech_commands,
    urbansound8k,
    voxceleb,
)
from cnnkit_audio.sound import open_sound

RATE = 8000


def sound(path: Path, seconds: float = 0.05, *, rate: int = RATE, start: int = 0) -> Path:
    """Write a ramp, whose samples say where they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, (np.arange(start, start + round(seconds * rate)) / 2**15).astype(np.float32), rate, subtype="PCM_16")
    return path


def make_esc50(root: Path) -> None:
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category, ten in ((0, "dog", True), (36, "vacuum_cleaner", False), (1, "rooster", True)):
            name = f"{fold}-{1000 + target}-A-{target}.wav"
            sound(root / "audio" / name)
            rows.append(f"{name},{fold},{target},{category},{ten},{1000 + target},A")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")


def make_urbansound8k(root: Path) -> None:
    rows = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold in range(1, 11):
        for number, name in ((3, "dog_bark"), (1, "car_horn")):
            file = f"{fold}00-{number}-0-0.wav"
            sound(root / "audio" / f"fold{fold}" / file)
            rows.append(f"{file},{fold}00,58.5,62.5,1,{fold},{number},{name}")
    (root / "metadata").mkdir()
    (root / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows) + "\n")


def make_audioset(root: Path) -> None:
    root.mkdir(exist_ok=True)
    (root / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n2,/m/04rlf,"Music"\n1,/m/05zppz,"Male speech, man speaking"\n'
    )
    head = (
        "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=3, num_segs=3\n# YTID, start_seconds, end_seconds, positive_labels\n"
    )
    balanced = (
        '--4gqARaEJE, 0.000, 10.000, "/m/09x0r,/m/05zppz"\n-0RWZT-miFs, 420.000, 430.000, "/m/04rlf"\n'
        'ABCDEFGHIJK, 30.000, 40.000, "/m/09x0r"\n'
    )
    (root / "balanced_train_segments.csv").write_text(head + balanced)
    (root / "eval_segments.csv").write_text(head + 'evalevaleva, 1.500, 11.500, "/m/04rlf,/m/09x0r"\n')
    sound(root / "audios" / "balanced_train_segments" / "Y--4gqARaEJE.wav")
    sound(root / "audios" / "balanced_train_segments" / "ABCDEFGHIJK_30000.flac")
    sound(root / "audios" / "eval_segments" / "evalevaleva.wav")


def make_fsd50k(root: Path) -> None:
    truth = root / "FSD50K.ground_truth"
    truth.mkdir()
    (truth / "vocabulary.csv").write_text("0,Bark,/m/05tny_\n1,Dog,/m/0bt9lr\n2,Rain,/m/06mb1\n")
    (truth / "dev.csv").write_text('fname,labels,mids,split\n64760,"Bark,Dog","/m/05tny_,/m/0bt9lr",train\n16399,Rain,/m/06mb1,val\n')
    (truth / "eval.csv").write_text('fname,labels,mids\n37199,"Dog,Bark","/m/0bt9lr,/m/05tny_"\n')
    for part, name in (("dev", 64760), ("dev", 16399), ("eval", 37199)):
        sound(root / f"FSD50K.{part}_audio" / f"{name}.wav")


def make_speech_commands(root: Path) -> None:
    for word in ("yes", "no", "bed"):
        for person in ("0a7c2a8d", "1b4c9b89", "2da58b32"):
            sound(root / word / f"{person}_nohash_0.wav")
    sound(root / "_background_noise_" / "pink_noise.wav", 0.5)
    (root / "_background_noise_" / "README.md").write_text("noise")
    (root / "validation_list.txt").write_text("yes/1b4c9b89_nohash_0.wav\n")
    (root / "testing_list.txt").write_text("no/2da58b32_nohash_0.wav\nbed/2da58b32_nohash_0.wav\n")


def make_voxceleb(root: Path) -> None:
    for speaker, video in (("id10270", "5r0dWxy17C8"), ("id10270", "x6uYqmx31kE"), ("id10300", "ize_eiCFEg0")):
        for number in (1, 2):
            sound(root / "wav" / speaker / video / f"{number:05d}.wav")


def make_folders(root: Path) -> None:
    for kind in ("rain", "wind"):
        for number in range(30):
            sound(root / kind / f"{number}.wav", 0.01)


MAKERS: dict[str, Callable[[Path], None]] = {
    "esc50": make_esc50,
    "esc10": make_esc50,
    "urbansound8k": make_urbansound8k,
    "audioset": make_audioset,
    "fsd50k": make_fsd50k,
    "speech_commands": make_speech_commands,
    "voxceleb": make_voxceleb,
    "folders": make_folders,
}


def config(root: Path, layout: str, **more: object) -> DataConfig:
    return DataConfig(folder=str(root), layout=layout, **more)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::cnnkit.errors.InputWarning")
@pytest.mark.parametrize(
    ("layout", "sizes", "labels", "multilabel"),
    [
        ("esc50", (12, 3, 3), ("dog", "rooster", "vacuum_cleaner"), False),
        ("esc10", (8, 2, 2), ("dog", "rooster"), False),
        ("urbansound8k", (18, 2, 2), ("car_horn", "dog_bark"), False),
        ("audioset", (2, 1, 1), ("Speech", "Male speech, man speaking", "Music"), True),
        ("fsd50k", (1, 1, 1), ("Bark", "Dog", "Rain"), True),
        ("speech_commands", (6, 1, 2), ("bed", "no", "yes"), False),
        ("voxceleb", (6, 0, 0), ("id10270", "id10300"), False),
    ],
)
def test_each_layout_is_divided_as_published(
    tmp_path: Path, layout: str, sizes: tuple[int, ...], labels: tuple[str, ...], multilabel: bool
) -> None:
    MAKERS[layout](tmp_path)
    clips = read_dataset(config(tmp_path, layout, fold=2))
    assert (len(clips.train), len(clips.val), len(clips.test)) == sizes
    assert clips.labels == labels and clips.multilabel is multilabel
    for clip in (*clips.train, *clips.val, *clips.test):
        assert open_sound(clip.path).frames == 400 and set(clip.labels) <= set(labels) and clip.labels
    assert not set(clips.train) & set(clips.test)
    if layout in ("esc50", "urbansound8k"):
        assert {clip.fold for clip in clips.test} == {2} and 2 not in {clip.fold for clip in clips.train}


def test_what_is_known_of_a_clip(tmp_path: Path) -> None:
    for name, make in MAKERS.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    assert esc50(tmp_path / "esc50")[1] == Clip(tmp_path / "esc50/audio/1-1036-A-36.wav", ("vacuum_cleaner",), fold=1)
    assert len(esc50(tmp_path / "esc50", esc10=True)) == 10
    assert urbansound8k(tmp_path / "urbansound8k")[-1] == Clip(
        tmp_path / "urbansound8k/audio/fold10/1000-1-0-0.wav", ("car_horn",), fold=10
    )
    with pytest.warns(InputWarning, match=r"1 of 3 segments have no file .* row 5, -0RWZT-miFs"):
        first, second = audioset(tmp_path / "audioset", "balanced_train_segments.csv", split="train")
    assert first.labels == ("Speech", "Male speech, man speaking") and first.path.name == "Y--4gqARaEJE.wav" and first.split == "train"
    assert second.path.name == "ABCDEFGHIJK_30000.flac"
    assert fsd50k(tmp_path / "fsd50k")[0].labels == ("Bark", "Dog")
    word = speech_commands(tmp_path / "speech_commands")[0]
    assert (word.labels, word.speaker, word.split) == (("bed",), "0a7c2a8d", "train")
    assert [clip.path.name for clip in background_noise(tmp_path / "speech_commands")] == ["pink_noise.wav"]
    voice = voxceleb(tmp_path / "voxceleb")[2]
    assert (voice.speaker, voice.session, voice.path.name) == ("id10270", "x6uYqmx31kE", "00001.wav")


def test_json_lists_as_ast_has_them(tmp_path: Path) -> None:
    make_audioset(tmp_path)
    near, far = sound(tmp_path / "cuts" / "a.wav"), sound(tmp_path / "cuts" / "b.wav")
    entries = [{"wav": str(near), "labels": "/m/09x0r,/m/04rlf"}, {"wav": "cuts/b.wav", "labels": "/m/04rlf"}]
    (tmp_path / "train.json").write_text(json.dumps({"data": entries}))
    clips = read_dataset(config(tmp_path, "audioset", train_list="train.json"))
    assert [(clip.path, clip.labels) for clip in clips.train] == [(near, ("Speech", "Music")), (far, ("Music",))]


def test_trials(tmp_path: Path) -> None:
    make_voxceleb(tmp_path)
    trials = tmp_path / "veri_test.txt"
    trials.write_text(
        "1 id10270/5r0dWxy17C8/00001.wav id10270/x6uYqmx31kE/00002.wav\n0 id10270/5r0dWxy17C8/00001.wav id10300/ize_eiCFEg0/00001.wav\n"
    )
    same, other = read_trials(trials, tmp_path)
    assert same.same and not other.same and same.first == tmp_path / "wav/id10270/5r0dWxy17C8/00001.wav" and other.second.exists()
    for line, message in (
        ("2 a b", "row 1: '2 a b' is no trial"),
        ("1 a ../b", "leads out"),
        ("1 id10270/x.wav id10270/y.wav", "row 1: .*x.wav does"),
    ):
        trials.write_text(line)
        with pytest.raises(InputError, match=message):
            read_trials(trials, tmp_path)


def test_chime(tmp_path: Path) -> None:
    for name in ("U01.CH1", "U01.CH2", "U02.CH1", "U10.CH1", "P05", "P06"):
        sound(tmp_path / "audio" / "dev" / f"S02_{name}.wav", 2.0)
    sound(tmp_path / "audio" / "dev" / "S021_U01.CH1.wav")
    for number in (2, 10, 1):
        sound(tmp_path / "audio" / "dev" / f"20090716_155436_LDC_120302_CH{number:02d}.flac")
    table = tmp_path / "transcriptions" / "dev" / "S02.json"
    table.parent.mkdir(parents=True)
    later = {
        "end_time": "0:01:13.50",
        "start_time": "0:01:10.25",
        "words": "so [laughs] um",
        "speaker": "P06",
        "session_id": "S02",
        "location": "kitchen",
    }
    earlier = {"end_time": "11.370", "start_time": "11.000", "words": "yes", "speaker": "P05", "session_id": "S02"}
    table.write_text(json.dumps([later, earlier]))
    (table.parent / "20090716_155436_LDC_120302.json").write_text(json.dumps([earlier]))
    mixer, first, second = chime(tmp_path, "dev")
    assert [path.name for path in first.channels] == ["S02_U01.CH1.wav", "S02_U01.CH2.wav", "S02_U02.CH1.wav", "S02_U10.CH1.wav"]
    assert (first.start, first.end, first.text, first.speaker, first.session) == (11.0, 11.37, "yes", "P05", "S02")
    assert (second.start, second.end, second.path) == (70.25, 73.5, first.path)
    assert [path.stem[-4:] for path in mixer.channels] == ["CH01", "CH02", "CH10"]
    for change, message in (
        ({"end_time": "11.0"}, "entry 1: lasts no time, from 11.0 s to 11.0 s"),
        ({"start_time": {"U01": "0"}}, "entry 1: start_time=.* is no time"),
    ):
        table.write_text(json.dumps([{**earlier, **change}]))
        with pytest.raises(InputError, match=message):
            chime(tmp_path, "dev")
    table.write_text(json.dumps([1]))
    with pytest.raises(InputError, match="entry 1: not an utterance"):
        chime(tmp_path, "dev")
    table.rename(table.parent / "S09.json")
    with pytest.raises(InputError, match="no recording of session S09"):
        chime(tmp_path, "dev")
    with pytest.raises(ConfigError, match=r"transcriptions/SPLIT/SESSION.json"):
        chime(tmp_path, "eval")
    with pytest.raises(InputError, match="leads out"):
        chime(tmp_path, "../../elsewhere")


def test_folders_have_folds_that_new_clips_leave_alone(tmp_path: Path) -> None:
    make_folders(tmp_path)
    before = {clip.path: clip.fold for clip in folders(tmp_path)}
    assert set(before.values()) == {1, 2, 3, 4, 5}
    sound(tmp_path / "rain" / "more.wav", 0.01)
    sound(tmp_path / "rain" / ".hidden.wav", 0.01)
    after = {clip.path: clip.fold for clip in folders(tmp_path)}
    assert len(after) == len(before) + 1 and before.items() <= after.items()
    with pytest.raises(ConfigError, match="fold=7 is no fold of this data set; accepted: 1, 2, 3, 4, 5"):
        read_dataset(config(tmp_path, "folders", fold=7))


def test_folders_below_train_and_test(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("Test", 2)):
        for kind in ("rain", "wind"):
            for number in range(count):
                sound(tmp_path / split / kind / f"{number}.flac", 0.01)
    clips = read_dataset(config(tmp_path, "folders"))
    assert (len(clips.train), len(clips.val), len(clips.test), clips.labels) == (8, 4, 4, ("rain", "wind"))


@pytest.mark.filterwarnings("ignore::cnnkit.errors.InputWarning")
@pytest.mark.parametrize(
    ("layout", "table", "old", "new", "message"),
    [
        (
            "esc50",
            "meta/esc50.csv",
            "1-1000-A-0.wav",
            "../../../etc/passwd",
            r"esc50.csv row 2: '../../../etc/passwd' leads out of .*audio",
        ),
        ("esc50", "meta/esc50.csv", "1-1000-A-0.wav", "/etc/passwd", "row 2: '/etc/passwd' leads out"),
        ("esc50", "meta/esc50.csv", "1-1000-A-0.wav", "", "row 2: '' leads out"),
        (
            "esc50",
            "meta/esc50.csv",
            "1-1036-A-36.wav",
            "gone.wav",
            r"row 3: audio/gone.wav does not exist; expected ESC-50: meta/esc50.csv",
        ),
        ("esc50", "meta/esc50.csv", ",4,36,", ",four,36,", "fold='four' is not a whole number from 1"),
        ("esc50", "meta/esc50.csv", "filename,fold", "file,part", r"lacks the columns filename, fold; expected ESC-50"),
        ("esc50", "meta/esc50.csv", ",True,1000,A", "", "row 2: 4 values for 7 columns"),
        ("esc50", "meta/esc50.csv", ",36,vacuum", ",0,vacuum", "two classes have the same number"),
        ("urbansound8k", "metadata/UrbanSound8K.csv", "100-3-0-0.wav", "../fold2/200-3-0-0.wav", "row 2: .* leads out"),
        (
            "urbansound8k",
            "metadata/UrbanSound8K.csv",
            "1000-1-0-0",
            "x",
            r"row 21: audio/fold10/x.wav does not exist; expected UrbanSound8K",
        ),
        ("audioset", "eval_segments.csv", "/m/04rlf", "/m/none", r"eval_segments.csv row 4: label '/m/none' is not in class_labels"),
        ("audioset", "eval_segments.csv", "evalevaleva", "other", "none of its 1 segments has a file"),
        ("audioset", "eval_segments.csv", "1.500", "soon", "row 4: start_seconds='soon'"),
        ("fsd50k", "FSD50K.ground_truth/dev.csv", "64760", "../x", "row 2: .* leads out"),
        ("fsd50k", "FSD50K.ground_truth/dev.csv", ",val", ",maybe", "row 3: split='maybe'; accepted: train, val"),
        ("fsd50k", "FSD50K.ground_truth/eval.csv", "37199", "1", r"row 2: FSD50K.eval_audio/1.wav does not exist; expected FSD50K"),
        ("speech_commands", "testing_list.txt", "no/2da58b32", "no/gone", r"row 1: no/gone_nohash_0.wav does not exist; expected Speech"),
        ("speech_commands", "validation_list.txt", "yes/", "../yes/", "row 1: .* leads out"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, layout: str, table: str, old: str, new: str, message: str) -> None:
    MAKERS[layout](tmp_path)
    text = (tmp_path / table).read_text()
    assert old in text
    (tmp_path / table).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        read_dataset(config(tmp_path, layout))


@pytest.mark.filterwarnings("ignore::cnnkit.errors.InputWarning")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [{"wav": "/etc/passwd", "labels": "/m/04rlf"}]}', "entry 1: '/etc/passwd' leads out"),
        ('{"data": [{"wav": "gone.wav", "labels": "/m/04rlf"}]}', "entry 1: gone.wav does not exist"),
        ('{"data": [{"wav": "gone.wav"}]}', "entry 1: not "),
        ('{"data": [3]}', "entry 1: not "),
        ('{"files": []}', 'no list "data"'),
        ("[" * 100000, "cannot be read as json"),
        ("\0", "cannot be read as json"),
    ],
)
def test_wrong_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    make_audioset(tmp_path)
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_dataset(config(tmp_path, "audioset", train_list="train.json"))


def test_how_many_files_are_missing_is_said(tmp_path: Path) -> None:
    make_esc50(tmp_path)
    for path in sorted((tmp_path / "audio").iterdir())[:4]:
        path.unlink()
    with pytest.raises(InputError, match=r"and 3 more files are missing"):
        esc50(tmp_path)


@pytest.mark.parametrize("layout", [name for name in MAKERS if name != "folders"])
def test_another_folder_says_what_is_expected(tmp_path: Path, layout: str) -> None:
    with pytest.raises(CnnkitError, match=r"expected|holds no recordings"):
        read_dataset(config(tmp_path, layout))


def test_no_folder_and_no_layout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set data.folder=FOLDER"):
        read_dataset(DataConfig(layout="esc50"))
    with pytest.raises(ConfigError, match="is no folder"):
        read_dataset(config(tmp_path / "absent", "esc50"))
    with pytest.raises(ConfigError, match="did you mean 'esc50'"):
        read_dataset(config(tmp_path, "esc5"))


def test_parts_of_a_data_set_may_be_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").mkdir()
    make_esc50(tmp_path / "elsewhere")
    for part in ("audio", "meta"):
        (tmp_path / "set" / part).symlink_to(tmp_path / "elsewhere" / part)
    assert len(esc50(tmp_path / "set")) == 15
    assert esc50_labels(tmp_path / "set")[0] == "dog"


# Crops.


def ramps(tmp_path: Path, *seconds: float) -> list[Clip]:
    return [Clip(sound(tmp_path / f"{n}.wav", length), ("ab"[n % 2],)) for n, length in enumerate(seconds)]


def test_crops_depend_on_seed_epoch_and_place_alone(tmp_path: Path) -> None:
    clips = ramps(tmp_path, 0.5, 0.5, 0.02)
    data, again = (ClipDataset(clips, ("a", "b"), RATE, 800, 3, cache_mb=mb) for mb in (512, 1))
    for epoch in (0, 1):
        data.set_epoch(epoch)
        items = [data[n] for n in range(3)]
        for n in (2, 0, 1):  # In another order, and with the cache cold.
            torch.testing.assert_close(again[epoch, n, n], items[n], rtol=0, atol=0)
    crop, target = data[0]
    assert crop.shape == (1, 800) and crop.dtype == torch.float32 and target.tolist() == [1, 0]
    first = round(crop[0, 0].item() * 2**15)
    np.testing.assert_allclose(crop[0] * 2**15, np.arange(first, first + 800), atol=1e-3)
    starts = {round(data[epoch, 5, 0][0][0, 0].item() * 2**15) for epoch in range(50)}
    assert len(starts) > 40 and min(starts) >= 0 and max(starts) <= 3200
    assert round(ClipDataset(clips, ("a", "b"), RATE, 800, 4)[0][0][0, 0].item() * 2**15) != round(data[0, 0, 0][0][0, 0].item() * 2**15)


def test_validation_takes_the_middle(tmp_path: Path) -> None:
    data = ClipDataset(ramps(tmp_path, 0.5), ("a", "b"), RATE, 1000, 0, random=False)
    np.testing.assert_allclose(data[0][0][0] * 2**15, np.arange(1500, 2500), atol=1e-3)


def test_short_clips_are_padded(tmp_path: Path) -> None:
    clips = ramps(tmp_path, 0.05)
    wave = np.arange(400) / 2**15
    np.testing.assert_allclose(ClipDataset(clips, ("a",), RATE, 1000, 0)[0][0][0], np.concatenate([wave, wave, wave[:200]]), atol=1e-6)
    silent = ClipDataset(clips, ("a",), RATE, 1000, 0, pad="silence")[0][0][0]
    np.testing.assert_allclose(silent, np.concatenate([wave, np.zeros(600)]), atol=1e-6)


def test_times_of_a_clip_bound_its_crops(tmp_path: Path) -> None:
    whole = sound(tmp_path / "a.wav", 2.0)
    for mb in (512, 0):  # From memory, and decoded on the spot.
        data = ClipDataset([Clip(whole, ("a",), start=0.5, end=1.0)], ("a",), RATE, 800, 0, cache_mb=mb)
        starts = [round(data[epoch, 0, 0][0][0, 0].item() * 2**15) for epoch in range(60)]
        assert min(starts) >= 4000 and max(starts) <= 7200 and max(starts) - min(starts) > 2000
        assert data._cache.bytes <= mb * 2**20


def test_of_a_long_recording_only_the_crop_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sound(tmp_path / "long.wav", 4.0, rate=16000)
    read: list[int] = []
    whole = type(open_sound(path)).read
    monkeypatch.setattr("cnnkit_audio.sound.Sound.read", lambda self, rate, **more: read.append(self.frames) or whole(self, rate, **more))
    data = ClipDataset([Clip(path, ("a",))], ("a",), RATE, 400, 0, cache_mb=0)
    crops = [data[epoch, 0, 0][0] for epoch in range(20)]
    assert read == [800] * 20 and all(crop.shape == (1, 400) for crop in crops)


def test_the_cache_stays_within_its_bound(tmp_path: Path) -> None:
    clips = ramps(tmp_path, *[1.0] * 40)  # 32 kB each.
    data = ClipDataset(clips, ("a", "b"), RATE, 100, 0, cache_mb=1)
    for epoch in range(2):
        for n in range(40):
            data[epoch, n, n]
            assert data._cache.bytes <= 2**20
    assert data._cache.bytes > 2**20 - 32000 and data._cache.bytes == sum(kept.nbytes for kept in data._cache._kept.values())


def test_it_feeds_the_loader_and_workers_change_nothing(tmp_path: Path) -> None:
    clips = [
        dataclasses.replace(clip, labels=("a", "b") if n == 2 else clip.labels)
        for n, clip in enumerate(ramps(tmp_path, 0.3, 0.2, 0.1, 0.4))
    ]
    batches = []
    for workers in (0, 1):
        data = ClipDataset(clips, ("a", "b"), RATE, 500, 7)
        weights = balanced_weights(clips, data.labels)
        loader = EpochLoader(data, PositionSampler(len(data), batch_size=3, steps=2, seed=7, weights=weights), workers=workers)
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            batches.append(list(loader))
    torch.testing.assert_close(batches[:2], batches[2:], rtol=0, atol=0)
    assert batches[0][0][0].shape == (3, 1, 500) and batches[0][0][1].shape == (3, 2)


def test_balanced_weights_make_labels_equally_likely() -> None:
    clips = [Clip(Path("x"), ("a",))] * 90 + [Clip(Path("x"), ("b",))] * 9 + [Clip(Path("x"), ("c",))] + [Clip(Path("x"))]
    weights = balanced_weights(clips, ("a", "b", "c", "d"))
    np.testing.assert_allclose([weights[:90].sum(), weights[90:99].sum(), weights[99], weights[100]], [1 / 3, 1 / 3, 1 / 3, 0])
    with pytest.raises(ConfigError, match="nothing to balance"):
        balanced_weights(clips[-1:], ("a",))


def test_labels_of_the_experiment_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labelled 'b', which is not among the 1 labels"):
        ClipDataset(ramps(tmp_path, 0.1, 0.1), ("a",), RATE, 100, 0)
    with pytest.raises(ConfigError, match="nothing to learn"):
        ClipDataset([], ("a",), RATE, 100, 0)
    with pytest.raises(InputError, match="gone"):
        ClipDataset([Clip(tmp_path / "gone.wav", ("a",))], ("a",), RATE, 100, 0)[0]

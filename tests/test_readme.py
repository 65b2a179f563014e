"""Every command in the READMEs is run: the blocks marked ``sh``, line by line, in a folder that holds what they name; those marked
``python`` as one program.

``make`` and ``pip`` lines are left to CI, which runs ``make test`` on a fresh clone; here only their words are checked.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from cnnkit.testing.forked import run_forked

for library in ("cnnkit_audio", "cnnkit_equivariant", "cnnkit_medseg", "cnnkit_superres", "spandrel", "lightning"):
    pytest.importorskip(library)

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "core/README.md", *(f"plugins/{name}/README.md" for name in ("audio", "equivariant", "medseg", "superres")))
SMALL = ["train.epochs=1", "train.tensorboard=false"]
STEPS = ["data.steps_per_epoch=2", "data.batch_size=1", "data.workers=0"]
SMALLER = {
    "audio": [
        "tagging.data.samples_per_epoch=32",
        "train.optimizer.warmup_steps=0",
        "network.name=audio/panns_cnn6",
        "network.args={sample_rate: 8000, widths: [4, 6], pools: 2, window: 0.5}",
    ],
    "equivariant": ["train.optimizer.warmup_steps=0"],
    "medseg": [*STEPS, "patch_size=[16,16,16]", "network.args={channels: [4, 8]}"],
    "superres": [*STEPS, "network.args.channels=8", "train.optimizer.warmup_steps=0"],
}
"""Settings that make a training of a test's size, for every plugin and for each."""

IMPORTED = ("lightning", "spandrel", *(f"cnnkit_{name}.task" for name in SMALLER))
"""What most commands need."""


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), flags=re.S)


def commands(readme: str) -> list[str]:
    return [
        line
        for block in blocks(readme, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scans, the checkpoint and the dataset that the READMEs speak of."""
    import nibabel
    import numpy as np
    from cnnkit.checkpoint import save_checkpoint
    from cnnkit.config import from_dict
    from cnnkit.engine.fit import header_for
    from cnnkit.plugin import get
    from cnnkit_medseg.task import MedSeg

    work = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)

    def volume(path: Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 2.0, 1.0])), path)

    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, 20),) * 3, indexing="ij"))
    ball = (np.sqrt((places**2).sum(0)) < 0.6).astype(np.uint8)
    scan = (100 + 80 * ball + rng.normal(0, 5, ball.shape)).astype(np.float32)
    for name in ("scan.nii.gz", "scans/one.nii.gz", "scans/two.nii.gz"):
        volume(work / name, scan)
    root = work / "Dataset001_Balls"
    for index in range(5):
        volume(root / "imagesTr" / f"ball_{index}_0000.nii.gz", scan + index)
        volume(root / "labelsTr" / f"ball_{index}.nii.gz", ball)
    (root / "dataset.json").write_text(
        '{"channel_names": {"0": "MR"}, "labels": {"background": 0, "ball": 1}, "numTraining": 5, "file_ending": ".nii.gz"}'
    )
    for name in ("predictions", "references"):
        shutil.copytree(root / "labelsTr", work / name)
    small = {"labels": {"background": 0, "ball": 1}, "patch_size": [16, 16, 16], "network": {"args": {"channels": [4, 8]}}}
    task = MedSeg(from_dict(MedSeg.Config, small))
    model = task.model()
    save_checkpoint(work / "model.ckpt", model.state_dict(), header_for(task, model, get("medseg"), {}))
    make_pictures(work)
    make_sounds(work)
    make_structures(work)
    for name in ("configs", "apps"):
        shutil.copytree(ROOT / name, work / name)
    return work


def make_pictures(work: Path) -> None:
    """Add the pictures, the data set and the foreign network of the README of superres."""
    import numpy as np
    import torch
    from PIL import Image
    from spandrel.architectures.ESRGAN import ESRGAN

    y, x = np.mgrid[:48, :40]
    for index, name in enumerate(("photo", "photos/one", "photos/two", "Set5/baby", "Set5/bird")):
        path = work / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        waves = 128 + 100 * np.sin((x * (index + 1) + 2 * y)[..., None] / np.array([3.0, 5.0, 7.0]))
        Image.fromarray(waves.astype(np.uint8)).save(path)
    network = ESRGAN(num_filters=8, num_blocks=1)
    torch.save({"params_ema": network.state_dict()}, work / "RealESRGAN_x4plus.pth")


def make_sounds(work: Path) -> None:
    """Add the recordings, the data set and the checkpoints of the README of audio."""
    import numpy as np
    import torch
    from cnnkit.checkpoint import save_checkpoint
    from cnnkit.config import from_dict
    from cnnkit.engine.fit import header_for
    from cnnkit.plugin import get
    from cnnkit_audio.sound import write_sound
    from cnnkit_audio.synth.classes import make
    from cnnkit_audio.task import Audio
    from cnnkit_audio.transcripts import Segment, write_transcript

    from tests.contract.test_audio import SMALL as NETWORKS

    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, label in enumerate(("siren", "rain")):
            name = f"{fold}-{target}.wav"
            write_sound(work / "ESC-50" / "audio" / name, make(label, np.random.default_rng((fold, target)), 0.8, 8000)[None], 8000)
            rows.append(f"{name},{fold},{target},{label},True,{fold},A")
    (work / "ESC-50" / "meta").mkdir()
    (work / "ESC-50" / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for index, name in enumerate(("recording", "recordings/one", "recordings/two", "session/S01_U01.CH1", "session/S01_U01.CH2")):
        write_sound(work / f"{name}.wav", make("speech", np.random.default_rng(index), 1.5, 16000)[None], 16000)
    for scenario, session in (("chime6", "S02"), ("dipco", "S28")):
        said = [Segment(session, "P05", 0.0, 4.0, "so um yes")]
        write_transcript(work / "chime7_task1" / scenario / "transcriptions_scoring" / "dev" / f"{session}.json", said)
        write_transcript(work / "heard" / "dev" / f"{scenario}.json", said)
    files = {"speakers": "efficient_tdnn_small", "compressor": "micro_tcn_100_c", "codec": "esc_base", "array": "acs_asr"}
    for file, network in files.items():
        torch.manual_seed(0)
        named = {"name": f"audio/{network}", "args": dict(NETWORKS[f"audio/{network}"].args)}
        task = Audio(from_dict(Audio.Config, {"network": named, "recognition": {"data": {"held_out": 2, "places": 1}}}))
        model = task.model()
        save_checkpoint(work / f"{file}.ckpt", model.state_dict(), header_for(task, model, get("audio"), {}))


def make_structures(work: Path) -> None:
    """Add the structures, the picture and the checkpoint of the README of equivariant."""
    import ase.io
    import torch
    from ase.build import add_adsorbate, bulk, fcc111
    from ase.calculators.emt import EMT
    from cnnkit.checkpoint import save_checkpoint
    from cnnkit.config import from_dict
    from cnnkit.engine.fit import header_for
    from cnnkit.plugin import get
    from cnnkit_equivariant.task import Equivariant
    from PIL import Image

    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    add_adsorbate(slab, "O", 1.3, "fcc")
    ase.io.write(work / "slab.extxyz", slab)
    (work / "structures").mkdir()
    labelled = []
    for seed in range(12):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        labelled.append(atoms)
    ase.io.write(work / "structures" / "train.extxyz", labelled)
    Image.new("L", (28, 28), 40).save(work / "digit.png")
    torch.manual_seed(0)
    task = Equivariant(from_dict(Equivariant.Config, {"network": {"name": "equivariant/nuft_cnn", "args": {"widths": [4, 6]}}}))
    model = task.model()
    save_checkpoint(work / "digits.ckpt", model.state_dict(), header_for(task, model, get("equivariant"), {}))


def shrunk(words: list[str]) -> list[str]:
    """Make a command small enough for a test."""
    if words[0] == "cnnkit" and words[1] == "train":
        return [*words, *(word for setting in (*SMALL, *SMALLER[words[2]]) for word in ("--set", setting))]
    return words


def started(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a new Python, as a user's shell does."""
    entry = ["-c", "from cnnkit.cli import main; main()"] if words[0] == "cnnkit" else []
    return subprocess.run([sys.executable, *entry, *words[1:]], cwd=folder, capture_output=True, encoding="utf-8", check=False)


@pytest.mark.parametrize("readme", READMES)
def test_commands_run(readme: str, folder: Path) -> None:
    """The first in a new Python, those after it in forks of one that has imported what they need."""
    lines = commands(readme)
    assert any(line.startswith("cnnkit") for line in lines)
    run = started
    for line in lines:
        words = shlex.split(line)
        assert words[0] in ("cnnkit", "python", "make", "pip"), line
        if line.startswith(("python tools", "python tests")):
            assert (ROOT / words[1]).is_file(), line
            continue  # They train and time: minutes.
        if words[0] in ("make", "pip") or "--example" in words or "foo" in words[1:3]:
            continue  # CI runs make; pip needs the network; the example and `new plugin` have tests of their own.
        done = run(shrunk(words), folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        run = partial(run_forked, imported=IMPORTED)


@pytest.mark.parametrize("readme", [readme for readme in READMES if blocks(readme, "python")])
def test_programs_run(readme: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks(readme, "python"))], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_files_that_are_linked_exist() -> None:
    for readme in READMES:
        text = (ROOT / readme).read_text(encoding="utf-8")
        links = {link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link}
        assert not {link for link in links if not (ROOT / readme).parent.joinpath(link).exists()}, readme


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {line.split()[1] for readme in READMES for line in commands(readme) if line.startswith("make ")}
    assert named and all(re.search(rf"^{target}:", makefile, flags=re.M) for target in named)

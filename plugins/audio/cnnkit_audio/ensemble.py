"""Train the members of an ensemble that a file declares, keep what they say, add it up, and compare (Nanni et al., 2021).

A member is a representation, an augmentation, a backbone and a seed, all by name; a trial is a held-out fold and a repetition. Below the
output folder, ``TRIAL/MEMBER/`` holds the training of a member and ``scores.npz``, its confidences in the held-out clips under the digest
of its checkpoint: what is there is neither trained nor listened to again. The last epoch counts, because the best one was picked on the
clips that are measured.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.checkpoint import digest, read_header, save_checkpoint
from cnnkit.config import dump_yaml
from cnnkit.engine.files import atomic_path, write_json, write_rows, write_text
from cnnkit.errors import CheckpointError, ConfigError, UsageError, unknown
from numpy.typing import NDArray

from cnnkit_audio.config import Config, NetworkConfig
from cnnkit_audio.data_config import AugmentConfig

Say = Callable[[str], None]
Floats = NDArray[np.floating[Any]]
_APART = 100_000
"""Between the seeds of two repetitions."""


@dataclass(frozen=True)
class Augmentation:
    """What the training of some members does.

    Args:
        sound: To clips.
        image: To images: arguments of ``audio/image_cnn`` such as ``freq_mask`` and ``warp``. Other networks do without.
    """

    sound: AugmentConfig = field(default_factory=AugmentConfig)
    image: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """One network of the ensemble.

    Args:
        name: Its parts with hyphens; also its folder.
        network: The network.
        augment: What its training does to clips.
        seed: Seed of its training.
        init: Weights that it starts from, if any.
    """

    name: str
    network: NetworkConfig
    augment: AugmentConfig
    seed: int
    init: str = ""


@dataclass(frozen=True)
class EnsembleConfig:
    """What an ensemble is made of: representations x augmentations x backbones x seeds, and other networks x augmentations x seeds.

    Args:
        base: The experiment that all share: data, schedule; ``base.network.args`` are arguments of all members on images.
        representations: Arguments of ``audio/image_cnn`` by name, as ``{gammatone: {image: gammatone, image_args: {n_bands: 96}}}``.
        augmentations: What training does, by name; nothing by default.
        backbones: Arguments of ``audio/image_cnn`` by name, as ``{resnet: {backbone: resnet50}}``.
        networks: Further networks that tag sound, by name, with all of their own arguments.
        init: Files of weights to start from, of ImageNet for example, by the names of backbones and networks.
        seeds: Seeds of members: each is a member.
        folds: Folds that are held out, one after the other.
        repeats: How often each fold is done, with other seeds.
    """

    base: Config = field(default_factory=Config)
    representations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    augmentations: Mapping[str, Augmentation] = field(default_factory=lambda: {"plain": Augmentation()})
    backbones: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    networks: Mapping[str, NetworkConfig] = field(default_factory=dict)
    init: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    folds: tuple[int, ...] = (1,)
    repeats: int = 1

    def __post_init__(self) -> None:
        if not self.seeds or not self.folds or not self.augmentations or self.repeats < 1:
            raise ConfigError("seeds, folds, augmentations and repeats need one or more each; leave out what is not to vary")
        if strange := sorted(set(self.init) - {*self.backbones, *self.networks}):
            raise ConfigError(unknown("backbone or network in init", strange[0], {*self.backbones, *self.networks}))
        if len(set(self.seeds)) < len(self.seeds) or len(set(self.folds)) < len(self.folds):
            raise ConfigError(f"seeds {self.seeds} and folds {self.folds}: each is to stand once")
        for name in (*self.representations, *self.augmentations, *self.backbones, *self.networks):
            if not re.fullmatch(r"\w[\w.+]*", name):
                raise ConfigError(f"{name!r} is to be part of a folder's name; accepted: letters, digits, _ . and +")

    def members(self) -> list[Member]:
        """Return the members in the order of the file.

        Raises:
            ConfigError: If there are none.
        """
        found = []
        for (kind, image), (way, augmentation), (net, backbone), seed in product(
            self.representations.items(), self.augmentations.items(), self.backbones.items(), self.seeds
        ):
            args = {**self.base.network.args, **image, **backbone, **augmentation.image}
            network = NetworkConfig("audio/image_cnn", args)
            found.append(Member(self._name(kind, way, net, seed), network, augmentation.sound, seed, self.init.get(net, "")))
        for (net, network), (way, augmentation), seed in product(self.networks.items(), self.augmentations.items(), self.seeds):
            found.append(Member(self._name(net, way, "", seed), network, augmentation.sound, seed, self.init.get(net, "")))
        if not found:
            raise ConfigError("no members are declared; name representations and backbones, or networks")
        return found

    def _name(self, first: str, way: str, net: str, seed: int) -> str:
        parts = [first, way if len(self.augmentations) > 1 else "", net, f"seed{seed}" if len(self.seeds) > 1 else ""]
        return "-".join(part for part in parts if part)

    def trials(self) -> list[tuple[int, int]]:
        """Return each ``(repetition, fold)``."""
        return list(product(range(self.repeats), self.folds))

    def experiment(self, member: Member, repeat: int, fold: int) -> Config:
        """Return the training of a member in a trial."""
        data = replace(self.base.tagging.data, fold=fold)
        tagging = replace(self.base.tagging, data=data, augment=member.augment)
        return replace(
            self.base, network=member.network, tagging=tagging, train=replace(self.base.train, seed=member.seed + _APART * repeat)
        )


@dataclass(frozen=True)
class Heard:
    """What a network says of clips.

    Args:
        scores: Confidences, ``(N, C)``.
        truth: Labels, ``(N, C)``.
        labels: Names of the labels.
        multilabel: Whether several may hold.
    """

    scores: Floats
    truth: Floats
    labels: tuple[str, ...]
    multilabel: bool

    @property
    def figure(self) -> float:
        """Accuracy, or mean average precision where several labels may hold."""
        from cnnkit_audio.tagging.metrics import TagMetric

        metric = TagMetric(self.labels, multilabel=self.multilabel)
        metric.scores, metric.truth, metric.folds = list(self.scores), list(self.truth), [0] * len(self.truth)
        return metric.compute()["map" if self.multilabel else "accuracy"]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which clips are named rightly, ``(N,)``."""
        return self.scores.argmax(1) == self.truth.argmax(1)


def fuse_scores(heard: Sequence[Heard]) -> Heard:
    """Return the sum rule, the mean of the confidences: the same to the last bit in any order of the members.

    Raises:
        UsageError: If the members did not hear the same clips with the same labels.
    """
    first = heard[0]
    if any(other.labels != first.labels or not np.array_equal(other.truth, first.truth) for other in heard):
        raise UsageError("the members did not hear the same clips with the same labels; delete their scores.npz, or use another -o")
    stack = np.sort(np.stack([member.scores for member in heard]).astype(np.float64), axis=0)
    return replace(first, scores=stack.mean(0))


def train_member(cfg: Config, folder: Path, *, init: str = "", progress: bool = True) -> bool:
    """Train a network, from given weights if there are any, or go on with its training; tell whether there was anything to do.

    Raises:
        UsageError: If the folder holds a finished member of another configuration.
    """
    from cnnkit.engine.fit import fit
    from cnnkit.plugin import get

    from cnnkit_audio.task import Audio

    marker, wanted = folder / "member.json", hashlib.sha256(f"{dump_yaml(cfg)}{init}".encode()).hexdigest()
    if marker.exists() and (folder / "last.ckpt").exists():
        if _read(marker).get("config") == wanted:
            return False
        raise UsageError(f"{folder} holds a member that was trained under another configuration; delete it, or choose another -o")
    fit(Audio(cfg), output=folder, plugin=get("audio"), resume=True, init=Path(init) if init else None, progress=progress)
    write_json(marker, {"config": wanted})
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Cut off, or gone: the member counts as unfinished.
        return {}
    return found if isinstance(found, dict) else {}


def member_scores(checkpoint: Path, *, device: str = "auto") -> Heard:
    """Return what a network says of its held-out clips: from ``scores.npz`` beside it if that is of this checkpoint, else by listening."""
    cache, key = checkpoint.with_name("scores.npz"), digest(checkpoint)
    known = _cached(cache, key)
    if known is not None:
        return known
    from cnnkit.engine.evaluate import evaluate
    from cnnkit.engine.load import load

    loaded = load(checkpoint, task="audio")
    _, metric = evaluate(loaded.task, loaded.model, split="test", device=device)
    found: Any = metric
    heard = Heard(np.stack(found.scores), np.stack(found.truth), found.labels, found.multilabel)
    with atomic_path(cache) as part:
        labels, several = np.array(heard.labels), np.array(heard.multilabel)
        np.savez(part, scores=heard.scores, truth=heard.truth, labels=labels, multilabel=several, digest=np.array(key))
    return heard


def _cached(path: Path, key: str) -> Heard | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as stored:
            if str(stored["digest"]) != key:
                return None
            return Heard(stored["scores"], stored["truth"], tuple(map(str, stored["labels"])), bool(stored["multilabel"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # Damaged: listen again.
        return None


def fuse_checkpoints(paths: Sequence[Path], output: Path, *, metrics: Mapping[str, float] | None = None) -> bool:
    """Write one checkpoint that holds the networks of several; tell whether it was not there yet.

    Raises:
        CheckpointError: If one does not tag sound, or their labels differ.
    """
    from cnnkit.engine.fit import header_for
    from cnnkit.engine.load import load
    from cnnkit.plugin import get

    from cnnkit_audio.models._base import Tagger
    from cnnkit_audio.task import Audio

    note = "sum rule over " + ", ".join(digest(path)[:16] for path in paths)
    if output.exists() and metrics is not None and read_header(output).note == note:
        return False
    loaded = [load(path, task="audio") for path in paths]
    first = loaded[0].task.cfg
    for path, item in zip(paths, loaded, strict=True):
        if not isinstance(item.model, Tagger):
            raise CheckpointError(f"{path} is of {item.task.cfg.network.name}, which does not tag sound; accepted: networks for tagging")
        cfg = item.task.cfg.tagging
        if (tuple(item.task.labels()), cfg.multilabel) != (tuple(loaded[0].task.labels()), first.tagging.multilabel):
            raise CheckpointError(f"{path} has other labels than {paths[0]}; accepted: networks for the same labels in the same order")
    networks = [item.task.cfg.network for item in loaded]
    args = {
        "members": [{"name": network.name, "args": dict(network.args)} for network in networks],
        "scores": "sigmoid" if first.tagging.multilabel else "softmax",
    }
    task = Audio(replace(first, network=NetworkConfig("audio/cnn_ensemble", args)))
    model: Any = task.model()
    for member, item in zip(model.members, loaded, strict=True):
        member.load_state_dict(item.model.state_dict())
    save_checkpoint(output, model.state_dict(), replace(header_for(task, model, get("audio"), metrics or {}), note=note))
    return True


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Return how many clips only one, and only the other, names rightly, and McNemar's exact p-value (two-sided)."""
    from scipy.stats import binomtest

    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    return first, second, float(binomtest(first, first + second, 0.5).pvalue) if first + second else 1.0


def signed_rank(one: Sequence[float] | Floats, other: Sequence[float] | Floats) -> float | None:
    """Return the two-sided p-value of Wilcoxon's signed-rank test of paired figures; ``None`` for fewer than two pairs that differ."""
    from scipy.stats import wilcoxon

    differences = np.round(np.subtract(one, other), 12)  # Equal differences of accuracies are to tie.
    differences = differences[differences != 0]
    return float(wilcoxon(differences).pvalue) if len(differences) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """The figures of the members and of their sum.

    Args:
        figure: What they are: ``"accuracy"`` or ``"map"``.
        trials: Names of the trials.
        members: Figures by member, one for each trial.
        fused: Those of the ensemble.
        mcnemar: Clips that only the ensemble, and only its best member, names rightly, and the p-value; of the first repetition.
        wilcoxon: P-value over trials.
    """

    figure: str
    trials: tuple[str, ...]
    members: Mapping[str, tuple[float, ...]]
    fused: tuple[float, ...]
    mcnemar: tuple[int, int, float] | None
    wilcoxon: float | None

    @property
    def best(self) -> str:
        """The member with the largest mean; chosen on the clips that are measured, which favours it."""
        return max(self.members, key=lambda name: np.mean(self.members[name]))

    def rows(self) -> list[list[str]]:
        """Return the table as text, with its heading."""
        heading = ["network", *self.trials, *(["mean"] if len(self.trials) > 1 else [])]
        rows = [heading]
        for name, values in {**self.members, "ensemble": self.fused}.items():
            rows.append([name, *(f"{value:.4f}" for value in (*values, *([np.mean(values)] if len(values) > 1 else [])))])
        return rows

    def markdown(self) -> str:
        """Return the table and the tests as Markdown."""
        rows = self.rows()
        lines = [f"# Ensemble: {self.figure} of held-out clips", ""]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(3, "|" + " --- |" * len(rows[0]))
        lines += ["", f"Best member: {self.best}."]
        if self.mcnemar is not None:
            ours, theirs, p = self.mcnemar
            lines.append(f"McNemar's exact test: only the ensemble names {ours} clips rightly, only that member {theirs}; p = {p:.3g}.")
        p_text = "it needs two trials or more that differ" if self.wilcoxon is None else f"p = {self.wilcoxon:.3g}"
        lines.append(f"Wilcoxon's signed-rank test over {len(self.trials)} trials: {p_text}.")
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write ``ensemble.md`` and ``ensemble.csv``."""
        return [write_text(folder / "ensemble.md", self.markdown()), write_rows(folder / "ensemble.csv", self.rows())]


def compare(trials: Mapping[str, Mapping[str, Heard]], *, clips: int) -> Comparison:
    """Measure members and their sum in each trial.

    Args:
        trials: What each member says, by trial.
        clips: Trials from the first on whose clips are all different: those of one repetition, over which McNemar's test counts.
    """
    fused = {trial: fuse_scores(list(heard.values())) for trial, heard in trials.items()}
    names = list(next(iter(trials.values())))
    members = {name: tuple(heard[name].figure for heard in trials.values()) for name in names}
    several = next(iter(fused.values())).multilabel
    found = Comparison("map" if several else "accuracy", tuple(trials), members, tuple(item.figure for item in fused.values()), None, None)
    once = list(trials)[:clips]
    ours = np.concatenate([fused[trial].right for trial in once])
    theirs = np.concatenate([trials[trial][found.best].right for trial in once])
    return replace(found, mcnemar=None if several else mcnemar(ours, theirs), wilcoxon=signed_rank(found.fused, found.members[found.best]))


def run_ensemble(declared: EnsembleConfig, output: Path, *, device: str = "auto", progress: bool = True, say: Say = print) -> Comparison:
    """Train what is not trained, listen where it was not listened, fuse, and write ``ensemble.ckpt``, ``ensemble.md`` and ``ensemble.csv``.

    The checkpoint holds the members of the first trial.
    """
    members, trials = declared.members(), declared.trials()
    heard: dict[str, dict[str, Heard]] = {}
    total, done = len(members) * len(trials), 0
    for repeat, fold in trials:
        trial = f"fold{fold}" + (f"_{repeat}" if declared.repeats > 1 else "")
        heard[trial] = {}
        for member in members:
            folder, done = output / trial / member.name, done + 1
            trained = train_member(declared.experiment(member, repeat, fold), folder, init=member.init, progress=progress)
            heard[trial][member.name] = found = member_scores(folder / "last.ckpt", device=device)
            say(f"[{done}/{total}] {trial} {member.name}: {found.figure:.4f} ({'trained' if trained else 'was there'})")
    result = compare(heard, clips=len(declared.folds))
    first = next(iter(heard))
    metrics = {result.figure: result.fused[0]}
    fuse_checkpoints([output / first / member.name / "last.ckpt" for member in members], output / "ensemble.ckpt", metrics=metrics)
    result.write(output)
    return result

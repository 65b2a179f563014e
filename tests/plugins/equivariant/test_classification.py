"""Pictures and fields to classify: how they are resampled and turned, read, divided, and measured."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cnnkit.engine.files import write_rows
from cnnkit.errors import CnnkitError, ConfigError, InputError
from PIL import Image

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.classification import data
from cnnkit_equivariant.classification.config import ClassificationConfig
from cnnkit_equivariant.classification.files import read_array
from cnnkit_equivariant.classification.metrics import ClassMetric
from cnnkit_equivariant.classification.pictures import present, read_field, resample, resampling, turn

RNG = np.random.default_rng(0)


def band_limited(size: int, highest: int, count: int = 2) -> torch.Tensor:
    """Return periodic pictures ``(count, 1, size, size)`` of the same random Fourier series at any size, in double precision."""
    rng = np.random.default_rng(4)
    steps = np.arange(size) / size
    waves = rng.standard_normal((count, 2 * highest + 1, 2 * highest + 1, 2))
    phase = np.exp(2j * np.pi * np.arange(-highest, highest + 1)[:, None] * steps)
    field = np.einsum("nfg,fy,gx->nyx", waves[..., 0] + 1j * waves[..., 1], phase, phase).real
    return torch.from_numpy(field)[:, None]


class TestPictures:
    @pytest.mark.parametrize(("source", "target"), [(8, 28), (8, 27), (9, 28), (28, 9), (28, 8), (15, 7), (8, 8), (7, 16)])
    def test_a_band_limited_picture_is_the_same_at_every_size(self, source: int, target: int) -> None:
        """Sampling its Fourier series at the new places is the closed form."""
        found = resample(band_limited(source, 3), target)
        torch.testing.assert_close(found, band_limited(target, 3), rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("source", "target"), [(8, 28), (11, 28), (29, 13), (28, 13)])
    def test_resampling_is_that_of_scipy(self, source: int, target: int) -> None:
        """scipy.signal.resample does the same by the fast transform, but for the highest frequency of even sides that shrink."""
        from scipy.signal import resample as by_fft

        x = RNG.standard_normal((source, 3))
        np.testing.assert_allclose(resampling(source, target).numpy() @ x, by_fft(x, target), atol=1e-12)

    def test_shrinking_in_two_steps_is_shrinking_at_once(self) -> None:
        """Nothing of what is left out comes back as an alias."""
        x = torch.from_numpy(RNG.standard_normal((1, 1, 31, 31)))
        torch.testing.assert_close(resample(resample(x, 21), 11), resample(x, 11), rtol=0, atol=1e-12)

    def test_a_quarter_turn_is_counter_clockwise(self) -> None:
        """numpy.rot90 moves the pixels exactly."""
        x = torch.from_numpy(RNG.uniform(size=(1, 2, 15, 15)))
        turned = turn(x, torch.tensor([np.pi / 2], dtype=torch.float64))
        torch.testing.assert_close(turned, torch.rot90(x, 1, (2, 3)), rtol=0, atol=1e-6)

    def test_a_turned_blob_is_where_it_belongs(self) -> None:
        """A blob beside the centre, turned by 30 degrees, in closed form."""
        steps = torch.arange(33, dtype=torch.float64) - 16

        def blob(angle: float) -> torch.Tensor:
            x, y = 7 * np.cos(angle), -7 * np.sin(angle)
            return torch.exp(-((steps[None] - x) ** 2 + (steps[:, None] - y) ** 2) / 8)[None, None]

        turned = turn(blob(0.0), torch.tensor([np.pi / 6], dtype=torch.float64))
        torch.testing.assert_close(turned, blob(np.pi / 6), rtol=0, atol=4e-3)

    def test_turns_are_the_generators(self) -> None:
        """The same generator gives the same turns, and spheres' turns are refused."""
        x = torch.rand(3, 1, 8, 8)
        one, two = (present(x, 12, turns="axis", rng=np.random.default_rng(3)) for _ in range(2))
        assert torch.equal(one, two) and one.shape == (3, 1, 12, 12)
        assert not torch.allclose(one, present(x, 12, turns="none", rng=np.random.default_rng(3)))
        with pytest.raises(ConfigError, match="accepted: none, axis"):
            present(x, 12, turns="any", rng=RNG)

    def test_a_file_is_presented_as_a_sample_of_training(self) -> None:
        x = RNG.uniform(size=(2, 9, 14)).astype(np.float32)
        assert torch.equal(read_field(x, 11), present(torch.from_numpy(x)[None], 11, turns="none", rng=RNG)[0])


class TestSplits:
    def test_digits_are_divided_once_and_evenly(self) -> None:
        """No digit is in two splits, every class has the same share in each, and nothing depends on the call."""
        parts = {split: data.Digits(split, "picture") for split in data.SPLITS}
        names = [name for part in parts.values() for name in part.names]
        assert len(names) == len(set(names)) == 1797
        for split, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
            counts = np.bincount(parts[split].targets, minlength=10)
            np.testing.assert_allclose(counts / np.bincount(data.digits()[1]), share, atol=0.005)
        assert parts["val"].names == data.Digits("val", "picture").names
        assert len(parts["val"]) == len(parts["test"]) == 359

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Ten files of each of two classes."""
        for label in ("cat", "dog"):
            (tmp_path / label).mkdir()
            for number in range(10):
                np.save(tmp_path / label / f"{number}.npy", RNG.uniform(size=(3, 8, 8)))
        return tmp_path

    def test_a_folder_is_divided(self, folder: Path) -> None:
        cfg = ClassificationConfig(data=str(folder), channels=3)
        assert data.read_labels(cfg) == ("cat", "dog") and data.count_channels(cfg) == 3
        sizes = {split: len(found) for split in data.SPLITS if (found := data.read_samples(cfg, split, "picture"))}
        assert sizes == {"train": 12, "val": 4, "test": 4}

    def test_a_folder_that_is_divided_already_stays_so(self, folder: Path) -> None:
        (folder / "train").mkdir()
        for label in ("cat", "dog"):
            (folder / label).rename(folder / "train" / label)
        cfg = ClassificationConfig(data=str(folder), channels=3)
        train = data.read_samples(cfg, "train", "picture")
        assert train is not None and len(train) == 20
        assert data.read_samples(cfg, "val", "picture") is None
        (folder / "test" / "bird").mkdir(parents=True)
        np.save(folder / "test" / "bird" / "0.npy", np.zeros((3, 8, 8)))
        with pytest.raises(ConfigError, match="bird"):
            data.read_samples(cfg, "test", "picture")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"data": "nowhere"}, "is no folder"),
            ({"data": "digits", "labels": ("a", "b")}, "are not the digits"),
            ({"data": "EMPTY"}, "two classes or more"),
        ],
    )
    def test_data_that_cannot_be_used(self, change: dict, said: str, tmp_path: Path) -> None:
        if change["data"] == "EMPTY":
            change = {"data": str(tmp_path)}
        with pytest.raises(CnnkitError, match=said):
            data.read_labels(ClassificationConfig(**change))

    @pytest.mark.parametrize("change", [{"size": 2}, {"sizes": (28,)}, {"batch_size": 0}, {"channels": 0}])
    def test_configurations_that_mean_nothing(self, change: dict) -> None:
        with pytest.raises(ConfigError, match=r"accepted|leave it out"):
            ClassificationConfig(**change)


class TestLoaders:
    def test_training_depends_on_seed_and_epoch_alone(self) -> None:
        cfg = ClassificationConfig(size=9, train_turns="axis", batch_size=700)
        samples = data.Digits("train", "picture")
        one, two = (data.train_loader(cfg, samples, seed=3) for _ in range(2))
        one.set_epoch(4)
        first = list(one)
        list(two)
        two.set_epoch(4)
        for left, right in zip(first, two, strict=True):
            assert torch.equal(left["x"], right["x"]) and torch.equal(left["target"], right["target"])
        assert first[0]["x"].shape == (700, 1, 9, 9)

    def test_measuring_shows_each_sample_once_at_each_size(self) -> None:
        cfg = ClassificationConfig(size=9, sizes=(7, 13), batch_size=100)
        samples = data.Digits("test", "picture")
        batches = list(data.measuring_loader(cfg, samples, "test"))
        for size in (9, 7, 13):
            mine = [batch for batch in batches if batch["size"] == size]
            assert [name for batch in mine for name in batch["name"]] == list(samples.names)
            assert all(batch["x"].shape[2:] == (size, size) for batch in mine)
        assert len(batches) == 12

    def test_outlines_of_different_length_are_filled_up(self) -> None:
        batch = data.stack([torch.ones(3, 2, 2), torch.ones(5, 2, 2)])
        assert batch.shape == (2, 5, 2, 2) and not batch[0, 3:].any() and batch[1].all()


class TestFiles:
    def test_whole_numbers_are_scaled_and_real_ones_stay(self, tmp_path: Path) -> None:
        grey = RNG.integers(0, 255, (6, 5)).astype(np.uint8)
        np.save(tmp_path / "a.npy", grey)
        Image.fromarray(grey).save(tmp_path / "a.png")
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
        np.save(tmp_path / "b.npy", -3.0 * grey)
        for name in ("a.npy", "a.png", "deep.png"):
            np.testing.assert_allclose(read_array(tmp_path / name, 1), grey[None] / 255, atol=1e-7)
        np.testing.assert_array_equal(read_array(tmp_path / "b.npy", 1), -3.0 * grey[None])

    def test_png_follows_the_network(self, tmp_path: Path) -> None:
        colour = RNG.integers(0, 255, (6, 5, 3)).astype(np.uint8)
        Image.fromarray(colour).save(tmp_path / "c.png")
        np.testing.assert_allclose(read_array(tmp_path / "c.png", 3), colour.transpose(2, 0, 1) / 255, atol=1e-7)
        assert read_array(tmp_path / "c.png", 1).shape == (1, 6, 5)

    @pytest.mark.parametrize(
        ("name", "values", "said"),
        [
            ("x.npy", np.full((8, 8), np.nan), "NaN"),
            ("x.npy", np.zeros((2, 8, 8)), "2 channels"),
            ("x.npy", np.zeros((8,)), "shape"),
            ("x.npy", np.zeros((1, 0, 8)), "shape"),
            ("x.npy", np.zeros((1, 2, 3, 4)), "shape"),
            ("x.npy", np.zeros((8, 8), complex), "real numbers"),
            ("x.npy", np.array([{}]), "cannot be read"),
            ("x.npy", b"", "cannot be read"),
            ("x.png", b"no picture", "cannot be read"),
            ("x.cif", b"", "takes"),
        ],
    )
    def test_files_that_cannot_be_used(self, name: str, values: np.ndarray | bytes, said: str, tmp_path: Path) -> None:
        """Each is an error that names the file; an array of objects is never unpickled."""
        path = tmp_path / name
        if isinstance(values, bytes):
            path.write_bytes(values)
        else:
            np.save(path, values, allow_pickle=True)
        with pytest.raises(InputError, match=said) as caught:
            read_array(path, 1)
        assert name in str(caught.value)

    def test_a_cut_file_is_refused(self, tmp_path: Path) -> None:
        for name in ("x.npy", "x.png"):
            path = tmp_path / name
            if name.endswith("npy"):
                np.save(path, RNG.uniform(size=(30, 30)))
            else:
                Image.fromarray(RNG.integers(0, 255, (30, 30)).astype(np.uint8)).save(path)
            path.write_bytes(path.read_bytes()[:200])
            with pytest.raises(InputError, match=name):
                read_array(path, 1)


def verdicts(truth: list[int], said: list[int], size: int) -> tuple[list[SimpleNamespace], dict]:
    """Return predictions that name the classes ``said``, and the batch."""
    found = [SimpleNamespace(probabilities=np.eye(3)[label] * 0.7 + 0.1) for label in said]
    return found, {"target": torch.tensor(truth), "size": size}


class TestMetric:
    def test_figures_are_those_of_scikit_learn(self, tmp_path: Path) -> None:
        from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, log_loss

        truth, said = RNG.integers(0, 3, 50).tolist(), RNG.integers(0, 3, 50).tolist()
        metric, rest = ClassMetric(("a", "b", "c"), 28), ClassMetric(("a", "b", "c"), 28)
        metric.update(*verdicts(truth[:20], said[:20], 28))
        rest.update(*verdicts(truth[20:], said[20:], 28))
        metric.merge(rest)
        figures = metric.compute()
        probabilities = np.stack([verdict.probabilities for verdict in verdicts(truth, said, 28)[0]])
        assert figures["accuracy"] == pytest.approx(accuracy_score(truth, said))
        assert figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, said))
        assert figures["log_loss"] == pytest.approx(log_loss(truth, probabilities))
        labels, confusion = metric.report(tmp_path)
        with open(confusion, encoding="utf-8") as stream:
            table = np.array([row[1:] for row in list(csv.reader(stream))[1:]], int)
        np.testing.assert_array_equal(table, confusion_matrix(truth, said))
        assert "a," in labels.read_text(encoding="utf-8")

    def test_each_size_is_measured_by_itself(self) -> None:
        metric = ClassMetric(("a", "b", "c"), 9)
        metric.update(*verdicts([0, 1], [0, 1], 9))
        metric.update(*verdicts([0, 1], [0, 2], 13))
        figures = metric.compute()
        assert figures["accuracy"] == figures["size_9/accuracy"] == 1.0
        assert figures["size_13/accuracy"] == 0.5 and figures["sizes/accuracy"] == 0.75

    def test_a_class_that_does_not_occur_counts_for_nothing(self) -> None:
        metric = ClassMetric(("a", "b", "c"), 9)
        metric.update(*verdicts([0, 0, 1], [0, 1, 1], 9))
        assert metric.compute()["balanced_accuracy"] == 0.75


def test_a_table_is_written_whole(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.csv", [("a", "b,c"), (1, "ü")])
    assert list(csv.reader(path.read_text(encoding="utf-8").splitlines())) == [["a", "b,c"], ["1", "ü"]]

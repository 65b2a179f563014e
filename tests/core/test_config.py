"""Configuration: which layer wins, what is refused and how it is named, and that files hold no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from cnnkit.config import build, dump_yaml, from_dict, parse_override, read_layers, read_yaml, to_dict
from cnnkit.errors import ConfigError


@dataclass(frozen=True)
class Range:
    low: float
    high: float = 1.0


@dataclass(frozen=True)
class Optim:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Train:
    epochs: int = 10
    optimizer: Optim = field(default_factory=Optim)
    warm: Optim | None = None


@dataclass(frozen=True)
class Config:
    name: str = "plain"
    train: Train = field(default_factory=Train)
    ranges: tuple[Range, ...] = ()
    named: Mapping[str, Range] = field(default_factory=dict)
    labels: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    root: Path | None = None

    def __post_init__(self) -> None:
        if self.name == "wrong":
            raise ValueError("the name cannot be 'wrong'")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_precedence_default_preset_base_file_override(tmp_path):
    write(tmp_path / "base.yaml", "name: base\ntrain: {epochs: 3, optimizer: {lr: 3e-3}}")
    file = write(tmp_path / "a.yaml", "extends: base.yaml\ntrain: {epochs: 4}")
    preset = {"name": "preset", "train": {"epochs": 2, "optimizer": {"lr": 2.0, "betas": [0.5, 0.6]}}}
    assert build(Config) == Config()
    assert build(Config, preset=preset).train == Train(2, Optim(2.0, (0.5, 0.6)))
    both = build(Config, preset=preset, file=file)
    assert (both.name, both.train) == ("base", Train(4, Optim(0.003, (0.5, 0.6))))
    last = build(Config, preset=preset, file=file, overrides=["train.epochs=5", "train.optimizer.lr=1e-5", "train.epochs=6"])
    assert (last.name, last.train) == ("base", Train(6, Optim(1e-5, (0.5, 0.6))))
    assert preset["train"]["epochs"] == 2  # The caller's own data stay as they were.


def test_extends_is_relative_to_its_file_and_cycles_are_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "name: base")
    layers = read_layers(write(tmp_path / "sub" / "a.yaml", "extends: ../base.yaml"))
    assert [(path.name, data) for path, data in layers] == [("base.yaml", {"name": "base"}), ("a.yaml", {})]
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    write(one, "extends: two.yaml")
    write(two, "extends: one.yaml")
    with pytest.raises(ConfigError, match=r"one\.yaml extends itself through .*two\.yaml"):
        read_layers(one)
    with pytest.raises(ConfigError, match=r"'extends' names one file"):
        read_layers(write(tmp_path / "list.yaml", "extends: [a.yaml, b.yaml]"))
    with pytest.raises(ConfigError, match=r"cannot read configuration .*nowhere\.yaml: No such file"):
        read_layers(write(tmp_path / "lost.yaml", "extends: nowhere.yaml"))


@pytest.mark.parametrize(
    ("data", "key", "nearest"),
    [
        ({"nme": "x"}, "nme", "name"),
        ({"train": {"epoch": 1}}, "train.epoch", "train.epochs"),
        ({"train": {"optimizer": {"lrr": 1}}}, "train.optimizer.lrr", "train.optimizer.lr"),
        ({"train": {"warm": {"beta": 1}}}, "train.warm.beta", "train.warm.betas"),
        ({"ranges": [{"low": 0}, {"low": 0, "hihg": 1}]}, "ranges.1.hihg", "ranges.1.high"),
        ({"named": {"ct": {"lwo": 0}}}, "named.ct.lwo", "named.ct.low"),
    ],
)
def test_an_unknown_key_is_refused_at_every_depth(data, key, nearest, tmp_path):
    with pytest.raises(ConfigError) as error:
        from_dict(Config, data, source="here")
    assert f"here: unknown key '{key}'; did you mean '{nearest}'?" in str(error.value)
    file = write(tmp_path / "c.yaml", yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=r"c\.yaml: unknown key"):
        build(Config, file=file)


def test_the_source_of_an_unknown_key_is_named():
    with pytest.raises(ConfigError, match=r"--set train\.epoch=3: unknown key 'train\.epoch'"):
        build(Config, overrides=["train.epoch=3"])
    with pytest.raises(ConfigError, match="the preset: unknown key 'zzz'; known: labels, name"):
        build(Config, preset={"zzz": 1})


def test_wrong_values_are_all_named():
    with pytest.raises(ConfigError) as error:
        from_dict(Config, {"train": {"epochs": "many", "optimizer": {"lr": [1]}}})
    assert "train.epochs" in str(error.value) and "got 'many'" in str(error.value) and "train.optimizer.lr" in str(error.value)
    with pytest.raises(ConfigError, match="the name cannot be 'wrong'"):
        from_dict(Config, {"name": "wrong"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2e+4", -2e4),
        ("1.e3", 1e3),
        ("1.5e-3", 1.5e-3),
        ("[1e-3, 2]", [1e-3, 2]),
        ("3", 3),
        ("'1e-3'", "1e-3"),
    ],
)
def test_numbers_as_people_write_them(text, value, tmp_path):
    path, parsed = parse_override(f"a.b={text}")
    assert path == ["a", "b"]
    assert parsed == value and type(parsed) is type(value)
    assert read_yaml(write(tmp_path / "n.yaml", f"x: {text}")) == {"x": value}


def test_a_key_stands_once_and_merge_keys_work(tmp_path):
    with pytest.raises(ConfigError, match=r"d\.yaml is not valid YAML: .*'lr' stands twice"):
        read_yaml(write(tmp_path / "d.yaml", "a:\n  lr: 1\n  b: 2\n  lr: 3\n"))
    merged = read_yaml(write(tmp_path / "m.yaml", "a: &a {lr: 1, b: 2}\nc:\n  <<: *a\n  lr: 3\n"))
    assert merged["c"] == {"lr": 3, "b": 2}


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.system ['touch {mark}']", "!!python/name:os.system", "!!python/object/new:os.system ['touch {mark}']"],
)
def test_code_is_refused_and_not_run(value, tmp_path):
    mark = tmp_path / "ran"
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_yaml(write(tmp_path / "code.yaml", "name: " + value.format(mark=mark)))
    with pytest.raises(ConfigError, match="is not valid YAML"):
        build(Config, overrides=["name=" + value.format(mark=mark)])
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"- 1\n- 2\n", "holds a list"),
        (b"a: [1", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"day: 2024-13-45", "not valid YAML"),
    ],
)
def test_files_that_are_no_configuration(content, cause, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"bad\.yaml.*{cause}"):
        read_yaml(file)


@pytest.mark.parametrize("text", ["lr", "=3", "a=[1", "a=2024-13-45"])
def test_malformed_overrides(text):
    with pytest.raises(ConfigError, match="--set"):
        parse_override(text)


def test_an_empty_file_and_an_empty_value(tmp_path):
    assert read_yaml(write(tmp_path / "empty.yaml", "")) == {}
    assert build(Config, overrides=["name="]).name == ""


def test_round_trip(tmp_path):
    config = Config(
        name="1e-3",  # A text that looks like a number stays a text.
        train=Train(3, Optim(1e-5, (0.5, 1e-12)), warm=Optim(float("inf"))),
        ranges=(Range(0.0), Range(-1.0, 2.0)),
        named={"ct": Range(1e9)},
        labels={"liver": 1, "both": (1, 2)},
        root=Path("a b/ü"),
    )
    assert from_dict(Config, to_dict(config)) == config
    assert build(Config, file=write(tmp_path / "c.yaml", dump_yaml(config))) == config


def test_a_mapping_of_the_users_own_keys_is_replaced_and_its_keys_can_be_set(tmp_path):
    @dataclass(frozen=True)
    class Free:
        labels: Mapping[str, int] = field(default_factory=dict)

    base = write(tmp_path / "base.yaml", "labels: {background: 0, liver: 1}")
    file = write(tmp_path / "own.yaml", "extends: base.yaml\nlabels: {background: 0, spleen: 1}")
    assert build(Free, file=base).labels == {"background": 0, "liver": 1}
    assert build(Free, file=file).labels == {"background": 0, "spleen": 1}
    assert build(Free, file=file, overrides=["labels={kidney: 1}"]).labels == {"kidney": 1}
    assert build(Free, file=file, overrides=["labels.kidney=2"]).labels == {"background": 0, "spleen": 1, "kidney": 2}

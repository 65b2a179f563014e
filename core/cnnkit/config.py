"""Configuration: dataclass default < preset < file < ``--set``, with strict keys and no code in files.

pydantic and yaml are imported on use, so that this module costs nothing at start.
"""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from cnnkit.errors import ConfigError, nearest

C = TypeVar("C")


def build(cls: type[C], *, preset: Mapping[str, Any] | None = None, file: Path | None = None, overrides: Iterable[str] = ()) -> C:
    """Build a configuration dataclass from its layers.

    Args:
        cls: The dataclass.
        preset: Values over the dataclass defaults.
        file: YAML file over the preset; it may name one other file under ``extends``.
        overrides: ``"train.lr=1e-3"`` strings over the file.

    Raises:
        ConfigError: Naming the key, the nearest known one and the source.
    """
    data: dict[str, Any] = {}
    if preset:
        _merge(data, _checked(cls, preset, "the preset"))
    if file is not None:
        _merge(data, _checked(cls, read_yaml(file), str(file)))
    for text in overrides:
        _merge(data, _checked(cls, parse_override(text), f"--set {text}"))
    return from_dict(cls, data)


def from_dict(cls: type[C], data: Mapping[str, Any], *, source: str = "the configuration") -> C:
    """Validate plain data into the dataclass; types are coerced by pydantic, unknown keys refused.

    Raises:
        ConfigError: Naming every wrong key or value.
    """
    import pydantic

    data = _checked(cls, data, source)
    try:
        return pydantic.TypeAdapter(cls).validate_python(data)
    except pydantic.ValidationError as error:
        lines = [f"  {_dotted(item['loc'])}: {item['msg']} (got {item['input']!r})" for item in error.errors()]
        raise ConfigError(f"{source} is not valid:\n" + "\n".join(lines)) from error
    except (TypeError, ValueError) as error:  # Raised by a __post_init__ outside of pydantic's own wrapping.
        raise ConfigError(f"{source} is not valid: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain data: tuples become lists, paths become strings."""
    return {item.name: _plain(getattr(config, item.name)) for item in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump_yaml(config: Any) -> str:
    """Return a configuration dataclass as YAML."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_implicit_resolver(*_float_resolver())  # So that a text like "1e-3" is quoted, and read back as a text.
    return yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(file: str | Path, *, _chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML mapping; ``extends: other.yaml`` (relative to the file) is read first and overlaid.

    Raises:
        ConfigError: If the file cannot be read, is no mapping, or extends itself.
    """
    import yaml

    file = Path(file).resolve()
    if file in _chain:
        raise ConfigError(f"{file} extends itself through " + " -> ".join(str(item) for item in _chain))
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_loader())
    except OSError as error:
        raise ConfigError(f"cannot read configuration {file}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: wrong UTF-8, or a date such as 2024-13-01.
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds a {type(data).__name__}; a mapping of keys to values is expected")
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{file}: 'extends' names one file, not {base!r}")
    return _merge(read_yaml(file.parent / base, _chain=(*_chain, file)), data)


def parse_override(text: str) -> dict[str, Any]:
    """Turn ``"train.lr=1e-3"`` into ``{"train": {"lr": 0.001}}``; the value is read as YAML.

    Raises:
        ConfigError: If there is no ``=`` or the value is not valid YAML.
    """
    import yaml

    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r} is not of the form key=value; type for example --set train.lr=1e-3")
    try:
        parsed = yaml.load(value, Loader=_loader()) if value.strip() else ""
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML: {error}") from error
    *outer, last = key.strip().split(".")
    nested: dict[str, Any] = {last: parsed}
    for part in reversed(outer):
        nested = {part: nested}
    return nested


def _loader() -> type:
    """Return YAML's safe loader, taught that ``1e-3`` is a number and that a key stands once."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} stands twice", node.start_mark)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(*_float_resolver())
    return Loader


def _float_resolver() -> tuple[str, Any, list[str]]:
    """Return the rule that ``1e-3`` is a number: YAML 1.1 asks for a dot and a signed exponent, which people do not write."""
    import re

    return "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Overlay nested mappings in place and return ``base``."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = copy.deepcopy(value)
    return base


def _checked(cls: Any, data: Any, source: str, prefix: str = "") -> Any:
    """Refuse unknown keys at every level of nested dataclasses; return ``data``."""
    if not isinstance(data, Mapping):
        return data
    kinds = typing.get_type_hints(cls)
    known = {item.name for item in dataclasses.fields(cls) if item.init}
    for key, value in data.items():
        if key not in known:
            close = nearest(str(key), known, limit=1)
            hint = f"did you mean '{prefix}{close[0]}'?" if close else "known: " + ", ".join(sorted(prefix + name for name in known))
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'; {hint}")
        for kind, item, place in _nested(kinds[key], value, f"{prefix}{key}"):
            _checked(kind, item, source, f"{place}.")
    return data


def _nested(kind: Any, value: Any, place: str) -> list[tuple[type, Any, str]]:
    """Return the dataclasses in an annotation with their values: directly, or in ``X | None``, lists, tuples and mappings."""
    if dataclasses.is_dataclass(kind):
        return [(typing.cast(type, kind), value, place)]
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        found = [arg for arg in inner if arg is not type(None)]
        return _nested(found[0], value, place) if len(found) == 1 else []
    if isinstance(value, Mapping) and len(inner) == 2:
        return [row for key, item in value.items() for row in _nested(inner[1], item, f"{place}.{key}")]
    if isinstance(value, (list, tuple)) and inner:
        return [row for index, item in enumerate(value) for row in _nested(inner[0], item, f"{place}.{index}")]
    return []


def _dotted(parts: Iterable[Any]) -> str:
    return ".".join(str(part) for part in parts)

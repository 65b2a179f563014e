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

    Layers meet field by field in nested dataclasses. A mapping whose keys are the user's own (class names, a network's
    arguments) is replaced as a whole, except by an override that names one of its keys: ``network.args.norm=batch``.

    Raises:
        ConfigError: Naming the key, the nearest known one and the source.
    """
    data: dict[str, Any] = {}
    layers = [("the preset", preset or {}), *(read_layers(file) if file is not None else [])]
    for source, layer in layers:
        _overlay(cls, data, _checked(cls, layer, str(source)))
    for text in overrides:
        path, value = parse_override(text)
        _checked(cls, _nest(path, value), f"--set {text}")
        _set(cls, data, path, value)
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


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: If the file cannot be read or is no mapping.
    """
    import yaml

    file = Path(file)
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
    return data


def read_layers(file: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """Read a YAML file and what it ``extends`` (a path relative to the file): each with its content, the base first.

    Raises:
        ConfigError: If a file cannot be read, or extends itself.
    """
    layers: list[tuple[Path, dict[str, Any]]] = []
    base: Any = str(file)
    place = Path()
    while base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{layers[0][0]}: 'extends' names one file, not {base!r}")
        path = (place / base).resolve()
        if path in (seen for seen, _ in layers):
            raise ConfigError(f"{path} extends itself through " + " -> ".join(str(seen) for seen, _ in reversed(layers)))
        data = read_yaml(path)
        base, place = data.pop("extends", None), path.parent
        layers.insert(0, (path, data))
    return layers


def parse_override(text: str) -> tuple[list[str], Any]:
    """Turn ``"train.lr=1e-3"`` into ``(["train", "lr"], 0.001)``; the value is read as YAML.

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
    return key.strip().split("."), parsed


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


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    return value


def _overlay(cls: type, base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Overlay plain data in place, field by field where ``cls`` has nested dataclasses."""
    kinds = typing.get_type_hints(cls)
    for key, value in over.items():
        nested = _dataclass_of(kinds[key])
        if nested is not None and isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _overlay(nested, base[key], value)
        else:
            base[key] = copy.deepcopy(value)


def _set(cls: type | None, base: dict[str, Any], path: list[str], value: Any) -> None:
    """Set one value in place; below the dataclasses (``cls`` is None there) also inside of a mapping."""
    key, *rest = path
    if not rest:
        if cls is None:
            base[key] = value
        else:
            _overlay(cls, base, {key: value})
        return
    if not isinstance(base.get(key), dict):
        base[key] = {}
    _set(_dataclass_of(typing.get_type_hints(cls)[key]) if cls is not None else None, base[key], rest, value)


def _dataclass_of(kind: Any) -> type | None:
    """Return the dataclass that an annotation stands for: directly, or in ``X | None``."""
    if get_origin(kind) in (Union, types.UnionType):
        found = [arg for arg in get_args(kind) if arg is not type(None)]
        kind = found[0] if len(found) == 1 else None
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


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
    direct = _dataclass_of(kind)
    if direct is not None:
        return [(direct, value, place)]
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

"""Checkpoints: one safetensors file with a header that is read without torch, and foreign files without unpickling.

A cnnkit checkpoint is a safetensors file under any suffix. Its string metadata states the task, the model, the
whole configuration, the labels and the preprocessing, so that a model is run the way it was trained, or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cnnkit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "1"
HEADER_LIMIT = 100_000_000  # safetensors' own limit: a longer header is not one.
LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The number, as a pickle, with which files of torch.save began before version 1.6."""
Kind = Literal["cnnkit", "safetensors", "torch", "pickle", "onnx", "hdf5", "unknown"]


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself.

    Args:
        task: Name of the task, which is its plugin's.
        plugin: Distribution that the task comes from.
        plugin_version: Its version when the file was written.
        model: Registered name or class of the network.
        config: The resolved configuration.
        labels: Class names in the order of the network's outputs.
        preprocess: The preprocessing as data.
        metrics: Figures measured on the validation data.
        torch: Version of torch that wrote the file.
        note: For people: data, split, licence.
    """

    task: str
    plugin: str = ""
    plugin_version: str = ""
    model: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    torch: str = ""
    note: str = ""

    def to_metadata(self) -> dict[str, str]:
        """Return the header as safetensors metadata: strings, structured values as JSON."""
        data = {"cnnkit.format": FORMAT}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            # Keys keep their order: that of the labels is the order of the network's outputs.
            data[f"cnnkit.{item.name}"] = value if isinstance(value, str) else json.dumps(value)
        return data

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: Path) -> Header:
        """Rebuild a header from safetensors metadata.

        Raises:
            CheckpointError: If the format is newer than this cnnkit reads, or a field is malformed.
        """
        version = metadata["cnnkit.format"]
        if version != FORMAT:
            raise CheckpointError(f"{source} has checkpoint format {version}; this cnnkit reads format {FORMAT}: install a newer cnnkit")
        values: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            text = metadata.get(f"cnnkit.{item.name}")
            if text is None:
                continue
            try:
                values[item.name] = text if str(item.type) == "str" else json.loads(text)
            except (ValueError, TypeError, RecursionError) as error:
                raise CheckpointError(f"{source}: header field 'cnnkit.{item.name}' is damaged ({error})") from error
            expected = {"labels": list, "config": dict, "preprocess": dict, "metrics": dict}.get(item.name, str)
            if not isinstance(values[item.name], expected):
                raise CheckpointError(f"{source}: header field 'cnnkit.{item.name}' is damaged (no {expected.__name__}: {text!r})")
        if "task" not in values:
            raise CheckpointError(f"{source}: the header names no task, so it cannot be run")
        values["labels"] = tuple(values.get("labels", ()))
        return cls(**values)


def recognise(path: str | os.PathLike[str]) -> Kind:
    """Tell what a file is from its bytes, whatever its name.

    Raises:
        CheckpointError: If it cannot be read or is empty.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            start = stream.read(32)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from error
    if not start:
        raise CheckpointError(f"checkpoint {path} is empty")
    if start[:4] == b"PK\x03\x04":
        return "torch" if _is_torch_zip(path) else "unknown"
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= HEADER_LIMIT:
        return "cnnkit" if "cnnkit.format" in _metadata(path) else "safetensors"
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if is_pickle(start):
        return "torch" if LEGACY_MAGIC in start else "pickle"
    return "onnx" if start[0] == 0x08 else "unknown"


def is_pickle(start: bytes) -> bool:
    """Tell from a file's first bytes whether it is a pickle of protocol 1 to 5, which can run any code when it is opened."""
    return start[:1] == b"\x80" and start[1:2] in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05")


def _is_torch_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") or name == "data.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is a zip archive, as torch.save writes it, that is damaged or cut off: {error}") from error


def _metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file with the standard library alone."""
    with open(path, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        text = stream.read(length)
    try:
        return dict(json.loads(text).get("__metadata__", {}))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        cause = "it is cut off" if len(text) < length else str(error)
        raise CheckpointError(f"{path} looks like a safetensors file but its header is damaged: {cause}") from error


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a cnnkit checkpoint without importing torch.

    Raises:
        CheckpointError: If the file is no cnnkit checkpoint, saying what it is.
    """
    path = Path(path)
    kind = recognise(path)
    if kind != "cnnkit":
        what = {
            "safetensors": "a safetensors file without cnnkit's header: plain weights, with no task, labels or preprocessing",
            "torch": "a file written by torch.save: plain weights at best, with no task, labels or preprocessing that can be trusted",
            "pickle": "a pickle, which can run any code when it is opened; cnnkit never opens one",
        }.get(kind, f"not a checkpoint ({kind} file)")
        hint = " Give its task's configuration with --config to use the weights." if kind in ("safetensors", "torch") else ""
        raise CheckpointError(f"{path} is {what}.{hint}")
    return Header.from_metadata(_metadata(path), path)


def digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Tensor], header: Header) -> Path:
    """Write weights and header as one file, atomically.

    Args:
        path: Target, under any suffix.
        state: Tensors by name; tensors that share memory are stored once each.
        header: What the file says of itself.
    """
    import safetensors.torch
    import torch

    from cnnkit.engine.files import atomic_path

    header = dataclasses.replace(header, torch=header.torch or str(torch.__version__))
    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    with atomic_path(path) as part:
        safetensors.torch.save_file(tensors, part, metadata=header.to_metadata())
    return Path(path)


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    """Read a cnnkit checkpoint: its header and its tensors, on the CPU.

    Raises:
        CheckpointError: If it is no cnnkit checkpoint or is damaged.
    """
    return read_header(path), read_state(path)


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint of any known kind, on the CPU, and never unpickle code.

    Files of ``torch.save`` are opened with ``weights_only=True``. A state dict that lies under a usual key
    (``state_dict``, ``model``, ``params_ema`` ...) is taken out, and a common ``module.`` prefix is dropped.

    Raises:
        CheckpointError: If the file cannot be read safely, naming what was refused.
    """
    path = Path(path)
    kind = recognise(path)
    if kind in ("cnnkit", "safetensors"):
        return _read_safetensors(path)
    if kind == "torch":
        return unwrap(_read_torch(path), source=str(path))
    if kind == "pickle":
        raise CheckpointError(
            f"{path} is a pickle, which can run any code when it is opened; cnnkit never opens one. "
            "Save the state dict with torch.save (torch >= 1.6) or as safetensors."
        )
    raise CheckpointError(f"{path} holds no weights that cnnkit reads ({kind} file); accepted: safetensors, and state dicts of torch.save")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or cut off: {error}") from error


def _read_torch(path: Path) -> Any:
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TypedStorage's deprecation is the business of whoever wrote the file.
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged bytes end in any exception of the unpickler, not in one kind of its own.
        blocked = _blocked_globals(path, str(error))
        if not blocked:
            raise CheckpointError(f"{path} is damaged or cut off: {_cause(error)}") from error
        raise CheckpointError(
            f"{path} was refused: besides weights it names objects that would run code ({', '.join(blocked)}). "
            "Save its state dict alone: torch.save(model.state_dict(), 'weights.pt')."
        ) from error


def _blocked_globals(path: Path, message: str) -> list[str]:
    """Name what ``weights_only`` refused: all of it for a zip file, the first for an older file, which torch cannot list."""
    import torch

    try:
        found = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # An older file, or one that is too damaged for a list.
        found = []
    return found or re.findall(r"GLOBAL ([\w.]+) (?:was not|whose)", message)[:1]


def _cause(error: Exception) -> str:
    """Return what is wrong with a file in one line, without torch's advice to load it unsafely."""
    _, stated, after = str(error).partition("WeightsUnpickler error:")
    lines = (after if stated else str(error)).strip().splitlines()
    return lines[0] if lines and "weights_only" not in lines[0] else type(error).__name__


WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "network_weights",
    "params_ema",
    "params-ema",
    "params",
    "model_ema",
    "state_dict_ema",
    "model",
    "net",
    "weight",
)
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every key, in either order."""


def unwrap(content: Any, *, source: str = "the file") -> dict[str, Tensor]:
    """Find the state dict in what ``torch.load`` returned.

    Raises:
        CheckpointError: If there is none.
    """
    import torch

    while isinstance(content, Mapping) and not any(isinstance(value, torch.Tensor) for value in content.values()):
        key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{source} holds no state dict; found: {keys[:200]}")
    state = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    while prefix := next((item for item in PREFIXES if all(key.startswith(item) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state

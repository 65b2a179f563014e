"""Backbones: find one by name, build it, fill it with weights.

What exists is data (``_index.json``, written by ``tools/index.py``): listing it imports no torch.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnkit.errors import RegistryError, UsageError, unknown
from cnnkit.registry import Entry, Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnnkit.backbones._base import Family

__all__ = ["create_model", "create_small", "list_models", "load_family", "model_entry", "register"]

INDEX = Path(__file__).with_name("_index.json")


@functools.cache
def _registry() -> Registry:
    registry = Registry("model")
    for name, data in json.loads(INDEX.read_text(encoding="utf-8")).items():
        registry.add(name, Entry.from_json(data))
    return registry


def register(name: str, entry: Entry) -> Entry:
    """Add an application's own model to those that :func:`create_model` knows, in this process.

    Raises:
        RegistryError: If the name is taken.
        UsageError: If it has the form of a plugin's model name (``plugin/model``).
    """
    if "/" in name:
        raise UsageError(f"model name {name!r}: names with '/' belong to plugins, which list them in their manifest")
    return _registry().add(name, entry)


def model_entry(name: str) -> Entry:
    """Return what is known of a model without importing it.

    Args:
        name: A registered name, or ``"plugin/model"`` for a plugin's.

    Raises:
        RegistryError: If there is no such model; the message names the nearest.
        PluginError: If the plugin is missing or cannot be used.
    """
    if "/" in name:
        from cnnkit.plugin import find_model

        return find_model(name)
    return _registry()[name]


def list_models(pattern: str = "", *, dims: int | None = None, family: str | None = None) -> list[str]:
    """Return the names of the backbones, sorted.

    Args:
        pattern: A part of the name, or a shell pattern (``"resnet*"``) that the whole name must match.
        dims: Only those that support this number of spatial dimensions.
        family: Only those of this family.
    """
    if not any(letter in pattern for letter in "*?["):
        pattern = f"*{pattern}*"
    return [
        name
        for name, entry in _registry().items()
        if fnmatch.fnmatchcase(name, pattern) and (dims is None or dims in entry.dims) and family in (None, entry.family)
    ]


def create_model(
    name: str,
    *,
    dims: int = 2,
    in_chans: int | None = None,
    num_classes: int = 1000,
    features_only: bool = False,
    out_indices: Sequence[int] | int | None = None,
    weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    grad_checkpointing: bool = False,
    **arch: Any,
) -> nn.Module:
    """Build a model by name.

    Args:
        name: A name of :func:`list_models`, or ``"plugin/model"``.
        dims: Number of spatial dimensions: 1 for sound, 2 for images, 3 for volumes.
        in_chans: Channels of the input; by default the model's own, which for a backbone is 3.
        num_classes: Outputs of the classifier; 0 leaves it out.
        features_only: Return a :class:`~cnnkit.backbones._base.FeaturePyramid` instead of a classifier.
        out_indices: With ``features_only``: levels to return, negative ones from the coarsest; a number ``n`` takes the last ``n``.
        weights: A file of weights or a state dict, in cnnkit's layout or in one that the family understands.
        grad_checkpointing: Recompute activations in the backward pass instead of keeping them, for the families that are made of stages.
        **arch: Arguments of the model's class, in place of the variant's own.

    Raises:
        RegistryError: If the name is unknown.
        UsageError: If an argument is unknown or not supported.
        CheckpointError: If the weights do not fit.
    """
    entry = model_entry(name)
    if dims not in entry.dims:
        raise UsageError(f"model {name!r} supports dims {', '.join(map(str, entry.dims))}, not {dims!r}")
    if features_only and "/" in name:
        raise UsageError(f"model {name!r} belongs to a plugin and has no feature pyramid; leave out features_only=True")
    if out_indices is not None and not features_only:
        raise UsageError("out_indices chooses levels of a feature pyramid; add features_only=True")
    target = entry.load()
    words = {"dims": dims, "num_classes": 0 if features_only else num_classes}
    if in_chans is not None:
        words["in_chans"] = in_chans
    model = target(**_arguments(name, target, words, {**entry.args, **arch}, arch))
    if features_only:
        model.drop_head()
    if weights is not None:
        _load(model, weights)
    if grad_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise UsageError(f"model {name!r} keeps its activations; leave out grad_checkpointing=True")
        model.set_grad_checkpointing()
    if features_only:
        from cnnkit.backbones._base import FeaturePyramid

        return FeaturePyramid(model, out_indices)
    return model


def family_module(name: str) -> str:
    """Return the name of the module that declares a family: it has the family's name and lies beside the classes of its variants.

    Raises:
        RegistryError: If no backbone is of that family.
    """
    found = {entry.family: entry.target.partition(":")[0] for entry in _registry().values() if entry.family}
    if name not in found:
        raise RegistryError(unknown("family", name, found))
    return f"{found[name].rpartition('.')[0]}.{name}"  # A variant's class may be another family's.


def load_family(name: str) -> Family:
    """Import and return the declaration of a family.

    Raises:
        RegistryError: If no backbone is of that family.
    """
    return importlib.import_module(family_module(name)).FAMILY


def create_small(family: str, *, dims: int = 2, **arch: Any) -> nn.Module:
    """Build the small member of a family, with every kind of its blocks: for tests and quick trainings.

    Args:
        family: Name of the family.
        dims: Number of spatial dimensions.
        **arch: Further arguments of :func:`create_model`.
    """
    name, args = load_family(family).small
    return create_model(name, dims=dims, **{**args, **arch})


def _arguments(
    name: str, target: Callable[..., Any], words: Mapping[str, Any], args: Mapping[str, Any], typed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keywords for ``target``: the common words that it accepts, and the architecture's, which must be known to it."""
    parameters = inspect.signature(target).parameters
    accepted = [key for key, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(accepted) == len(parameters):
        for key in typed:
            if key not in accepted:
                message = unknown(f"argument of model {name!r}", key, accepted).partition("; known:")[0]
                raise UsageError(f"{message} Accepted: {', '.join(accepted)}.")
    return {**{key: value for key, value in words.items() if key in accepted}, **args}


def _load(model: nn.Module, weights: str | os.PathLike[str] | Mapping[str, Tensor]) -> None:
    from cnnkit.weights import load_weights

    if isinstance(weights, Mapping):
        load_weights(model, weights)
        return
    from cnnkit.checkpoint import read_state

    load_weights(model, read_state(weights), source=str(weights))

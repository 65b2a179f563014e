"""Put the weights of a file into a model, whatever layout of keys they come in.

A model class lists the foreign layouts that it understands in its attribute ``layouts``; the loader recognises
them by their keys, so a user names a file and nothing else. Importing this module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnkit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

State = Mapping[str, "Tensor"]
_COUNTER = "num_batches_tracked"  # Files from before PyTorch 0.4.1 lack it, and no inference reads it.
_SHOWN = 4  # Names of keys in a message: enough to recognise the file, and still one paragraph.


@dataclass(frozen=True)
class Layout:
    """A foreign layout of weights: how to recognise it, and how to bring it to the model's own keys.

    Args:
        name: Whose layout it is: ``"timm"``, ``"torchvision"``, ``"official"`` (the paper's own code).
        matches: Whether a file with these keys is in this layout; asked only if the file is not in the model's own,
            so one key that tells it apart is enough. ``None`` says that the keys and shapes are the model's own.
        convert: Returns the weights under the model's own keys, in the model's own shapes.
    """

    name: str
    matches: Callable[[Collection[str]], bool] | None = None
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None


def has_keys(*keys: str) -> Callable[[Collection[str]], bool]:
    """Return a test for :class:`Layout` that holds if all of ``keys`` are in the file."""
    return lambda present: all(key in present for key in keys)


def rename_keys(state: State, rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Rewrite every key by regular expressions, each applied once and in order.

    Args:
        state: Tensors by name.
        rules: Pairs of a pattern and its replacement, as for :func:`re.sub`.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        renamed[key] = value
    return renamed


def load_weights(model: nn.Module, state: State, layouts: Sequence[Layout] | None = None, *, source: str = "") -> str:
    """Load ``state`` into ``model`` completely, or raise and leave the model as it was.

    The model's own keys are tried first, then the layouts in their order. If the model was built with
    ``num_classes=0`` (its attributes ``num_classes``, ``classifier`` and ``head_modules`` say so; see
    :class:`cnnkit.backbones._base.Backbone`), the weights of a head in the file are left out.

    Args:
        model: The model to fill.
        state: Tensors by name.
        layouts: Foreign layouts that are understood; by default ``model.layouts``.
        source: The file's name, for messages.

    Returns:
        The name of the layout that was recognised, ``"cnnkit"`` for the model's own.

    Raises:
        CheckpointError: If the keys are of no known layout, or keys or shapes differ from the model's.
    """
    layouts = tuple(getattr(model, "layouts", ())) if layouts is None else tuple(layouts)
    source = source or "the state dict"
    expected = model.state_dict()
    heads = tuple(getattr(model, "head_modules", ())) if getattr(model, "num_classes", None) == 0 else ()
    name, given = _own_keys(state, expected, layouts, heads, source)
    if heads:
        given = {key: value for key, value in given.items() if key in expected or not _inside(key, heads)}
    for key, value in expected.items():
        if key.endswith(_COUNTER):
            given.setdefault(key, value)
    problems = _problems(model, given, expected)
    if problems:
        as_layout = "" if name == "cnnkit" else f" (read in the layout of {name})"
        raise CheckpointError(f"{source}{as_layout} does not fit {type(model).__name__}: " + "; ".join(problems) + f". {_known(layouts)}")
    model.load_state_dict(given)
    return name


def _own_keys(state: State, expected: State, layouts: Sequence[Layout], heads: Sequence[str], source: str) -> tuple[str, dict[str, Tensor]]:
    """Recognise the layout of ``state`` and return its name and the weights under the model's own keys."""
    fits = all(key in state and state[key].shape == value.shape for key, value in expected.items() if not key.endswith(_COUNTER))
    # What only a foreign layout has may be all that tells it apart: an auxiliary head, or a head of other names.
    if fits and not any(key not in expected and not _inside(key, heads) for key in state):
        return "cnnkit", dict(state)
    for layout in layouts:
        if layout.matches and layout.convert and layout.matches(state.keys()):
            return layout.name, layout.convert(dict(state))
    if any(key in expected for key in state):  # The model's own, with faults that the caller names.
        return "cnnkit", dict(state)
    raise CheckpointError(
        f"{source} is in no layout that this model understands: it has {_names(state)}, the model {_names(expected)}. {_known(layouts)}"
    )


def _problems(model: nn.Module, given: State, expected: State) -> list[str]:
    """Return what differs between the file and the model, in words."""
    problems = []
    if hint := _head_differs(model, given, expected):
        return [hint]
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    shapes = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    if missing:
        problems.append(f"it lacks {_names(missing)}")
    if unexpected:
        problems.append(f"the model has no {_names(unexpected)}")
    if shapes:
        shown = [f"{key} is {tuple(given[key].shape)} and must be {tuple(expected[key].shape)}" for key in shapes[:_SHOWN]]
        problems.append(_with_rest(", ".join(shown), len(shapes)))
        ranks = {(given[key].ndim - 2, expected[key].ndim - 2) for key in shapes}
        for file_dims, dims in ranks if len(ranks) == 1 else ():
            if file_dims != dims and file_dims in (1, 2, 3):
                problems.append(f"the file holds a {file_dims}-D model and this one was built with dims={dims}")
    return problems


def _head_differs(model: nn.Module, given: State, expected: State) -> str:
    """Return a sentence if the only trouble is another number of classes."""
    inside = f"{getattr(model, 'classifier', '')}."
    # The classifier is a linear layer, or a small network that ends in one.
    key = next((key for key in reversed(list(expected)) if key.startswith(inside) and key.endswith(".weight")), "")
    classes = getattr(model, "num_classes", None)
    if key not in expected or key not in given or not classes:
        return ""
    in_file = given[key].shape[0]
    if in_file == expected[key].shape[0]:
        return ""
    return (
        f"its head has {in_file} classes and the model was built with num_classes={classes}; pass num_classes={in_file} to use it, "
        f"or num_classes=0 and then reset_classifier({classes}) to take the weights without the head"
    )


def _inside(key: str, modules: Iterable[str]) -> bool:
    return any(key == module or key.startswith(module + ".") for module in modules)


def _names(keys: Iterable[str]) -> str:
    keys = list(keys)
    return _with_rest(", ".join(keys[:_SHOWN]), len(keys))


def _with_rest(shown: str, total: int) -> str:
    return shown if total <= _SHOWN else f"{shown} and {total - _SHOWN} more"


def _known(layouts: Sequence[Layout]) -> str:
    names = ["cnnkit's own", *dict.fromkeys(layout.name for layout in layouts)]
    return "Layouts understood: " + ", ".join(names)

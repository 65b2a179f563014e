"""Let a network with low-rank adapters start from the weights of one without: the way from ``--init`` to DSCLoRA."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cnnkit.weights import Layout
from torch import Tensor, nn
from torch.nn.utils import parametrize

_MARK = ".parametrizations.weight."


def adopt_base(model: nn.Module) -> None:
    """Give a network with adapters the layout of one without, in all layouts of its class; adapters keep their start at zero.

    Args:
        model: A network after :func:`cnnkit_superres.dsclora.add_adapters`; its attribute ``layouts`` is set.
    """
    known: tuple[Layout, ...] = tuple(getattr(type(model), "layouts", ()))
    weights = {
        f"{name}.weight": f"{name}{_MARK}original" for name, part in model.named_modules() if parametrize.is_parametrized(part, "weight")
    }

    def has_none(keys: Collection[str]) -> bool:
        return not any(_MARK in key for key in keys)

    def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
        for layout in known:
            if layout.matches and layout.convert and layout.matches(state.keys()):
                state = layout.convert(state)
                break
        adapters = {key: value for key, value in model.state_dict().items() if _MARK in key and not key.endswith("original")}
        return {**{weights.get(key, key): value for key, value in state.items()}, **adapters}

    model.layouts = (Layout("a network without adapters", has_none, convert),)  # type: ignore[assignment]


def without_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the network that adapters were put on, under the network's own keys.

    Args:
        state: Weights with adapters or without.
    """
    original = f"{_MARK}original"
    return {key.replace(original, ".weight"): value for key, value in state.items() if _MARK not in key or key.endswith(original)}

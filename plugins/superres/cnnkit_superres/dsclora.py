"""DSCLoRA: low-rank adapters of convolutions, trained under a teacher (Chai et al., CVPR 2025 workshops).

"Distillation-Supervised Convolutional Low-Rank Adaptation for Efficient Image Super-Resolution".

A trained network gains quality at no cost in use. Its weights are frozen; beside the kernel ``W`` of chosen convolutions a product of
low rank is trained, which afterwards is added to the kernel and gone::

    W' = W + (alpha / r) reshape(B A),    B (out k, r k) = 0 at the start,  A (r k, in k) drawn at random

A teacher, the same network or a larger one, supervises features: with ``f`` the map of a layer, each position scaled to length 1 over its
channels, the student is to reproduce which positions are alike (He et al., ICIP 2020, "FAKD")::

    loss = |SR - HR|_1 + weight * mean over layers of |f_s' f_s - f_t' f_t|_1 / (H W)^2

Any network takes it: ::

    add_adapters(model, rank=2, alpha=4)
    distillation = Distillation(teacher, layers=("block_[1-3].c?_r",))
    terms = distillation.terms(model, low, high)  # their sum is minimised; only the adapters have gradients
    merge_adapters(model)
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from cnnkit.errors import CheckpointError, ConfigError, UsageError
from torch import Tensor, nn
from torch.nn.utils import parametrize

Where = Callable[[str, nn.Module], bool] | str | Sequence[str] | None

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BLOCK = 1 << 22
"""Similarities that are held at once: 16 MB in single precision."""
_SHOWN = 6


class ConvLoRA(nn.Module):
    """The low-rank update of a convolution's kernel, as a parametrization of its weight.

    So the convolution stays what it is, of any stride, groups and dilation, and code that reads its ``weight``, as re-parameterised
    blocks do, sees the updated kernel.

    Args:
        weight: The kernel, ``(out, in / groups, *kernel)``, or of a transposed convolution ``(in, out / groups, *kernel)``.
        rank: ``r``; the product has rank ``r k`` as a matrix of ``out k`` rows, ``k`` the kernel's first side.
        scale: Factor of the product.

    Shapes:
        weight: as given; so is the result.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, *, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns, side, *others = weight.shape
        self.lora_A = nn.Parameter(weight.new_empty(rank * side, columns * math.prod(others)))
        self.lora_B = nn.Parameter(weight.new_zeros(rows * side, rank * side))
        self.register_buffer("scale", weight.new_tensor(scale))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated kernel."""
        return weight + self.scale * (self.lora_B @ self.lora_A).view(weight.shape)


def add_adapters(
    model: nn.Module, *, rank: int = 2, alpha: float = 4.0, where: Where = None, ranks: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """Freeze a network and put trainable low-rank updates on the kernels of its convolutions, in place; the output stays the same.

    A normalisation by batch statistics would still follow the data: keep such layers in evaluation mode.

    Args:
        model: Any network.
        rank: Rank of the updates.
        alpha: ``alpha / rank`` scales every update.
        where: Which convolutions: patterns of their names (``"upsampler*"``), or a function of name and module. By default the paper's
            choice, all 3x3 convolutions but the one that reads the picture: those of the blocks, of the upsampler and before it.
        ranks: Other ranks by pattern of name, at the same scale; the last that matches counts.

    Returns:
        Names of the adapted convolutions.

    Raises:
        ConfigError: If no convolution is chosen, a pattern matches none, or a rank is not positive.
        UsageError: If a chosen convolution has an adapter.
    """
    ranks = dict(ranks or {})
    if min([rank, *ranks.values()]) < 1:
        raise ConfigError(f"a rank is 1 or more: rank={rank}, ranks={ranks}")
    names = _chosen(model, where)
    for pattern in ranks:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"ranks: no adapted convolution is named {pattern!r}; they are {_listed(names)}")
    if taken := [name for name in names if _adapter(model.get_submodule(name))]:
        raise UsageError(f"{_listed(taken)} has an adapter already; merge_adapters(model) makes it part of the kernel")
    convs = _convs(model)
    fitting = {name: [value for pattern, value in ranks.items() if fnmatch.fnmatchcase(name, pattern)] for name in names}
    _attach(convs, {name: ConvLoRA(convs[name].weight, rank=[rank, *fitting[name]][-1], scale=alpha / rank) for name in names})
    _freeze(model)
    return names


def merge_adapters(model: nn.Module) -> int:
    """Add every update to its kernel, leave plain convolutions, in place, and return how many there were.

    Parameters, keys and cost are those of the network before :func:`add_adapters`. If there were adapters, all parameters may be
    trained again.
    """
    adapted = _adapted(model)
    for conv in adapted.values():
        # A copy shares its class with the original, and the class loses its ``weight``: so each convolution gets one of its own.
        kind = type(conv)
        conv.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        parametrize.remove_parametrizations(conv, "weight", leave_parametrized=True)
        if conv.bias is not None:  # Behind the weight again: the order of parameters is part of an optimizer's state.
            bias = conv.bias
            del conv.bias
            conv.register_parameter("bias", bias)  # type: ignore[arg-type]
    if adapted:
        model.requires_grad_(True)
    return len(adapted)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapters alone, ``CONV.lora_A``, ``CONV.lora_B`` and ``CONV.scale``: what is small enough to ship beside a network."""
    return {
        f"{name}.{key}": value.detach()
        for name, conv in _adapted(model).items()
        for key, value in _adapter(conv).state_dict().items()  # type: ignore[union-attr]
    }


def load_adapters(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Put the adapters of :func:`adapter_state` on a network that has none, and return the names of its convolutions.

    Raises:
        CheckpointError: If the network has no such convolutions, or of other shapes; it is left as it was.
        UsageError: If it has adapters.
    """
    if _adapted(model):
        raise UsageError("the network has adapters; merge_adapters(model) makes them part of it")
    convs = _convs(model)
    adapters: dict[str, ConvLoRA] = {}
    for name in dict.fromkeys(key.rpartition(".")[0] for key in state):
        part = {key.rpartition(".")[2]: value for key, value in state.items() if key.rpartition(".")[0] == name}
        try:
            weight = convs[name].weight
            adapters[name] = ConvLoRA(weight, rank=part["lora_A"].shape[0] // weight.shape[2], scale=1.0)
            adapters[name].load_state_dict(part)
        except (KeyError, RuntimeError) as error:
            shown = f"{type(model).__name__}, whose convolutions are {_listed(convs)}"
            raise CheckpointError(f"the adapter of {name!r} does not fit this {shown}") from error
    _attach(convs, adapters)
    _freeze(model)
    return tuple(adapters)


def _convs(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, CONVS)}


def _attach(convs: Mapping[str, nn.Module], adapters: Mapping[str, ConvLoRA]) -> None:
    for name, adapter in adapters.items():
        parametrize.register_parametrization(convs[name], "weight", adapter)


def _freeze(model: nn.Module) -> None:
    """Let nothing but adapters be trained."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, ConvLoRA):
            module.requires_grad_(True)


def _adapter(conv: nn.Module) -> ConvLoRA | None:
    if not isinstance(conv, CONVS) or not parametrize.is_parametrized(conv, "weight"):
        return None
    return next((step for step in conv.parametrizations["weight"] if isinstance(step, ConvLoRA)), None)  # type: ignore[union-attr,index]


def _adapted(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if _adapter(module) is not None}


def _chosen(model: nn.Module, where: Where) -> tuple[str, ...]:
    """Return the names of the convolutions that ``where`` means, in the order of registration."""
    convs = _convs(model)
    if where is None:
        names = _papers_choice(model, convs)
    elif callable(where):
        names = [name for name, module in convs.items() if where(name, module)]
    else:
        patterns = (where,) if isinstance(where, str) else tuple(where)
        if idle := [pattern for pattern in patterns if not fnmatch.filter(convs, pattern)]:
            raise ConfigError(f"where: no convolution is named {' or '.join(map(repr, idle))}; this network has {_listed(convs)}")
        names = [name for name in convs if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not names:
        raise ConfigError(f"no convolution is chosen for an adapter; choose by name, as in where='*': this network has {_listed(convs)}")
    return tuple(names)


def _papers_choice(model: nn.Module, convs: Mapping[str, Any]) -> list[str]:
    """Return the 3x3 convolutions but the first: of DSCF exactly those of its code, ``conv_1`` and ``conv_cat`` left out."""
    first = next(iter(convs), "")
    # Where the first belongs to a block that is merged into one convolution, the whole block reads the picture.
    steps = first.split(".")
    parents = [".".join(steps[:depth]) for depth in range(1, len(steps))]
    head = next((parent for parent in parents if hasattr(model.get_submodule(parent), "merged")), first)
    return [name for name, module in convs.items() if set(module.kernel_size) == {3} and name != head and not name.startswith(f"{head}.")]


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    names = list(names)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + rest


def affinity_distance(student: Tensor, teacher: Tensor, *, max_positions: int = 4096) -> Tensor:
    """Return the mean absolute difference of two maps' matrices of cosine similarity between all pairs of positions.

    Zero for maps that are equal, or equal but for a rotation of the channels and a positive factor at each position. The matrices are
    never whole in memory, neither forward nor backward.

    Args:
        student: Its gradient is computed.
        teacher: Has none.
        max_positions: Larger maps are averaged over squares, so that at most about so many positions are left.

    Shapes:
        student: ``(B, C, H, W)``.
        teacher: ``(B, D, H, W)``, of any number of channels.
        result: a scalar, between 0 and 2.

    Raises:
        UsageError: If batch or sides differ.
    """
    if student.ndim != 4 or student.shape[:1] + student.shape[2:] != teacher.shape[:1] + teacher.shape[2:]:
        raise UsageError(
            f"maps of shapes {tuple(student.shape)} and {tuple(teacher.shape)} cannot be compared by position; choose layers of equal sides"
        )
    with torch.autocast(student.device.type, enabled=False):
        return _AffinityDistance.apply(_unit_columns(student, max_positions), _unit_columns(teacher.detach(), max_positions))


def _unit_columns(features: Tensor, max_positions: int) -> Tensor:
    """Return ``(B, C, positions)`` with columns of length 1, or 0 where there is no direction to keep."""
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    side = math.ceil(math.sqrt(features.shape[2] * features.shape[3] / max_positions))
    if side > 1:
        features = F.avg_pool2d(features, side, ceil_mode=True)
    features = features.flatten(2)
    length = features.norm(dim=1, keepdim=True)
    # A bound alone would hand positions without activity a gradient of its inverse.
    return torch.where(length > 1e-8, features / length.clamp_min(1e-8), 0.0)


class _AffinityDistance(torch.autograd.Function):
    """``mean |S' S - T' T|`` by blocks of rows; the gradient ``2 S sign(S' S - T' T) / count`` is formed on the way."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        batch, _, positions = student.shape
        rows = max(1, _BLOCK // (batch * positions))
        total, gradient = student.new_zeros(()), torch.empty_like(student)
        for start in range(0, positions, rows):
            part = slice(start, start + rows)
            difference = torch.baddbmm(student[:, :, part].mT @ student, teacher[:, :, part].mT, teacher, alpha=-1)
            total += difference.abs().sum()
            if ctx.needs_input_grad[0]:
                gradient[:, :, part] = student @ difference.sign_().mT
        count = batch * positions**2
        ctx.save_for_backward(gradient)
        ctx.factor = 2 / count
        return total / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * (grad * ctx.factor), None


@contextmanager
def feature_taps(model: nn.Module, layers: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collect what modules return while the context is open, in the order in which they are computed.

    Of several tensors the first is taken. An activation that works in place on what a module returned changes what was collected.

    Args:
        model: Any network.
        layers: Patterns of names of modules.

    Raises:
        ConfigError: If a pattern matches no module.
        UsageError: If a matched module was not run when the context closes.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if idle := [pattern for pattern in layers if not fnmatch.filter(modules, pattern)]:
        parts = [name for name, _ in model.named_children()]
        raise ConfigError(f"layers: no module is named {' or '.join(map(repr, idle))}; {type(model).__name__} is made of {_listed(parts)}")
    names = [name for name in modules if any(fnmatch.fnmatchcase(name, pattern) for pattern in layers)]
    collected: list[Tensor] = []
    silent = set(names)

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            silent.discard(name)
            collected.append(output if isinstance(output, Tensor) else output[0])

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
    if silent:
        raise UsageError(f"layers: {_listed(sorted(silent))} was not run by the network; name modules that it calls")


class AffinityDistillation(nn.Module):
    """The mean of :func:`affinity_distance` over pairs of maps.

    Args:
        layers: Patterns of names of the student's modules.
        teacher_layers: The teacher's, if they differ; maps are paired in the order in which they are computed.
        max_positions: As for :func:`affinity_distance`.
    """

    def __init__(self, layers: Sequence[str], *, teacher_layers: Sequence[str] = (), max_positions: int = 4096) -> None:
        super().__init__()
        if not layers:
            raise ConfigError("layers names no module whose features are compared")
        self.layers = tuple(layers)
        self.teacher_layers = tuple(teacher_layers) or self.layers
        self.max_positions = max_positions

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss between the collected maps of both.

        Raises:
            UsageError: If there are not as many of one as of the other, or their sides differ.
        """
        if len(student) != len(teacher):
            raise UsageError(
                f"the student returned {len(student)} maps and the teacher {len(teacher)}; name as many teacher_layers as layers"
            )
        pairs = zip(student, teacher, strict=True)
        return torch.stack([affinity_distance(one, other, max_positions=self.max_positions) for one, other in pairs]).mean()


class Distillation:
    """A teacher and what it teaches. It is no module, so that the teacher is never part of the student's state.

    Args:
        teacher: A trained network for the same scale; it is frozen and set to evaluation.
        layers: As for :class:`AffinityDistillation`.
        teacher_layers: As for :class:`AffinityDistillation`.
        affinity_weight: Weight of the affinity loss.
        output_weight: Weight of L1 between the outputs.
        max_positions: As for :func:`affinity_distance`.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        layers: Sequence[str],
        teacher_layers: Sequence[str] = (),
        affinity_weight: float = 1.0,
        output_weight: float = 0.0,
        max_positions: int = 4096,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.affinity = AffinityDistillation(layers, teacher_layers=teacher_layers, max_positions=max_positions)
        self.affinity_weight = affinity_weight
        self.output_weight = output_weight

    def run(self, student: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the student's output and the weighted losses against the teacher, ``affinity`` and ``output``, without those of weight 0.

        Shapes:
            x: The networks' input.
        """
        self.teacher.to(x.device)
        with feature_taps(student, self.affinity.layers) as maps:
            output = student(x)
        with torch.no_grad(), feature_taps(self.teacher, self.affinity.teacher_layers) as teacher_maps:
            taught = self.teacher(x)
        terms: dict[str, Tensor] = {}
        if self.affinity_weight:
            terms["affinity"] = self.affinity_weight * self.affinity(maps, teacher_maps)
        if self.output_weight:
            terms["output"] = self.output_weight * F.l1_loss(output, taught)
        return output, terms

    def terms(self, student: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the paper's losses: ``l1`` between output and target, and those of :meth:`run`; their sum is minimised."""
        output, terms = self.run(student, x)
        return {"l1": F.l1_loss(output, target), **terms}

"""What a network costs, as the efficiency challenges (NTIRE, AIM) table it: parameters, multiply-adds, activations, time, memory."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from cnnkit.count import count_macs, count_params
from cnnkit.errors import ConfigError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnnkit_superres.merging import fold_branches, merged
from cnnkit_superres.models._base import SuperResolver

OUTPUT = (720, 1280)
"""Height and width of the enlarged picture for which papers count multiply-adds."""

_CONVOLUTION = torch.ops.aten.convolution.default
_RUNS = 3


@dataclass(frozen=True)
class Cost:
    """The figures of one network at one size.

    Attributes:
        input_size: Height and width of the small picture.
        output_size: Height and width of the enlarged picture.
        params: Parameters.
        macs: Multiply-adds of one picture (what papers often call FLOPs).
        activations: Elements of the outputs of all convolutions, which tells more about the time on a GPU than multiply-adds do.
        convs: Convolutions that are computed; a layer that is used twice counts twice.
        seconds: Time of one picture, if it was measured.
        peak_memory: Bytes on the GPU beyond the network itself, if that was measured; there is no such counter for the CPU.
        device: Where it was measured.
    """

    input_size: tuple[int, int]
    output_size: tuple[int, int]
    params: int
    macs: int
    activations: int
    convs: int
    seconds: float | None = None
    peak_memory: int | None = None
    device: str = ""

    HEADER = (
        "| Network | Params (M) | Multiply-adds (G) | Activations (M) | Convolutions | Time (ms) | Memory (MiB) |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )

    def markdown(self, name: str) -> str:
        """Return the row of the network under :attr:`HEADER`; what was not measured is a dash."""
        cells = [
            name,
            f"{self.params / 1e6:.3f}",
            f"{self.macs / 1e9:.2f}",
            f"{self.activations / 1e6:.2f}",
            str(self.convs),
            "-" if self.seconds is None else f"{1e3 * self.seconds:.1f}",
            "-" if self.peak_memory is None else f"{self.peak_memory / 2**20:.0f}",
        ]
        return "| " + " | ".join(cells) + " |"


def cost(model: SuperResolver, output: tuple[int, int] = OUTPUT, *, measure: bool = False) -> Cost:
    """Count what a network costs for a picture of a given enlarged size.

    Branches and adapters that serve training alone are merged, as papers count (:func:`cnnkit_superres.merging.fold_branches`); what is
    measured is the network as it infers (:func:`cnnkit_superres.merging.merged`). Nothing is computed for the counts: they are taken on
    a copy without values. A side that the factor does not divide is rounded up: 1280 x 720 by 3 is counted for 427 x 240.

    Args:
        model: The network, at the factor that it is set to; it stays as it is.
        output: Height and width of the enlarged picture.
        measure: Also run it on the device where it is, in evaluation mode: the fastest of three pictures after one to warm up.

    Raises:
        ConfigError: The size is not positive, or a network without values is to be measured.
    """
    if min(output) < 1:
        raise ConfigError(f"the enlarged size must be positive (height, width), not {output}")
    size = (-(-output[0] // model.scale), -(-output[1] // model.scale))
    shape = (1, model.in_chans, *size)
    empty = _without_values(model)
    fold_branches(empty)
    with torch.no_grad(), _Convolutions() as counter:
        empty(torch.empty(shape, device="meta", dtype=next(empty.parameters()).dtype))
    seconds, memory, device = _measure(model, shape) if measure else (None, None, "")
    enlarged = (size[0] * model.scale, size[1] * model.scale)
    macs = count_macs(empty, shape)
    return Cost(size, enlarged, count_params(empty), macs, counter.activations, counter.convs, seconds, memory, device)


class _Convolutions(TorchDispatchMode):
    """Counts convolutions where they are computed, so that functional ones are found as well as modules."""

    def __init__(self) -> None:
        super().__init__()
        self.activations = self.convs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is _CONVOLUTION:
            self.activations += out.numel()
            self.convs += 1
        return out


def _without_values(model: SuperResolver) -> SuperResolver:
    """Return a copy in evaluation mode whose parameters and buffers take no memory; the model stays as it is."""
    known: dict[int, Any] = {}
    for parameter in model.parameters():
        known[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        known[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, known).eval()


def _measure(model: SuperResolver, shape: tuple[int, ...]) -> tuple[float, int | None, str]:
    some: Tensor = next(model.parameters())
    if some.is_meta:
        raise ConfigError("a network without values (on the meta device) cannot be measured; create it on a real device")
    modes = {module: module.training for module in model.modules()}
    ready = merged(model).eval()
    x = torch.rand(shape, device=some.device, dtype=some.dtype)
    on_gpu = some.device.type == "cuda"
    try:
        with torch.no_grad():
            ready(x)
            before = _start_of_memory(some.device) if on_gpu else 0
            seconds = min(_seconds(ready, x) for _ in range(_RUNS))
    finally:
        for module, mode in modes.items():  # Another project's network is not copied.
            module.training = mode
    memory = torch.cuda.max_memory_allocated(some.device) - before if on_gpu else None
    return seconds, memory, torch.cuda.get_device_name(some.device) if on_gpu else str(some.device)


def _start_of_memory(device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _seconds(model: nn.Module, x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    start = time.perf_counter()
    model(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start

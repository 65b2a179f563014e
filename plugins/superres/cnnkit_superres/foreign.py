"""Networks of other projects: any architecture for super-resolution that the optional library spandrel knows, told by its weights alone.

Published files hold nothing but weights; spandrel recognises about forty architectures by names and shapes, and infers every
hyper-parameter. What it builds is wrapped as a :class:`SuperResolver`, so that tiles, colours, files and metrics are those of every
other network here. The state dict of the wrapper is that of the architecture, key by key: what is saved here opens in spandrel.

Importing this module does not import spandrel. State dicts come from :func:`cnnkit.checkpoint.read_state`, which never unpickles code.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from cnnkit.errors import CheckpointError
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_superres.models._base import LUMINANCE, RGB, SuperResolver

Tiling = Literal["supported", "discouraged", "internal"]

PURPOSES = {"FaceSR": "restoring faces", "Inpainting": "inpainting", "Restoration": "restoration at the same size"}


class ForeignNetwork(SuperResolver):
    """A network that spandrel built, with the facts that spandrel knows of it.

    Its submodules, parameters and buffers are the inner network's own, not those of a child: keys of the state dict, names of parameters
    and names of modules are the architecture's.

    Args:
        descriptor: What spandrel's ``ModelLoader`` returned, an ``ImageModelDescriptor``.

    Attributes:
        architecture: Name of the architecture, as spandrel gives it.
        minimum: Smallest side that the network takes; smaller pictures are extended.
        square: Whether it takes square pictures alone; others are extended.
        tiling: spandrel's advice: ``"supported"``; ``"discouraged"`` for what relies on much of the picture; ``"internal"`` for what cuts
            the picture by itself.
        dtypes: Data types that it works in; none but these are to be asked for.

    Shapes:
        x: ``(B, in_chans, H, W)``; the result is ``(B, in_chans, scale * H, scale * W)``.

    Raises:
        CheckpointError: If the network is for another purpose, or for other colours than luminance or RGB.
    """

    layouts = (Layout("spandrel", matches=lambda keys: True, convert=lambda state: recognise(state).state_dict()),)

    def __init__(self, descriptor: Any) -> None:
        name, needs = descriptor.architecture.name, descriptor.size_requirements
        if descriptor.purpose != "SR":
            purpose = PURPOSES.get(descriptor.purpose, descriptor.purpose)
            raise CheckpointError(f"these are weights of {name} for {purpose}; superres enlarges pictures and takes networks made for that")
        colours = (descriptor.input_channels, descriptor.output_channels)
        if colours not in ((RGB, RGB), (LUMINANCE, LUMINANCE)):
            raise CheckpointError(f"this {name} maps {colours[0]} channels to {colours[1]}; accepted: 3 to 3 (RGB) or 1 to 1 (luminance)")
        super().__init__(scale=int(descriptor.scale), in_chans=colours[0], size_multiple=int(needs.multiple_of))
        self.architecture = str(name)
        self.minimum, self.square = int(needs.minimum), bool(needs.square)
        self.tiling: Tiling = descriptor.tiling.name.lower()
        halves = {torch.float16: descriptor.supports_half, torch.bfloat16: descriptor.supports_bfloat16}
        self.dtypes = (torch.float32, torch.float64, *(dtype for dtype, supported in halves.items() if supported))
        # Some networks return a tuple or expect another range; spandrel keeps how to call them to itself.
        self._call = descriptor._call_fn
        inner: nn.Module = descriptor.model
        self.__dict__["inner"] = inner  # Past nn.Module's registration, which would put "inner." before every key.
        self._modules, self._parameters, self._buffers = inner._modules, inner._parameters, inner._buffers
        self._non_persistent_buffers_set = inner._non_persistent_buffers_set
        self.train(inner.training)

    def train(self, mode: bool = True) -> ForeignNetwork:
        """Set training or evaluation, for the inner network too."""
        super().train(mode)
        self.__dict__["inner"].training = mode
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights the way the architecture does."""
        return self.__dict__["inner"].load_state_dict(state_dict, strict=strict, assign=assign)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged picture."""
        height, width = x.shape[-2:]
        x = self.enlarge(self._extended(x))
        if x.shape[-2:] == (height * self.scale, width * self.scale):
            return x
        return x[..., : height * self.scale, : width * self.scale]

    def enlarge(self, x: Tensor) -> Tensor:
        """Enlarge a picture of a size that the network takes."""
        return self._call(self.__dict__["inner"], x)

    def _extended(self, x: Tensor) -> Tensor:
        """Extend height and width at their ends to a size that is taken, as spandrel does: by one reflection, then by repetition."""
        wanted = [max(side + -side % self.size_multiple, self.minimum) for side in x.shape[-2:]]
        if self.square:
            wanted = [max(wanted)] * 2
        missing = [want - side for want, side in zip(wanted, x.shape[-2:], strict=True)]
        reflected = [min(miss, side - 1) for miss, side in zip(missing, x.shape[-2:], strict=True)]
        if any(missing):
            x = F.pad(x, (0, reflected[1], 0, reflected[0]), mode="reflect")
            x = F.pad(x, (0, missing[1] - reflected[1], 0, missing[0] - reflected[0]), mode="replicate")
        return x


def recognise(state: Mapping[str, Tensor], *, source: str = "the file") -> ForeignNetwork:
    """Build the network that a state dict belongs to, with its weights, on the CPU and in evaluation mode.

    Args:
        state: Tensors by name, from :func:`cnnkit.checkpoint.read_state`.
        source: The file's name, for messages.

    Raises:
        CheckpointError: If spandrel is not installed, knows no such architecture, or cannot build it; or if it is not made for
            super-resolution of RGB or luminance.
    """
    try:
        spandrel = importlib.import_module("spandrel")
    except ImportError as error:
        raise CheckpointError(
            f"{source} holds no network of cnnkit, and the library that knows others is missing: pip install cnnkit-superres[foreign]"
        ) from error
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(dict(state))
    except spandrel.UnsupportedModelError as error:
        some = ", ".join(islice(state, 4))
        raise CheckpointError(
            f"{source} holds weights of no architecture that spandrel {spandrel.__version__} knows; it has {some} ({len(state)} in all)"
        ) from error
    except Exception as error:  # Each architecture reads shapes its own way, so incomplete weights end in any exception.
        cause = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(
            f"{source} resembles an architecture that spandrel knows, but is incomplete or altered ({type(error).__name__}: {cause})"
        ) from error
    try:
        return ForeignNetwork(descriptor).eval()
    except CheckpointError as error:
        raise CheckpointError(f"{source} cannot be used: {error}") from error

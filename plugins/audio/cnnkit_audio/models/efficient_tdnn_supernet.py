"""The supernet of EfficientTDNN: one set of weights, of which any sub-network is a part.

Its blocks, kernels and widths are elastic: a sub-network has the first blocks, of a layer's channels the first (of each part, where
channels are in parts), and of a kernel the centre, turned by a small matrix that is learnt with it. What a sub-network takes is said once,
in :meth:`EfficientTDNNSupernet.weights`; running it inside the supernet and cutting it out both start from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from cnnkit.count import on_meta
from cnnkit.errors import ConfigError
from torch import Tensor, nn
from torch.func import functional_call

from cnnkit_audio.models.efficient_tdnn import TDNN, EfficientTDNN
from cnnkit_audio.models.efficient_tdnn_space import LARGEST, SCALE, SQUEEZE, SubNet

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ElasticConv1d(nn.Conv1d):
    """A convolution whose kernel shrinks to its centre, which a matrix adapts: five taps to three, three to one.

    The state has the matrices ``k53`` and ``k31``, as far as the kernel is that long; they start as identities.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, **options: int | bool) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)  # type: ignore[arg-type]
        if kernel_size > 5:
            raise ConfigError(f"kernel {kernel_size} is too long for a supernet; accepted: 1, 3, 5")
        for longer in range(kernel_size, 1, -2):
            self.register_parameter(f"k{longer}{longer - 2}", nn.Parameter(torch.eye(longer - 2)))

    def centre(self, weight: Tensor, kernel: int) -> Tensor:
        """Return ``weight``, rows of this layer's, with a shorter kernel."""
        for longer in range(weight.shape[-1], kernel, -2):
            weight = weight[..., 1:-1] @ getattr(self, f"k{longer}{longer - 2}")
        return weight


@dataclass(frozen=True)
class Part:
    """The first of the channels of an axis, or the first of each of some parts of it.

    Args:
        width: Channels that are kept, of each part.
        parts: Parts that the axis consists of.
        kept: Parts that are kept; all by default.
    """

    width: int
    parts: int = 1
    kept: int | None = None

    def of(self, tensor: Tensor, axis: int) -> Tensor:
        """Return a view with the axis as two, parts and channels."""
        split = tensor.unflatten(axis, (self.parts, -1))
        return split.narrow(axis, 0, self.parts if self.kept is None else self.kept).narrow(axis + 1, 0, self.width)


class EfficientTDNNSupernet(EfficientTDNN):
    """The supernet. Without further words it runs as the largest of its networks.

    Args:
        channels: Channels of the largest network, as for :class:`EfficientTDNN`; those between blocks are the widest.
        kernels: Its kernels, at most five frames.
        cat: Its channels after the outputs of all blocks are joined.
        speakers, margin, scale: As for :class:`EfficientTDNN`.

    Shapes:
        x: ``(B, 1, T)`` at 16 kHz; the result is ``(B, 192)``.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = LARGEST.channels,
        kernels: Sequence[int] = LARGEST.kernels,
        cat: int = LARGEST.cat,
        speakers: int = 0,
        margin: float = 0.2,
        scale: float = 30.0,
    ) -> None:
        super().__init__(channels=channels, kernels=kernels, cat=cat, speakers=speakers, margin=margin, scale=scale)

    def _body(self) -> TDNN:
        return TDNN(self.subnet, conv=ElasticConv1d)

    def forward(self, x: Tensor, subnet: SubNet | None = None) -> Tensor:
        """Return the embeddings by a sub-network inside this one; by default the largest.

        In training its normalisations use the batch, and their running statistics move where it lies.

        Raises:
            ConfigError: If the sub-network is not a part of this network.
        """
        features = self.front(x)[:, 0]
        if subnet is None or subnet == self.subnet:
            return self.body(features)
        shape, weights = _shape(subnet), self.weights(subnet)
        # A statistic that is a view of ours is updated in place; one that had to be copied is brought back.
        result = functional_call(shape.train(self.training), weights, (features,))
        if self.training:
            self._keep_statistics(subnet, weights)
        return result

    def weights(self, subnet: SubNet) -> dict[str, Tensor]:
        """Return what a sub-network takes of this one, by the names of a :class:`TDNN`; gradients flow into this one.

        Raises:
            ConfigError: If the sub-network is not a part of this network.
        """
        self._check(subnet)
        state = dict(self.body.named_parameters()) | dict(self.body.named_buffers())
        taken = {}
        for key, shape in _shape(subnet).state_dict().items():
            tensor = state[key]
            for axis, part in enumerate(self._parts(key, subnet)[: tensor.ndim]):
                if part is not None:
                    tensor = part.of(tensor, axis).flatten(axis, axis + 1)
            if tensor.ndim == 3 and tensor.shape[-1] != shape.shape[-1]:
                layer = self.body.get_submodule(key.rpartition(".")[0])
                assert isinstance(layer, ElasticConv1d)
                tensor = layer.centre(tensor, shape.shape[-1])
            taken[key] = tensor
        return taken

    def extract(self, subnet: SubNet) -> EfficientTDNN:
        """Cut a sub-network out: a network of its own, which computes what it does in here.

        Its running statistics are the supernet's, which many networks moved: :func:`recalibrate` it before it is used.

        Raises:
            ConfigError: If the sub-network is not a part of this network.
        """
        network = EfficientTDNN(channels=subnet.channels, kernels=subnet.kernels, cat=subnet.cat)
        network.to(self.body.linear.weight).body.load_state_dict(self.weights(subnet))
        return network.train(self.training)

    def _check(self, subnet: SubNet) -> None:
        ours = self.subnet
        layers = len(subnet.channels)
        fits = layers <= len(ours.channels) and subnet.cat <= ours.cat
        fits = fits and all(small <= large for small, large in zip(subnet.channels, ours.channels, strict=False))
        if not (fits and all(small <= large for small, large in zip(subnet.kernels, ours.kernels, strict=False))):
            raise ConfigError(f"the sub-network {subnet} does not lie within {ours}")

    def _parts(self, key: str, subnet: SubNet) -> tuple[Part | None, ...]:
        """Return which channels a sub-network takes of a tensor: those that go out, then those that come in."""
        outer, pooled = Part(subnet.channels[0]), Part(subnet.cat)
        both = Part(subnet.cat, parts=2)
        layer = key.rpartition(".")[0]
        if key.endswith("num_batches_tracked"):
            return ()
        if not layer.startswith("blocks."):
            joined = Part(subnet.channels[0], self.subnet.depth, subnet.depth)
            return {
                "layer1.conv": (outer,),
                "layer1.bn": (outer,),
                "catconv": (pooled, joined),
                "pooling.linear1": (None, pooled),
                "pooling.linear2": (pooled,),
                "bnpool": (both,),
                "linear": (None, both),
                "bnembed": (),
            }[layer]
        _, block, layer = layer.split(".", 2)
        width = subnet.channels[int(block) + 1] // SCALE
        piece, inner, squeezed = Part(width), Part(width, SCALE), Part(subnet.channels[0] // SQUEEZE)
        if layer.startswith("resconv."):
            return (piece, piece)
        return {
            "first_conv.conv": (inner, outer),
            "first_conv.bn": (inner,),
            "last_conv.conv": (outer, inner),
            "last_conv.bn": (outer,),
            "se.reduce": (squeezed, outer),
            "se.expand": (outer, squeezed),
        }[layer]

    @torch.no_grad()
    def _keep_statistics(self, subnet: SubNet, weights: dict[str, Tensor]) -> None:
        """Bring the running statistics of a sub-network back to where they were taken from."""
        ours = dict(self.body.named_buffers())
        for key, value in weights.items():
            if not key.endswith(_STATISTICS) or value.untyped_storage().data_ptr() == ours[key].untyped_storage().data_ptr():
                continue
            (part,) = self._parts(key, subnet)
            assert part is not None
            target = part.of(ours[key], 0)
            target.copy_(value.view(target.shape))


@lru_cache(maxsize=256)
def _shape(subnet: SubNet) -> TDNN:
    """Return a sub-network without values."""
    with on_meta():
        return TDNN(subnet)


@torch.no_grad()
def recalibrate(network: nn.Module, clips: Iterable[Tensor]) -> None:
    """Compute the statistics of all batch normalisations anew, as plain means over batches of clips.

    Args:
        network: The network; its mode stays.
        clips: Waveforms ``(B, 1, T)``, as in training.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    training, momenta = network.training, [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    try:
        for batch in clips:
            network(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(training)

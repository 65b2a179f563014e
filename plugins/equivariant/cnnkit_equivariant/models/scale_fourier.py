"""Scale-Fourier: Rahman and Yeh (2023), "Truly Scale-Equivariant Deep Nets with Fourier Layers".

Convolutions that multiply spectra, and activations whose result is put together shell by shell from every resolution, commute exactly with
the ideal down-scaling of the picture. So the network sees, inside a large picture, all that it would be shown of the smaller ones, and its
head says for every resolution what the picture shows; a loss over all of them trains it for sizes that no training picture has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cnnkit.errors import ConfigError, InputError
from cnnkit.layers import get_act
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit_equivariant.models._base import Classifier
from cnnkit_equivariant.scale import FourierConv, ShellActivation, from_spectrum, to_spectrum


class ScaleFourier(Classifier):
    """A classifier of square pictures of any odd side, whose features commute with down-scaling.

    Its head takes the mean of the last features at each resolution, and a perceptron that all resolutions share says the class. What it
    says of a picture at some resolution is what it says of the picture scaled down to it. (The official head pools 2 x 2 maxima at each
    resolution; the mean is its one cell. The normalisation's scale is shared, too, so that sizes need not be known beforehand.)

    Args:
        num_classes: What it tells apart.
        in_chans: Channels of the input.
        channels: Of each convolution.
        kernel_size: Taps of a kernel along a side, odd.
        reference: Side of the picture in pixels, odd, that the first kernel's taps are counted in; the others' follow the pooling.
        pools: Factor by which each activation shrinks the picture; none by default.
        act: Activation.
        norm: ``"instance"``, at every resolution by itself, or ``"none"``.
        least: Side of the smallest picture, odd. Frequencies below are made together from that size, which mixes them more.
        step: Frequencies that a shell spans: above 1 it is faster, and exact for every ``step``-th odd size alone.
        hidden: Width of the perceptron.
        drop: Rate of dropout before its last layer.
        least_scored: Side of the smallest picture that the loss asks of, odd: smaller ones show nothing.
        consistency: Weight of the loss that a larger picture must not be told worse than a smaller one.

    Raises:
        ConfigError: If an argument is not one of these.
    """

    domain: ClassVar[str] = "picture"

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_chans: int = 1,
        channels: Sequence[int] = (32, 64, 128, 128),
        kernel_size: int = 5,
        reference: int = 27,
        pools: Sequence[int] = (),
        act: str = "relu",
        norm: str = "instance",
        least: int = 1,
        step: int = 1,
        hidden: int = 200,
        drop: float = 0.7,
        least_scored: int = 7,
        consistency: float = 1e-3,
    ) -> None:
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        pools = tuple(pools) or (1,) * len(channels)
        if not channels or len(pools) != len(channels):
            raise ConfigError(
                f"channels={list(channels)}, pools={list(pools)}: accepted are one factor for each convolution, or no factors"
            )
        if least_scored % 2 == 0:
            raise ConfigError(f"least_scored={least_scored} is no side of a picture; accepted: odd numbers")
        self.least_scored, self.consistency = least_scored, consistency
        convs: list[FourierConv] = []
        acts: list[ShellActivation] = []
        for width, before, pool in zip(channels, (in_chans, *channels), pools, strict=False):
            convs.append(FourierConv(before, width, kernel_size=min(kernel_size, reference), reference=reference, bias=norm == "none"))
            acts.append(ShellActivation(width, act=act, norm=norm, pool=pool, least=least, step=step))
            reference, least = (2 * (side // 2 // pool) + 1 for side in (reference, least))
        self.convs: Sequence[FourierConv] = nn.ModuleList(convs)  # type: ignore[assignment]
        self.acts: Sequence[ShellActivation] = nn.ModuleList(acts)  # type: ignore[assignment]
        self.head = nn.Sequential(
            nn.LayerNorm(channels[-1]),
            nn.Linear(channels[-1], hidden),
            nn.Dropout(drop),
            nn.LayerNorm(hidden),
            get_act(act),
            nn.Linear(hidden, num_classes),
        )

    def sizes(self, size: int) -> list[int]:
        """Return the sides that the network looks at in a picture of this side, the smallest first."""
        sizes = [size]
        for act in self.acts:
            radii = act.radii(sizes[-1])
            sizes.append(2 * radii[-1] + 1)
        shrunk = self._shrunk()
        return [min(size, 2 * shrunk * radius + 1) for radius in radii]

    def _shrunk(self) -> int:
        factor = 1
        for act in self.acts:
            factor *= act.pool
        return factor

    def _spectrum(self, x: Tensor) -> Tensor:
        """Return what the last activation takes."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise InputError(f"the network takes pictures (B, {self.in_chans}, N, N), not {tuple(x.shape)}")
        spectrum = to_spectrum(x)
        for number, conv in enumerate(self.convs):
            spectrum = conv.spectral(self.acts[number - 1].spectral(spectrum) if number else spectrum)
        return spectrum

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last features as pictures ``(B, C, M, M)``; ``M`` is the input's side unless there are pools."""
        return from_spectrum(self.acts[-1].spectral(self._spectrum(x)))

    def resolutions(self, x: Tensor) -> Tensor:
        """Return the logits at each of :meth:`sizes`, ``(S, B, num_classes)``: those of the pictures scaled down to it."""
        spectrum = self._spectrum(x)
        return self.head(self.acts[-1].averages(spectrum, self.acts[-1].radii(len(spectrum) - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` of pictures ``(B, in_chans, N, N)``, at their own resolution.

        Raises:
            InputError: If the side is even, the picture not square or smaller than the least.
        """
        spectrum = self._spectrum(x)
        return self.head(self.acts[-1].averages(spectrum, self.acts[-1].radii(len(spectrum) - 1)[-1:])[0])

    def losses(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy, the mean over the resolutions, and how much it rises from one to the next larger."""
        scored = [size >= min(self.least_scored, x.shape[-1]) for size in self.sizes(x.shape[-1])]
        logits = self.resolutions(x)[scored.index(True) :]
        entropy = F.cross_entropy(logits.flatten(0, 1), target.repeat(len(logits)), reduction="none").view(len(logits), -1).mean(1)
        return {"cross_entropy": entropy.mean(), "consistency": self.consistency * entropy.diff().relu().sum()}

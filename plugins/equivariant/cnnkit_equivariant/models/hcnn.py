"""HCNN: residual networks whose features lie in hyperbolic space from the first layer to the last, or in the classifier alone.

Bdeir, Schwethelm and Landwehr (2024), "Fully Hyperbolic Convolutional Neural Networks for Computer Vision": a ResNet for small pictures
whose convolutions, batch normalisations, rectifiers, shortcuts, pooling and logistic regression are those of the Lorentz model
(:mod:`cnnkit_equivariant.hyperbolic`). A hybrid has an ordinary encoder, whose vector is clipped and mapped to the hyperboloid.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import ClassVar, Literal, get_args

from cnnkit.errors import ConfigError, unknown
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_equivariant.hyperbolic import LorentzBatchNorm, LorentzConv, LorentzPool, LorentzRegression, norm
from cnnkit_equivariant.lorentz import Lorentz
from cnnkit_equivariant.models._base import Classifier

Space = Literal["lorentz", "euclidean"]


def convolution(manifold: Lorentz | None, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> nn.Module:
    """Return a convolution that keeps the size at stride 1, without a manifold the ordinary one without bias."""
    if manifold is None:
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    return LorentzConv(manifold, in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)


def normalisation(manifold: Lorentz | None, channels: int) -> nn.Module:
    """Return a batch normalisation."""
    return nn.BatchNorm2d(channels) if manifold is None else LorentzBatchNorm(manifold, channels)


class Block(nn.Module):
    """Two convolutions and a shortcut, in hyperbolic space if there is a manifold.

    Args:
        manifold: The hyperboloid; ``None`` for flat space.
        in_channels: Channels of the input.
        width: Channels of the output.
        stride: Stride of the first convolution.

    Shapes:
        x: ``(B, in_channels, H, W)``; the result is ``(B, width, ceil(H / stride), ceil(W / stride))``; space parts.
    """

    def __init__(self, manifold: Lorentz | None, in_channels: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = convolution(manifold, in_channels, width, 3, stride=stride)
        self.norm1 = normalisation(manifold, width)
        self.conv2 = convolution(manifold, width, width, 3)
        self.norm2 = normalisation(manifold, width)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != width:
            self.shortcut = nn.Sequential(convolution(manifold, in_channels, width, 1, stride=stride), normalisation(manifold, width))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        branch = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (branch + (x if self.shortcut is None else self.shortcut(x))).relu()


_RENAMED = (
    (r"^encoder\.conv1\.(?:conv\.)?([01])\.", r"stem.\1."),
    (r"^encoder\.conv(\d)_x\.(\d+)\.conv\.0\.", r"stages.\1.\2.conv1."),
    (r"^encoder\.conv(\d)_x\.(\d+)\.conv\.1\.", r"stages.\1.\2.norm1."),
    (r"^encoder\.conv(\d)_x\.(\d+)\.conv\.3\.", r"stages.\1.\2.conv2."),
    (r"^encoder\.conv(\d)_x\.(\d+)\.conv\.4\.", r"stages.\1.\2.norm2."),
    (r"^encoder\.conv(\d)_x\.(\d+)\.shortcut\.", r"stages.\1.\2.shortcut."),
    (r"^decoder\.", "head."),
)
_POINTS = {"beta": "mean", "running_mean": "running_mean"}
_PLAIN = {"a": "offset", "z": "normal"}
_CURVATURES = {"encoder.manifold.k": "manifold.log_curvature", "dec_manifold.k": "head_manifold.log_curvature"}


def _is_official(keys: Collection[str]) -> bool:
    return any(key.startswith("encoder.conv1.") for key in keys) and any(key.startswith("decoder.") for key in keys)


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights of the paper's code to our keys.

    There, ``k`` is one over the curvature's size, and the row of each layer that would make the time part is never used.
    """
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in _CURVATURES:
            found[_CURVATURES[key]] = -value.log()
        name = key
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"^stages\.(\d)", lambda match: f"stages.{int(match[1]) - 2}", name)
        module, _, leaf = name.rpartition(".")
        if leaf in ("scale", "k"):
            continue
        if module.endswith(".linearized_kernel.weight"):
            found |= _kernel(module.removesuffix(".linearized_kernel.weight"), leaf, value)
        elif leaf in _POINTS:
            found[f"{module}.{_POINTS[leaf]}"] = value[1:] if _is_hyperbolic(state, key) else value
        else:
            found[f"{module}.{_PLAIN.get(leaf, leaf)}"] = value
    return found


def _is_hyperbolic(state: dict[str, Tensor], key: str) -> bool:
    return key.rpartition(".")[0] + ".beta" in state


def _kernel(module: str, leaf: str, value: Tensor) -> dict[str, Tensor]:
    """Return a convolution's parameters from a linear layer's on windows: the time first, then all channels of one pixel after another."""
    if leaf == "bias":
        return {f"{module}.bias": value[1:]}
    side = 1 if "shortcut" in module else 3
    kernel = value[1:, 1:].unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
    return {f"{module}.weight": kernel.contiguous(), f"{module}.time_weight": value[1:, 0].clone()}


class HyperbolicResNet(Classifier):
    """A ResNet in flat space (``E``), in hyperbolic space (``L``), or in flat space with a hyperbolic classifier (``EL``).

    Args:
        encoder: Space of the features.
        head: Space of the classifier.
        depths: Blocks of each stage; each but the first halves the picture.
        widths: Channels of each stage, which is the dimension of its space.
        curvature: Of the encoder: ``k`` of ``<x, x> = -1/k``.
        head_curvature: Of the classifier; by default the encoder's.
        learn_curvature: Whether the curvatures are learnt.
        clip: Length to which the vectors of a flat encoder are clipped before a hyperbolic classifier.
        num_classes: Number of classes.
        in_chans: Channels of the pictures; in hyperbolic space a pixel's colour is the space part of a point.

    Shapes:
        x: ``(B, in_chans, H, W)``; the result is ``(B, num_classes)``.

    Raises:
        ConfigError: If a space is unknown, or depths and widths are not as many.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("official", _is_official, _from_official),)

    def __init__(
        self,
        *,
        encoder: Space = "lorentz",
        head: Space = "lorentz",
        depths: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        curvature: float = 1.0,
        head_curvature: float | None = None,
        learn_curvature: bool = False,
        clip: float = 1.0,
        num_classes: int = 10,
        in_chans: int = 3,
    ) -> None:
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        for word, space in (("encoder", encoder), ("head", head)):
            if space not in get_args(Space):
                raise ConfigError(unknown(word, space, get_args(Space)))
        if len(depths) != len(widths) or not depths or min(*depths, *widths) < 1:
            raise ConfigError(f"depths={tuple(depths)} and widths={tuple(widths)} must be as many, each at least 1")
        if not clip > 0:
            raise ConfigError(f"clip={clip} leaves nothing of a vector; accepted: more than 0")
        self.clip = clip
        head_curvature = curvature if head_curvature is None else head_curvature
        self.manifold = Lorentz(curvature, learnable=learn_curvature) if encoder == "lorentz" else None
        self.head_manifold = Lorentz(head_curvature, learnable=learn_curvature) if head == "lorentz" else None
        self._one_space = encoder == head and curvature == head_curvature and not learn_curvature
        self.stem = nn.Sequential(convolution(self.manifold, in_chans, widths[0], 3), normalisation(self.manifold, widths[0]), nn.ReLU())
        ins = (widths[0], *widths[:-1])
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    Block(self.manifold, before, width, stride=1 if stage == 0 else 2),
                    *(Block(self.manifold, width, width) for _ in range(depth - 1)),
                )
                for stage, (before, width, depth) in enumerate(zip(ins, widths, depths, strict=True))
            )
        )
        flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.pool: nn.Module = flat if self.manifold is None else LorentzPool(self.manifold)
        self.head: nn.Module = (
            nn.Linear(widths[-1], num_classes)
            if self.head_manifold is None
            else LorentzRegression(self.head_manifold, widths[-1], num_classes)
        )

    def embed(self, x: Tensor) -> Tensor:
        """Return what the classifier sees, ``(B, widths[-1])``: space parts of points of :attr:`head_manifold`, or a flat vector."""
        x = self.pool(self.stages(self.stem(x)))
        if self._one_space:
            return x
        tangent = self._clipped(x) if self.manifold is None else self.manifold.log0(x)
        return tangent if self.head_manifold is None else self.head_manifold.exp0(tangent)

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.head_manifold is None else x * (self.clip / norm(x.square().sum(1, keepdim=True))).clamp_max(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.embed(x))

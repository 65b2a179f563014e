"""What every backbone family shares: the contract, the feature pyramid, and the declaration of a family.

To add a family, write one file in this folder: a class derived from :class:`Backbone`, and
``FAMILY = Family(...)`` with its variants; then run ``tools/index.py``. The contract in short:

* the constructor takes keyword arguments only, among them ``dims``, ``in_chans`` and ``num_classes``;
* ``feature_info`` states the pyramid's levels, from fine to coarse, and ``forward_pyramid`` computes them;
* ``classifier`` is the dotted name of the last linear layer, ``head_modules`` the names of what only the head uses;
* ``layouts`` lists the foreign key layouts that the loader understands;
* ``size_multiple``, ``min_size`` or ``fixed_size`` says which input sizes the mechanism admits, and ``forward_pyramid`` starts with
  :meth:`check_size` where not all are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cnnkit.errors import InputError, UsageError
from cnnkit.layers.fuse import fuse
from cnnkit.layers.nd import check_dims
from cnnkit.layers.pool import GlobalPool
from cnnkit.registry import Entry, Figures
from cnnkit.weights import Layout, has_keys, load_weights, rename_keys

__all__ = ["Backbone", "Family", "FeatureInfo", "FeaturePyramid", "Figures", "Layout", "Variant", "has_keys", "load_weights", "rename_keys"]


class FeatureInfo(list[dict[str, Any]]):
    """The levels of a pyramid from fine to coarse, each a dict of ``num_chs``, ``reduction`` and ``module``."""

    def channels(self) -> list[int]:
        """Return the number of channels of each level."""
        return [level["num_chs"] for level in self]

    def reduction(self) -> list[int]:
        """Return the factor of each level by which the input is larger, along each axis."""
        return [level["reduction"] for level in self]

    def module_name(self) -> list[str]:
        """Return the dotted name of the module that makes each level."""
        return [level["module"] for level in self]

    def take(self, indices: Sequence[int] | int | None) -> list[int]:
        """Return out-indices as non-negative positions.

        Args:
            indices: Positions (negative ones count from the coarsest level), a number ``n`` for the last ``n``
                levels, or ``None`` for all.

        Raises:
            UsageError: If a position does not exist, or they are not in rising order.
        """
        count = len(self)
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            indices = tuple(range(-indices, 0))
        taken = [index + count if index < 0 else index for index in indices]
        if not taken or any(not 0 <= index < count for index in taken) or taken != sorted(set(taken)):
            raise UsageError(
                f"out_indices={tuple(indices)} do not fit: this model has levels 0 to {count - 1} (reductions "
                f"{', '.join(map(str, self.reduction()))}); name them in rising order, each once"
            )
        return taken


class Backbone(nn.Module):
    """A classifier that can also serve as an encoder; the words are those that users of timm know.

    Shapes:
        x: ``(B, in_chans, *spatial)`` with ``dims`` spatial dimensions; the result is ``(B, num_classes)``, or
        ``(B, num_features)`` with ``num_classes=0``.

    Args:
        dims: Number of spatial dimensions.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        num_features: Channels of the last features.
        global_pool: Pooling before the classifier: ``"avg"``, ``"max"``, ``"avgmax"``, or with ``num_classes=0`` also ``"none"``.
        drop_rate: Dropout before the classifier.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ()
    classifier: ClassVar[str] = "fc"
    head_modules: ClassVar[tuple[str, ...]] = ("fc",)

    feature_info: FeatureInfo
    size_multiple: int = 1
    """Every side of the input is a multiple of this."""
    min_size: int = 1
    """Every side of the input is at least this."""
    size_slack: int = 0
    """By how many positions a level may differ from the input's size over its reduction: unpadded convolutions lose the border."""
    fixed_size: tuple[int, ...] | None = None
    """The one admitted input size, where weights belong to positions."""

    def __init__(
        self, *, dims: int, in_chans: int, num_classes: int, num_features: int, global_pool: str = "avg", drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = num_features
        self.global_pool = GlobalPool(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.grad_checkpointing = False

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of every level in ``feature_info``, from fine to coarse."""
        raise NotImplementedError(f"{type(self).__name__} must define forward_pyramid")

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last features, ``(B, num_features, *spatial)``, before pooling."""
        return self.forward_pyramid(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the last features and classify them.

        Args:
            x: What :meth:`forward_features` returned.
            pre_logits: Return the input of the classifier instead, ``(B, num_features)``.
        """
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.forward_head(self.forward_features(x))

    def check_size(self, x: Tensor) -> None:
        """Refuse an input whose size the mechanism does not admit.

        Raises:
            InputError: Naming the sizes that are.
        """
        size = tuple(x.shape[2:])
        if self.fixed_size is not None and size != self.fixed_size:
            raise InputError(
                f"input size {size} does not fit: this model was built for {self.fixed_size}; resize, or build it with img_size={size}"
            )
        fitting = tuple(-(-max(side, self.min_size) // self.size_multiple) * self.size_multiple for side in size)
        if any(side < self.min_size for side in size):
            raise InputError(f"input size {size} does not fit: every side must be at least {self.min_size}; resize or pad to {fitting}")
        if any(side % self.size_multiple for side in size):
            raise InputError(
                f"input size {size} does not fit: every side must be a multiple of {self.size_multiple}; resize or pad to {fitting}"
            )

    def example_input(self) -> Tensor:
        """Return zeros of an admitted size, ``(1, in_chans, *spatial)``, on the model's device."""
        some = next(self.parameters())
        side = -(-max(64, self.min_size) // self.size_multiple) * self.size_multiple
        size = self.fixed_size or (side,) * self.dims
        return torch.zeros(1, self.in_chans, *size, dtype=some.dtype, device=some.device)

    def fuse(self) -> Backbone:
        """Merge branches and fold batch normalisations in place, for inference; the outputs stay the same. Returns the model itself.

        Raises:
            ValueError: In training mode.
        """
        fuse(self, self.example_input())
        return self

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer, or an identity with ``num_classes=0``."""
        return self.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: Outputs of the new classifier; 0 leaves it out.
            global_pool: Another pooling, or ``None`` to keep it.
        """
        if global_pool is not None:
            self.global_pool = GlobalPool(global_pool)
        some = next(self.parameters())
        self.num_classes = num_classes
        self.set_submodule(self.classifier, self.new_classifier(num_classes).to(device=some.device, dtype=some.dtype))

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, an identity for ``num_classes=0``; a family with its own initialisation overrides it."""
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def drop_head(self) -> None:
        """Remove everything that only the head uses; ``forward_pyramid`` and ``forward_features`` still work."""
        for name in self.head_modules:
            self.set_submodule(name, nn.Identity())
        self.num_classes = 0

    def drop_levels(self, after: int) -> None:
        """Remove what only the levels after position ``after`` use; their features are then meaningless.

        The default replaces the modules that ``feature_info`` names; a family whose levels span more than one
        module overrides it.
        """
        for level in self.feature_info[after + 1 :]:
            self.set_submodule(level["module"], nn.Identity())

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory, about a third more time.

        Running statistics of batch normalisation are then updated twice per step.
        """
        self.grad_checkpointing = enable

    def run_blocks(self, stage: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """Apply a stage; while training, each block of a sequence is checkpointed if that was asked for.

        Args:
            stage: The stage.
            x: Its input.
            *args: What every block of a sequence takes besides, for example the grid of its tokens.
        """
        recompute = self.grad_checkpointing and self.training
        if not isinstance(stage, nn.Sequential) or not (recompute or args):
            return stage(x)
        for block in stage:
            x = self.run_block(block, x, *args)
        return x

    def run_block(self, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """Apply one block, checkpointed while training if that was asked for; see :meth:`run_blocks`."""
        if self.grad_checkpointing and self.training:
            return checkpoint(block, x, *args, use_reentrant=False)
        return block(x, *args)


class FeaturePyramid(nn.Module):
    """A backbone as an encoder: its forward returns the features of some levels, from fine to coarse.

    Parameters that these levels do not use are removed, so that every parameter receives a gradient.

    Shapes:
        x: ``(B, in_chans, *spatial)``; the result is a list of ``(B, channels[i], *spatial / reductions[i])``.

    Args:
        backbone: The backbone; it is taken over and changed, not copied.
        out_indices: Levels to return, as for :meth:`FeatureInfo.take`.

    Raises:
        UsageError: If a level does not exist.
    """

    def __init__(self, backbone: Backbone, out_indices: Sequence[int] | int | None = None) -> None:
        super().__init__()
        self.out_indices = backbone.feature_info.take(out_indices)
        self.feature_info = FeatureInfo(backbone.feature_info[index] for index in self.out_indices)
        self.dims = backbone.dims
        self.in_chans = backbone.in_chans
        backbone.drop_head()
        backbone.drop_levels(after=self.out_indices[-1])
        self.backbone = backbone

    @property
    def channels(self) -> list[int]:
        """Number of channels of each returned level."""
        return self.feature_info.channels()

    @property
    def reductions(self) -> list[int]:
        """Factor of each returned level by which the input is larger."""
        return self.feature_info.reduction()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See :meth:`Backbone.set_grad_checkpointing`."""
        self.backbone.set_grad_checkpointing(enable)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of the chosen levels."""
        levels = self.backbone.forward_pyramid(x)
        return [levels[index] for index in self.out_indices]


@dataclass(frozen=True)
class Variant:
    """One named variant of a family.

    Args:
        args: Arguments of the class that make it, as JSON knows them (tuples for lists).
        figures: What the paper printed for it.
        paper: Slug of its paper, where it is not the family's.
        summary: One line for people, where it is not the family's.
        cls: The class that builds it, where it is not the family's.
    """

    args: Mapping[str, Any]
    figures: Figures = field(default_factory=Figures)
    paper: str | None = None
    summary: str = ""
    cls: type[Backbone] | None = None


@dataclass(frozen=True)
class Family:
    """The declaration of a family, from which ``tools/index.py`` writes the index.

    Args:
        name: Name of the family, also of its file.
        cls: The class that builds every variant.
        summary: One line for people.
        variants: The variants by their full name.
        paper: Slug of the paper in ``papers.json``; empty if it is not among those that the project answers for.
        dims: Spatial dimensions that it supports.
        small: The name of a variant, and arguments that scale it down without leaving out a kind of block: what tests and quick
            trainings build.
        small_size: Side length of the input that suits the small member.
    """

    name: str
    cls: type[Backbone]
    summary: str
    variants: Mapping[str, Variant]
    small: tuple[str, Mapping[str, Any]]
    small_size: int = 64
    paper: str = ""
    dims: tuple[int, ...] = (1, 2, 3)

    def entries(self) -> dict[str, Entry]:
        """Return the registry entries of the variants."""
        return {
            name: Entry(
                target=f"{(variant.cls or self.cls).__module__}:{(variant.cls or self.cls).__qualname__}",
                paper=self.paper if variant.paper is None else variant.paper,
                summary=variant.summary or self.summary,
                family=self.name,
                dims=self.dims,
                args=dict(variant.args),
                figures=variant.figures,
                layouts=tuple(dict.fromkeys(layout.name for layout in (variant.cls or self.cls).layouts)),
            )
            for name, variant in self.variants.items()
        }

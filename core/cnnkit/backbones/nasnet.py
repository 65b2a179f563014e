"""NASNet-A: Zoph, Vasudevan, Shlens and Le (2018), "Learning Transferable Architectures for Scalable Image Recognition".

A controller searched for two cells on small images, one that keeps the size and one that halves it; stacked more often and wider, they
make a network for large images. A cell reads the outputs of the two cells before it, takes five times two of its states, applies an
operation to each and adds the two, and concatenates the states that nothing in it used (and, in the normal cell as released, ``h_1``)::

    h_{k+2} = op_k(h_i) + op_k'(h_j),  k = 0, ..., 4,    h_0, h_1: the two cells before, projected to the cell's width

Both cells are data, :data:`NORMAL` and :data:`REDUCTION`, and others of the same operations can be given. ``N @ F`` in the paper means
``repeats=N`` normal cells on each grid and ``num_features=F``; the width doubles at each reduction.

With ``drop_path_rate`` every operation of a cell is dropped with a probability that rises with the cell's depth; the paper lets it rise
over the training too (ScheduledDropPath): call :meth:`NASNet.schedule_drop_path` as the training proceeds.

The auxiliary head (``aux_logits=True``) is a second classifier at two thirds of the depth: minimise ``loss(logits) + 0.4 loss(aux)`` of
:meth:`NASNet.forward_with_aux`.

Padding is TensorFlow's, as in the released code, whose averages leave out what lies outside. timm's strided averages count the zeros
there; ``count_border=True`` does so too, and then the outputs are timm's.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant
from cnnkit.backbones._cells import AuxiliaryHead, Cell, Design
from cnnkit.errors import ConfigError, UsageError, unknown
from cnnkit.layers.nd import batch_norm, conv

NORMAL = Design(
    (
        ("separable_5", 0, "separable_3", 1),
        ("separable_5", 1, "separable_3", 1),
        ("avg_pool_3", 0, "identity", 1),
        ("avg_pool_3", 1, "avg_pool_3", 1),
        ("separable_3", 0, "identity", 0),
    ),
    (1, 2, 3, 4, 5, 6),
)
REDUCTION = Design(
    (
        ("separable_5", 0, "separable_7", 1),
        ("max_pool_3", 0, "separable_7", 1),
        ("avg_pool_3", 0, "separable_5", 1),
        ("identity", 3, "avg_pool_3", 2),
        ("separable_3", 2, "max_pool_3", 0),
    ),
    (3, 4, 5, 6),
)


class NASNet(Backbone):
    """A stack of cells; the levels of the pyramid are what the cells before a reduction return, rectified.

    Args:
        repeats: Number of normal cells on each of the three grids.
        num_features: Channels of the last features: 24 times the width of the first grid's cells, for NASNet-A.
        stem_width: Channels of the first convolution.
        stem: ``"imagenet"``, a strided convolution and two reduction cells, or ``"cifar"``, a convolution.
        skip_reduction: Whether the first cell after a reduction reads the cell before the last one of the finer grid as its older input,
            in place of the last one: so in the large network as released.
        normal: Design of the cells that keep the size.
        reduction: Design of those that halve it.
        aux_logits: Add the auxiliary head; see :meth:`forward_with_aux`.
        aux_size: Positions that its kernel spans: 4 for training with 224 pixels (or 32 with the stem for CIFAR), 6 with 331.
        count_border: Whether strided averages count the zeros outside, as in timm.
        norm_eps: Added to the variances.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it and the auxiliary head out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Probability that an operation of the last cell is dropped, in the others less in proportion to the depth.

    Raises:
        ConfigError: If the stem or an operation is unknown, or the widths are not whole.
    """

    layouts = (Layout("timm"),)
    classifier = "last_linear"
    head_modules = ("last_linear", "aux_head")

    def __init__(
        self,
        *,
        repeats: int = 6,
        num_features: int = 4032,
        stem_width: int = 96,
        stem: str = "imagenet",
        skip_reduction: bool = False,
        normal: Design = NORMAL,
        reduction: Design = REDUCTION,
        aux_logits: bool = False,
        aux_size: int = 4,
        count_border: bool = False,
        norm_eps: float = 1e-3,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if stem not in ("imagenet", "cifar"):
            raise ConfigError(unknown("stem", stem, ("imagenet", "cifar")))
        states = 4 * len(normal[1])
        if num_features % (4 * states):
            raise ConfigError(
                f"num_features={num_features} is not a multiple of {4 * states}: the stem's cells have a quarter of the width"
            )
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=num_features, global_pool=global_pool, drop_rate=drop_rate
        )
        large, width = stem == "imagenet", num_features // states
        if large:
            self.min_size, self.size_slack = 3, 1  # The first convolution is not padded.
        first = conv(dims)(in_chans, stem_width, 3, stride=2 if large else 1, padding=0 if large else 1, bias=False)
        self.conv0 = nn.Sequential(OrderedDict(conv=first, bn=batch_norm(dims)(stem_width, eps=norm_eps)))
        # Name, width factor and design of each cell, and how many outputs back its older input is. Published names leave room for 6.
        plan = [("cell_stem_0", 0.25, True, 2), ("cell_stem_1", 0.5, True, 2)] if large else []
        for grid in range(3):
            if grid:
                plan.append((f"reduction_cell_{grid - 1}", 2.0**grid, True, 2))
            for index in range(repeats):
                back = 3 if grid and index == 0 and skip_reduction else 2
                plan.append((f"cell_{grid * max(repeats, 6) + index}", 2.0**grid, False, back))
        self.plan = [(name, back) for name, _, _, back in plan]
        self.drop_rates = [drop_path_rate * (index + 1) / len(plan) for index in range(len(plan))]
        self.feature_info = FeatureInfo([{"num_chs": stem_width, "reduction": 2, "module": "conv0"}] if large else [])
        outputs = [(stem_width, 2 if large else 1)]
        for index, (name, factor, halves, back) in enumerate(plan):
            (now, size), (before, older) = outputs[-1], outputs[max(len(outputs) - back, 0)]
            cell = Cell(
                now,
                before,
                int(width * factor),
                design=reduction if halves else normal,
                stride=2 if halves else 1,
                align="none" if index == 0 else "project" if older == size else "reduce",
                dims=dims,
                norm_eps=norm_eps,
                count_border=count_border,
                drop_path=self.drop_rates[index],
            )
            self.add_module(name, cell)
            outputs.append((cell.out_channels, size * cell.stride))
            ends = index + 1 == len(plan) or plan[index + 1][0].startswith("reduction")
            if name == "cell_stem_0" or ends:
                self.feature_info.append({"num_chs": cell.out_channels, "reduction": outputs[-1][1], "module": name})
        self.act = nn.ReLU()
        self.last_linear = self.new_classifier(num_classes)
        self.aux_logits, self.aux_size, self.norm_eps = aux_logits, aux_size, norm_eps
        self.aux_head = self._new_auxiliary_head(num_classes)
        self.apply(_init)

    def _new_auxiliary_head(self, num_classes: int) -> nn.Module:
        if not (self.aux_logits and num_classes):
            return nn.Identity()
        channels = self.feature_info[-2]["num_chs"]
        return AuxiliaryHead(channels, num_classes, self.aux_size, dims=self.dims, norm_eps=self.norm_eps).apply(_init)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and with it the auxiliary head; see :meth:`Backbone.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        some = next(self.parameters())
        self.aux_head = self._new_auxiliary_head(num_classes).to(device=some.device, dtype=some.dtype).train(self.training)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of every level in ``feature_info``, from fine to coarse."""
        self.check_size(x)
        outputs = [self.conv0(x)]
        makers = self.feature_info.module_name()
        levels = [outputs[0]] if makers[0] == "conv0" else []
        for name, back in self.plan:
            cell = self.get_submodule(name)
            now, before = outputs[-1], outputs[max(len(outputs) - back, 0)]
            recompute = self.grad_checkpointing and self.training
            out = checkpoint(cell, now, before, use_reentrant=False) if recompute else cell(now, before)
            outputs = [*outputs[-2:], out]
            if name in makers:
                levels.append(self.act(out))
        return levels

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and those of the auxiliary head, for training.

        Raises:
            UsageError: If the model was built without it.
            InputError: If the input is too small for it.
        """
        if not isinstance(self.aux_head, AuxiliaryHead):
            raise UsageError("this model has no auxiliary head; build it with aux_logits=True and with classes")
        levels = self.forward_pyramid(x)
        return self.forward_head(levels[-1]), self.aux_head(levels[-2])

    def schedule_drop_path(self, progress: float) -> None:
        """Set the drop-path rates to those at a part of the training: they rise linearly to their values at its end.

        Args:
            progress: Steps done by steps in all, from 0 to 1; more counts as 1.
        """
        for (name, _), rate in zip(self.plan, self.drop_rates, strict=True):
            cell = self.get_submodule(name)
            if isinstance(cell, Cell):
                cell.drop_path.rate = rate * min(max(progress, 0.0), 1.0)

    def drop_levels(self, after: int) -> None:
        """Remove the cells after the one that makes level ``after``."""
        last = self.feature_info[after]["module"]
        kept = 0 if last == "conv0" else [name for name, _ in self.plan].index(last) + 1
        for name, _ in self.plan[kept:]:
            delattr(self, name)
        self.plan, self.drop_rates = self.plan[:kept], self.drop_rates[:kept]


def _init(module: nn.Module) -> None:
    """Normal with variance ``2 / fan_out``, as in the released code; of a depthwise kernel that is its size."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_in" if module.groups > 1 else "fan_out", nonlinearity="relu")


_WITH_STATISTICS = "With the running statistics of the normalisations, which the paper's figure seems to have in it, it is 88.95 million."

# The paper's Tables 1 and 2.
FAMILY = Family(
    name="nasnet",
    cls=NASNet,
    paper="nasnet",
    small=("nasnetamobile", {"num_features": 192, "repeats": 1, "stem_width": 8}),
    summary="Two cells found by a search on small images, stacked (Zoph et al., 2018).",
    variants={
        "nasnetalarge": Variant(
            {"skip_reduction": True, "aux_size": 6},
            Figures(params_m=88.9, counted_params_m=88.8, note=_WITH_STATISTICS, gmacs=23.8, input_size=331, quality="82.7 top-1"),
        ),
        "nasnetamobile": Variant(
            {"repeats": 4, "num_features": 1056, "stem_width": 32}, Figures(params_m=5.3, gmacs=0.564, quality="74.0 top-1")
        ),
        "nasneta_cifar": Variant(
            {"repeats": 6, "num_features": 768, "stem": "cifar", "norm_eps": 1e-5},
            Figures(
                params_m=3.3,
                counted_params_m=4.11,
                note="The paper counts ten classes; the head has a thousand by default.",
                input_size=32,
                quality="2.65 % error on CIFAR-10 with cutout",
            ),
        ),
        "nasneta_cifar_large": Variant(
            {"repeats": 7, "num_features": 2304, "stem_width": 288, "stem": "cifar", "norm_eps": 1e-5},
            Figures(
                params_m=27.6,
                counted_params_m=34.87,
                note="No code of this network was released; the smaller one's, made so deep and wide, gives 32.6 million with ten classes.",
                input_size=32,
                quality="2.40 % error on CIFAR-10 with cutout",
            ),
        ),
    },
)

"""MaxViT: Tu, Talebi, Zhang, Yang, Milanfar, Bovik and Li (2022), "MaxViT: Multi-Axis Vision Transformer".

Attention over a whole feature map costs the square of its size. Two sparse ones after each other see as much at linear
cost: one within windows of ``P x P`` neighbours, one among the ``G x G`` positions that lie ``H / G`` apart (a grid over
the whole map). An inverted bottleneck before them gives positions and strides::

    x = mbconv(x);    x = x + attend(norm(x) in windows);    x = x + mlp(norm(x));    the same on the grid

with a bias by relative position in both attentions. The last map must be a multiple of the window, so the input a
multiple of ``32 * P``.

The variants ``*_tf_*`` compute what the paper's own code does; ``maxvit_t`` what torchvision does, which pads
symmetrically, pools and projects every strided shortcut with a 3x3 mean, and takes the exact GELU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.act import get_act
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.init import init_truncated
from cnnkit.layers.mbconv import PreNormMBConv
from cnnkit.layers.mlp import Mlp
from cnnkit.layers.nd import avg_pool, batch_norm, conv
from cnnkit.layers.relative_bias import RelativeAttention
from cnnkit.layers.same import padded_conv
from cnnkit.layers.window import partition, partition_grid, unpartition, unpartition_grid

CONVENTIONS = ("paper", "torchvision")


class PartitionAttention(nn.Module):
    """Attention within the sets of a partition, then a perceptron, both on residual branches.

    Shapes:
        x: ``(B, *spatial, channels)``, every side a multiple of ``size``; the result has the same shape.

    Args:
        channels: Number of channels.
        size: Side of the windows, or of the grid.
        grid: Whether a set spans the map in even steps, in place of a window of neighbours.
        dims: Number of spatial dimensions.
        head_dim: Channels of one attention head.
        act: Activation of the perceptron.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(
        self, channels: int, *, size: int, grid: bool, dims: int = 2, head_dim: int = 32, act: str = "gelu_tanh", drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.size = (size,) * dims
        self.split = partition_grid if grid else partition
        self.join = unpartition_grid if grid else unpartition
        self.norm1 = nn.LayerNorm(channels)
        self.attn = RelativeAttention(channels, heads=channels // head_dim, window=self.size)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels, act=act)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both branches."""
        sets = self.split(self.norm1(x), self.size)
        mixed = self.attn(sets.flatten(0, -3)).reshape(sets.shape)
        x = x + self.drop_path(self.join(mixed, self.size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MaxViTBlock(nn.Module):
    """An inverted bottleneck, attention in windows, attention on a grid.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, channels, *spatial / stride)``.

    Args:
        mbconv: The inverted bottleneck, with the block's stride.
        attention: Makes a :class:`PartitionAttention`, given ``grid``.
    """

    def __init__(self, mbconv: nn.Module, attention: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv = mbconv
        self.attn_block = attention(grid=False)
        self.attn_grid = attention(grid=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three parts."""
        # Channels last once, for both attentions.
        return self.attn_grid(self.attn_block(self.conv(x).movedim(1, -1))).movedim(-1, 1)


class MaxViTStem(nn.Module):
    """Two 3x3 convolutions, the first with stride 2 and normalised."""

    def __init__(self, in_chans: int, channels: int, *, dims: int, act: str, padding: str, norm_eps: float, bias: bool) -> None:
        super().__init__()
        self.conv1 = padded_conv(in_chans, channels, 3, dims=dims, stride=2, bias=bias, padding=padding)
        self.norm1 = batch_norm(dims)(channels, eps=norm_eps)
        self.act = get_act(act)
        self.conv2 = padded_conv(channels, channels, 3, dims=dims, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the stem."""
        return self.conv2(self.act(self.norm1(self.conv1(x))))


class MaxViTHead(nn.Module):
    """The layers of the head that hold parameters: a normalisation, a hidden layer with tanh, the classifier."""

    def __init__(self, channels: int, fc: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.pre_logits = nn.Sequential()
        self.pre_logits.add_module("fc", nn.Linear(channels, channels))
        self.pre_logits.add_module("act", nn.Tanh())
        self.fc = fc

    def hidden(self, x: Tensor) -> Tensor:
        """Return the input of the classifier."""
        return self.pre_logits(self.norm(x))


def _shortcut_of_torchvision(in_channels: int, out_channels: int, dims: int) -> nn.Module:
    """A 3x3 mean at stride 2, zeros of the border among its nine, and a 1x1 convolution also where the width stays."""
    shortcut = nn.Sequential()
    shortcut.add_module("pool", avg_pool(dims)(3, 2, padding=1))
    shortcut.add_module("expand", conv(dims)(in_channels, out_channels, 1))
    return shortcut


def _from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of torchvision, with its relative positions (query minus key) and its scale of the keys."""
    converted = {}
    for key, value in state.items():
        if key.endswith("relative_position_index"):
            continue
        if key.endswith("relative_position_bias_table"):
            side = round(value.shape[0] ** 0.5)
            value = value.T.unflatten(1, (side, side)).flip(1, 2)
        if ".to_qkv." in key:
            # The keys there are scaled by all channels' root, here by that of one head's.
            query, keys, values = value.chunk(3)
            heads = state[key.rpartition(".to_qkv.")[0] + ".relative_position_bias_table"].shape[1]
            value = query.new_empty(value.shape)
            for part, source in zip(value.chunk(3), (query, keys * heads**-0.5, values), strict=True):
                part.copy_(source)
        converted[key] = value
    return rename_keys(
        converted,
        (
            (r"^stem\.0\.0\.", "stem.conv1."),
            (r"^stem\.0\.1\.", "stem.norm1."),
            (r"^stem\.1\.0\.", "stem.conv2."),
            (r"^blocks\.(\d+)\.layers\.(\d+)\.layers\.", r"stages.\1.blocks.\2."),
            (r"\.MBconv\.proj\.1\.", ".conv.shortcut.expand."),
            (r"\.MBconv\.layers\.", ".conv."),
            (r"\.conv_a\.0\.", ".conv1_1x1."),
            (r"\.conv_a\.1\.", ".norm1."),
            (r"\.conv_b\.0\.", ".conv2_kxk."),
            (r"\.conv_b\.1\.", ".norm2."),
            (r"\.squeeze_excitation\.", ".se."),
            (r"\.conv_c\.", ".conv3_1x1."),
            (r"\.window_attention\.", ".attn_block."),
            (r"\.grid_attention\.", ".attn_grid."),
            (r"\.attn_layer\.0\.", ".norm1."),
            (r"\.attn_layer\.1\.to_qkv\.", ".attn.qkv."),
            (r"\.attn_layer\.1\.merge\.", ".attn.proj."),
            (r"\.attn_layer\.1\.", ".attn.rel_pos."),
            (r"\.mlp_layer\.0\.", ".norm2."),
            (r"\.mlp_layer\.1\.", ".mlp.fc1."),
            (r"\.mlp_layer\.3\.", ".mlp.fc2."),
            (r"^classifier\.2\.", "head.norm."),
            (r"^classifier\.3\.", "head.pre_logits.fc."),
            (r"^classifier\.5\.", "head.fc."),
        ),
    )


class MaxViT(Backbone):
    """MaxViT of any depth and width.

    Args:
        depths: Number of blocks of each stage.
        widths: Channels of each stage.
        stem_width: Channels of the stem.
        partition_size: Side of windows and grid; the sides of the input are multiples of 32 times this.
        head_dim: Channels of one attention head.
        conventions: ``"paper"`` or ``"torchvision"``, see the module's docstring.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the head's normalisation.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If ``depths`` and ``widths`` differ in length, a width is no multiple of ``head_dim``, or the
            conventions are unknown.
    """

    layouts = (
        Layout("timm"),
        Layout("torchvision", has_keys("stem.0.0.weight", "classifier.3.weight"), _from_torchvision),
    )
    classifier = "head.fc"
    head_modules = ("head",)

    def __init__(
        self,
        *,
        depths: Sequence[int] = (2, 2, 5, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        stem_width: int = 64,
        partition_size: int = 7,
        head_dim: int = 32,
        conventions: str = "paper",
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if conventions not in CONVENTIONS:
            raise ConfigError(unknown("set of conventions", conventions, CONVENTIONS))
        if len(depths) != len(widths) or any(width % head_dim for width in widths):
            raise ConfigError(f"give one depth and one multiple of head_dim={head_dim} as width per stage, not {depths=} and {widths=}")
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        self.of_paper = conventions == "paper"
        self.size_multiple = 2 ** (1 + len(depths)) * partition_size
        act, padding = ("gelu_tanh", "same") if self.of_paper else ("gelu", "symmetric")
        self.stem = MaxViTStem(in_chans, stem_width, dims=dims, act=act, padding=padding, norm_eps=1e-3, bias=self.of_paper)
        self.feature_info = FeatureInfo([{"num_chs": stem_width, "reduction": 2, "module": "stem"}])
        self.stages = nn.ModuleList()
        before = stem_width
        for index, (width, rates) in enumerate(zip(widths, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = nn.Sequential()
            for block, rate in enumerate(rates):
                stride = 1 if block else 2
                mbconv = PreNormMBConv(
                    before,
                    width,
                    dims=dims,
                    stride=stride,
                    act=act,
                    padding=padding,
                    shortcut=None if self.of_paper or stride == 1 else _shortcut_of_torchvision(before, width, dims),
                    drop_path=rate,
                )
                attention = functools.partial(
                    PartitionAttention, width, size=partition_size, dims=dims, head_dim=head_dim, act=act, drop_path=rate
                )
                blocks.append(MaxViTBlock(mbconv, attention))
                before = width
            self.stages.append(nn.ModuleDict({"blocks": blocks}))
            self.feature_info.append({"num_chs": width, "reduction": 4 * 2**index, "module": f"stages.{index}"})
        self.head: nn.Module = MaxViTHead(self.num_features, self.new_classifier(num_classes))
        self.apply(init_truncated)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the other layers are."""
        fc = nn.Linear(self.num_features, num_classes, bias=self.of_paper) if num_classes else nn.Identity()
        return fc.apply(init_truncated)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stem at half resolution and those of the stages."""
        self.check_size(x)
        x = self.stem(x)
        levels = [x]
        for stage in self.stages:
            if isinstance(stage, nn.ModuleDict):
                x = self.run_blocks(stage["blocks"], x)
            levels.append(x)
        return levels

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the last features, apply the hidden layer and classify; see :meth:`Backbone.forward_head`."""
        x = self.global_pool(x)
        if isinstance(self.head, MaxViTHead):
            x = self.head.hidden(x)
        x = self.head_drop(x)
        return x if pre_logits else self.get_classifier()(x)


_COUNT = "The paper does not say what it counts; the convolutions, linear maps and products of attention come to 1 to 3 % less."
_TABLES = "The parameters are those at 224 px; the tables of relative positions grow with the window."
_COUNTED_PARAMS = {"base_384": 119.65, "base_512": 119.88, "xlarge_512": 475.77}
_SMALL, _DEEP = (2, 2, 5, 2), (2, 6, 14, 2)
_PAPER = {
    # Depths, width, stem, parameters in millions; then multiply-adds, our count of them and top-1 at 224, 384 and 512: what the
    # documentation of the paper's own code prints.
    "tiny": (_SMALL, 64, 64, 31, ((5.6, 5.55, "83.62"), (17.7, 17.3, "85.24"), (33.7, 32.9, "85.72"))),
    "small": (_SMALL, 96, 64, 69, ((11.7, 11.6, "84.45"), (36.1, 35.5, "85.74"), (67.6, 66.3, "86.19"))),
    "base": (_DEEP, 96, 64, 119, ((24.2, 23.9, "84.95"), (74.2, 73.2, "86.34"), (138.5, 136.2, "86.66"))),
    "large": (_DEEP, 128, 128, 212, ((43.9, 43.5, "85.17"), (133.1, 131.7, "86.40"), (245.4, 242.4, "86.70"))),
    "xlarge": (_DEEP, 192, 192, 475, ((97.8, 97.2, ""), (293.7, 291.5, ""), (535.2, 530.5, ""))),
}


def _variants(name: str) -> dict[str, Variant]:
    depths, width, stem, params, printed = _PAPER[name]
    variants = {}
    for size, (gmacs, counted, top1) in zip((224, 384, 512), printed, strict=True):
        args = {"depths": depths, "widths": tuple(width * 2**stage for stage in range(4)), "stem_width": stem, "partition_size": size // 32}
        counted_params = _COUNTED_PARAMS.get(f"{name}_{size}")
        figures = Figures(
            params_m=params,
            counted_params_m=counted_params,
            gmacs=gmacs,
            counted_gmacs=counted,
            input_size=size,
            quality=f"{top1} top-1" if top1 else "",
            note=f"{_COUNT} {_TABLES}" if counted_params else _COUNT,
        )
        variants[f"maxvit_{name}_tf_{size}"] = Variant(args, figures)
    return variants


FAMILY = Family(
    name="maxvit",
    cls=MaxViT,
    small=("maxvit_tiny_tf_224", {"depths": (1, 2), "widths": (16, 24), "stem_width": 8, "partition_size": 2, "head_dim": 8}),
    small_size=32,
    paper="maxvit",
    summary="Inverted bottlenecks with attention in windows and on a sparse grid (Tu et al., 2022).",
    variants={variant: found for name in _PAPER for variant, found in _variants(name).items()}
    | {
        "maxvit_t": Variant(
            {"conventions": "torchvision"},
            Figures(params_m=30.919624, gmacs=5.558, quality="83.7 top-1 (torchvision)"),
            summary="MaxViT-T as torchvision builds it (Tu et al., 2022).",
        )
    },
)

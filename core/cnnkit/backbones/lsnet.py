"""LSNet: Wang, Chen, Lin, Han and Ding (2025), "LSNet: See Large, Focus Small".

A light network whose blocks take turns between two ways of mixing positions: a depthwise 3x3 convolution with squeeze-and-excitation,
and the convolution :class:`~cnnkit.layers.ls_conv.LSConv`, which looks at a large surrounding to decide how it sums up a small one.
In the last stage attention takes its place. A perceptron follows::

    even:  x = se(depthwise3(x) + depthwise1(x) + x);    odd:  x = lsconv(x)  or  x + attention(x);    then  x = x + mlp(x)

The branches of the depthwise convolution become one kernel for inference (:meth:`RepDepthwise.merged`). Attention adds a learnt bias
by the distance along each axis, whose table is resampled where the last map is not the one of the training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant
from cnnkit.errors import ConfigError
from cnnkit.layers.attention import attend
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.fuse import fold_batch_norm
from cnnkit.layers.ls_conv import ConvBN, LSConv
from cnnkit.layers.nd import conv, resize
from cnnkit.layers.squeeze_excite import SqueezeExcite


class RepDepthwise(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution and the input, summed; one convolution for inference.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, *, dims: int = 2) -> None:
        super().__init__()
        self.conv = ConvBN(channels, channels, 3, dims=dims, groups=channels)
        self.conv1 = ConvBN(channels, channels, 1, dims=dims, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the branches."""
        return self.conv(x) + self.conv1(x) + x

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return the one convolution that computes the same in evaluation mode."""
        weight, bias = fold_batch_norm(self.conv.c, self.conv.bn)
        point, point_bias = fold_batch_norm(self.conv1.c, self.conv1.bn)
        dims, channels = weight.ndim - 2, weight.shape[0]
        layer = conv(dims)(channels, channels, 3, padding=1, groups=channels).to(weight)
        layer.weight.copy_(weight + F.pad(point + 1.0, (1,) * (2 * dims)))
        layer.bias.copy_(bias + point_bias)  # type: ignore[union-attr]
        return layer


class DistanceAttention(nn.Module):
    """Attention of few key channels, with queries from a depthwise convolution and a bias by distance.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels; those of the values.
        heads: Attention heads; they divide ``channels``.
        key_dim: Channels of a head's queries and keys.
        positions: Side of the map that the table of distances is made for.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, *, heads: int, key_dim: int, positions: int, dims: int = 2) -> None:
        super().__init__()
        self.heads, self.key_dim = heads, key_dim
        self.table = (positions,) * dims
        keys = heads * key_dim
        self.qkv = ConvBN(channels, 2 * keys + channels, dims=dims)
        self.proj = nn.Sequential(nn.ReLU(), ConvBN(channels, channels, dims=dims, scale=0.0))
        self.dw = ConvBN(keys, keys, 3, dims=dims, groups=keys)
        self.attention_biases = nn.Parameter(torch.zeros(heads, positions**dims))

    def bias(self, size: Sequence[int]) -> Tensor:
        """Return the bias of every head for every two positions of a map, ``(heads, N, N)``."""
        table = resize(self.attention_biases.unflatten(1, self.table)[None], size).flatten(2)[0]
        device = table.device
        place = torch.stack(torch.meshgrid(*(torch.arange(side, device=device) for side in size), indexing="ij")).flatten(1)
        index = torch.zeros(1, dtype=torch.long, device=device)
        for axis, side in enumerate(size):
            index = index * side + (place[axis, :, None] - place[axis]).abs()
        return table.index_select(1, index.flatten()).unflatten(1, index.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        size, keys = x.shape[2:], self.heads * self.key_dim
        query, key, value = self.qkv(x).split((keys, keys, x.shape[1]), dim=1)
        # (B, heads, N, channels of a head) each.
        query, key, value = (part.flatten(2).unflatten(1, (self.heads, -1)).mT for part in (self.dw(query), key, value))
        mixed = attend(query, key, value, self.bias(size)[None], scale=self.key_dim**-0.5)
        return self.proj(mixed.mT.flatten(1, 2).unflatten(2, size))


class Perceptron(nn.Module):
    """Two 1x1 convolutions with normalisations."""

    def __init__(self, channels: int, hidden: int, *, dims: int) -> None:
        super().__init__()
        self.pw1 = ConvBN(channels, hidden, dims=dims)
        self.act = nn.ReLU()
        self.pw2 = ConvBN(hidden, channels, dims=dims, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.pw2(self.act(self.pw1(x)))


class Residual(nn.Module):
    """A module and a shortcut around it."""

    def __init__(self, module: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.m = module
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the module returns."""
        return x + self.drop_path(self.m(x))


class LSNetBlock(nn.Module):
    """A mixer of positions, squeeze-and-excitation or nothing, and a perceptron.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        mixer: Mixes positions, with its own shortcut.
        excite: Whether squeeze-and-excitation follows.
        dims: Number of spatial dimensions.
        drop_path: Probability that the perceptron's branch is dropped while training.
    """

    def __init__(self, channels: int, mixer: nn.Module, *, excite: bool, dims: int = 2, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer = mixer
        self.se = SqueezeExcite(channels, dims=dims, reduction=4) if excite else nn.Identity()
        self.ffn = Residual(Perceptron(channels, 2 * channels, dims=dims), drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return self.ffn(self.se(self.mixer(x)))


class NormLinear(nn.Module):
    """The layers of the head: a batch normalisation and the classifier."""

    def __init__(self, channels: int, classifier: nn.Module) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)
        self.l = classifier


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's code. A network that was distilled has two heads; the head that gives their mean stands for both."""
    state = {key: value for key, value in state.items() if not key.endswith("attention_bias_idxs")}
    second = {key: state.pop(key) for key in list(state) if key.startswith("head_dist.")}
    if not second:
        return state
    eps, weights, biases = 1e-5, [], []
    for head, values in (("head", state), ("head_dist", second)):
        scale = values[f"{head}.bn.weight"] * (values[f"{head}.bn.running_var"] + eps).rsqrt()
        shift = values[f"{head}.bn.bias"] - scale * values[f"{head}.bn.running_mean"]
        weights.append(values[f"{head}.l.weight"] * scale)
        biases.append(values[f"{head}.l.bias"] + values[f"{head}.l.weight"] @ shift)
    ones = torch.ones_like(state["head.bn.weight"])
    state |= {"head.bn.weight": ones, "head.bn.bias": 0 * ones, "head.bn.running_mean": 0 * ones, "head.bn.running_var": ones - eps}
    return state | {"head.l.weight": (weights[0] + weights[1]) / 2, "head.l.bias": (biases[0] + biases[1]) / 2}


class LSNet(Backbone):
    """LSNet of any depth and width.

    Args:
        depths: Number of blocks of each stage; a stage may have none, and only changes size and width then.
        widths: Channels of each stage, multiples of 8.
        heads: Attention heads of the last stage.
        key_dim: Channels of a head's queries and keys.
        positions: Side of the last stage's map that the tables of distances are made for: 4 for images of 224 pixels.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the head's normalisation.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If ``depths`` and ``widths`` differ in length, or a width is not as stated.
    """

    layouts = (Layout("official", lambda present: any(key.startswith("blocks4.") for key in present), _from_official),)
    classifier = "head.l"
    head_modules = ("head",)

    def __init__(
        self,
        *,
        depths: Sequence[int] = (0, 2, 8, 10),
        widths: Sequence[int] = (64, 128, 256, 384),
        heads: int = 4,
        key_dim: int = 16,
        positions: int = 4,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if len(depths) != len(widths):
            raise ConfigError(f"depths has {len(depths)} stages and widths {len(widths)}; give one number of each per stage")
        if any(width % 8 for width in widths) or widths[-1] % heads:
            raise ConfigError(f"widths {tuple(widths)} must be multiples of 8, and the last one of heads={heads}")
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        first = widths[0]
        self.patch_embed = nn.Sequential(
            ConvBN(in_chans, first // 4, 3, dims=dims, stride=2),
            nn.ReLU(inplace=True),
            ConvBN(first // 4, first // 2, 3, dims=dims, stride=2),
            nn.ReLU(inplace=True),
            ConvBN(first // 2, first, 3, dims=dims, stride=2),
        )
        self.feature_info = FeatureInfo()
        before, last = first, len(depths) - 1
        for index, (width, rates) in enumerate(zip(widths, drop_path_rates(drop_path_rate, depths), strict=True)):
            stage = nn.Sequential()
            if index:
                stage.extend([ConvBN(before, before, 3, dims=dims, stride=2, groups=before), ConvBN(before, width, dims=dims)])
            for block, rate in enumerate(rates):
                if block % 2 == 0:
                    mixer: nn.Module = RepDepthwise(width, dims=dims)
                elif index < last:
                    mixer = LSConv(width, dims=dims)
                else:
                    mixer = Residual(DistanceAttention(width, heads=heads, key_dim=key_dim, positions=positions, dims=dims), rate)
                stage.append(LSNetBlock(width, mixer, excite=block % 2 == 0, dims=dims, drop_path=rate))
            # The names of the paper's own code, which holds stages side by side.
            self.add_module(f"blocks{index + 1}", stage)
            self.feature_info.append({"num_chs": width, "reduction": 8 * 2**index, "module": f"blocks{index + 1}"})
            before = width
        self.head: nn.Module = NormLinear(before, self.new_classifier(num_classes))

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the paper's code does."""
        layer = super().new_classifier(num_classes)
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        return layer

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stages."""
        x = self.patch_embed(x)
        levels = []
        for name in self.feature_info.module_name():
            x = self.run_blocks(self.get_submodule(name), x)
            levels.append(x)
        return levels

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and normalise the last features, then classify them; see :meth:`Backbone.forward_head`."""
        x = self.global_pool(x)
        if isinstance(self.head, NormLinear):
            x = self.head.bn(x)
        x = self.head_drop(x)
        return x if pre_logits else self.get_classifier()(x)


_MERGED = (
    "The paper counts the parameters of the merged network, as fuse() makes it, and among the multiply-adds also normalisations and the "
    "sums of LS convolution."
)

FAMILY = Family(
    name="lsnet",
    cls=LSNet,
    small=("lsnet_t", {"depths": (0, 2, 2), "widths": (16, 32, 48), "heads": 2, "key_dim": 8, "positions": 3}),
    paper="lsnet",
    summary="A large kernel chooses how a small one aggregates (Wang et al., 2025).",
    variants={
        "lsnet_t": Variant(
            {"depths": (0, 2, 8, 10), "widths": (64, 128, 256, 384)}, Figures(params_m=11.4, gmacs=0.3, quality="74.9 top-1")
        ),
        "lsnet_s": Variant(
            {"depths": (1, 2, 8, 10), "widths": (96, 192, 320, 448)}, Figures(params_m=16.1, gmacs=0.5, quality="77.8 top-1")
        ),
        "lsnet_b": Variant(
            {"depths": (4, 6, 8, 10), "widths": (128, 256, 384, 512)},
            Figures(params_m=23.2, counted_params_m=23.31, gmacs=1.3, counted_gmacs=1.24, note=_MERGED, quality="80.3 top-1"),
        ),
    },
)

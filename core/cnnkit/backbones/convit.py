"""ConViT: d'Ascoli et al. (2021), "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases".

A vision transformer whose first layers start as convolutions and may then leave it. Each of their heads has two attention maps, one
from the content of the tokens and one from their distance ``r`` alone, and a gate that says how much of each it takes::

    A = (1 - sigmoid(g)) softmax(Q K^T / sqrt(d)) + sigmoid(g) softmax(v . [r, |r|^2]),    v = -a [-2 D, 1] at the start

With this start the second map is highest where ``r`` is the head's own offset ``D``, and is narrower the larger the locality strength
``a`` is: in the limit a head copies the token at its offset, and all heads with the linear map behind them are a convolution of ``k x k``
for ``k^2`` heads. The class token has no place in the grid, so it joins only where ordinary attention follows.

The logits of the second map are a sum over the axes, and the softmax of a sum is a product. So the map is never formed: the values are
mixed along one axis after the other. (The paper's bias of these logits is left out: it is the same for all keys, and changes no softmax.)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Family, FeatureInfo, Figures, Layout, Variant
from cnnkit.backbones._token import TokenBackbone, fit_positions
from cnnkit.errors import ConfigError
from cnnkit.layers.attention import Attention, attend, join_heads, split_heads
from cnnkit.layers.drop import drop_path_rates
from cnnkit.layers.nd import conv, tupled
from cnnkit.layers.transformer import TransformerBlock


class GatedPositionalAttention(nn.Module):
    """Self-attention that each head takes from content and from relative position, by a gate of its own.

    Shapes:
        x: ``(B, *grid, channels)``; the result has the same shape.

    Args:
        channels: Features of a token.
        heads: Attention heads; they divide ``channels``.
        locality: How narrow a head's positional attention is at the start, ``a``.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, *, heads: int, locality: float = 1.0, dims: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.locality = locality
        self.dims = dims
        self.qk = nn.Linear(channels, 2 * channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        # A row is v of one head: the last axis of space comes first, the squared distance last.
        self.pos_proj = nn.Linear(dims + 1, heads, bias=False)
        self.gating_param = nn.Parameter(torch.ones(heads))
        self.init_as_convolution()

    @torch.no_grad()
    def init_as_convolution(self) -> None:
        """Give the heads the offsets of a kernel's positions, and let them pass on the tokens as they are.

        The kernel has the largest side ``k`` with ``k^dims`` heads or fewer; further heads keep random offsets.
        """
        nn.init.eye_(self.v.weight)
        side = round(self.heads ** (1 / self.dims))
        side -= side**self.dims > self.heads
        for head, position in enumerate(itertools.product(range(side), repeat=self.dims)):
            self.pos_proj.weight[head, :-1] = torch.tensor([2 * (index - (side - 1) / 2) for index in position])
            self.pos_proj.weight[head, -1] = -1.0
        self.pos_proj.weight.mul_(self.locality)

    def positional_maps(self, grid: Sequence[int]) -> list[Tensor]:
        """Return the positional attention along every axis, ``(heads, side, side)`` each; its product is the whole map."""
        maps = []
        for axis, side in enumerate(grid):
            steps = torch.arange(side, device=self.pos_proj.weight.device, dtype=self.pos_proj.weight.dtype)
            distance = steps - steps[:, None]
            linear, square = self.pos_proj.weight[:, [self.dims - 1 - axis, -1], None, None].unbind(1)
            maps.append((linear * distance + square * distance.square()).softmax(-1))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        grid, tokens = x.shape[1:-1], x.flatten(1, -2)
        query, key = (split_heads(part, self.heads) for part in self.qk(tokens).chunk(2, dim=-1))
        value = split_heads(self.v(tokens), self.heads)
        content, position = attend(query, key, value), value
        for axis, weights in enumerate(self.positional_maps(grid)):
            lines = position.reshape(x.shape[0], self.heads, int(torch.Size(grid[:axis]).numel()), grid[axis], -1)
            position = weights[:, None] @ lines
        gate = self.gating_param.sigmoid()[:, None, None]
        mixed = content + gate * (position.reshape(content.shape) - content)
        return self.proj(join_heads(mixed)).view(x.shape)


def _without_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of timm and of the paper's own code: it has the bias that changes nothing."""
    return {key: value for key, value in state.items() if not key.endswith("pos_proj.bias")}


class ConViT(TokenBackbone):
    """ConViT of any depth and width.

    The pyramid has the tokens after every block, all of one resolution; the class token takes part where it has joined.

    Args:
        heads: Attention heads; a square number makes a kernel in two dimensions.
        head_width: Features of a head.
        depth: Number of blocks.
        local_layers: How many of them, from the first, attend by position too; the class token joins after these.
        locality: How narrow the positional attention is at the start.
        mlp_ratio: Hidden width of the perceptrons by that of the tokens.
        patch_size: Side of a patch.
        img_size: Input size, one or one per dimension, for which positions are learned; for others they are interpolated.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: ``"token"`` classifies from the class token; others pool the tokens of the image.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If no block is left for the class token, or ``img_size`` is smaller than a patch.
    """

    layouts = (Layout("timm", lambda keys: any(key.endswith("pos_proj.bias") for key in keys), _without_bias),)
    classifier = "head"
    head_modules: ClassVar[tuple[str, ...]] = ("norm", "head")

    cls_token: Tensor | None

    def __init__(
        self,
        *,
        heads: int = 9,
        head_width: int = 48,
        depth: int = 12,
        local_layers: int = 10,
        locality: float = 1.0,
        mlp_ratio: float = 4.0,
        patch_size: int = 16,
        img_size: int | Sequence[int] = 224,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not 0 <= local_layers < depth:
            raise ConfigError(f"local_layers={local_layers} leaves no block for the class token: it must be less than depth={depth}")
        width = heads * head_width
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=width, global_pool=global_pool, drop_rate=drop_rate
        )
        self.grid = tuple(side // patch_size for side in tupled(img_size, dims))
        self.min_size = patch_size
        if not all(self.grid):
            raise ConfigError(f"img_size={img_size} is too small: every side needs at least a patch of {patch_size}")
        self.local_layers = local_layers
        self.patch_embed = nn.Sequential()
        self.patch_embed.add_module("proj", conv(dims)(in_chans, width, patch_size, stride=patch_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, int(torch.Size(self.grid).numel()), width))
        self.blocks = nn.ModuleList()
        self.feature_info = FeatureInfo()
        for index, rate in enumerate(drop_path_rates(drop_path_rate, (depth,))[0]):
            attention: nn.Module = Attention(width, heads=heads, qkv_bias=False)
            if index < local_layers:
                attention = GatedPositionalAttention(width, heads=heads, locality=locality, dims=dims)
            self.blocks.append(TransformerBlock(width, attention, mlp_ratio=mlp_ratio, drop_path=rate))
            self.feature_info.append({"num_chs": width, "reduction": patch_size, "module": f"blocks.{index}"})
        self.norm: nn.Module = nn.LayerNorm(width, eps=1e-6)
        self.head: nn.Module = self.new_classifier(num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw linear maps, positions and the class token from a normal of deviation 0.02; local layers start as convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, GatedPositionalAttention):
                module.init_as_convolution()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def run(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the grids of features after every block, ``(B, C, *grid)``, and all tokens after the last, ``(B, 1 + N, C)``."""
        self.check_size(x)
        x = self.patch_embed(x).movedim(1, -1)
        grid = tuple(x.shape[1:-1])
        x = x + fit_positions(self.pos_embed.unflatten(1, self.grid), grid)
        levels = []
        for index, block in enumerate(self.blocks):
            if index == self.local_layers:
                x = x.flatten(1, -2)
                if self.cls_token is not None:
                    x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
            x = self.run_block(block, x)
            levels.append(x.movedim(-1, 1) if index < self.local_layers else x[:, -int(torch.Size(grid).numel()) :].mT.unflatten(2, grid))
        return levels, x

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features after every block."""
        return self.run(x)[0]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised tokens of the last block, ``(B, 1 + N, num_features)``, the class token first."""
        return self.norm(self.run(x)[1])

    def drop_levels(self, after: int) -> None:
        """Remove the blocks beyond the level ``after``, and with the last of ordinary attention the class token."""
        super().drop_levels(after)
        if after < self.local_layers:
            self.cls_token = None


_PARAMS = "The paper counts parameters without the classifier."
_BOTH = "The paper counts parameters without the classifier and, by the numbers, most multiply-adds without the products of attention."


def _variant(heads: int, width: int, figures: Figures) -> Variant:
    return Variant({"heads": heads, "head_width": width}, figures)


FAMILY = Family(
    name="convit",
    cls=ConViT,
    small=(
        "convit_tiny",
        {"head_width": 16, "depth": 3, "local_layers": 2, "patch_size": 8, "img_size": 32, "global_pool": "avg"},
    ),
    small_size=32,
    paper="convit",
    summary="A vision transformer whose first layers start as convolutions (d'Ascoli et al., 2021).",
    variants={
        "convit_tiny": _variant(4, 48, Figures(params_m=6, gmacs=1, quality="73.1 top-1")),
        "convit_small": _variant(
            9, 48, Figures(params_m=27, gmacs=5.4, counted_params_m=27.8, counted_gmacs=5.76, note=_BOTH, quality="81.3 top-1")
        ),
        "convit_base": _variant(
            16, 48, Figures(params_m=86, gmacs=17, counted_params_m=86.5, counted_gmacs=17.5, note=_BOTH, quality="82.4 top-1")
        ),
        "convit_tiny_plus": _variant(4, 64, Figures(params_m=10, gmacs=2, quality="76.7 top-1")),
        "convit_small_plus": _variant(9, 64, Figures(params_m=48, gmacs=10, counted_params_m=49.0, note=_PARAMS, quality="82.2 top-1")),
        "convit_base_plus": _variant(
            16, 64, Figures(params_m=152, gmacs=30, counted_params_m=153.1, counted_gmacs=30.8, note=_BOTH, quality="82.5 top-1")
        ),
    },
)

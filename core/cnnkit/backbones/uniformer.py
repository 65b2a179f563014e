"""UniFormer: Li et al. (2022), "UniFormer: Unifying Convolution and Self-attention for Visual Recognition".

Convolution and attention are one operation, a weighted sum of tokens, that differs in its affinities: learned per offset and local, or
computed from content and global. Early stages, whose tokens differ little from their neighbours, take the first, late ones the second::

    x = x + DPE(x);    x = x + MHRA(norm(x));    x = x + FFN(norm(x))

``DPE`` is a depthwise 3x3 convolution, which tells positions at any input size. ``MHRA`` is a depthwise 5x5 convolution between two
1x1 convolutions (stages 1 and 2, with batch normalisation) or multi-head attention (stages 3 and 4, with layer normalisation).

At the sizes of dense tasks attention among all tokens is costly; the third stage can attend within windows, all its blocks
(``global_every=0``) or, as the paper prefers, three of four (``global_every=4``). The weights are the same.

In three dimensions the model is that of volumes, or with ``video=True`` the paper's own for clips: time is the first axis, halved by
the first embedding alone, and ``reduction`` in ``feature_info`` is that of the other two. :func:`inflate` turns weights of images into
weights of clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant
from cnnkit.errors import ConfigError
from cnnkit.layers.attention import Attention
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.mlp import Mlp
from cnnkit.layers.nd import batch_norm, conv
from cnnkit.layers.norm import LayerNormNd
from cnnkit.layers.window import in_windows


class LocalBlock(nn.Module):
    """A block whose affinities are learned per channel and offset: a convolution.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions.
        mlp_ratio: Hidden width of the perceptron by ``channels``.
        layer_scale: Start of both branches' scales; ``None`` leaves them out.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(
        self, channels: int, *, dims: int = 2, mlp_ratio: float = 4.0, layer_scale: float | None = None, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.pos_embed = conv(dims)(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = batch_norm(dims)(channels)
        self.conv1 = conv(dims)(channels, channels, 1)
        self.attn = conv(dims)(channels, channels, 5, padding=2, groups=channels)
        self.conv2 = conv(dims)(channels, channels, 1)
        self.norm2 = batch_norm(dims)(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), dims=dims)
        self.gamma_1 = _scale(channels, layer_scale, (1,) * dims)
        self.gamma_2 = _scale(channels, layer_scale, (1,) * dims)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.pos_embed(x)
        branch = self.conv2(self.attn(self.conv1(self.norm1(x))))
        x = x + self.drop_path(branch if self.gamma_1 is None else self.gamma_1 * branch)
        branch = self.mlp(self.norm2(x))
        return x + self.drop_path(branch if self.gamma_2 is None else self.gamma_2 * branch)


class GlobalBlock(nn.Module):
    """A block whose affinities are computed from content, among all tokens or those of a window: attention.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        heads: Attention heads; they divide ``channels``.
        window: Side of the windows in which tokens attend to each other; 0 for all tokens.
        dims: Number of spatial dimensions.
        mlp_ratio: Hidden width of the perceptron by ``channels``.
        layer_scale: Start of both branches' scales; ``None`` leaves them out.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        window: int = 0,
        dims: int = 2,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.window = (window,) * dims if window else None
        self.pos_embed = conv(dims)(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads=heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.gamma_1 = _scale(channels, layer_scale)
        self.gamma_2 = _scale(channels, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.pos_embed(x)
        grid, x = x.shape[2:], x.flatten(2).mT
        branch = self.norm1(x)
        if self.window is None:
            branch = self.attn(branch)
        else:  # Zeros that fill up the last windows are tokens too, as in the paper's own code.
            branch = in_windows(branch.unflatten(1, grid), self.window, False, lambda tokens, *_: self.attn(tokens)).flatten(1, -2)
        x = x + self.drop_path(branch if self.gamma_1 is None else self.gamma_1 * branch)
        branch = self.mlp(self.norm2(x))
        x = x + self.drop_path(branch if self.gamma_2 is None else self.gamma_2 * branch)
        return x.mT.unflatten(2, grid)


def _scale(channels: int, start: float | None, trailing: tuple[int, ...] | None = None) -> nn.Parameter | None:
    """The scale of a branch, per channel; with ``trailing`` in the form of channels-first features, as the paper's code keeps it."""
    if start is None:
        return None
    return nn.Parameter(torch.full((channels,) if trailing is None else (1, channels, *trailing), start))


class PatchEmbedding(nn.Module):
    """Map every patch to one token and normalise it.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, channels, *(spatial // patch_size))``.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        patch_size: Side of a patch.
        dims: Number of spatial dimensions.
        time: The first axis is time: ``"halve"`` takes every other frame through a kernel of three, ``"keep"`` leaves it alone.
    """

    def __init__(self, in_channels: int, channels: int, *, patch_size: int, dims: int = 2, time: str = "") -> None:
        super().__init__()
        kernel: tuple = (patch_size,) * dims
        stride: tuple = kernel
        padding: tuple = (0,) * dims
        if time == "halve":
            kernel, stride, padding = (3, *kernel[1:]), (2, *kernel[1:]), (1, *padding[1:])
        elif time == "keep":
            kernel = stride = (1, *kernel[1:])
        self.proj = conv(dims)(in_channels, channels, kernel, stride=stride, padding=padding)
        self.norm = LayerNormNd(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the grid of tokens."""
        return self.norm(self.proj(x))


class ConvEmbedding(nn.Module):
    """Shrink by overlapping 3x3 convolutions of stride 2 with batch normalisation, in place of patches.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, channels, *ceil(spatial / 2^steps))``.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        steps: Number of convolutions, 1 or 2.
        dims: Number of spatial dimensions.
    """

    def __init__(self, in_channels: int, channels: int, *, steps: int, dims: int = 2) -> None:
        super().__init__()
        self.proj = nn.Sequential()
        for step in range(steps):
            out = channels if step == steps - 1 else channels // 2
            self.proj.extend([conv(dims)(in_channels, out, 3, stride=2, padding=1), batch_norm(dims)(out)])
            if step < steps - 1:
                self.proj.append(nn.GELU())
            in_channels = out

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller features."""
        return self.proj(x)


def inflate(state: Mapping[str, Tensor], model: nn.Module, *, centre: bool = False) -> dict[str, Tensor]:
    """Turn weights of images into weights of clips.

    A clip that repeats one frame then gives what the frame gives: exactly if the kernels are centred, and away from the first
    and last frames, where zeros come in, if they are spread.

    Args:
        state: Weights of a model of images.
        model: The model of clips.
        centre: Put a kernel at the middle of the time axis; by default it is repeated along it and divided by its length.
    """
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    inflated = {}
    for key, value in state.items():
        if len(wanted.get(key, ())) > max(value.ndim, 2):
            length = wanted[key][2]
            taps = torch.full((length,), 1 / length, dtype=value.dtype, device=value.device)
            if centre:
                taps = (torch.arange(length, device=value.device) == length // 2).to(value)
            value = value.unsqueeze(2) * taps.view(-1, *[1] * (value.ndim - 2))
        inflated[key] = value
    return inflated


class UniFormer(Backbone):
    """UniFormer of any depth and width.

    Args:
        depths: Number of blocks of each of four stages; the first two are local, the last two global.
        widths: Channels of each stage.
        head_dim: Channels of an attention head.
        mlp_ratio: Hidden width of the perceptrons by the stage's width.
        conv_embed: Shrink by overlapping convolutions in place of patches.
        layer_scale: Start of the branches' scales by stage; ``None`` leaves them out.
        token_head: Add a classifier of every token, whose largest score by class counts half beside that of the image: what a
            training with labels of tokens makes (Jiang et al., 2021, "All Tokens Matter").
        global_every: In the third stage, every so many blocks attend to all tokens and the others within windows; 0 for windows alone.
        window_size: Side of these windows.
        video: The first of three axes is time.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If the arguments by stage are not four each, a width is no multiple of ``head_dim``, or ``video`` stands with another
            number of dimensions than 3, or with ``conv_embed``.
    """

    layouts = (Layout("official"),)
    classifier = "head"
    head_modules = ("norm", "head", "aux_head")

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 8, 3),
        widths: Sequence[int] = (64, 128, 320, 512),
        head_dim: int = 64,
        mlp_ratio: float = 4.0,
        conv_embed: bool = False,
        layer_scale: Sequence[float | None] = (None, None, None, None),
        token_head: bool = False,
        global_every: int = 1,
        window_size: int = 14,
        video: bool = False,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not len(depths) == len(widths) == len(layer_scale) == 4:
            raise ConfigError("depths, widths and layer_scale need four numbers, one per stage")
        if any(width % head_dim for width in widths[2:]):
            raise ConfigError(f"head_dim={head_dim} does not divide the widths {tuple(widths[2:])} of the stages with attention")
        if video and (dims != 3 or conv_embed):
            raise ConfigError("video=True is a model of three dimensions that embeds patches: use dims=3 and conv_embed=False")
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        self.min_size = 1 if conv_embed else 32  # One whole patch in the last stage.
        self.video = video
        self.feature_info = FeatureInfo()
        before = in_chans
        for index, (width, rates) in enumerate(zip(widths, drop_path_rates(drop_path_rate, depths), strict=True)):
            if conv_embed:
                embed: nn.Module = ConvEmbedding(before, width, steps=1 if index else 2, dims=dims)
            else:
                time = ("keep" if index else "halve") if video else ""
                embed = PatchEmbedding(before, width, patch_size=2 if index else 4, dims=dims, time=time)
            blocks: list[nn.Module] = []
            for number, rate in enumerate(rates, start=1):
                scale = layer_scale[index]
                if index < 2:
                    blocks.append(LocalBlock(width, dims=dims, mlp_ratio=mlp_ratio, layer_scale=scale, drop_path=rate))
                else:
                    everywhere = index == 3 or (global_every and number % global_every == 0)
                    block = GlobalBlock(
                        width,
                        heads=width // head_dim,
                        window=0 if everywhere else window_size,
                        dims=dims,
                        mlp_ratio=mlp_ratio,
                        layer_scale=scale,
                        drop_path=rate,
                    )
                    blocks.append(block)
            # The names of the paper's own code, which holds stages side by side.
            self.add_module(f"patch_embed{index + 1}", embed)
            self.add_module(f"blocks{index + 1}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": 4 * 2**index, "module": f"blocks{index + 1}"})
            before = width
        self.norm: nn.Module = batch_norm(dims)(before)
        self.head: nn.Module = self.new_classifier(num_classes)
        self.token_head = token_head
        self.aux_head = self.new_classifier(num_classes if token_head else 0)
        self.apply(_init)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the other linear layers are."""
        return super().new_classifier(num_classes).apply(_init)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and that of tokens where there is one; see :meth:`Backbone.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        if self.token_head:
            some = next(self.parameters())
            self.aux_head = self.new_classifier(num_classes).to(device=some.device, dtype=some.dtype)

    def check_size(self, x: Tensor) -> None:
        """Refuse images that are too small; a clip may have any number of frames. See :meth:`Backbone.check_size`."""
        super().check_size(x[:, :, 0] if self.video else x)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of the four stages."""
        self.check_size(x)
        levels = []
        for name in self.feature_info.module_name():
            x = self.get_submodule(name.replace("blocks", "patch_embed"))(x)
            x = self.run_blocks(self.get_submodule(name), x)
            levels.append(x)
        return levels

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised features of the last stage."""
        return self.norm(super().forward_features(x))

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Classify every token of the last features, ``(B, N, num_classes)``; it needs ``token_head=True``.

        Args:
            x: What :meth:`forward_features` returned.
        """
        return self.aux_head(x.flatten(2).mT)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the last features and classify them; see :meth:`Backbone.forward_head`."""
        out = super().forward_head(x, pre_logits)
        if self.token_head and self.num_classes and not pre_logits:
            out = out + 0.5 * self.forward_tokens(x).amax(1)
        return out

    def drop_levels(self, after: int) -> None:
        """Remove the stages beyond the level ``after``."""
        for index in range(after + 1, len(self.feature_info)):
            self.set_submodule(f"patch_embed{index + 1}", nn.Identity())
        super().drop_levels(after)


def _init(module: nn.Module) -> None:
    """The paper's initialisation of linear layers; convolutions stay PyTorch's."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


_NORMS = (
    "The official counter adds a few operations per element for every normalisation; we count products of weights and affinities alone."
)
_LARGE = (
    "The official depths and widths give the published parameters and this count; the linear maps of the third stage alone, "
    "12 x 448^2 weights in 24 blocks at 196 tokens, make 11.3."
)

FAMILY = Family(
    name="uniformer",
    cls=UniFormer,
    small=(
        "uniformer_small",
        {"depths": (1, 1, 2, 1), "widths": (16, 24, 32, 48), "head_dim": 16, "layer_scale": (1.0, None, 1.0, None)},
    ),
    paper="uniformer",
    summary="Local convolution first, global attention late, in blocks of one form (Li et al., 2022).",
    variants={
        "uniformer_small": Variant({}, Figures(params_m=22, gmacs=3.6, quality="82.9 top-1")),
        "uniformer_small_plus": Variant(
            {"depths": (3, 5, 9, 3), "head_dim": 32, "conv_embed": True}, Figures(params_m=24, gmacs=4.2, quality="83.4 top-1")
        ),
        "uniformer_base": Variant(
            {"depths": (5, 8, 20, 7)}, Figures(params_m=50, gmacs=8.3, counted_gmacs=8.25, note=_NORMS, quality="83.8 top-1")
        ),
        "uniformer_base_ls": Variant(
            {"depths": (5, 8, 20, 7), "layer_scale": (None, None, 1e-6, 1e-6)},
            Figures(params_m=50, gmacs=8.3, counted_gmacs=8.25, note=_NORMS, quality="83.9 top-1"),
        ),
        "uniformer_large_ls": Variant(
            {"depths": (5, 10, 24, 7), "widths": (128, 192, 448, 640), "layer_scale": (1e-6,) * 4, "token_head": True},
            Figures(params_m=100, gmacs=12.6, counted_gmacs=19.7, note=_LARGE, quality="85.6 top-1 with token labels"),
        ),
    },
)

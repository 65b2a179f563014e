"""Inverted bottlenecks: Sandler et al. (2018), "MobileNetV2: Inverted Residuals and Linear Bottlenecks".

A 1x1 convolution widens, a depthwise one mixes positions, squeeze-and-excitation reweights the channels, and a 1x1
convolution without an activation after it narrows::

    y = x + W2 se(act(norm(depthwise(act(norm(W1 x))))))

:class:`InvertedResidual` and :class:`DepthwiseSeparable` normalise after every convolution (EfficientNet and its
kin, names of parameters as in timm); :class:`PreNormMBConv` normalises its input instead of its output and has a
pooled shortcut (CoAtNet, MaxViT, MOAT).
"""

from __future__ import annotations

from torch import Tensor, nn

from cnnkit.layers.act import get_act
from cnnkit.layers.drop import DropPath
from cnnkit.layers.nd import avg_pool, batch_norm, conv
from cnnkit.layers.same import padded_conv
from cnnkit.layers.squeeze_excite import SqueezeExcite


class DepthwiseSeparable(nn.Module):
    """An inverted bottleneck that does not widen: depthwise convolution, squeeze-and-excitation, 1x1 convolution.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dims: Number of spatial dimensions.
        kernel_size: Size of the depthwise kernel.
        stride: Its stride.
        se_channels: Hidden width of squeeze-and-excitation; 0 leaves it out.
        act: Name of the activation.
        padding: ``"symmetric"`` or ``"same"``, see :func:`~cnnkit.layers.same.padded_conv`.
        norm_eps: Added to the variances.
        drop_path: Probability that the branch is dropped while training, where there is a shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dims: int = 2,
        kernel_size: int = 3,
        stride: int = 1,
        se_channels: int = 0,
        act: str = "silu",
        padding: str = "symmetric",
        norm_eps: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.conv_dw = padded_conv(in_channels, in_channels, kernel_size, dims=dims, stride=stride, groups=in_channels, padding=padding)
        self.bn1 = batch_norm(dims)(in_channels, eps=norm_eps)
        self.act = get_act(act, inplace=True)
        self.se = SqueezeExcite(in_channels, dims=dims, hidden=se_channels, act=act) if se_channels else nn.Identity()
        self.conv_pw = conv(dims)(in_channels, out_channels, 1, bias=False)
        self.bn2 = batch_norm(dims)(out_channels, eps=norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        branch = self.se(self.act(self.bn1(self.conv_dw(x))))
        branch = self.bn2(self.conv_pw(branch))
        return x + self.drop_path(branch) if self.has_shortcut else branch


class InvertedResidual(nn.Module):
    """An inverted bottleneck with a normalisation after every convolution.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        expansion: Channels of the depthwise convolution by ``in_channels``.
        dims: Number of spatial dimensions.
        kernel_size: Size of the depthwise kernel.
        stride: Its stride.
        se_channels: Hidden width of squeeze-and-excitation; 0 leaves it out.
        act: Name of the activation.
        padding: ``"symmetric"`` or ``"same"``, see :func:`~cnnkit.layers.same.padded_conv`.
        norm_eps: Added to the variances.
        drop_path: Probability that the branch is dropped while training, where there is a shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: int = 6,
        dims: int = 2,
        kernel_size: int = 3,
        stride: int = 1,
        se_channels: int = 0,
        act: str = "silu",
        padding: str = "symmetric",
        norm_eps: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.conv_pw = conv(dims)(in_channels, inner, 1, bias=False)
        self.bn1 = batch_norm(dims)(inner, eps=norm_eps)
        self.act = get_act(act, inplace=True)
        self.conv_dw = padded_conv(inner, inner, kernel_size, dims=dims, stride=stride, groups=inner, padding=padding)
        self.bn2 = batch_norm(dims)(inner, eps=norm_eps)
        self.se = SqueezeExcite(inner, dims=dims, hidden=se_channels, act=act) if se_channels else nn.Identity()
        self.conv_pwl = conv(dims)(inner, out_channels, 1, bias=False)
        self.bn3 = batch_norm(dims)(out_channels, eps=norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        branch = self.act(self.bn1(self.conv_pw(x)))
        branch = self.se(self.act(self.bn2(self.conv_dw(branch))))
        branch = self.bn3(self.conv_pwl(branch))
        return x + self.drop_path(branch) if self.has_shortcut else branch


class PooledShortcut(nn.Module):
    """The shortcut of a strided block: mean over 2x2 positions, then a 1x1 convolution where the width changes.

    At an odd size the last mean is that of the positions that exist.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dims: Number of spatial dimensions.
        stride: Side of the pooled cells; 1 for none.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dims: int = 2, stride: int = 2) -> None:
        super().__init__()
        self.pool = avg_pool(dims)(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        self.expand = conv(dims)(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Pool and project."""
        return self.expand(self.pool(x))


class PreNormMBConv(nn.Module):
    """An inverted bottleneck that normalises its input, as transformer blocks do, so that the sum stays unnormalised.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dims: Number of spatial dimensions.
        stride: Stride of the depthwise convolution.
        expansion: Channels of the depthwise convolution by ``out_channels``.
        se_ratio: Hidden width of squeeze-and-excitation by ``out_channels``; 0 leaves it out.
        act: Name of the activation; that of squeeze-and-excitation is SiLU.
        padding: ``"symmetric"`` or ``"same"``, see :func:`~cnnkit.layers.same.padded_conv`.
        norm_eps: Added to the variances.
        shortcut: What brings the input to the output's shape; by default a :class:`PooledShortcut`.
        drop_path: Probability that the branch is dropped while training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dims: int = 2,
        stride: int = 1,
        expansion: int = 4,
        se_ratio: float = 0.25,
        act: str = "gelu",
        padding: str = "same",
        norm_eps: float = 1e-3,
        shortcut: nn.Module | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        inner = out_channels * expansion
        if shortcut is None and (stride > 1 or in_channels != out_channels):
            shortcut = PooledShortcut(in_channels, out_channels, dims=dims, stride=stride)
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.pre_norm = batch_norm(dims)(in_channels, eps=norm_eps)
        self.conv1_1x1 = conv(dims)(in_channels, inner, 1, bias=False)
        self.norm1 = batch_norm(dims)(inner, eps=norm_eps)
        self.conv2_kxk = padded_conv(inner, inner, 3, dims=dims, stride=stride, groups=inner, padding=padding)
        self.norm2 = batch_norm(dims)(inner, eps=norm_eps)
        self.act = get_act(act)
        hidden = max(1, int(out_channels * se_ratio))
        self.se = SqueezeExcite(inner, dims=dims, hidden=hidden, act="silu") if se_ratio else nn.Identity()
        self.conv3_1x1 = conv(dims)(inner, out_channels, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        branch = self.act(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        branch = self.se(self.act(self.norm2(self.conv2_kxk(branch))))
        return self.shortcut(x) + self.drop_path(self.conv3_1x1(branch))

"""EfficientTDNN (Wang et al., IEEE/ACM TASLP 30, 2022): speaker embeddings by time-delay networks that are cut out of one supernet.

A block is a 1x1 convolution, a Res2 convolution with dilation, a 1x1 convolution and a squeeze-and-excitation; it sees the sum of all
outputs before it:

    ``o_0 = layer(x),  o_k = block_k(o_(k-1)) + o_0 + ... + o_(k-1),  e = linear(pool(relu(W [o_1; ...; o_K])))``

and the pooling is the mean and the deviation over time under learnt attention, for each channel by itself. Every stand-alone network is a
sub-network of the supernet in :mod:`.efficient_tdnn_supernet`: fewer blocks, the centre of each kernel, the first channels of each layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from cnnkit.weights import Layout, rename_keys
from torch import Tensor, nn

from cnnkit_audio.embedding.losses import AAMSoftmax
from cnnkit_audio.frontends import LogMel
from cnnkit_audio.models._base import Embedder
from cnnkit_audio.models.efficient_tdnn_space import BANDS, BASE, BOTTLENECK, EMBEDDING, SCALE, SQUEEZE, SubNet

RATE, HOP = 16000, 160
N_FFT, WINDOW = 512, 400
PREEMPHASIS = 0.97
EPS = 1e-5
"""Added to the variance over time, as instance normalisation does."""

_RULES = (
    (r"^module\.", ""),
    (r"^__S__\.", ""),
    (r"(^|\.)(conv|catconv|linear1|linear2)\.conv\.weight$", r"\1\2.weight"),
    (r"(^|\.)(bn|bnpool)\.bn\.", r"\1\2."),
    (r"(^|\.)(reduce|expand|linear)\.linear\.", r"\1\2."),
    (r"^(?!body\.)", "body."),
)


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the loss and the front end, and take off what the authors wrap around each layer."""
    kept = {key: value for key, value in state.items() if "__L__" not in key and "__T__" not in key}
    return rename_keys(kept, _RULES)


def _is_official(keys: Any) -> bool:
    return any(key.endswith("layer1.conv.weight") or key.endswith("layer1.conv.conv.weight") for key in keys if not key.startswith("body."))


class SpeakerFeatures(LogMel):
    """Mel energies after a pre-emphasis, as logarithms, each band with mean zero and variance one over the clip.

    The clip is mirrored at its ends: by a sample for the pre-emphasis, and by half a transform after it.

    Shapes:
        x: ``(B, 1, T)`` at 16 kHz; the result is ``(B, 1, 80, T // 160 + 1)``.
    """

    def __init__(self) -> None:
        super().__init__(
            sample_rate=RATE,
            n_fft=N_FFT,
            win_length=WINDOW,
            hop=HOP,
            n_mels=BANDS,
            f_min=20.0,
            f_max=7600.0,
            mel="htk",
            log="ln",
            amin=1e-6,
            window="hamming",
            pad="none",
        )
        self.left, self.right = WINDOW // 2 + 1, WINDOW // 2
        self.least = N_FFT // 2 + 1

    @property
    def shift_invariant(self) -> bool:
        """False: the mean and the variance are the clip's."""
        return False

    def features(self, x: Tensor) -> Tensor:
        """Return the normalised log energies ``(B, 80, frames)``."""
        before = torch.cat([x[:, 1, None], x], dim=1)[:, :-1]
        logs = super().features(_mirrored(x - PREEMPHASIS * before, N_FFT // 2))
        variance, mean = torch.var_mean(logs, dim=2, correction=0, keepdim=True)
        return (logs - mean) * (variance + EPS).rsqrt()

    def frames(self, samples: int) -> int:
        """Return the number of frames: one per hop, and one at the start."""
        return samples // HOP + 1


def _mirrored(x: Tensor, width: int) -> Tensor:
    """Mirror ``(B, T)`` at both ends. By index, because an exporter takes a padding for a promise about the length."""
    steps = torch.arange(width, device=x.device)
    return torch.cat([x[:, width - steps], x, x[:, x.shape[1] - 2 - steps]], dim=1)


class ConvReLUBN(nn.Module):
    """Convolution, ReLU, batch normalisation.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel: Length of the kernel.
        conv: Class of the convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, conv: type[nn.Conv1d] = nn.Conv1d) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, T)`` to ``(B, outputs, T)``."""
        return self.bn(F.relu(self.conv(x)))


class Res2Conv(nn.Module):
    """Channels in eight parts: each but the last is convolved after the result of the one before is added.

    Args:
        channels: Channels.
        kernel: Length of the kernel.
        dilation: Frames between its taps.
        conv: Class of the convolution.
    """

    def __init__(self, channels: int, kernel: int, dilation: int, *, conv: type[nn.Conv1d] = nn.Conv1d) -> None:
        super().__init__()
        width, padding = channels // SCALE, kernel // 2 * dilation
        self.convs = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    conv=conv(width, width, kernel, padding=padding, dilation=dilation, bias=False),
                    relu=nn.ReLU(inplace=True),
                    bn=nn.BatchNorm1d(width),
                )
            )
            for _ in range(SCALE - 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return as many channels as ``x`` has."""
        parts = list(x.chunk(SCALE, dim=1))
        for index, conv in enumerate(self.convs):
            parts[index] = conv(parts[index] + parts[index - 1] if index else parts[index])
        return torch.cat(parts, dim=1)


class SqueezeExcite(nn.Module):
    """Weigh channels by what they hold on average over time.

    Args:
        channels: Channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // SQUEEZE)
        self.expand = nn.Linear(channels // SQUEEZE, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh ``(B, C, T)``."""
        return x * self.expand(F.relu(self.reduce(x.mean(2)))).sigmoid()[..., None]


class Block(nn.Module):
    """1x1, Res2 and 1x1 convolution, then squeeze-and-excitation; the sum with what came before is the network's.

    Args:
        channels: Channels outside.
        inner: Channels inside.
        kernel: Length of the Res2 convolution's kernel.
        dilation: Its dilation.
        conv: Class of the convolutions.
    """

    def __init__(self, channels: int, inner: int, kernel: int, dilation: int, *, conv: type[nn.Conv1d] = nn.Conv1d) -> None:
        super().__init__()
        self.first_conv = ConvReLUBN(channels, inner, conv=conv)
        self.resconv = Res2Conv(inner, kernel, dilation, conv=conv)
        self.last_conv = ConvReLUBN(inner, channels, conv=conv)
        self.se = SqueezeExcite(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, T)`` to as many channels."""
        return self.se(self.last_conv(self.resconv(self.first_conv(x))))


class AttentivePool(nn.Module):
    """Mean and standard deviation over time, each channel under attention of its own.

    Args:
        channels: Channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Conv1d(channels, BOTTLENECK, 1, bias=False)
        self.linear2 = nn.Conv1d(BOTTLENECK, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, T)`` to ``(B, 2 C)``."""
        weights = self.linear2(self.linear1(x).tanh()).softmax(2)
        mean = (weights * x).sum(2)
        variance = (weights * x.square()).sum(2) - mean.square()
        return torch.cat([mean, variance.clamp_min(1e-9).sqrt()], dim=1)


class TDNN(nn.Module):
    """From features to an embedding.

    Args:
        subnet: Widths, kernels and depth.
        conv: Class of the convolutions whose kernels are longer than one frame.

    Shapes:
        features: ``(B, 80, frames)``; the result is ``(B, 192)``.
    """

    def __init__(self, subnet: SubNet, *, conv: type[nn.Conv1d] = nn.Conv1d) -> None:
        super().__init__()
        first, *inner = subnet.channels
        self.layer1 = ConvReLUBN(BANDS, first, subnet.kernels[0], conv=conv)
        self.blocks = nn.ModuleList(
            Block(first, width, kernel, dilation, conv=conv)
            for dilation, (width, kernel) in enumerate(zip(inner, subnet.kernels[1:], strict=True), 2)
        )
        self.catconv = nn.Conv1d(first * subnet.depth, subnet.cat, 1, bias=False)
        self.pooling = AttentivePool(subnet.cat)
        self.bnpool = nn.BatchNorm1d(2 * subnet.cat)
        self.linear = nn.Linear(2 * subnet.cat, EMBEDDING)
        self.bnembed = nn.BatchNorm1d(EMBEDDING)

    def forward(self, features: Tensor) -> Tensor:
        """Return the embeddings."""
        out = total = self.layer1(features)
        outputs = []
        for block in self.blocks:
            out = block(out) + total
            total = total + out
            outputs.append(out)
        joined = F.relu(self.catconv(torch.cat(outputs, dim=1)))
        return self.bnembed(self.linear(self.bnpool(self.pooling(joined))))


class EfficientTDNN(Embedder):
    """A stand-alone network. With the default arguments it is as large as an ECAPA-TDNN, the paper's base.

    Args:
        channels: Channels between blocks, then those inside each block: multiples of eight.
        kernels: Kernel of the first layer, then that of each block.
        cat: Channels after the outputs of all blocks are joined.
        speakers: People whom the training tells apart; 0 for a network without that layer, which embeddings do not need.
        margin: Angle that the training adds, see :class:`~cnnkit_audio.embedding.losses.AAMSoftmax`.
        scale: Factor of its cosines.

    Shapes:
        x: ``(B, 1, T)`` at 16 kHz; the result is ``(B, 192)``. Vectors are compared by their cosine.

    Raises:
        ConfigError: If the description is not that of a network.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("official", _is_official, _from_official),)

    def __init__(
        self,
        *,
        channels: Sequence[int] = BASE.channels,
        kernels: Sequence[int] = BASE.kernels,
        cat: int = BASE.cat,
        speakers: int = 0,
        margin: float = 0.2,
        scale: float = 30.0,
    ) -> None:
        super().__init__(sample_rate=RATE, embedding_dim=EMBEDDING)
        self.subnet = SubNet(tuple(channels), tuple(kernels), cat)
        self.front = SpeakerFeatures()
        self.body = self._body()
        self.head = AAMSoftmax(EMBEDDING, speakers, margin=margin, scale=scale) if speakers else None

    @property
    def least(self) -> int:
        """Samples below which a clip cannot be heard; shorter ones are repeated by the task."""
        return self.front.least

    def _body(self) -> TDNN:
        return TDNN(self.subnet)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings ``(B, 192)`` of waveforms ``(B, 1, T)``."""
        return self.body(self.front(x)[:, 0])

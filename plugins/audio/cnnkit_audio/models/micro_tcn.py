"""micro-TCN (Steinmetz and Reiss, 2021): a compressor learnt by few convolutions whose dilation grows tenfold.

A compressor's gain depends on tenths of a second, which is tens of thousands of samples. A WaveNet reaches that far with dilations
that double and ten layers or more; here they grow by ten, so that four layers of 13 taps see 13,333 samples (302 ms) and run faster
than real time on a processor. A small network turns the device's knobs into a gain and an offset for every channel (FiLM), applied after a
batch normalisation without parameters of its own:

    ``y = PReLU(gamma(knobs) * norm(conv(x)) + beta(knobs)) + depthwise1x1(x)``

With the knobs fixed, normalisation and FiLM are part of the convolution's weights: that is how sound is streamed. The official code cuts
the residual path of causal blocks one sample early, so that it comes a sample late, and aligns the target to that; so does this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_audio.models._base import Effect, EffectStream

LA2A = ("limit", "peak_reduction")
"""The knobs of the compressor of the paper: 1 limits and 0 compresses; peak reduction from 0 to 1."""
_CONDITION = 32


class FiLM(nn.Module):
    """A gain and an offset for each channel, told by the knobs, after a normalisation without parameters.

    Args:
        channels: Channels.
        condition: Length of what describes the knobs.
    """

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, affine=False)
        self.adaptor = nn.Linear(condition, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map ``(B, C, T)`` and ``(B, condition)`` to ``(B, C, T)``."""
        gain, offset = self.adaptor(condition)[..., None].chunk(2, dim=1)
        return self.bn(x) * gain + offset

    def affine(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift ``(B, C)`` that this is in evaluation."""
        gain, offset = self.adaptor(condition).chunk(2, dim=1)
        assert self.bn.running_var is not None and self.bn.running_mean is not None
        scale = gain * (self.bn.running_var + self.bn.eps).rsqrt()
        return scale, offset - self.bn.running_mean * scale


class TCNBlock(nn.Module):
    """A dilated convolution, FiLM, PReLU, and a residual path with one weight for each channel.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output, a multiple of them.
        kernel: Taps.
        dilation: Samples between two taps.
        causal: Whether the output belongs to the last tap, not the middle one.
    """

    def __init__(self, in_channels: int, channels: int, *, kernel: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.context = (kernel - 1) * dilation
        self.skipped = self.context - 1 if causal else self.context // 2
        self.conv1 = nn.Conv1d(in_channels, channels, kernel, dilation=dilation, bias=False)
        self.film = FiLM(channels, _CONDITION)
        self.relu = nn.PReLU(channels)
        self.res = nn.Conv1d(in_channels, channels, 1, groups=in_channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map ``(B, C_in, T)`` to ``(B, C, T - context)``."""
        return self.relu(self.film(self.conv1(x), condition)) + self.residual(x)

    def residual(self, x: Tensor) -> Tensor:
        """Return the residual path for the outputs that ``x`` is enough for."""
        return self.res(x[..., self.skipped : self.skipped + x.shape[-1] - self.context])


class MicroTCN(Effect):
    """The network of the paper.

    Args:
        sample_rate: Samples per second.
        knobs: Names of the settings, at least one.
        blocks: Number of blocks.
        kernel: Taps of each.
        growth: Factor from one dilation to the next: 10 in the paper, 2 for its larger baseline.
        channels: Channels of every block.
        causal: Whether no future sample is used.

    Raises:
        ConfigError: If there is no knob.
    """

    layouts = (Layout("official"),)

    def __init__(
        self,
        *,
        sample_rate: int = 44100,
        knobs: Sequence[str] = LA2A,
        blocks: int = 4,
        kernel: int = 13,
        growth: int = 10,
        channels: int = 32,
        causal: bool = True,
    ) -> None:
        if not knobs:
            raise ConfigError("knobs=() leaves nothing that tells the device's settings; accepted: one name or more")
        context = (kernel - 1) * sum(growth**n for n in range(blocks))
        super().__init__(
            sample_rate=sample_rate,
            knobs=knobs,
            context=context,
            lookahead=0 if causal else context - context // 2,
            delay=1 if causal else 0,
        )
        self.causal = causal
        self.gen = nn.Sequential(
            nn.Linear(len(self.knobs), 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, _CONDITION), nn.ReLU()
        )
        self.blocks = nn.ModuleList(
            TCNBlock(channels if n else 1, channels, kernel=kernel, dilation=growth**n, causal=causal) for n in range(blocks)
        )
        self.output = nn.Conv1d(channels, 1, 1)

    @property
    def receptive_field(self) -> int:
        """Samples of input that an output depends on."""
        return self.context + 1

    def forward(self, x: Tensor, knobs: Tensor) -> Tensor:
        """Return the processed sound ``(B, 1, T - context)``."""
        condition = self.gen(knobs)
        for block in self.blocks:
            x = block(x, condition)
        return self.output(x).tanh()

    def stream(self, knobs: Tensor) -> EffectStream:
        """Return the device with its knobs fixed, ``(1, K)``, for blocks ``(B, 1, n)``."""
        condition = self.gen(knobs)
        return _TCNStream([_fixed(block, condition) for block in self.blocks], self.output)  # type: ignore[arg-type]


@dataclass
class _FixedBlock:
    """A block with FiLM and normalisation inside its weights, and the end of its input that is still needed."""

    block: TCNBlock
    weight: Tensor
    bias: Tensor
    held: Tensor | None = None

    def push(self, x: Tensor) -> Tensor:
        x = x if self.held is None else torch.cat([self.held, x], dim=2)
        context = self.block.context
        self.held = x[..., max(0, x.shape[2] - context) :]
        if x.shape[2] <= context:
            return x.new_zeros(len(x), self.weight.shape[0], 0)
        out = F.conv1d(x, self.weight, self.bias, dilation=self.block.conv1.dilation)
        return self.block.relu(out) + self.block.residual(x)


def _fixed(block: TCNBlock, condition: Tensor) -> _FixedBlock:
    scale, shift = (value[0] for value in block.film.affine(condition))
    weight = block.conv1.weight
    return _FixedBlock(block, weight * scale[:, None, None], shift)


class _TCNStream(EffectStream):
    def __init__(self, blocks: list[_FixedBlock], output: nn.Conv1d) -> None:
        self.blocks, self.output = blocks, output

    def push(self, x: Tensor) -> Tensor:
        """Return the outputs that ``x`` completes."""
        for block in self.blocks:
            x = block.push(x)
        return self.output(x).tanh() if x.shape[2] else x.new_zeros(len(x), 1, 0)


class LSTMEffect(Effect):
    """The paper's recurrent baseline: one LSTM over samples, the knobs beside each of them.

    Args:
        sample_rate: Samples per second.
        knobs: Names of the settings.
        hidden: Width.
        layers: LSTM layers.
    """

    layouts = (Layout("official"),)

    def __init__(self, *, sample_rate: int = 44100, knobs: Sequence[str] = LA2A, hidden: int = 32, layers: int = 1) -> None:
        super().__init__(sample_rate=sample_rate, knobs=knobs, context=0)
        self.lstm = nn.LSTM(1 + len(self.knobs), hidden, layers)
        self.linear = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, knobs: Tensor) -> Tensor:
        """Return the processed sound ``(B, 1, T)``."""
        return self.run(x, knobs)[0]

    def run(self, x: Tensor, knobs: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Go on from a state; return the output and the state after it."""
        beside = torch.cat([x, knobs[..., None].expand(-1, -1, x.shape[2])], dim=1)
        out, state = self.lstm(beside.permute(2, 0, 1), state)
        return self.linear(out).tanh().permute(1, 2, 0), state

    def stream(self, knobs: Tensor) -> EffectStream:
        """Return the device with its knobs fixed, ``(1, K)``, for blocks ``(B, 1, n)``."""
        return _LSTMStream(self, knobs)


class _LSTMStream(EffectStream):
    def __init__(self, model: LSTMEffect, knobs: Tensor) -> None:
        self.model, self.knobs = model, knobs
        self.state: tuple[Tensor, Tensor] | None = None

    def push(self, x: Tensor) -> Tensor:
        """Return as many outputs as inputs."""
        if not x.shape[2]:
            return x
        out, self.state = self.model.run(x, self.knobs.expand(len(x), -1), self.state)
        return out

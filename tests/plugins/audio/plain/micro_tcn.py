"""micro-TCN the way its code is laid out: knobs as ``(B, 1, K)``, crops by the shapes of outputs, nothing folded."""

import torch
from torch import nn


class FiLM(nn.Module):
    def __init__(self, features, condition):
        super().__init__()
        self.bn = nn.BatchNorm1d(features, affine=False)
        self.adaptor = nn.Linear(condition, features * 2)

    def forward(self, x, condition):
        gain, offset = torch.chunk(self.adaptor(condition), 2, dim=-1)
        return self.bn(x) * gain.permute(0, 2, 1) + offset.permute(0, 2, 1)


class Block(nn.Module):
    def __init__(self, inputs, outputs, kernel, dilation, causal):
        super().__init__()
        self.causal = causal
        self.conv1 = nn.Conv1d(inputs, outputs, kernel, dilation=dilation, bias=False)
        self.film = FiLM(outputs, 32)
        self.relu = nn.PReLU(outputs)
        self.res = nn.Conv1d(inputs, outputs, 1, groups=inputs, bias=False)

    def forward(self, x, condition):
        y = self.relu(self.film(self.conv1(x), condition))
        residual, length = self.res(x), y.shape[-1]
        stop = residual.shape[-1] - 1 if self.causal else (residual.shape[-1] - length) // 2 + length
        return y + residual[..., stop - length : stop]


class MicroTCN(nn.Module):
    def __init__(self, knobs=2, blocks=4, kernel=13, growth=10, width=32, causal=True):
        super().__init__()
        layers = [nn.Linear(knobs, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
        self.gen = nn.Sequential(*layers)
        self.blocks = nn.ModuleList()
        inputs = 1
        for number in range(blocks):
            self.blocks.append(Block(inputs, width, kernel, growth**number, causal))
            inputs = width
        self.output = nn.Conv1d(width, 1, 1)

    def forward(self, x, knobs):
        condition = self.gen(knobs)
        for block in self.blocks:
            x = block(x, condition)
        return torch.tanh(self.output(x))


class Recurrent(nn.Module):
    def __init__(self, knobs=2, hidden=32, layers=1):
        super().__init__()
        self.lstm = nn.LSTM(1 + knobs, hidden, layers)
        self.linear = nn.Linear(hidden, 1)

    def forward(self, x, knobs):
        samples = x.permute(2, 0, 1)
        beside = knobs.permute(1, 0, 2).repeat(samples.shape[0], 1, 1)
        out, _ = self.lstm(torch.cat((samples, beside), dim=-1))
        return torch.tanh(self.linear(out)).permute(1, 2, 0)

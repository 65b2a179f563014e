"""The TDNN supernet the straightforward way: each layer remembers which of its channels are active and picks them by index."""

import copy
from collections import OrderedDict

import torch
import torch.nn.functional as F
import torchaudio
from torch import nn


class LogMelFbanks(nn.Module):
    """Pre-emphasis, mel energies, logarithm, instance normalisation."""

    def __init__(self):
        super().__init__()
        self.register_buffer("emphasis", torch.tensor([[[-0.97, 1.0]]]))
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate=16000,
            n_fft=512,
            win_length=400,
            hop_length=160,
            f_min=20.0,
            f_max=7600.0,
            window_fn=torch.hamming_window,
            n_mels=80,
        )
        self.norm = nn.InstanceNorm1d(80)

    def forward(self, x):
        x = F.conv1d(F.pad(x[:, None], (1, 0), "reflect"), self.emphasis)[:, 0]
        return self.norm((self.mel(x) + 1e-6).log())


class DynamicLinear(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.config = (None, None)

    def forward(self, x):
        weight, bias = self.weight_bias()
        return F.linear(x, weight, bias)

    def weight_bias(self):
        inputs, outputs = self.config
        weight, bias = self.linear.weight, self.linear.bias
        if inputs is not None:
            weight = weight[:, inputs]
        if outputs is not None:
            weight, bias = weight[outputs], bias[outputs]
        return weight, bias

    def clone(self):
        weight, bias = self.weight_bias()
        layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(bias)
        return layer


class DynamicBatchNorm1d(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.bn = nn.BatchNorm1d(features)
        self.config = None

    def tensors(self):
        found = (self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias)
        return found if self.config is None else tuple(tensor[self.config] for tensor in found)

    def forward(self, x):
        return F.batch_norm(x, *self.tensors(), self.training, 0.1, self.bn.eps)

    def clone(self):
        mean, var, weight, bias = self.tensors()
        layer = nn.BatchNorm1d(len(mean)).to(mean)
        for target, value in ((layer.running_mean, mean), (layer.running_var, var), (layer.weight, weight), (layer.bias, bias)):
            target.data.copy_(value)
        return layer


class DynamicConv1d(nn.Module):
    def __init__(self, inputs, outputs, kernel=1, dilation=1):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=False)
        self.kernel = kernel
        if kernel > 3:
            self.k53 = nn.Parameter(torch.eye(3))
        if kernel > 1:
            self.k31 = nn.Parameter(torch.eye(1))
        self.config = (None, None, None)

    def weight(self):
        inputs, outputs, kernel = self.config
        weight = self.conv.weight
        if inputs is not None:
            weight = weight.index_select(1, inputs)
        if outputs is not None:
            weight = weight.index_select(0, outputs)
        kernel = self.kernel if kernel is None else kernel
        if self.kernel > 3 and kernel < 5:
            weight = torch.matmul(weight[:, :, 1:-1], self.k53)
        if self.kernel > 1 and kernel < 3:
            weight = torch.matmul(weight[:, :, 1:-1], self.k31)
        return weight

    def forward(self, x):
        weight = self.weight()
        return F.conv1d(x, weight, None, 1, weight.shape[-1] // 2 * self.conv.dilation[0], self.conv.dilation)

    def clone(self):
        weight = self.weight()
        dilation = self.conv.dilation[0]
        kernel = weight.shape[-1]
        layer = nn.Conv1d(weight.shape[1], weight.shape[0], kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=False).to(
            weight
        )
        layer.weight.data.copy_(weight)
        return layer


class ConvReLUBN(nn.Module):
    def __init__(self, inputs, outputs, kernel=1):
        super().__init__()
        self.conv = DynamicConv1d(inputs, outputs, kernel)
        self.bn = DynamicBatchNorm1d(outputs)

    def forward(self, x):
        return self.bn(F.relu(self.conv(x)))


class SELayer(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.reduce = DynamicLinear(channels, channels // 4)
        self.expand = DynamicLinear(channels // 4, channels)

    def forward(self, x):
        out = F.relu(self.reduce(x.mean(dim=2)))
        out = torch.sigmoid(self.expand(out))
        return x * out.unsqueeze(2)


class Res2Conv(nn.Module):
    def __init__(self, channels, kernel, dilation):
        super().__init__()
        self.width = channels // 8
        self.convs = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    [
                        ("conv", DynamicConv1d(self.width, self.width, kernel, dilation)),
                        ("relu", nn.ReLU()),
                        ("bn", DynamicBatchNorm1d(self.width)),
                    ]
                )
            )
            for _ in range(7)
        )

    def forward(self, x):
        pieces = torch.split(x, x.shape[1] // 8, dim=1)
        out, last = [], None
        for index in range(7):
            last = self.convs[index](pieces[index] if index == 0 else pieces[index] + last)
            out.append(last)
        out.append(pieces[7])
        return torch.cat(out, dim=1)


class Block(nn.Module):
    def __init__(self, channels, inner, kernel, dilation):
        super().__init__()
        self.inner = inner
        self.first_conv = ConvReLUBN(channels, inner)
        self.resconv = Res2Conv(inner, kernel, dilation)
        self.last_conv = ConvReLUBN(inner, channels)
        self.se = SELayer(channels)

    def forward(self, x):
        return self.se(self.last_conv(self.resconv(self.first_conv(x))))

    def set(self, channels, inner, kernel):
        outside, width = torch.arange(channels), torch.arange(inner // 8)
        middle = torch.arange(self.inner).view(8, -1)[:, : inner // 8].flatten()
        squeezed = torch.arange(channels // 4)
        self.first_conv.conv.config, self.first_conv.bn.config = (outside, middle, None), middle
        for conv in self.resconv.convs:
            conv.conv.config, conv.bn.config = (width, width, kernel), width
        self.last_conv.conv.config, self.last_conv.bn.config = (middle, outside, None), outside
        self.se.reduce.config, self.se.expand.config = (outside, squeezed), (squeezed, outside)


class AttentiveStatsPool(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.linear1 = DynamicConv1d(channels, 128)
        self.linear2 = DynamicConv1d(128, channels)

    def forward(self, x):
        alpha = torch.softmax(self.linear2(torch.tanh(self.linear1(x))), dim=2)
        mean = torch.sum(alpha * x, dim=2)
        residuals = torch.sum(alpha * x**2, dim=2) - mean**2
        return torch.cat([mean, torch.sqrt(residuals.clamp(min=1e-9))], dim=1)


class DynamicTDNN(nn.Module):
    """The supernet; ``set(depth, channels, kernels, cat)`` chooses what runs, ``clone()`` cuts it out."""

    def __init__(self, depth=4, channels=(512,) * 5, kernels=(5,) * 5, cat=1536):
        super().__init__()
        self.channels, self.cat = channels, cat
        self.layer1 = ConvReLUBN(80, channels[0], kernels[0])
        self.blocks = nn.ModuleList(Block(channels[0], channels[i + 1], kernels[i + 1], i + 2) for i in range(depth))
        self.catconv = DynamicConv1d(channels[0] * depth, cat)
        self.pooling = AttentiveStatsPool(cat)
        self.bnpool = DynamicBatchNorm1d(cat * 2)
        self.linear = DynamicLinear(cat * 2, 192)
        self.bnembed = nn.BatchNorm1d(192)
        self.depth = depth

    def forward(self, x):
        out = self.layer1(x)
        outputs, total = [], out
        for i in range(self.depth):
            out = self.blocks[i](out) + total
            outputs.append(out)
            total = total + out
        out = F.relu(self.catconv(torch.cat(outputs, dim=1)))
        out = self.bnpool(self.pooling(out))
        return self.bnembed(self.linear(out))

    def set(self, depth, channels, kernels, cat):
        self.depth = depth
        outside, joined = torch.arange(channels[0]), torch.arange(cat)
        self.layer1.conv.config, self.layer1.bn.config = (None, outside, kernels[0]), outside
        for i in range(depth):
            self.blocks[i].set(channels[0], channels[i + 1], kernels[i + 1])
        columns = torch.arange(self.channels[0] * len(self.blocks)).view(len(self.blocks), -1)[:depth, : channels[0]].flatten()
        both = torch.arange(2 * self.cat).view(2, -1)[:, :cat].flatten()
        self.catconv.config = (columns, joined, None)
        self.pooling.linear1.config, self.pooling.linear2.config = (joined, None, None), (None, joined, None)
        self.bnpool.config, self.linear.config = both, (both, None)

    def clone(self):
        """Return the active network, of plain layers."""
        network = copy.deepcopy(self)
        for name, module in list(network.named_modules()):
            if isinstance(module, DynamicConv1d | DynamicLinear | DynamicBatchNorm1d):
                parent, _, child = name.rpartition(".")
                setattr(network.get_submodule(parent), child, module.clone())
        network.blocks = network.blocks[: network.depth]
        return network

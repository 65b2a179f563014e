"""AclNet the straightforward way: the paper's two tables layer by layer, max_pool1d, a 1x1 convolution before the average."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Standard(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, two_d: bool = True) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if two_d else (nn.Conv1d, nn.BatchNorm1d)
        self.conv = conv(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.batch = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.batch(self.conv(x)))


class Separable(nn.Module):
    """The same with a depthwise and a 1x1 convolution, both normalised and rectified."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, two_d: bool = True) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if two_d else (nn.Conv1d, nn.BatchNorm1d)
        self.depthwise = conv(inputs, inputs, kernel, stride=stride, padding=kernel // 2, groups=inputs, bias=False)
        self.batch1 = norm(inputs)
        self.pointwise = conv(inputs, outputs, 1, bias=False)
        self.batch2 = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.batch1(self.depthwise(x)))
        return F.relu(self.batch2(self.pointwise(x)))


class PlainAclNet(nn.Module):
    """Layers conv1 to conv12."""

    def __init__(
        self,
        classes: int = 50,
        width: float = 1.0,
        separable: bool = False,
        c1: int = 16,
        s1: int = 7,
        s2: int = 3,
        frame: int = 441,
        first_pool: bool = False,
    ) -> None:
        super().__init__()
        block = Separable if separable else Standard
        w = [int(channels * width) for channels in (32, 64, 64, 128, 128, 256, 256, 512, 512)]
        self.conv1 = Standard(1, c1, 9, s1, two_d=False)
        self.conv2 = block(c1, 64, 5, s2, two_d=False)
        self.maxpool = nn.MaxPool1d(round(frame / (s1 * s2)))
        self.first_pool = first_pool
        self.conv3 = Standard(1, w[0], 3)
        self.conv4 = block(w[0], w[1], 3)
        self.conv5 = block(w[1], w[2], 3)
        self.conv6 = block(w[2], w[3], 3)
        self.conv7 = block(w[3], w[4], 3)
        self.conv8 = block(w[4], w[5], 3)
        self.conv9 = block(w[5], w[6], 3)
        self.conv10 = block(w[6], w[7], 3)
        self.conv11 = block(w[7], w[8], 3)
        self.dropout = nn.Dropout(0.2)
        self.conv12 = nn.Conv2d(w[8], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv2(self.conv1(x)))
        x = torch.unsqueeze(x, 1)
        x = self.conv3(x)
        if self.first_pool:
            x = F.max_pool2d(x, 2)
        x = F.max_pool2d(self.conv5(self.conv4(x)), 2)
        x = F.max_pool2d(self.conv7(self.conv6(x)), 2)
        x = F.max_pool2d(self.conv9(self.conv8(x)), 2)
        x = F.max_pool2d(self.conv11(self.conv10(x)), 2)
        x = self.conv12(self.dropout(x))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

"""ACDNet the straightforward way: one list of layers for the filter bank, one for the picture, a softmax at the end as published."""

import torch
from torch import Tensor, nn

DEFAULT = [8, 64, 32, 64, 64, 128, 128, 256, 256, 512, 512]


def halvings(size: int) -> list[int]:
    """Five poolings by two while there are two or more, and a sixth over all that is left."""
    found = []
    for step in range(1, 7):
        if size < 2:
            found.append(1)
        elif step == 6:
            found.append(size)
        else:
            found.append(2)
            size = size // 2
    return found


class ACDNet(nn.Module):
    def __init__(self, input_length: int = 30225, n_class: int = 50, sr: int = 20000, ch_conf: list[int] | None = None) -> None:
        super().__init__()
        ch = ch_conf or [*DEFAULT, n_class]

        def conv(inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1), padding: int = 0) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        step = int((sr / 1000) * 10 / 4)
        self.sfeb = nn.Sequential(*conv(1, ch[0], (1, 9), (1, 2)), *conv(ch[0], ch[1], (1, 5), (1, 2)), nn.MaxPool2d((1, step)))
        width = int(((input_length / sr) * 1000) / 10)
        pools = list(zip(halvings(ch[1]), halvings(width), strict=True))
        layers: list[nn.Module] = [*conv(1, ch[2], (3, 3), padding=1)]
        if pools[0] != (1, 1):
            layers.append(nn.MaxPool2d(pools[0]))
        for number, first in enumerate([3, 5, 7, 9], start=1):
            layers += conv(ch[first - 1], ch[first], (3, 3), padding=1)
            layers += conv(ch[first], ch[first + 1], (3, 3), padding=1)
            if pools[number] != (1, 1):
                layers.append(nn.MaxPool2d(pools[number]))
        layers.append(nn.Dropout(0.2))
        layers += conv(ch[10], ch[11], (1, 1))
        if pools[5] != (1, 1):
            layers.append(nn.AvgPool2d(pools[5]))
        layers += [nn.Flatten(), nn.Linear(ch[11], n_class)]
        self.tfeb = nn.Sequential(*layers)
        self.output = nn.Sequential(nn.Softmax(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """From ``(B, 1, 1, T)`` to confidences."""
        x = self.sfeb(x)
        x = x.permute((0, 2, 1, 3))
        return self.output(self.tfeb(x))


def crops(sound: Tensor, input_length: int, n_crops: int) -> Tensor:
    """Cut a padded sound of one channel at even steps."""
    padded = torch.cat([torch.zeros(input_length // 2), sound, torch.zeros(input_length // 2)])
    stride = (len(padded) - input_length) // (n_crops - 1)
    return torch.stack([padded[stride * i : stride * i + input_length] for i in range(n_crops)])

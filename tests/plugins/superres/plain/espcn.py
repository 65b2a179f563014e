"""ESPCN the straightforward way: the enlargement by reshaping and permuting."""

from torch import Tensor, nn


class PlainESPCN(nn.Module):
    """The paper's Section 3.1 for one colour."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv1 = nn.Conv2d(1, 64, 5, padding=2)
        self.conv2 = nn.Conv2d(64, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 1, H, W)`` to ``(B, 1, scale * H, scale * W)``."""
        maps = self.conv3(self.conv2(self.conv1(x).tanh()).tanh())
        batch, _, height, width = maps.shape
        grid = maps.reshape(batch, self.scale, self.scale, height, width).permute(0, 3, 1, 4, 2)
        return grid.reshape(batch, 1, height * self.scale, width * self.scale)

"""WaveMsNet the straightforward way: every layer of the official code by its name, the log-mel spectrogram by librosa."""

import librosa
import numpy as np
import torch
from torch import Tensor, nn


class PlainWaveMsNet(nn.Module):
    """Phase 1 has one channel in the picture, phase 2 the log-mel spectrogram as a second one."""

    def __init__(
        self, phase: int = 1, filters: int = 32, widths: tuple[int, ...] = (64, 128, 256, 256), hidden: int = 4096, classes: int = 50
    ) -> None:
        super().__init__()
        self.phase = phase
        self.bands = 3 * filters
        self.conv1_1 = nn.Conv1d(1, filters, kernel_size=11, stride=1, padding=5)
        self.conv1_2 = nn.Conv1d(1, filters, kernel_size=51, stride=5, padding=25)
        self.conv1_3 = nn.Conv1d(1, filters, kernel_size=101, stride=10, padding=50)
        self.bn1_1 = nn.BatchNorm1d(filters)
        self.bn1_2 = nn.BatchNorm1d(filters)
        self.bn1_3 = nn.BatchNorm1d(filters)
        self.conv2_1 = nn.Conv1d(filters, filters, kernel_size=11, stride=1, padding=5)
        self.conv2_2 = nn.Conv1d(filters, filters, kernel_size=11, stride=1, padding=5)
        self.conv2_3 = nn.Conv1d(filters, filters, kernel_size=11, stride=1, padding=5)
        self.bn2_1 = nn.BatchNorm1d(filters)
        self.bn2_2 = nn.BatchNorm1d(filters)
        self.bn2_3 = nn.BatchNorm1d(filters)
        self.pool2_1 = nn.MaxPool1d(kernel_size=150, stride=150)
        self.pool2_2 = nn.MaxPool1d(kernel_size=30, stride=30)
        self.pool2_3 = nn.MaxPool1d(kernel_size=15, stride=15)
        self.conv3 = nn.Conv2d(phase, widths[0], kernel_size=3, padding=1)
        self.bn3 = nn.BatchNorm2d(widths[0])
        self.pool3 = nn.MaxPool2d(kernel_size=(3, 11), stride=(3, 11))
        self.conv4 = nn.Conv2d(widths[0], widths[1], kernel_size=3, padding=1)
        self.bn4 = nn.BatchNorm2d(widths[1])
        self.pool4 = nn.MaxPool2d(kernel_size=2, stride=2)
        self.conv5 = nn.Conv2d(widths[1], widths[2], kernel_size=3, padding=1)
        self.bn5 = nn.BatchNorm2d(widths[2])
        self.pool5 = nn.MaxPool2d(kernel_size=2, stride=2)
        self.conv6 = nn.Conv2d(widths[2], widths[3], kernel_size=3, padding=1)
        self.bn6 = nn.BatchNorm2d(widths[3])
        self.pool6 = nn.MaxPool2d(kernel_size=2, stride=2)
        self.fc1 = nn.Linear(widths[3] * (filters // 8) * 5, hidden)
        self.fc2 = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(p=0.5)
        self.relu = nn.ReLU()

    def logmel(self, x: Tensor) -> Tensor:
        """Decibels of bands at 44.1 kHz, at most 80 below the loudest."""
        maps = []
        for wave in x[:, 0].numpy():
            energies = librosa.feature.melspectrogram(y=wave, sr=44100, n_fft=2048, hop_length=150, n_mels=self.bands, pad_mode="reflect")
            maps.append(librosa.power_to_db(energies, ref=1.0, amin=1e-10, top_db=80.0)[:, :441])
        return torch.from_numpy(np.stack(maps))[:, None].to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of waveforms (B, 1, 66150)."""
        x1 = self.relu(self.bn1_1(self.conv1_1(x)))
        x2 = self.relu(self.bn1_2(self.conv1_2(x)))
        x3 = self.relu(self.bn1_3(self.conv1_3(x)))
        x1 = self.relu(self.bn2_1(self.conv2_1(x1)))
        x2 = self.relu(self.bn2_2(self.conv2_2(x2)))
        x3 = self.relu(self.bn2_3(self.conv2_3(x3)))
        x1 = torch.unsqueeze(self.pool2_1(x1), 1)
        x2 = torch.unsqueeze(self.pool2_2(x2), 1)
        x3 = torch.unsqueeze(self.pool2_3(x3), 1)
        h = torch.cat((x1, x2, x3), dim=2)
        if self.phase == 2:
            h = torch.cat((h, self.logmel(x)), dim=1)
        h = self.pool3(self.relu(self.bn3(self.conv3(h))))
        h = self.pool4(self.relu(self.bn4(self.conv4(h))))
        h = self.pool5(self.relu(self.bn5(self.conv5(h))))
        h = self.pool6(self.relu(self.bn6(self.conv6(h))))
        h = h.view(h.size(0), -1)
        h = self.dropout(self.relu(self.fc1(h)))
        return self.fc2(h)

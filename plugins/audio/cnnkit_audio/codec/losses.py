"""What a codec learns from."""

from __future__ import annotations

from torch import Tensor, nn

from cnnkit_audio.codec.config import CodecLossConfig
from cnnkit_audio.codec.spectra import MelDistance, power_law
from cnnkit_audio.models._codec import Coded


class CodecLoss(nn.Module):
    """Distances of the spectra, and of the codes from what they stand for.

    Args:
        cfg: Weights.
        sample_rate: Samples per second.
    """

    def __init__(self, cfg: CodecLossConfig, sample_rate: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.distance = MelDistance(sample_rate)

    def forward(self, coded: Coded, wave: Tensor) -> dict[str, Tensor]:
        """Return the weighted losses by name.

        Args:
            coded: What the network made of a batch.
            wave: The batch, ``(B, 1, T)``.
        """
        cfg, losses = self.cfg, {}
        if cfg.spectrum:
            error = power_law(coded.spectrum, cfg.power) - power_law(coded.target, cfg.power)
            losses["spectrum"] = cfg.spectrum * error.square().mean()
        if cfg.mel:
            mel = self.distance(coded.wave, wave)
            losses["mel"] = cfg.mel * (mel.magnitude + mel.log).mean()
        losses["commitment"] = cfg.commitment * coded.commitment.mean()
        losses["codebook"] = cfg.codebook * coded.codebook.mean()
        return losses

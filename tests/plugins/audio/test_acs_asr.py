"""The recogniser that picks its microphones: equal to the straightforward version, blind to order, gain, padding and company."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_near, randomise
from cnnkit_audio.models.acs_asr import ACSASR
from cnnkit_audio.models.acs_asr_blocks import Conformer, lengths_to_mask
from cnnkit_audio.models.acs_asr_channels import CrossChannelAttention, Selection
from torch import Tensor, nn
from torchaudio import models

pytestmark = pytest.mark.paper("chime7-acs-asr")

SIZES: dict[str, Any] = {
    "num_classes": 9,
    "sample_rate": 4000,
    "n_fft": 64,
    "win_length": 48,
    "hop": 32,
    "n_mels": 10,
    "subsampling": 4,
    "width": 16,
    "heads": 2,
    "hidden": 24,
    "kernel": 5,
    "keep": (3, 2),
    "around": 2,
    "channel_layers": 2,
    "layers": 2,
    "decoder_layers": 1,
    "fusion_width": 3,
}


def network(**changes: Any) -> ACSASR:
    """A small network with weights that leave nothing at 0 or 1."""
    torch.manual_seed(0)
    return randomise(ACSASR(**{**SIZES, **changes}))


def sound(microphones: int, samples: int, *, batch: int = 1, seed: int = 0) -> Tensor:
    """Noise in microphones of different colour and level, ``(batch, microphones, samples)``."""
    noise = torch.randn(batch, microphones, samples, generator=torch.Generator().manual_seed(seed))
    levels = torch.linspace(0.05, 0.6, microphones)[:, None]
    return 0.3 * (levels * noise + (1 - levels) * noise.roll(1, -1)) * levels


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("microphones", "samples"), [(5, 3000), (2, 1777)])
def test_equals_the_straightforward_version(
    plain: Callable[[str], ModuleType], dtype: torch.dtype, tolerance: float, microphones: int, samples: int
) -> None:
    """Same weights, one recording: CTC scores, the decoder's scores, and the microphones; torchaudio's Conformer layers inside."""
    ours = network().to(dtype)
    theirs = plain("acs_asr").Recogniser(**SIZES).to(dtype).eval()
    theirs.load_state_dict(ours.state_dict())
    # Filters and windows that both make in single precision would differ in double.
    ours.front.window.copy_(nn.functional.pad(torch.hann_window(48, dtype=dtype), (8, 8)))
    x, tokens = sound(microphones, samples).to(dtype), torch.tensor([1, 4, 2, 7])
    with torch.no_grad():
        heard = ours.hear(x)
        ctc, attention, kept = theirs(x[0], tokens)
        assert_near(heard.ctc[0, heard.frames[0]], ctc, tolerance)
        assert_near(ours.attend(heard, tokens[None])[0], attention, tolerance)
    order = heard.second.weights[0].argsort(descending=True)[: len(kept)].tolist()
    assert order == kept and heard.second.kept[0].nonzero()[:, 0].tolist() == sorted(kept)


def test_conformer_equals_torchaudio_s() -> None:
    """Same keys; without padding the same output, with padding ours is that of each recording alone."""
    theirs = randomise(models.Conformer(16, 2, 24, 2, 5))
    ours = Conformer(16, 2, 24, 2, 5, norm="batch").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(0))
    full = torch.full((2,), 11)
    with torch.no_grad():
        assert_near(ours(x, lengths_to_mask(full, 11)), theirs(x, full)[0])
        alone = ours(x[1:, :7], lengths_to_mask(torch.tensor([7]), 7))
        padded = ours(x, lengths_to_mask(torch.tensor([11, 7]), 11))
    assert_near(padded[1:, :7], alone, 1e-6)


def test_order_of_microphones_does_not_matter() -> None:
    """The same microphones are kept under every order, exactly; what is recognised is the same to rounding."""
    model, x = network(), sound(7, 2500, batch=3)
    with torch.no_grad():
        heard = model.hear(x)
        for seed in range(5):
            order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
            other = model.hear(x[:, order])
            for one, two in ((heard.first, other.first), (heard.second, other.second)):
                assert torch.equal(one.kept[:, order], two.kept) and torch.equal(one.ranks[:, order], two.ranks)
            assert_near(other.ctc, heard.ctc)


def test_padded_microphones_change_nothing() -> None:
    """Whether they are silent, or hold anything at all under a mask."""
    model, x = network(), sound(3, 2500, batch=2)
    with torch.no_grad():
        alone = model(x)
        silent = model(torch.cat((x, torch.zeros(2, 4, 2500)), 1))
        loud = torch.cat((x, 5 * sound(4, 2500, batch=2, seed=1)), 1)
        masked = model(loud, torch.tensor([[True] * 3 + [False] * 4] * 2))
    assert_near(silent, alone, 1e-6)
    assert_near(masked, alone, 1e-6)


def test_company_in_a_batch_changes_nothing() -> None:
    """A short recording with few microphones is recognised as it is alone, beside a long one with many; frames after it are blank."""
    model, long, short = network(), sound(6, 4000), sound(2, 1300, seed=3)
    x = torch.zeros(2, 6, 4000)
    x[0], x[1, :2, :1300] = long[0], short[0]
    channels = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    with torch.no_grad():
        together = model.hear(x, channels, torch.tensor([4000, 1300]))
        alone = model.hear(short)
    count = int(alone.frames.sum())
    assert int(together.frames[1].sum()) == count
    assert_near(together.ctc[1, :count], alone.ctc[0, :count], 1e-6)
    assert together.ctc[1, count:].argmax(-1).eq(model.blank).all()


def test_gain_of_a_microphone_does_not_matter() -> None:
    """Log-mel energies lose their mean, phases their length."""
    model, x = network(), sound(4, 2500)
    with torch.no_grad():
        assert_near(model(x * torch.tensor([0.3, 2.0, 1.0, 0.7])[:, None]), model(x), 1e-3)


@pytest.mark.parametrize("microphones", [1, 2, 12, 20])
def test_any_number_of_microphones(microphones: int) -> None:
    """One set of weights; at most ``keep`` are listened to, and as many weights sum to one."""
    model = network()
    with torch.no_grad():
        heard = model.hear(sound(microphones, 2000))
    assert torch.isfinite(heard.ctc).all()
    for selection, keep in zip((heard.first, heard.second), SIZES["keep"], strict=True):
        assert int(selection.kept.sum()) == min(keep, microphones)
        assert float(selection.weights.sum()) == pytest.approx(1, abs=1e-6)
        assert ((selection.weights > 0) == selection.kept).all()
    assert (heard.first.kept | ~heard.second.kept).all()


def test_selection_is_soft_in_training_and_hard_in_evaluation() -> None:
    """Hand case: softmax over what exists, then over the best two of it; equal scores go by number."""
    scores = torch.tensor([[0.0, 2.0, 1.0, 9.0, 1.0]], dtype=torch.float64)
    there = torch.tensor([[True, True, True, False, True]])
    soft, hard = (Selection.of(scores, there, 2, hard=which) for which in (False, True))
    parts = torch.tensor([1.0, torch.e**2, torch.e, 0.0, torch.e], dtype=torch.float64)
    torch.testing.assert_close(soft.weights[0], parts / parts.sum())
    parts = parts * torch.tensor([0, 1, 1, 0, 0])
    torch.testing.assert_close(hard.weights[0], parts / parts.sum())
    assert hard.ranks.tolist() == [[3, 0, 1, 4, 2]] and hard.kept.tolist() == [[False, True, True, False, False]]
    taken = hard.take(torch.arange(5.0)[None, :, None], 3)
    assert taken[0, :, 0].tolist() == [1.0, 2.0, 0.0]


def test_cross_channel_attention_sees_two_frames_on_each_side() -> None:
    """A change at one frame of one microphone reaches all microphones two frames around it and nothing else; weight 0 reaches nobody."""
    torch.manual_seed(0)
    layer = CrossChannelAttention(8, 2, 2)
    x, spatial = torch.randn(1, 3, 12, 8), torch.zeros(1, 3, 12, 8)
    frames, other = torch.ones(1, 12, dtype=torch.bool), torch.zeros(1, 3, 12, 8)
    other[0, 1, 6] = torch.randn(8)
    for weights, reached in (([0.5, 0.2, 0.3], {4, 5, 6, 7, 8}), ([0.5, 0.0, 0.5], set())):
        share = torch.tensor([weights])
        with torch.no_grad():
            changed = (layer(x + other, spatial, frames, share) - layer(x, spatial, frames, share)).abs().amax(-1)[0] > 1e-6
        for microphone in (0, 2):
            assert set(changed[microphone].nonzero()[:, 0].tolist()) == reached


def test_phase_differences_of_a_delayed_tone() -> None:
    """Two microphones, the second a quarter of a period late: a quarter turn between their phases, halved about the common one."""
    model = network(n_fft=64, win_length=64)
    tone = torch.sin(2 * torch.pi * 500 * torch.arange(2000) / 4000)
    x = torch.stack((tone, tone.roll(2)))[None]
    phase = model.front.phase(model.front.spectrum(x), torch.tensor([[0.5, 0.5]]))[0, :, 20]
    bin_, bins = 500 * 64 // 4000, 33
    angle = torch.atan2(phase[:, bins + bin_], phase[:, bin_])
    torch.testing.assert_close(angle, torch.tensor([torch.pi / 4, -torch.pi / 4]), atol=2e-3, rtol=0)
    alone = model.front.phase(model.front.spectrum(x), torch.tensor([[1.0, 0.0]]))[0, :, 20]
    torch.testing.assert_close(torch.atan2(alone[:, bins + bin_], alone[:, bin_]), torch.tensor([0.0, -torch.pi / 2]), atol=2e-3, rtol=0)


def test_decoder_does_not_look_ahead() -> None:
    """What comes later changes no earlier score, and frames after the end do not count."""
    model = network()
    with torch.no_grad():
        heard = model.hear(sound(2, 2000))
        one, other = (model.attend(heard, torch.tensor([[1, 3, last]])) for last in (4, 5))
        longer = heard._replace(
            memory=nn.functional.pad(heard.memory, (0, 0, 0, 3), value=9.0), frames=nn.functional.pad(heard.frames, (0, 3))
        )
        torch.testing.assert_close(one[:, :2], other[:, :2])
        torch.testing.assert_close(model.attend(longer, torch.tensor([[1, 3, 4]])), one)
    assert not torch.allclose(one[:, 2], other[:, 2])


def test_silence_is_a_recording() -> None:
    """All microphones silent: no division by nothing."""
    with torch.no_grad():
        assert torch.isfinite(network()(torch.zeros(2, 3, 1000))).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"subsampling": 3}, "accepted: 2 or 4"),
        ({"width": 18, "heads": 4}, "divide"),
        ({"width": 18}, "multiples of 4"),
        ({"kernel": 4}, "odd"),
        ({"keep": (2, 3)}, "fall"),
        ({"num_classes": 2}, "3 or more"),
    ],
)
def test_sizes_that_do_not_go_together(changes: dict[str, Any], words: str) -> None:
    """Are refused with what is accepted."""
    with pytest.raises(ConfigError, match=words):
        create_model("audio/acs_asr", dims=1, **{**SIZES, **changes})

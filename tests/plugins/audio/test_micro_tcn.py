"""micro-TCN against the straightforward version of its code, its receptive fields, and streaming against the whole."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_near, stir
from cnnkit.weights import load_weights
from cnnkit_audio.models._base import Effect
from cnnkit_audio.models.micro_tcn import LSTMEffect, MicroTCN
from torch import nn

pytestmark = pytest.mark.paper("micro-tcn")
SMALL = {"growth": 4, "blocks": 3, "kernel": 5, "channels": 6}
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])


def pair(plain, dtype: torch.dtype, *, causal: bool) -> tuple[MicroTCN, nn.Module]:
    theirs = plain("micro_tcn").MicroTCN(2, blocks=3, kernel=5, growth=4, width=6, causal=causal)
    theirs = stir(theirs).to(dtype).eval()
    ours = MicroTCN(causal=causal, **SMALL).to(dtype).eval()
    load_weights(ours, theirs.state_dict())
    return ours, theirs


@DTYPES
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("samples", [200, 341])
def test_same_weights_same_output(plain, causal: bool, samples: int, dtype: torch.dtype, tolerance: float) -> None:
    """The official keys load as they are, and give what the official structure gives."""
    ours, theirs = pair(plain, dtype, causal=causal)
    x, knobs = torch.rand(2, 1, samples, dtype=dtype) - 0.5, torch.rand(2, 2, dtype=dtype)
    with torch.no_grad():
        assert_near(ours(x, knobs), theirs(x, knobs[:, None]), tolerance)


@DTYPES
def test_recurrent_baseline(plain, dtype: torch.dtype, tolerance: float) -> None:
    """The same for the LSTM."""
    theirs = plain("micro_tcn").Recurrent().to(dtype)
    ours = LSTMEffect().to(dtype)
    load_weights(ours, theirs.state_dict())
    x, knobs = torch.rand(2, 1, 50, dtype=dtype) - 0.5, torch.rand(2, 2, dtype=dtype)
    with torch.no_grad():
        assert_near(ours(x, knobs), theirs(x, knobs[:, None]), tolerance)


@pytest.mark.parametrize(("name", "samples"), [("100", 4445), ("300", 13333), ("1000", 44445)])
def test_receptive_fields_of_the_paper(name: str, samples: int) -> None:
    """Counted, and seen: exactly so many samples change an output."""
    model = create_model(f"audio/micro_tcn_{name}_c", dims=1, channels=2)
    assert isinstance(model, MicroTCN) and model.receptive_field == samples
    stir(model).eval().double()
    x = torch.zeros(1, 1, samples + 2, dtype=torch.float64, requires_grad=True)
    out = model(x, torch.rand(1, 2, dtype=torch.float64))
    assert out.shape[2] == 3
    out[0, 0, 1].backward()
    seen = x.grad[0, 0].nonzero()
    assert seen.min() >= 1 and seen.max() <= samples
    assert int(seen[0]) == 1 and int(seen[-1]) == samples


def test_parameters_of_the_paper() -> None:
    """TCN-300-C: 50,737 by arithmetic."""
    model = create_model("audio/micro_tcn_300_c", dims=1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 50737


def test_the_future_does_not_matter() -> None:
    """A causal network's outputs before a change of the input stay to the bit; of the other one, those before its look-ahead."""
    for causal in (True, False):
        model = stir(MicroTCN(causal=causal, **SMALL)).eval()
        x, knobs = torch.rand(1, 1, 400) - 0.5, torch.rand(1, 2)
        changed = x.clone()
        changed[..., 300:] += 0.3
        with torch.no_grad():
            same = (model(x, knobs) == model(changed, knobs))[0, 0]
        first = int((~same).nonzero()[0]) + model.context - model.lookahead  # As a time of the input.
        assert first == 300 - model.lookahead and (model.lookahead == 0) == causal


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("kind", ["causal", "centred", "lstm"])
def test_streaming_equals_the_whole(kind: str, block: int) -> None:
    """In blocks of any size, with the knobs inside the weights: 1e-5 of the output's scale."""
    torch.manual_seed(0)
    model: Effect = LSTMEffect(hidden=8) if kind == "lstm" else stir(MicroTCN(causal=kind == "causal", **SMALL))
    model.eval()
    x, knobs = torch.rand(1, 1, 500) - 0.5, torch.rand(1, 2)
    with torch.no_grad():
        whole, stream = model(x, knobs), model.stream(knobs)
        pieces = [stream.push(x[..., first : first + block]) for first in range(0, 500, block)]
    assert_near(torch.cat(pieces, dim=2), whole, 1e-5)


def test_a_device_has_knobs() -> None:
    with pytest.raises(ConfigError, match="one name or more"):
        MicroTCN(knobs=())

"""Eight bits: the arithmetic and layers against exact numbers, and the exported C code against the simulation, bit for bit."""

from __future__ import annotations

import re
import shutil
import subprocess
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cnnkit.errors import UsageError
from cnnkit.testing.compare import randomise
from cnnkit_audio.compress.c_export import write_c
from cnnkit_audio.compress.chain import links
from cnnkit_audio.compress.fixed_point import (
    INT32_MAX,
    INT32_MIN,
    divide_by_power,
    doubling_high_product,
    multiply,
    quantise_multiplier,
    rounded_mean,
)
from cnnkit_audio.compress.quantize import Layer, Quantised, Scale, quantise, to_pcm
from cnnkit_audio.compress.tagger import QuantisedTagger
from cnnkit_audio.models.acdnet import MICRO, ACDNet
from torch import nn

pytestmark = pytest.mark.paper("acdnet")

NARROW = (3, 6, 4, 5, 4, 6, 5, 7, 6, 8, 7, 5)
HALF = Fraction(1, 2)
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler here: none of cc, gcc and clang")

MAIN = """
#include <stdio.h>
#include "net.h"

static int16_t samples[NET_INPUT_LENGTH];
static int8_t input[NET_INPUT_LENGTH], logits[NET_OUTPUTS], guard[NET_ARENA_BYTES + 32];

int main(void)
{
    while (fread(samples, 2, NET_INPUT_LENGTH, stdin) == NET_INPUT_LENGTH) {
        int i;

        for (i = 0; i < NET_ARENA_BYTES + 32; i++)
            guard[i] = 99;
        net_quantize(samples, input);
        net_infer(input, logits, guard + 16);
        for (i = 0; i < 16; i++)
            if (guard[i] != 99 || guard[NET_ARENA_BYTES + 16 + i] != 99)
                return 2;
        fwrite(input, 1, NET_INPUT_LENGTH, stdout);
        fwrite(logits, 1, NET_OUTPUTS, stdout);
        fputc(net_best(logits), stdout);
    }
    return 0;
}
"""


def clips(length: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, length, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def lively(**words: Any) -> Any:
    """Return a network of random weights whose normalisations fit its data, so that no rectifier shuts everything off."""
    model: Any = randomise(ACDNet(**words), gain=2.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # The mean over all batches seen.
            module.reset_running_stats()
    with torch.no_grad():
        for _ in range(2):
            model.train()(clips(model.length, 8, seed=3))
    return model.eval()


def run_c(network: Quantised, folder: Path, pcm: np.ndarray, *flags: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compile the exported code as strict C99 without a warning, and return its inputs, logits and choices for 16-bit clips."""
    assert COMPILER is not None
    outputs = network.layers[-1].output[0]
    write_c(network, folder, name="net", labels=[f"label {index}" for index in range(outputs)], sample_rate=20000)
    (folder / "main.c").write_text(MAIN)
    strict = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]
    subprocess.run([COMPILER, *strict, *flags, "-o", "net", "main.c", "net.c"], cwd=folder, check=True, timeout=120)
    done = subprocess.run([folder / "net"], input=pcm.tobytes(), capture_output=True, check=True, timeout=120)
    length = network.layers[0].input[2]
    rows = np.frombuffer(done.stdout, np.int8).reshape(len(pcm), length + outputs + 1)
    return rows[:, :length], rows[:, length:-1], rows[:, -1]


EDGES = [INT32_MIN, INT32_MIN + 1, -(2**30), -3, -2, -1, 0, 1, 2, 3, 2**30 - 1, 2**30, INT32_MAX]


def test_the_arithmetic_is_what_its_definition_says():
    """Against exact fractions: the high product rounds ties up, the division rounds ties away from zero."""
    rng = np.random.default_rng(0)
    values = [*EDGES, *map(int, rng.integers(INT32_MIN, INT32_MAX, 300))]
    for a, b in zip(values, reversed(values), strict=True):
        expected = min(floor(Fraction(a * b, 2**31) + HALF), INT32_MAX)
        assert int(doubling_high_product(np.int64(a), np.int64(b))) == expected
    for x in values:
        for power in (0, 1, 2, 7, 15, 31):
            exact = Fraction(x, 2**power)
            expected = floor(exact + HALF) if x >= 0 else -floor(-exact + HALF)
            assert int(divide_by_power(np.int64(x), np.int64(power))) == expected
    for total in (-9, -8, -7, -1, 0, 1, 7, 8, 9, 10):
        exact = Fraction(total, 4)
        assert int(rounded_mean(np.int64(total), 4)) == (floor(exact + HALF) if total >= 0 else -floor(-exact + HALF))


@pytest.mark.parametrize("factor", [1e-9, 0.00037, 0.25, 0.4999999999, 0.5, 0.75, 1 - 2**-40, 1.0, 1.5, 3.0, 900.25])
def test_a_factor_is_kept_to_31_bits(factor):
    mantissa, exponent = quantise_multiplier(factor)
    assert 2**30 <= mantissa < 2**31
    assert mantissa * 2.0 ** (exponent - 31) == pytest.approx(factor, rel=2**-31)
    for x in (-70001, -5, 0, 3, 12345):
        assert abs(int(multiply(np.int64(x), np.int64(mantissa), np.int64(exponent))) - x * factor) <= 1.0 + abs(x * factor) * 2**-30


def test_factors_that_cannot_be_written():
    assert quantise_multiplier(0.0) == quantise_multiplier(2.0**-40) == (0, 0)
    for factor in (-1.0, float("nan"), float("inf"), 2.0**31):
        with pytest.raises(ValueError, match="31 bits"):
            quantise_multiplier(factor)


def test_a_scale_covers_its_range_and_holds_zero():
    for low, high in ((-1.0, 1.0), (0.0, 6.0), (0.5, 3.0), (-2.0, -0.5), (-0.1, 7.0), (0.0, 0.0)):
        scale = Scale.of(low, high)
        assert -128 <= scale.zero <= 127
        reach = [scale.scale * (q - scale.zero) for q in (-128, 127)]
        assert reach[0] <= min(low, 0) + scale.scale and reach[1] >= max(high, 0) - scale.scale
    with pytest.raises(UsageError, match="not finite"):
        Scale.of(0.0, float("inf"))


def test_a_layer_is_within_one_step_of_exact_arithmetic():
    """Every step of a convolution with padding, stride, rectifier and pooling, against fractions."""
    rng = np.random.default_rng(1)
    layer = random_layer(rng, (3, 6, 7), 4, (3, 2), (2, 1), (1, 1), (1, 2))
    x = rng.integers(-128, 128, (1, *layer.input)).astype(np.int8)
    found = layer(x)[0]
    assert layer.weights is not None
    padded = np.pad(x[0].astype(int) - layer.source.zero, ((0, 0), (1, 1), (1, 1)))
    for o, row, column in np.ndindex(*layer.output):
        best = max(
            int((padded[:, row * 2 : row * 2 + 3, at : at + 2] * layer.weights[o].astype(int)).sum()) for at in (2 * column, 2 * column + 1)
        )
        factor = Fraction(int(layer.mantissas[o])) * Fraction(2) ** (int(layer.exponents[o]) - 31)
        exact = (best + int(layer.bias[o])) * factor + layer.target.zero
        assert abs(int(found[o, row, column]) - min(max(exact, layer.least), 127)) <= 1


def random_layer(rng: Any, shape, out, kernel, stride, padding, pool, *, relu=True, largest=0.02) -> Layer:
    """Return a convolution of random integers; ``largest`` is the largest factor to its output."""
    weights = rng.integers(-127, 128, (out, shape[0], *kernel)).astype(np.int8)
    factors = [quantise_multiplier(float(value)) for value in rng.uniform(largest / 30, largest, out)]
    sides = [(side + 2 * pad - size) // step + 1 for side, pad, size, step in zip(shape[1:], padding, kernel, stride, strict=True)]
    return Layer(
        weights=weights,
        bias=rng.integers(-20000, 20000, out).astype(np.int32),
        mantissas=np.array([mantissa for mantissa, _ in factors], np.int32),
        exponents=np.array([exponent for _, exponent in factors], np.int8),
        stride=stride,
        padding=padding,
        pool=pool,
        source=Scale(0.01, int(rng.integers(-128, 128))),
        target=Scale(0.01, int(rng.integers(-128, 128))),
        relu=relu,
        input=shape,
        output=(out, sides[0] // pool[0], sides[1] // pool[1]),
    )


def test_micro_acdnet_in_integers_is_close_to_itself():
    model = lively(channels=MICRO, num_classes=50)
    x = clips(30225, 4)
    network = quantise(model, [x])
    tagger = QuantisedTagger(network, model)
    with torch.no_grad():
        expected, found = model(x), tagger(x)
    assert np.corrcoef(expected.flatten(), found.flatten())[0, 1] > 0.97
    assert torch.equal(found, tagger.head(tagger.embed(x)))
    assert network.bytes == sum(layer.weights.size + 9 * layer.bias.size for layer in network.layers if layer.weights is not None)
    assert network.arena == 7 * 15109 + 20 * 151


def test_each_layer_in_integers_is_what_it_is_in_real_numbers():
    """Given the same input, to half a step of its output on the average."""
    model = lively(channels=MICRO, num_classes=50)
    x = clips(30225, 4)
    network = quantise(model, [x])
    y, todo = network.from_pcm(to_pcm(x)), iter(links(model))
    for layer in network.layers:
        source = torch.from_numpy(layer.source.scale * (y.reshape(len(y), *layer.input).astype(float) - layer.source.zero)).float()
        y = layer(y)
        if layer.weights is None:
            real = nn.functional.avg_pool2d(source, layer.pool)
        else:
            link = next(todo)
            real = link.layer(source.flatten(1) if isinstance(link.layer, nn.Linear) else source)
            real = real if link.norm is None else link.norm(real)
            real = nn.functional.max_pool2d(real.relu(), link.pool) if link.relu else real
        found = layer.target.scale * (y.reshape(len(y), -1).astype(float) - layer.target.zero)
        assert np.abs(found - real.detach().flatten(1).numpy()).mean() < 0.5 * layer.target.scale


def test_layers_meet_at_one_scale_and_behind_a_rectifier_nothing_is_lost():
    model = lively(channels=NARROW, length=4000, num_classes=3)
    network = quantise(model, [clips(4000, 8)])
    for before, after in zip(network.layers, network.layers[1:], strict=False):
        assert after.source == before.target and int(np.prod(after.input)) == int(np.prod(before.output))
    assert all(layer.target.zero == -128 for layer in network.layers if layer.relu)


def test_a_channel_without_weights_keeps_its_bias():
    """A channel that is all bias would need a bias beyond 32 bits at the scale of its weights."""
    model = lively(channels=NARROW, length=4000, num_classes=3)
    with torch.no_grad():
        model.tfeb[0].weight[1] = 0
        model.tfeb[0].weight[2] *= 1e-12
        model.tfeb[1].bias[1:3] = 0.5
        model.tfeb[1].running_mean[1:3] = 0
    x = clips(4000, 4)
    network, seen = quantise(model, [x]), []
    model.tfeb[2].register_forward_hook(lambda module, args, out: seen.append(out))
    model(x)
    layer = network.layers[2]
    y = layer(network.layers[1](network.layers[0](network.from_pcm(to_pcm(x)))))
    real = layer.target.scale * (y.astype(float) - layer.target.zero)
    assert real[:, 1:3] == pytest.approx(0.5, abs=layer.target.scale)
    assert torch.allclose(seen[0][:, 1], torch.tensor(0.5))


def test_sixteen_bit_samples():
    assert to_pcm(torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0])).tolist() == [-32768, -32768, 0, 16384, 32767]
    model = lively(channels=NARROW, length=4000, num_classes=3)
    network = quantise(model, [0.25 * clips(4000)])
    pcm = np.arange(-32768, 32768, 7, dtype=np.int16)
    real = network.source.scale * (network.from_pcm(pcm).astype(float) - network.source.zero)
    inside = np.abs(pcm / 32768) < 0.24
    assert np.abs(real - pcm / 32768)[inside].max() <= network.source.scale * 0.51
    assert {*network.from_pcm(pcm[[0, -1]]).tolist()} == {-128, 127}


@needs_compiler
@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"channels": MICRO, "length": 30225, "num_classes": 50}, id="micro"),
        pytest.param({"channels": NARROW, "length": 4000, "num_classes": 3}, id="narrow"),
        pytest.param({"channels": (2, 40, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2), "length": 5001, "num_classes": 4}, id="many rows"),
    ],
)
def test_the_c_code_answers_what_the_simulation_does_bit_for_bit(model, tmp_path):
    """Noise at four loudnesses, silence, full scale, and an impulse."""
    network_model = lively(**model)
    length = model["length"]
    x = torch.cat([clips(length, 4) * torch.tensor([1.0, 0.3, 0.03, 0.001])[:, None, None], torch.zeros(3, 1, length)])
    x[5], x[6, 0, length // 2] = 1.0, -1.0
    network, pcm = quantise(network_model, [x[:3]]), to_pcm(x)
    inputs, logits, best = run_c(network, tmp_path, pcm)
    np.testing.assert_array_equal(inputs, network.from_pcm(pcm)[:, 0])
    expected = network(network.from_pcm(pcm))
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(best, expected.argmax(1))
    assert len(np.unique(expected, axis=0)) > 3
    if model["channels"] == MICRO:
        assert (tmp_path / "net.c").stat().st_size + (tmp_path / "net.h").stat().st_size < 500_000
        assert network.bytes < 140_000


@needs_compiler
@pytest.mark.parametrize("seed", range(3))
def test_any_integers_give_the_same_in_c(seed, tmp_path):
    """Random layers with all kinds of strides, paddings and windows, factors above 1, and values that saturate; with sanitizers."""
    rng = np.random.default_rng(seed)
    layers = [random_layer(rng, (1, 1, 203), 3, (1, 5), (1, 2), (0, 0), (1, 3))]
    layers.append(random_layer(rng, (1, 3, 33), 4, (3, 3), (1, 1), (1, 1), (2, 2), relu=bool(seed % 2), largest=(1.0, 40.0, 1e-3)[seed]))
    layers.append(random_layer(rng, layers[-1].output, 5, (1, 2), (1, 3), (0, 1), (1, 1)))
    none, shape = np.zeros(0, np.int32), layers[-1].output
    mean = Layer(None, none, none, none.astype(np.int8), (1, 2), (0, 0), (1, 2), layers[-1].target, layers[-1].target, False, shape,
                 (shape[0], shape[1], shape[2] // 2))  # fmt: skip
    layers.append(mean)
    layers.append(random_layer(rng, (int(np.prod(mean.output)), 1, 1), 6, (1, 1), (1, 1), (0, 0), (1, 1), relu=False, largest=0.01))
    network = Quantised(tuple(layers))
    pcm = rng.integers(-32768, 32768, (20, 1, 203)).astype(np.int16)
    _, logits, _ = run_c(network, tmp_path, pcm, *sanitizers(tmp_path))
    expected = network(network.from_pcm(pcm))
    np.testing.assert_array_equal(logits, expected)
    assert len(np.unique(expected)) > 3


def sanitizers(folder: Path) -> tuple[str, ...]:
    """Return the flags that find undefined behaviour, where the compiler has them."""
    flags = ("-fsanitize=undefined,address", "-fno-sanitize-recover=all")
    (folder / "probe.c").write_text("int main(void) { return 0; }\n")
    assert COMPILER is not None
    probe = subprocess.run([COMPILER, *flags, "-o", "probe", "probe.c"], cwd=folder, capture_output=True, check=False, timeout=60)
    return flags if probe.returncode == 0 else ()


def test_the_c_code_needs_nothing(tmp_path):
    """No library, no memory of its own, no floating point, nothing that can be written to; labels of any letters."""
    model = lively(channels=NARROW, length=4000, num_classes=3)
    labels = ['dog "bark"', "naïve?", "rain\\wind"]
    header, source = write_c(quantise(model, [clips(4000)]), tmp_path, name="net", labels=labels, sample_rate=20000)
    text = source.read_text()
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    assert re.findall(r"#include (.*)", text) == ['"net.h"'] and re.findall(r"#include (.*)", header.read_text()) == ["<stdint.h>"]
    assert not re.search(r"\b(malloc|calloc|free|float|double|static (?!const|int|void|int8_t [a-z_]+\())\b", code)
    strings = [eval_c_string(literal) for literal in re.findall(r'^    (".*"),?$', text, flags=re.MULTILINE)]
    assert strings == labels
    words = ("SAMPLE_RATE 20000", "INPUT_LENGTH 4000", "OUTPUTS 3", f"ARENA_BYTES {quantise(model, [clips(4000)]).arena}")
    assert all(f"NET_{word}\n" in header.read_text() for word in words)


def eval_c_string(literal: str) -> str:
    """Return what a C string literal with octal escapes holds."""
    return re.sub(rb"\\(\d{3})", lambda found: bytes([int(found[1], 8)]), literal[1:-1].encode()).decode()


def test_wrong_names_and_labels_are_refused(tmp_path):
    model = lively(channels=NARROW, length=4000, num_classes=3)
    network = quantise(model, [clips(4000)])
    for name in ("Model", "1st", "a-b", "", "x" * 40):
        with pytest.raises(UsageError, match="no name for C code"):
            write_c(network, tmp_path, name=name, labels=["a", "b", "c"], sample_rate=20000)
    with pytest.raises(UsageError, match="2 labels for 3 outputs"):
        write_c(network, tmp_path, name="net", labels=["a", "b"], sample_rate=20000)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_quantised_is_refused():
    model = lively(channels=NARROW, length=4000, num_classes=3)
    with pytest.raises(UsageError, match="no calibration data"):
        quantise(model, [])
    with pytest.raises(UsageError, match=r"Linear cannot be compressed.*audio/acdnet"):
        quantise(nn.Linear(3, 2), [clips(4000)])
    with pytest.raises(UsageError, match="finite waveforms"):
        quantise(model, [clips(4000) * float("inf")])

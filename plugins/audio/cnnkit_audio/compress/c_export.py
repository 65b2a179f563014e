"""A quantised network as C99: constants and an inference function, without dynamic memory, floating point, or libraries.

Two files are written, ``NAME.h`` and ``NAME.c``. The caller hands over the working memory::

    static int8_t input[NAME_INPUT_LENGTH], logits[NAME_OUTPUTS], arena[NAME_ARENA_BYTES];
    name_quantize(samples, input);      /* 16-bit samples at NAME_SAMPLE_RATE */
    name_infer(input, logits, arena);
    puts(name_labels[name_best(logits)]);

The code's arithmetic is that of :mod:`cnnkit_audio.compress.fixed_point`; a test compares the two bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

import numpy as np
from cnnkit.engine.files import write_text
from cnnkit.errors import UsageError

from cnnkit_audio.compress.fixed_point import INT8_MAX
from cnnkit_audio.compress.quantize import Layer, Quantised

_COLUMNS = 160
TEMPLATES = Path(__file__).parent / "c"


def write_c(network: Quantised, folder: Path, *, name: str, labels: Sequence[str], sample_rate: int) -> tuple[Path, Path]:
    """Write the network as ``NAME.h`` and ``NAME.c`` and return the two paths.

    Args:
        network: The quantised network.
        folder: Where to.
        name: Prefix of all names, a C identifier.
        labels: Names of the sounds in the order of the outputs.
        sample_rate: Samples per second of the input.

    Raises:
        UsageError: If the name is no identifier, or there are not as many labels as outputs.
    """
    check_name(name)
    outputs = network.layers[-1].output[0]
    if len(labels) != outputs:
        raise UsageError(f"{len(labels)} labels for {outputs} outputs; give one for each")
    words = {
        "name": name,
        "NAME": name.upper(),
        "input_length": network.layers[0].input[2],
        "sample_rate": sample_rate,
        "outputs": outputs,
        "arena": network.arena,
        "constants": network.bytes,
        "macs": sum(layer.macs for layer in network.layers),
        "scale": f"{network.target.scale:.9g}f",
        "zero": network.target.zero,
        "input_zero": network.source.zero,
        "pcm_mantissa": network.pcm_factor[0],
        "pcm_exponent": network.pcm_factor[1],
        "count": len(network.layers),
        "arrays": "\n".join(_arrays(index, layer) for index, layer in enumerate(network.layers) if layer.weights is not None),
        "layers": ",\n".join(_row(index, layer) for index, layer in enumerate(network.layers)),
        "labels": ",\n".join(f"    {_string(label)}" for label in labels),
    }
    files = folder / f"{name}.h", folder / f"{name}.c"
    for file, template in zip(files, ("network.h.in", "network.c.in"), strict=True):
        write_text(file, Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(words))
    return files


def check_name(name: str) -> None:
    """Raise :class:`~cnnkit.errors.UsageError` if a name cannot begin the names in C code."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
        raise UsageError(f"{name!r} is no name for C code; accepted: small letters, digits and _, a letter first")


def _arrays(index: int, layer: Layer) -> str:
    assert layer.weights is not None
    return "\n".join(
        (
            _array(f"int8_t w{index}", layer.weights.ravel()),
            _array(f"int32_t b{index}", layer.bias),
            _array(f"int32_t m{index}", layer.mantissas),
            _array(f"int8_t e{index}", layer.exponents),
        )
    )


def _array(declaration: str, values: np.ndarray) -> str:
    return f"static const {declaration}[{values.size}] = {{\n{_wrapped(map(str, values.tolist()))}}};"


def _wrapped(numbers: Iterable[str]) -> str:
    """Join numbers by commas without spaces, in lines of bounded length: the text is most of the file."""
    lines, line = [], ""
    for number in numbers:
        if len(line) + len(number) >= _COLUMNS:
            lines.append(line)
            line = ""
        line += number + ","
    return "\n".join([*lines, line.rstrip(",")])


def _row(index: int, layer: Layer) -> str:
    """Return the descriptor of a layer, in the order of the struct."""
    if layer.weights is None:
        pointers, kernel, padding = ["0"] * 4, layer.pool, (0, 0)
    else:
        pointers = [f"{letter}{index}" for letter in "wbme"]
        kernel, padding = layer.weights.shape[2:], layer.padding
    numbers = (*layer.input, *layer.output, *kernel, *layer.stride, *padding, *layer.pool, layer.source.zero, layer.target.zero)
    return f"    {{{', '.join(pointers)}, {', '.join(map(str, (*numbers, layer.least, INT8_MAX)))}}}"


def _string(label: str) -> str:
    """Return a C string literal; bytes beyond ASCII as octal escapes, which end after three digits whatever follows."""
    safe = set(range(32, 127)) - {*b'"\\?'}
    return '"' + "".join(chr(byte) if byte in safe else f"\\{byte:03o}" for byte in label.encode("utf-8")) + '"'

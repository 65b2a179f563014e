"""Exported programs by way of ONNX."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def through_onnx(program: torch.export.ExportedProgram) -> Callable[..., Tensor]:
    """Return an exported program with one output as a function that ONNX Runtime computes.

    The test that asks is skipped where ONNX is not installed.

    Args:
        program: What ``torch.export.export`` made.

    Returns:
        A function of the program's inputs, tensors in their order.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Not optimized: constant folding is half of the time, and no test is about it.
        torch.onnx.export(program, dynamo=True, verbose=False, optimize=False).save(stream)  # type: ignore[union-attr, arg-type]
    session = onnxruntime.InferenceSession(stream.getvalue(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        (found,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        return torch.from_numpy(found)

    return run

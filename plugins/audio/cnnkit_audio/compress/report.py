"""The report of a compression: a table for people and JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnkit.engine.files import write_json, write_text

from cnnkit_audio.compress.sizes import Size


@dataclass(frozen=True)
class Step:
    """A network on the way.

    Args:
        name: What was done to it.
        size: What it costs.
        figure: How good it is on data that it was not trained on, between 0 and 1.
    """

    name: str
    size: Size
    figure: float


@dataclass(frozen=True)
class Report:
    """What compression did.

    Args:
        steps: From the network that was given to the one of integers, in order, and others to compare with behind it.
        baselines: Figures of trivial methods on the same data, by name.
        metric: Name of the figure.
        clips: How many clips it was measured on.
        arena: Bytes of working memory of the C code.
        c_bytes: Bytes of the written C source.
    """

    steps: Sequence[Step]
    baselines: Mapping[str, float]
    metric: str
    clips: int
    arena: int
    c_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        steps = [
            {"name": step.name, self.metric: step.figure, **dataclasses.asdict(step.size), "sparsity": step.size.sparsity}
            for step in self.steps
        ]
        return {**dataclasses.asdict(self), "steps": steps}

    def markdown(self) -> str:
        """Return the table."""
        first = self.steps[0].size
        head = ("network", self.metric, "parameters", "zeros", "bytes", "smaller by", "multiply-adds", "operations", "fewer by")
        rows = [head, ("---",) + ("---:",) * (len(head) - 1), *(self._row(step, first) for step in self.steps)]
        rows += [(name, f"{figure:.1%}", *("",) * (len(head) - 2)) for name, figure in self.baselines.items()]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        widths = "\n".join(f"* {step.name}: {', '.join(map(str, step.size.widths))}" for step in self.steps)
        return (
            f"# Compression\n\n{table}\n\n"
            f"Measured on {self.clips} clips that training did not see. Operations count pooling and rectifiers as the paper does.\n"
            f"The C source has {self.c_bytes:,} bytes; it works in {self.arena:,} bytes of memory besides input and output.\n\n"
            f"Channels of each convolution:\n\n{widths}\n"
        )

    @staticmethod
    def _row(step: Step, first: Size) -> tuple[str, ...]:
        size = step.size
        return (
            step.name,
            f"{step.figure:.1%}",
            f"{size.parameters:,}",
            f"{size.sparsity:.1%}",
            f"{size.bytes:,}",
            f"{1 - size.bytes / first.bytes:.2%}",
            f"{size.macs:,}",
            f"{size.operations:,}",
            f"{1 - size.operations / first.operations:.2%}",
        )

    def write(self, folder: Path) -> list[Path]:
        """Write ``report.md`` and ``report.json`` and return the paths."""
        return [write_text(folder / "report.md", self.markdown()), write_json(folder / "report.json", self.to_json())]

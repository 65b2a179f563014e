"""Write the tables of layers and backbones into ``core/README.md``, between their marks, from the indexes.

Type ``python tools/core_readme.py`` after ``python tools/index.py``; with ``--check`` it only compares.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cnnkit.backbones import family_module, list_models, load_family, model_entry
from cnnkit.catalogue import layers
from cnnkit.registry import Entry

README = Path(__file__).resolve().parents[1] / "core" / "README.md"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    return (
        "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))
        .replace("| --- ", "|---")
        .replace("--- |", "---|")
    )


def source(text: str, module: str) -> str:
    """Return a word that links to the file of a module."""
    return f"[{text}]({module.replace('.', '/')}.py)"


def dims_of(entries: Sequence[Entry]) -> str:
    """Return the dimensions that all entries support."""
    return " ".join(str(dims) for dims in (1, 2, 3) if all(dims in entry.dims for entry in entries))


def layers_table() -> str:
    """Return one row for each layer that stands for a paper."""
    rows = [
        [source(f"`{name.partition('/')[2]}`", entry.target.partition(":")[0]), entry.summary, dims_of([entry])]
        for name, entry in layers().items()
    ]
    return table(["layer", "what", "dims"], rows)


def backbones_table() -> str:
    """Return one row for each family."""
    rows = []
    for family in sorted({model_entry(name).family for name in list_models()} - {""}):
        names = sorted(list_models(family=family), key=lambda name: model_entry(name).params or 0)
        entries = [model_entry(name) for name in names]
        shown = f"`{names[0]}`" if len(names) == 1 else f"{len(names)}, `{names[0]}` to `{names[-1]}`"
        least, most = (f"{(entry.params or 0) / 1e6:.3g}" for entry in (entries[0], entries[-1]))
        understood = dict.fromkeys(layout for entry in entries for layout in entry.layouts)
        rows.append(
            [
                source(family, family_module(family)),
                load_family(family).summary,
                shown,
                least if least == most else f"{least} to {most}",
                dims_of(entries),
                ", ".join(understood) or "ours alone",
            ]
        )
    return table(["family", "what", "variants", "parameters (M)", "dims", "weights of"], rows)


def text(before: str) -> str:
    """Return the README with both tables anew.

    Raises:
        ValueError: If a mark is missing.
    """
    for mark, make in {"layers": layers_table, "backbones": backbones_table}.items():
        pattern = rf"(<!-- {mark} -->\n).*?(\n<!-- end of {mark} -->)"
        before, count = re.subn(pattern, lambda match, make=make: match[1] + make() + match[2], before, flags=re.S)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{README.name} lacks the marks '<!-- {mark} -->' and '<!-- end of {mark} -->', each on its line")
    return before


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit status 1 if the tables are stale")
    args = parser.parse_args(argv)
    before = README.read_text(encoding="utf-8")
    after = text(before)
    if after == before:
        return 0
    if args.check:
        print("core/README.md is stale; run: python tools/core_readme.py", file=sys.stderr)
        return 1
    README.write_text(after, encoding="utf-8")
    print("wrote core/README.md", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

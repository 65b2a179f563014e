"""``cnnkit doctor``: check the installation and every plugin."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from dataclasses import dataclass
from typing import Any

import click

from cnnkit import plugin as plugins
from cnnkit.plugin import Broken, Plugin
from cnnkit.versions import version_of

LIBRARIES = ("torch", "numpy", "safetensors", "pydantic", "lightning", "onnxruntime")


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    what: str
    good: bool
    text: str


@click.command()
@click.option("--deep", is_flag=True, help="Also import every plugin and predict its example batch.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(deep: bool, as_json: bool) -> int:
    """Check the installation and every plugin; exit status 1 if something is wrong."""
    checks = [*_machine(), *_plugins()]
    if deep:
        checks += [_deep(item) for item in plugins.discover().values() if isinstance(item, Plugin) and not item.missing()]
    if as_json:
        import json

        click.echo(json.dumps([vars(check) for check in checks], indent=1))
    else:
        width = max(len(check.what) for check in checks)
        for check in checks:
            click.echo(f"{'ok   ' if check.good else 'WRONG'}  {check.what:<{width}}  {check.text}")
    return 0 if all(check.good for check in checks) else 1


def _machine() -> list[Check]:
    rows = [Check("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}")]
    optional = {"lightning": "only for training: pip install 'cnnkit[train]'", "onnxruntime": "only for ONNX: pip install 'cnnkit[onnx]'"}
    for name in LIBRARIES:
        version = version_of(name)
        missing = version == "not installed"
        rows.append(Check(name, not missing or name in optional, f"not installed ({optional.get(name, 'needed')})" if missing else version))
    torch = version_of("torch")
    if torch != "not installed":
        rows.append(_torch_version(torch))
    return rows


def _torch_version(version: str) -> Check:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    safe = numbers is not None and (int(numbers[1]), int(numbers[2])) >= (2, 10)
    return Check("safe loading", safe, "torch >= 2.10" if safe else f"torch {version}: weights_only is not safe before 2.10; upgrade torch")


def _plugins() -> list[Check]:
    rows = []
    for name, item in plugins.discover().items():
        if isinstance(item, Broken):
            rows.append(Check(f"plugin {name}", False, f"{item.reason} ({item.source})" if item.source else item.reason))
        elif missing := item.missing():
            rows.append(Check(f"plugin {name}", False, f"missing: {', '.join(missing)}; type: pip install cnnkit cnnkit-{name}"))
        else:
            rows.append(
                Check(f"plugin {name}", True, f"{version_of(f'cnnkit-{name}')}: {', '.join(_libraries(name)) or 'libraries found'}")
            )
    return rows or [Check("plugins", True, "none installed; for example: pip install cnnkit cnnkit-medseg")]


def _libraries(name: str) -> list[str]:
    """Return the plugin's libraries with their versions."""
    try:
        wanted = importlib.metadata.requires(f"cnnkit-{name}") or []
    except importlib.metadata.PackageNotFoundError:
        return []

    names = [re.split(r"[^A-Za-z0-9_.-]", text)[0] for text in wanted if "extra ==" not in text]
    return [f"{item} {version_of(item)}" for item in names if item != "cnnkit"]


def _deep(item: Plugin) -> Check:
    what = f"plugin {item.name}, example batch"
    if not item.checkpoint:
        return Check(what, True, "not tried: the plugin ships no checkpoint")
    try:
        predictions = _predict_example(item)
    except Exception as error:  # Whatever is wrong with a plugin is what the doctor is asked to say.
        return Check(what, False, f"{type(error).__name__}: {error}")
    return Check(what, predictions > 0, f"{predictions} prediction(s)")


def _predict_example(item: Plugin) -> int:
    import torch

    from cnnkit.api import find_checkpoint
    from cnnkit.engine.load import load

    loaded: Any = load(find_checkpoint(item), plugin=item)
    with torch.no_grad():
        return sum(len(loaded.task.predict(loaded.model, batch)) for batch in loaded.task.loader("example"))

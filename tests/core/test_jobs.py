"""A task of several jobs is an instance of the job's class."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from cnnkit.backbones import model_entry
from cnnkit.errors import ConfigError
from cnnkit.jobs import ByJob


def experiment(name: str, **args: object) -> SimpleNamespace:
    return SimpleNamespace(network=SimpleNamespace(name=name, args=args))


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> type[ByJob]:
    """A task with one job, which is that of ResNets."""
    kind = model_entry("resnet18").load()
    monkeypatch.setattr(kind, "job", "seeing", raising=False)

    class Work(ByJob):
        takes = "pictures"
        jobs = {"seeing": "jobs_of_this_test:Seeing"}

    class Seeing(Work):
        def network_args(self):
            return {"num_classes": 7}

    Work.kind = kind
    module = ModuleType("jobs_of_this_test")
    module.Seeing = Seeing
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Work


def test_the_network_decides(task: type[ByJob]) -> None:
    made = task(experiment("resnet18", widths=(4, 5, 6, 7)))
    assert type(made).__name__ == "Seeing" and isinstance(made, task)
    assert made.model().num_classes == 7
    assert {parameter.device.type for parameter in made.shape.parameters()} == {"meta"}
    assert type(type(made)(made.cfg)) is type(made)


def test_another_network_is_refused(task: type[ByJob]) -> None:
    with pytest.raises(ConfigError, match=r"network\.name=vgg11 does not take pictures"):
        task(experiment("vgg11"))

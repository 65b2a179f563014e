"""A plugin for the tests of the command line and of batches: it multiplies the numbers in text files."""

from cnnkit.plugin import Plugin
from cnnkit.registry import Entry

PLUGIN = Plugin(
    name="toy",
    api=1,
    summary="Multiply the numbers in text files.",
    task="cnnkit_toy.task:Toy",
    run="cnnkit_toy.args:Run",
    requires=("torch",),
    models={"toy/line": Entry("torch.nn:Linear", summary="A straight line.")},
    commands={"hello": "cnnkit_toy.args:hello"},
)

"""The frame of networks that are one chain of modules: some of them make the levels of the pyramid.

Plain networks (VGG, SimpleNet, All-CNN) are chains of layers, the Inception networks chains of blocks. A family lists the names of
its modules in the order of their use; the frame applies them, collects the levels, and drops what nobody reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from cnnkit.backbones._base import Backbone


class ChainNet(Backbone):
    """A backbone whose features come from a chain of modules.

    A derived class sets ``chain``, the dotted names of the modules in order, and a ``feature_info`` whose modules are in it,
    the last of the chain among them. With checkpointing, a block (a module of modules) is recomputed by itself, and layers that
    follow one another together.
    """

    chain: Sequence[str]

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of every level in ``feature_info``, from fine to coarse."""
        self.check_size(x)
        levels, start = [], 0
        for level in self.feature_info:
            end = self.chain.index(level["module"]) + 1
            modules = [self.get_submodule(name) for name in self.chain[start:end]]
            if self.grad_checkpointing and self.training:
                x = self.run_blocks(_as_blocks(modules), x)
            else:
                for module in modules:
                    x = module(x)
            levels.append(x)
            start = end
        return levels

    def drop_levels(self, after: int) -> None:
        """Remove the part of the chain after the module that makes level ``after``."""
        for name in self.chain[self.chain.index(self.feature_info[after]["module"]) + 1 :]:
            self.set_submodule(name, nn.Identity())


def _as_blocks(modules: Sequence[nn.Module]) -> nn.Sequential:
    """Return modules as a sequence of blocks: neighbouring layers become one, and a sequence of blocks becomes its blocks."""
    blocks: list[nn.Module] = []
    for is_layer, group in itertools.groupby(modules, lambda module: not any(True for _ in module.children())):
        if is_layer:
            blocks.append(nn.Sequential(*group))
            continue
        for module in group:
            blocks.extend(module if isinstance(module, nn.Sequential) else [module])
    return nn.Sequential(*blocks)

"""Building blocks that work for 1, 2 and 3 spatial dimensions."""

from cnnkit.layers.act import get_act
from cnnkit.layers.conv import ConvNormAct, same_padding
from cnnkit.layers.drop import DropPath, drop_path, drop_path_rates
from cnnkit.layers.nd import resize
from cnnkit.layers.norm import LayerNormNd, get_norm
from cnnkit.layers.pool import BlurPool, GlobalPool, global_pool
from cnnkit.layers.resample import Interpolate, TransposedConv, get_upsample
from cnnkit.layers.squeeze_excite import SqueezeExcite

__all__ = [
    "BlurPool",
    "ConvNormAct",
    "DropPath",
    "GlobalPool",
    "Interpolate",
    "LayerNormNd",
    "SqueezeExcite",
    "TransposedConv",
    "drop_path",
    "drop_path_rates",
    "get_act",
    "get_norm",
    "get_upsample",
    "global_pool",
    "resize",
    "same_padding",
]

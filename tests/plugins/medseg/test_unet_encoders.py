"""A U-Net on every family of backbones with a pyramid, in every dimension that the family supports; the others are refused.

Families come from the index, so that a new one is tested without being named here.
"""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_small, list_models, load_family, model_entry
from cnnkit.count import on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import stir, without_gradient
from cnnkit_medseg.models.unet import UNet

SIZES = {1: (70,), 2: (50, 33), 3: (33, 30, 20)}
"""No side is a multiple of what the encoders divide by; their last level has more than one position, as batch statistics need."""
CHANNELS = (4, 6, 8, 10, 12, 14)
FAMILIES = sorted({model_entry(name).family for name in list_models()} - {""})
CASES = [(family, dims) for family in FAMILIES for dims in load_family(family).dims]


def encoder_of(family: str, dims: int) -> tuple[str, dict]:
    """The small member of a family. Where that takes one size alone: the family's smallest variant that takes more, if there is one."""
    name, args = load_family(family).small
    with on_meta():
        fixed = create_small(family, dims=dims).fixed_size is not None
    others = [name for name in list_models(family=family) if "fixed" not in model_entry(name).sizes] if fixed else []
    return (min(others, key=lambda name: model_entry(name).params), {}) if others else (name, dict(args))


def refusal(name: str, args: dict, dims: int) -> str:
    """What a U-Net should say of a backbone that cannot be its encoder; empty for one that can."""
    from cnnkit.backbones import create_model

    with on_meta():
        model = create_model(name, dims=dims, **args)
    if model.fixed_size is not None:
        return "alone, and a U-Net those of any size"
    if len(set(model.feature_info.reduction())) == 1:
        return "all its features are of one resolution"
    return "unpadded convolutions" if model.size_slack else ""


@pytest.mark.parametrize(("family", "dims"), CASES, ids=[f"{family}-{dims}d" for family, dims in CASES])
def test_every_family_is_an_encoder_or_says_why_not(family, dims):
    name, args = encoder_of(family, dims)
    reason = refusal(name, args, dims)
    if reason:
        with pytest.raises(ConfigError, match=f"'{name}' cannot be the encoder of a U-Net: .*{reason}"):
            UNet(2, 3, dims, encoder=name, encoder_args=args, channels=CHANNELS)
        return
    torch.manual_seed(0)
    model = stir(UNet(2, 3, dims, encoder=name, encoder_args=args, channels=CHANNELS)).train()
    x = torch.randn(2, 2, *SIZES[dims])
    outputs = model(x)
    assert outputs[0].shape == (2, 3, *SIZES[dims]) and all(output.shape[1] == 3 for output in outputs)
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert without_gradient(model) == []
    with torch.no_grad():
        output = model.eval()(x)
    assert output.shape == (2, 3, *SIZES[dims]) and bool(torch.isfinite(output).all())


def test_most_families_are_encoders():
    """So that a rule which refuses too much does not pass for a success."""
    refused = [family for family in FAMILIES if refusal(*encoder_of(family, dims := load_family(family).dims[-1]), dims)]
    assert len(refused) < len(FAMILIES) / 3, refused


def test_an_encoder_of_one_size_is_refused():
    with pytest.raises(ConfigError, match=r"'randformer_s12' cannot be .* it takes inputs of 224 x 224 alone, and a U-Net those of any"):
        UNet(1, 2, 2, encoder="randformer_s12")


def test_an_encoder_of_one_resolution_is_refused():
    with pytest.raises(ConfigError, match=r"all its features are of one resolution, 1/16 of the input"):
        UNet(1, 2, 2, encoder="convit_tiny")


def test_unpadded_levels_are_refused_and_padded_ones_are_not():
    args = {"width": 0.06}
    with pytest.raises(ConfigError, match=r"'inception_v3' cannot be .* encoder_args: \{aligned: true\}"):
        UNet(1, 2, 2, encoder="inception_v3", encoder_args=args)
    model = UNet(1, 2, 2, encoder="inception_v3", encoder_args={**args, "aligned": True}, channels=CHANNELS).eval()
    assert model(torch.zeros(1, 1, 40, 33)).shape == (1, 2, 40, 33)


def test_small_inputs_are_padded_to_what_the_encoder_admits():
    """PVT needs 32 positions along every side; MaxViT whole partitions, here more than the strides of its levels."""
    for family in ("pvt", "maxvit"):
        name, args = load_family(family).small
        model = UNet(1, 2, 2, encoder=name, encoder_args=args, channels=CHANNELS).eval()
        assert model(torch.zeros(1, 1, 9, 40)).shape == (1, 2, 9, 40)


def test_arguments_of_an_encoder_need_one():
    with pytest.raises(ConfigError, match="name it by encoder"):
        UNet(1, 2, 2, encoder_args={"aligned": True})

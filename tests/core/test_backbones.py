"""The backbones against timm, torchvision, the papers' figures and symmetries; the loader's messages."""

from __future__ import annotations

import pytest
import torch
from cnnkit import plugin
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones._base import FeatureInfo, rename_keys
from cnnkit.backbones.resnet import Bottleneck
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import CheckpointError, PluginError, UsageError
from cnnkit.registry import Entry
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise
from cnnkit.testing.onnx_program import through_onnx
from safetensors.torch import save_file
from torch import nn

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

SIZES = ((64, 64), (75, 97))


# Every kind of block and the sizes that distinguish stages, at a cost that a test can pay. That the named
# variants are these classes with other numbers is held by their keys and shapes, and by the figures.
NARROW = (8, 16, 24, 32)
OURS = {
    "resnet18": {"depths": (2, 1, 2, 1), "widths": NARROW},
    "resnet50": {"depths": (1, 2, 2, 1), "widths": NARROW},
    "wide_resnet50_2": {"depths": (1, 2, 1, 1), "widths": NARROW},
    "convnext_tiny": {"depths": (1, 2, 2, 1), "widths": NARROW},
}
FAMILIES = ["resnet18", "resnet50", "wide_resnet50_2", pytest.param("convnext_tiny", marks=pytest.mark.paper("convnext"))]


def of_timm(name: str, **kwargs) -> nn.Module:
    """timm's model of the same size as ``OURS[name]``, with random weights."""
    sizes = OURS[name]
    words = ("depths", "dims") if name.startswith("convnext") else ("layers", "channels")
    return randomise(timm.create_model(name, **{words[0]: sizes["depths"], words[1]: sizes["widths"]}, **kwargs))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_and_features_equal_timm(name):
    theirs = of_timm(name, num_classes=10)
    ours = create_model(name, num_classes=10, weights=theirs.state_dict(), **OURS[name]).eval()
    for size in SIZES:
        x = image(*size)
        features = ours.forward_features(x)
        assert_near(features, theirs.forward_features(x))
        assert_near(ours.forward_head(features, pre_logits=True), theirs.forward_head(features, pre_logits=True))
        assert_near(ours(x), theirs(x))


@pytest.mark.parametrize("name", list_models(family="resnet") + list_models(family="convnext"))
def test_variants_have_the_keys_and_shapes_of_timm(name):
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name)
    assert_same_keys(ours, theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", pytest.param("convnext_tiny", marks=pytest.mark.paper("convnext"))])
@torch.no_grad()
def test_full_size_logits_equal_torchvision(name):
    theirs = randomise(getattr(torchvision.models, name)(weights=None))
    ours = create_model(name, weights=theirs.state_dict()).eval()
    for size in SIZES:
        assert_near(ours(image(*size)), theirs(image(*size)))


@pytest.mark.paper("convnext")
@torch.no_grad()
def test_convnext_reads_the_official_layout():
    """timm renames the official keys by its own rules; ours must bring them to the same place."""
    from timm.models.convnext import checkpoint_filter_fn

    theirs = of_timm("convnext_tiny", num_classes=7)
    official = {}
    for key, value in theirs.state_dict().items():
        official.update(
            rename_keys(
                {key: value},
                (
                    (r"^stem\.", "downsample_layers.0."),
                    (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
                    (r"\.blocks\.", "."),
                    ("conv_dw", "dwconv"),
                    (r"mlp\.fc", "pwconv"),
                    (r"^head\.norm\.", "norm."),
                    (r"^head\.fc\.", "head."),
                ),
            )
        )
    assert {"downsample_layers.3.1.weight", "stages.2.1.pwconv1.bias", "norm.bias", "head.weight"} <= official.keys()
    back = checkpoint_filter_fn(dict(official), theirs)
    assert back.keys() == theirs.state_dict().keys(), "the layout made here is not the one that timm knows as official"
    ours = create_model("convnext_tiny", num_classes=7, weights=official, **OURS["convnext_tiny"]).eval()
    assert_near(ours(image(64, 64)), theirs(image(64, 64)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "convnext_tiny"])
@pytest.mark.parametrize("out_indices", [None, (1, 3), (0,), (-2, -1)])
@torch.no_grad()
def test_pyramid_equals_timm(name, out_indices):
    whole = of_timm(name)
    theirs = of_timm(name, features_only=True, out_indices=out_indices or tuple(range(len(whole.feature_info))))
    # timm's feature models write "stages_0" for "stages.0".
    renamed = {key.replace("stem_", "stem.").replace("stages_", "stages."): value for key, value in theirs.state_dict().items()}
    whole.load_state_dict(renamed, strict=False)
    ours = create_model(name, features_only=True, out_indices=out_indices, weights=whole.state_dict(), **OURS[name]).eval()
    assert ours.feature_info.channels() == ours.channels == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == ours.reductions == theirs.feature_info.reduction()
    assert count_params(ours) == count_params(theirs)
    assert_near(ours(image(75, 97)), theirs(image(75, 97)))


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 8), ("resnet50", 8), ("resnet50", 16)])
@torch.no_grad()
def test_dilated_resnet_equals_timm(name, stride):
    theirs = of_timm(name, output_stride=stride, num_classes=3)
    ours = create_model(name, output_stride=stride, num_classes=3, weights=theirs.state_dict(), **OURS[name]).eval()
    assert ours.feature_info.reduction() == [level["reduction"] for level in theirs.feature_info]
    features = ours.forward_features(image(75, 97))
    assert_near(features, theirs.forward_features(image(75, 97)))


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
def test_the_reason_given_for_resnets_figures_is_the_reason(name):
    """With the stride where the paper has it, the count is the paper's (which cuts 3.86 off to 3.8)."""
    with on_meta():
        model = create_model(name)
    for block in model.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    assert abs(count_macs(model, (1, 3, 224, 224)) / 1e9 - model_entry(name).figures.gmacs) < 0.1


@pytest.mark.parametrize("name", ["resnet18", "resnet101", "wide_resnet101_2", "convnext_base", "convnext_large"])
def test_parameters_equal_torchvision(name):
    with on_meta():
        assert count_params(getattr(torchvision.models, name)(weights=None)) == model_entry(name).params


def test_count_macs_is_the_closed_form_and_leaves_the_mode():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    model[0].eval()
    assert count_macs(model, (2, 4, 8, 10)) == 2 * (8 * 10 * 6 * 2 * 9 + 6 * 5)
    assert model.training and not model[0].training


class _Added(nn.Module):
    """A matrix product, added to another tensor or to one in its place."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(5, 7))
        self.in_place = in_place

    def forward(self, x):
        total = x.new_zeros(len(x), 7)
        return total.addmm_(x, self.weight, alpha=2) if self.in_place else torch.addmm(total, x, self.weight)


@pytest.mark.parametrize("in_place", [False, True])
def test_count_macs_of_added_products(in_place):
    assert count_macs(_Added(in_place=in_place), (3, 5)) == count_macs(_Added(in_place=in_place).to("meta"), (3, 5)) == 3 * 5 * 7


TINY = {"depths": (1, 1, 1, 1), "widths": NARROW}


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_resnet_of_a_stacked_input_equals_the_one_of_a_slice(name, dims):
    """With kernels centred in the new axis, slices never mix; max pooling sees equal slices; the stride takes some of them."""
    flat = randomise(create_model(name, dims=dims, num_classes=5, **TINY).double())
    deep = centred(flat, create_model(name, dims=dims + 1, num_classes=5, **TINY).double())
    x = image(*(40, 36)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 33)), flat(x), rtol=1e-10, atol=1e-10)


@pytest.mark.paper("convnext")
@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_convnext_of_a_stacked_input_equals_the_one_of_a_slice(dims):
    flat = randomise(create_model("convnext_tiny", dims=dims, num_classes=5, **TINY).double())
    deep = centred(flat, create_model("convnext_tiny", dims=dims + 1, num_classes=5, **TINY).double())
    x = image(*(64, 32)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 64)), flat(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_axes_are_treated_alike(name):
    """Transposing the kernels transposes the features."""
    model = create_model(name, dims=3, num_classes=0, **TINY)
    turned = create_model(name, dims=3, num_classes=0, **TINY)
    randomise(model.double())
    turned.double().eval().load_state_dict({k: v.movedim(2, 4) if v.ndim == 5 else v for k, v in model.state_dict().items()})
    x = image(32, 40, 48).double()
    with torch.no_grad():
        torch.testing.assert_close(turned.forward_features(x.movedim(2, 4)), model.forward_features(x).movedim(2, 4), rtol=1e-9, atol=1e-9)


SMALL = {"resnet18": {"depths": (1, 2, 1, 1), "widths": (8, 8, 8, 16)}, "convnext_tiny": {"depths": (1, 1, 2, 1), "widths": (8, 8, 12, 16)}}


@pytest.mark.parametrize("name", SMALL)
def test_reset_classifier_and_no_classifier(name):
    model = create_model(name, num_classes=0, **SMALL[name]).double()
    x = image(32, 32).double()
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(3, global_pool="max")
    assert model(x).shape == (2, 3)
    assert (model.num_classes, model.global_pool.kind) == (3, "max")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("out_indices", [None, (1,), 2])
def test_every_parameter_of_a_pyramid_gets_a_gradient(name, out_indices):
    model = create_model(name, in_chans=1, features_only=True, out_indices=out_indices, **SMALL[name])
    levels = model(image(64, 64, channels=1))
    assert len(levels) == len(model.channels)
    sum(level.square().mean() for level in levels).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_changes_no_gradient(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, **SMALL[name]).double()
    x = image(64, 64).double()
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_stochastic_depth_reaches_the_blocks(name):
    torch.manual_seed(0)
    model = create_model(name, drop_path_rate=0.5, num_classes=3, **SMALL[name])
    rates = [module.rate for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates == sorted(rates) and rates[0] == 0 and rates[-1] == 0.5


@pytest.mark.parametrize("name", SMALL)
def test_export_and_onnx(name):
    model = randomise(create_model(name, num_classes=3, **SMALL[name]))
    x = image(64, 64)
    batch = {0: torch.export.Dim("batch", min=1, max=8)}
    program = torch.export.export(model, (x,), dynamic_shapes=(batch,))
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(program.module()(x[:1].repeat(3, 1, 1, 1)), expected[:1].repeat(3, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(through_onnx(program)(x), expected, rtol=1e-4, atol=1e-4)


# The loader.


def test_weights_from_files(tmp_path):
    model = randomise(create_model("resnet18", num_classes=4, **SMALL["resnet18"]))
    save_file(model.state_dict(), tmp_path / "weights.ckpt")
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "weights.pth")
    for file in ("weights.ckpt", "weights.pth"):
        loaded = create_model("resnet18", num_classes=4, weights=tmp_path / file, **SMALL["resnet18"]).eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(image(64, 64)), model(image(64, 64)), rtol=0, atol=0)


def test_old_files_without_counters_load():
    model = create_model("resnet18", num_classes=4, **SMALL["resnet18"])
    old = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    create_model("resnet18", num_classes=4, weights=old, **SMALL["resnet18"])


@pytest.mark.parametrize("name", SMALL)
def test_the_head_of_a_file_is_left_out_on_request(name):
    state = create_model(name, num_classes=4, **SMALL[name]).state_dict()
    bare = create_model(name, num_classes=0, weights=state, **SMALL[name])
    assert bare(image(64, 64)).shape == (2, bare.num_features)
    create_model(name, features_only=True, out_indices=(0,), weights=state, **SMALL[name])
    with pytest.raises(CheckpointError, match=r"head has 4 classes .* pass num_classes=4 .*num_classes=0 .*reset_classifier\(10\)"):
        create_model(name, num_classes=10, weights=state, **SMALL[name])


def test_weights_that_do_not_fit_are_explained(tmp_path):
    small = SMALL["resnet18"]
    state = create_model("resnet18", num_classes=4, **small).state_dict()
    file = tmp_path / "mine.safetensors"
    lacking = {key: value for key, value in state.items() if key != "layer1.0.conv1.weight"} | {"extra.weight": torch.ones(1)}
    save_file(lacking, file)
    with pytest.raises(CheckpointError) as raised:
        create_model("resnet18", num_classes=4, weights=file, **small)
    message = str(raised.value)
    assert str(file) in message and "lacks layer1.0.conv1.weight" in message and "no extra.weight" in message
    assert "Layouts understood: cnnkit's own, timm, torchvision" in message
    with pytest.raises(CheckpointError, match=r"conv1.weight is \(64, 3, 7, 7\) and must be \(64, 1, 7, 7\)"):
        create_model("resnet18", in_chans=1, num_classes=4, weights=state, **small)
    with pytest.raises(CheckpointError, match="holds a 2-D model and this one was built with dims=3"):
        create_model("resnet18", dims=3, num_classes=4, weights=state, **small)
    with pytest.raises(CheckpointError, match=r"in no layout .*cnnkit's own, timm, official, torchvision"):
        create_model("convnext_tiny", weights={"a.weight": torch.ones(2)})


def test_a_failed_load_names_the_layout_that_was_recognised():
    state = torchvision.models.convnext_tiny(weights=None, num_classes=4).state_dict()
    state.pop("features.4.1.bias")
    with pytest.raises(CheckpointError, match=r"in the layout of torchvision.* lacks stages.2.downsample.1.bias"):
        create_model("convnext_tiny", num_classes=4, weights=state)


# Arguments.


def test_unknown_arguments_are_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"did you mean 'drop_path_rate'.*Accepted: .*depths"):
        create_model("convnext_tiny", drop_path=0.1)
    with pytest.raises(UsageError, match="Accepted: block, depths"):
        create_model("resnet18", zzz=1)
    with pytest.raises(UsageError, match="supports dims 1, 2, 3, not 4"):
        create_model("resnet18", dims=4)
    with pytest.raises(UsageError, match="features_only=True"):
        create_model("resnet18", out_indices=(1,))
    with pytest.raises(PluginError):
        create_model("nosuchplugin/model")


def test_models_of_plugins_get_the_words_that_they_accept(monkeypatch):
    entries = {
        "fake/net": Entry("cnnkit.backbones.resnet:ResNet", dims=(2, 3), args={"depths": (1, 1, 1, 1), "widths": NARROW}),
        "fake/linear": Entry("torch.nn:Linear", args={"in_features": 3}),
    }
    monkeypatch.setattr(plugin, "find_model", entries.__getitem__)
    assert create_model("fake/net", dims=3, in_chans=1, num_classes=2)(torch.zeros(2, 1, 32, 32, 64)).shape == (2, 2)
    assert create_model("fake/linear", out_features=7).out_features == 7
    with pytest.raises(UsageError, match="did you mean 'out_features'"):
        create_model("fake/linear", out_feature=7)
    with pytest.raises(UsageError, match="belongs to a plugin"):
        create_model("fake/net", features_only=True)
    with pytest.raises(UsageError, match="supports dims 2, 3, not 1"):
        create_model("fake/net", dims=1)


def test_out_indices_are_checked():
    info = FeatureInfo({"num_chs": 8, "reduction": 2**level, "module": f"m{level}"} for level in range(3))
    assert info.take(None) == [0, 1, 2] and info.take(2) == [1, 2] and info.take((-1,)) == [2]
    assert info.module_name() == ["m0", "m1", "m2"]
    for wrong in ((3,), (1, 0), (0, 0), (), 4):
        with pytest.raises(UsageError, match=r"levels 0 to 2 \(reductions 1, 2, 4\)"):
            info.take(wrong)

"""A backbone on a time-frequency image: what it sees, what training does to it, and how it starts from ImageNet.

That each image equals its reference in NumPy, test_frontend_images.py and test_frontends.py answer for.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model
from cnnkit.count import on_meta
from cnnkit.errors import CheckpointError, ConfigError, InputError, UsageError
from cnnkit.testing.compare import assert_near, stir
from cnnkit.weights import load_weights
from cnnkit_audio.frontends import ConstantQ, FrontEnd, Gabor, Gammatone, LogMel
from cnnkit_audio.models.image_cnn import IMAGES, ImageAugment, ImageCNN
from torch import Tensor

pytestmark = pytest.mark.paper("audio-cnn-ensemble")
RATE = 8000
ARGS: dict[str, dict[str, Any]] = {"mel": {"n_mels": 24}, "gammatone": {"n_bands": 24}, "constant_q": {"n_bins": 48}, "gabor": {}}
FRONTS: dict[str, FrontEnd] = {
    "mel": LogMel(sample_rate=RATE, n_mels=24),
    "gammatone": Gammatone(sample_rate=RATE, n_bands=24),
    "constant_q": ConstantQ(sample_rate=RATE, n_bins=48),
    "gabor": Gabor(sample_rate=RATE),
}
SMALL: dict[str, Any] = {"backbone": "resnet18", "backbone_args": {"widths": (4, 5, 6, 7)}}


def network(image: str = "mel", *, size: int | None = 40, **args: Any) -> ImageCNN:
    torch.manual_seed(0)
    args = {"num_classes": 3, "image_args": ARGS[image], **SMALL, "sample_rate": RATE, "window": 0.5, **args}
    model = ImageCNN(image=image, size=size, **args)
    stir(model)
    return model.eval()


def sounds(count: int = 2, samples: int = 5000) -> Tensor:
    return 0.1 * torch.randn(count, 1, samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_through_a_backbone(image: str) -> None:
    """The front end, each band normalised by the running statistics, resized, and the core's backbone: 1e-5, both sizes of image."""
    for size in (40, None):
        model, x = network(image, size=size), sounds()
        with torch.no_grad():
            bands, norm = FRONTS[image](x), model.bn0
            shape = (1, 1, -1, 1)
            assert norm.running_mean is not None and norm.running_var is not None
            picture = (bands - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
            picture = picture * norm.weight.view(shape) + norm.bias.view(shape)
            if size is not None:
                picture = F.interpolate(picture, (size, size), mode="bilinear", antialias=True)
            assert_near(model(x), model.encoder(picture), 1e-5)
            assert_near(model.head(model.embed(bands)), model(x), 1e-6)


@pytest.mark.parametrize(("backbone", "args", "size"), [("vgg11", {"widths": (4, 4, 5, 6, 7), "head_width": 8, "head_size": 1}, 32)])
def test_other_backbones(backbone: str, args: dict[str, Any], size: int) -> None:
    """A network whose head has layers of its own gives the input of the last one as its vector."""
    model = network(backbone=backbone, backbone_args={"depths": (1, 1, 1, 1, 1), **args}, size=size)
    assert model.front is not None
    with torch.no_grad():
        vectors = model.embed(model.front(sounds()))
    assert vectors.shape == (2, 8)


def test_training_changes_images_and_evaluation_does_not() -> None:
    """Shifts, warps and stretches come from torch's generator: the same seed gives the same batch; in evaluation nothing happens."""
    change = ImageAugment(band_shift=2, time_shift=3, warp=0.1, stretch=0.2)
    x = torch.randn(3, 1, 24, 20, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    first, second = change(x), change(x)
    torch.manual_seed(5)
    assert torch.equal(change(x), first) and not torch.equal(first, second) and not torch.equal(first, x)
    assert torch.equal(change.eval()(x), x)
    model = network(freq_mask=6, time_mask=5, band_shift=1).train()
    picture = model.picture(FRONTS["mel"](sounds(4)))
    assert picture.shape == (4, 1, 40, 40) and not torch.equal(picture, model.picture(FRONTS["mel"](sounds(4))))


def test_images_of_the_same_labels_are_summed() -> None:
    """In training, each with another clip of its own labels, the only one of its labels with itself; in evaluation nothing happens."""
    model, x = network(same_class=1.0), sounds(3)
    target = torch.eye(3)[[0, 0, 2]]
    with torch.no_grad():
        assert torch.equal(model.learn(x, target), model(x))
        bands = FRONTS["mel"](x)
        expected = torch.stack(((bands[0] + bands[1]) / 2, (bands[0] + bands[1]) / 2, bands[2]))
        assert_near(model.train().learn(x, target), model.classify(expected), 1e-5)
    with pytest.raises(ConfigError, match="same_class=2"):
        network(same_class=2.0)


def test_weights_of_imagenet() -> None:
    """A network for colour pictures, in a foreign layout too: shown the same grey image in three colours it gives the same vector, 1e-5."""
    torch.manual_seed(1)
    colour: Any = stir(create_model("resnet18", dims=2, num_classes=7, widths=SMALL["backbone_args"]["widths"])).eval()
    model = network()
    classifier: Any = model.encoder.get_classifier()
    before = classifier.weight.detach().clone()
    assert load_weights(model, colour.state_dict()) == "the backbone for images"
    x = torch.randn(2, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_near(model.encoder.forward_features(x), colour.forward_features(x.expand(-1, 3, -1, -1)), 1e-5)
    assert torch.equal(classifier.weight, before)


def test_bare_weights_of_imagenet_are_no_tagger() -> None:
    """They are for ``--init``; run as they are, they would name sounds at random, so nothing recognises them as a tagger."""
    with on_meta():
        picture = create_model("resnet18", dims=2)
        model = ImageCNN(num_classes=1000, backbone="resnet18")
        with pytest.raises(CheckpointError, match="--init"):
            load_weights(model, picture.state_dict())


def test_what_is_refused() -> None:
    """Each message names what is accepted."""
    with pytest.raises(ConfigError, match="unknown image 'mell'; did you mean 'mel'"):
        ImageCNN(image="mell")
    with pytest.raises(ConfigError, match="'n_mel'; did you mean 'n_mels'"):
        ImageCNN(image_args={"n_mel": 3})
    with pytest.raises(ConfigError, match="warp=1"):
        network(warp=1.0)
    with pytest.raises(UsageError, match="no_such"):
        network(backbone_args={"no_such": 1})
    with pytest.raises(InputError, match="at least"):
        network(backbone="inception_v3", backbone_args={"width": 0.08}, size=32)
    with pytest.raises(UsageError, match="supports dims 1"):
        network(backbone="audio/aclnet", backbone_args={})


def test_the_shortest_clip() -> None:
    """Is heard at its least length, as an image of any size or of its own."""
    for size in (40, None):
        model = network(size=size)
        with torch.no_grad():
            assert model(sounds(samples=model.least)).shape == (2, 3)

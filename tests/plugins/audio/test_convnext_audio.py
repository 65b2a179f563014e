"""ConvNeXt for AudioSet: timm's network inside, the official keys and logits, the start from ImageNet, embeddings, training."""

from __future__ import annotations

import copy
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_params, on_meta
from cnnkit.errors import CheckpointError
from cnnkit.testing.compare import assert_near, randomise, stir, without_gradient
from cnnkit.weights import load_weights
from torch import Tensor, nn

pytestmark = pytest.mark.paper("convnext-audioset")

DEPTHS, WIDTHS = (1, 1, 2, 1), (12, 16, 20, 24)


def waves(samples: int, batch: int = 2, seed: int = 1) -> Tensor:
    return 0.3 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))


def small(**args: Any) -> Any:
    return create_model("audio/convnext_tiny", dims=1, **{"num_classes": 7, "depths": DEPTHS, "widths": WIDTHS, **args})


def official(plain, seed: int = 0) -> Any:
    """Return the plain network with random weights in all that is learned."""
    theirs = plain("convnext_audio").create(7, list(DEPTHS), list(WIDTHS)).eval()
    learned = {key: value.clone() for key, value in theirs.state_dict().items() if not key.startswith(("spectrogram", "logmel"))}
    theirs.load_state_dict({**theirs.state_dict(), **randomise(learned, seed)})
    return theirs


def test_official_weights_give_the_official_logits(plain):
    theirs = official(plain)
    ours = small()
    assert load_weights(ours, theirs.state_dict()) == "official"
    ours.eval()
    for samples in (ours.least, 33_333):
        assert_near(ours(waves(samples)).detach(), theirs(waves(samples)[:, 0]).detach(), 1e-5)
    ours, theirs = ours.double(), theirs.double()
    for frames in (24, 57):
        features = torch.randn(2, 1, 224, frames, generator=torch.Generator().manual_seed(3)).double() * 20
        assert_near(ours.classify(features).detach(), theirs.tag(features.transpose(2, 3)).detach(), 1e-10)


def test_the_encoder_is_timms_convnext():
    """With the stem's padding, for a spectrogram turned so that time comes first."""
    timm = pytest.importorskip("timm")
    theirs = timm.models.convnext.ConvNeXt(in_chans=1, num_classes=0, depths=DEPTHS, dims=WIDTHS)
    theirs.stem[0].padding = (4, 0)
    theirs = randomise(theirs)
    ours: Any = randomise(small(), seed=1)
    ours.encoder.load_state_dict({**ours.encoder.state_dict(), **theirs.state_dict()})
    for frames in (24, 41):
        features = torch.randn(2, 1, 224, frames, generator=torch.Generator().manual_seed(3))
        bands = ours.bn0(features.transpose(1, 2)).transpose(1, 2)
        expected = theirs.forward_features(bands.transpose(2, 3)).detach()
        assert_near(ours.forward_frames(features).detach(), expected, 1e-5)
        pooled = expected.mean(3)
        assert_near(
            ours.embed(features).detach(), theirs.head.norm((pooled.amax(2) + pooled.mean(2))[..., None, None])[..., 0, 0].detach(), 1e-5
        )


def test_the_paper_prints_28_2_million_parameters():
    with on_meta():
        ours: Any = create_model("audio/convnext_tiny", dims=1, num_classes=527)
        assert count_params(ours) == 28_222_767
        assert ours.frame_embeddings(torch.empty(1, 1, 320_000, device="meta")).shape == (1, 768, 31, 7)
        assert ours.scene_embeddings(torch.empty(3, 1, 320_000, device="meta")).shape == (3, 768)


def test_the_front_end_is_librosas(plain):
    ours = small()
    sound = waves(20_000, batch=1).numpy()[0, 0]
    energies = librosa.feature.melspectrogram(
        y=sound, sr=32_000, n_fft=1024, hop_length=320, n_mels=224, fmin=50, fmax=14_000, pad_mode="reflect"
    )
    expected = librosa.power_to_db(energies, ref=1.0, amin=1e-10, top_db=None)
    found = ours.front(torch.from_numpy(sound)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-4)


def test_embeddings_are_those_that_the_logits_are_made_of():
    ours: Any = randomise(small())
    x = waves(16_000)
    assert_near(ours.head(ours.scene_embeddings(x)).detach(), ours(x).detach(), 1e-6)
    frames = ours.frame_embeddings(x)
    assert frames.shape == (2, 24, 1, 7)
    pooled = frames.mean(3)
    assert_near(ours.encoder.head.norm(pooled.amax(2) + pooled.mean(2)).detach(), ours.scene_embeddings(x).detach(), 1e-6)


@pytest.mark.parametrize("source", ["timm", "torchvision", "official"])
def test_it_starts_from_a_network_for_images(source, plain):
    """The same picture in all colours gives the stem's answer divided by 3; bands and classifier stay as they were drawn."""
    ours = small()
    kept = {key: value.clone() for key, value in ours.state_dict().items() if key.startswith(("bn0.", "encoder.head.fc."))}
    if source == "timm":
        timm = pytest.importorskip("timm")
        theirs: Any = randomise(timm.models.convnext.ConvNeXt(depths=DEPTHS, dims=WIDTHS, num_classes=9))
        stem, last, norm = theirs.stem[0], theirs.stages[3].blocks[0].conv_dw, theirs.head.norm
    elif source == "torchvision":
        convnext = pytest.importorskip("torchvision").models.convnext
        settings = [convnext.CNBlockConfig(*three) for three in zip(WIDTHS, (*WIDTHS[1:], None), DEPTHS, strict=True)]
        theirs = randomise(convnext.ConvNeXt(settings, num_classes=9))
        stem, last, norm = theirs.features[0][0], theirs.features[7][0].block[0], theirs.classifier[0]
    else:
        theirs = plain("convnext_audio").create(9, list(DEPTHS), list(WIDTHS))
        stem = theirs.downsample_layers[0][0] = nn.Conv2d(3, WIDTHS[0], 4, stride=4)
        theirs.head = theirs.head_audioset
        del theirs.spectrogram_extractor, theirs.logmel_extractor, theirs.bn0, theirs.head_audioset
        last, norm = randomise(theirs).stages[3][0].dwconv, theirs.norm
    assert load_weights(ours, theirs.state_dict()) == "ConvNeXt for images"
    x = torch.randn(1, 1, 8, 8)
    ours.encoder.stem[0].padding = (0, 0)
    assert_near(
        (ours.encoder.stem[0](x) - stem.bias[:, None, None]).detach() * 3, (stem(x.expand(1, 3, 8, 8)) - stem.bias[:, None, None]).detach()
    )
    assert torch.equal(ours.encoder.stages[3].blocks[0].conv_dw.weight, last.weight)
    assert torch.equal(ours.encoder.head.norm.weight, norm.weight)
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in kept.items())


def test_a_file_of_another_size_is_refused():
    timm = pytest.importorskip("timm")
    theirs = timm.models.convnext.ConvNeXt(depths=DEPTHS, dims=(8, 16, 20, 24), num_classes=9)
    with pytest.raises(CheckpointError, match=r"read in the layout of ConvNeXt for images.*encoder\.stem\.0\.weight is \(8, 1, 4, 4\)"):
        load_weights(small(), theirs.state_dict())


def test_copies_take_their_own_weights():
    """A layout of the instance, whose copy must not fill in the classifier of the original."""
    timm = pytest.importorskip("timm")
    ours = small()
    other = copy.deepcopy(ours)
    nn.init.ones_(other.encoder.head.fc.weight)
    load_weights(other, timm.models.convnext.ConvNeXt(depths=DEPTHS, dims=WIDTHS).state_dict())
    assert bool((other.encoder.head.fc.weight == 1).all())


def test_a_step_reaches_every_parameter():
    ours = stir(small(drop_path_rate=0.0)).train()
    ours(waves(16_000, batch=4)).square().mean().backward()
    assert without_gradient(ours) == []


def test_blocks_are_dropped_in_training_only():
    ours: Any = stir(small(drop_path_rate=0.9))
    x = waves(16_000)
    ours.eval()
    assert torch.equal(ours(x), ours(x))
    rates = [block.drop_path.rate for stage in ours.encoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.225, 0.45, 0.675, 0.9])


def test_masks_hide_bands_and_frames_of_the_normalised_spectrogram_in_training_only():
    """The network sees zeros there: in evaluation the same as without masks."""
    torch.manual_seed(0)
    masked, bare = small(freq_mask=28, time_mask=10), small()
    bare.load_state_dict(masked.state_dict())
    x, seen = waves(32_000, batch=3), []
    masked.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    masked.encoder.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert torch.equal(masked.eval()(x), bare.eval()(x))
    masked.train()(x)
    whole, hidden = (part == 0 for part in seen)
    assert not whole.any() and hidden.any()
    bands, frames = hidden.all(2, keepdim=True), hidden.all(3, keepdim=True)
    assert torch.equal(hidden, bands | frames) and bands.any() and frames.any()
    assert int(bands.sum(3).max()) <= 2 * 28 and int(frames.sum(2).max()) <= 2 * 10


def test_it_exports_with_its_front_end():
    """For clips of the exported length."""
    ours: Any = randomise(small())
    program = torch.export.export(ours, (waves(16_000),)).module()
    assert_near(program(waves(16_000, seed=2)).detach(), ours(waves(16_000, seed=2)).detach(), 1e-5)

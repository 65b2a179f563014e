"""NUFT-CNN: what it draws is the shape, however it is sampled; a small training; export; meshes of one shape have one embedding."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.errors import ConfigError, InputError
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.models.nuft_cnn import NUFTCNN, NUFTMeshEncoder

pytestmark = pytest.mark.paper("nuft-cnn")


def star(points: int, phase: float = 0.0) -> Tensor:
    """A star as closed segments in the unit square, ``(2 * points, 2, 2)``."""
    angle = torch.pi * torch.arange(2 * points, dtype=torch.float64) / points + phase
    radius = torch.tensor([0.4, 0.2], dtype=torch.float64).repeat(points)
    places = 0.5 + radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return torch.stack([places, places.roll(-1, 0)], 1)


def cut(segments: Tensor, pieces: int) -> Tensor:
    """Cut each segment into equal pieces."""
    steps = torch.linspace(0, 1, pieces + 1, dtype=segments.dtype)
    places = segments[:, :1] + steps[:, None] * (segments[:, 1:] - segments[:, :1])
    return torch.stack([places[:, :-1], places[:, 1:]], 2).flatten(0, 1)


def cube() -> tuple[Tensor, Tensor]:
    """Vertices and faces, counter-clockwise from outside."""
    vertices = torch.tensor([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)], dtype=torch.float64)
    squares = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    return vertices, torch.tensor([[a, b, c] for a, *rest in squares for b, c in pairwise(rest)])


def finer(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Cut every face into four."""
    count, corners = len(faces), vertices[faces]
    middles = 0.5 * (corners + corners.roll(-1, 1))
    a, b, c = faces.T
    ab, bc, ca = (len(vertices) + torch.arange(3 * count).reshape(count, 3)).T
    quarters = [torch.stack(some, 1) for some in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
    return torch.cat([vertices, middles.flatten(0, 1)]), torch.cat(quarters)


def small(**arguments: object) -> NUFTCNN:
    torch.manual_seed(0)
    words: dict[str, Any] = {"size": 16, "widths": (4, 6), "in_chans": 1, **arguments}
    model = create_model("equivariant/nuft_cnn", num_classes=3, **words)
    assert isinstance(model, NUFTCNN)
    return model.double().eval()


class TestClassifier:
    @pytest.mark.parametrize("signal", ["solid", "boundary"])
    def test_only_the_shape_counts(self, signal: str) -> None:
        """Cut into more pieces, in another order, filled up with segments of no length: the same logits, to 1e-12."""
        model, shape = small(signal=signal), star(5)
        fine = cut(shape, 3)
        fine = torch.cat([fine[torch.randperm(len(fine))], torch.full((4, 2, 2), 0.3, dtype=torch.float64), torch.zeros(2, 2, 2)])
        with torch.no_grad():
            torch.testing.assert_close(model(fine[None]), model(shape[None]), rtol=0, atol=1e-12)
            assert float((model(star(4)[None]) - model(shape[None])).abs().max()) > 1e-4

    def test_it_draws_what_is_enclosed(self) -> None:
        """One inside, zero outside, and the area as the mean, in a square with a margin."""
        model = small(size=40, smoothing=1.0)
        picture = model.draw(star(5)[None])[0, 0]
        assert float(picture[20, 20]) == pytest.approx(1.0, abs=2e-3) and abs(float(picture[0, 0])) < 2e-3
        enclosed = 10 * 0.5 * 0.4 * 0.2 * np.sin(np.pi / 5)
        assert float(picture.mean()) * 1.2**2 == pytest.approx(enclosed, rel=1e-12)

    def test_lines_are_as_bright_as_they_are_long(self) -> None:
        model, shape = small(size=40, signal="boundary"), star(5)
        length = float((shape[:, 0] - shape[:, 1]).norm(dim=1).sum())
        assert float(model.draw(shape[None]).sum()) * 1.2 / 40 == pytest.approx(length, rel=1e-12)

    def test_channels(self) -> None:
        model, single = small(in_chans=2), small()
        both = torch.stack([star(5), star(5, 0.3)], 1)[None]
        expected = torch.cat([single.draw(star(5)[None]), single.draw(star(5, 0.3)[None])], 1)
        torch.testing.assert_close(model.draw(both), expected, rtol=0, atol=1e-12)

    def test_it_learns_to_count_points(self) -> None:
        """Stars of three, five and eight points, turned and sampled at random: eighty steps are enough."""
        rng = np.random.default_rng(0)
        torch.manual_seed(0)
        model = NUFTCNN(num_classes=3, size=16, widths=(8, 16), drop=0.0)

        def batch(count: int) -> tuple[Tensor, Tensor]:
            target = torch.from_numpy(rng.integers(0, 3, count))
            shapes = [cut(star((3, 5, 8)[int(which)], rng.uniform(0, 6)), int(rng.integers(1, 4))) for which in target]
            return torch.nn.utils.rnn.pad_sequence(shapes, batch_first=True).float(), target

        optimizer = torch.optim.Adam(model.parameters(), 0.003)
        for _ in range(80):
            x, target = batch(24)
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
        x, target = batch(60)
        assert float((model.eval()(x).argmax(1) == target).float().mean()) > 0.9

    def test_it_can_be_exported(self) -> None:
        """With any number of samples and of segments, and in real arithmetic alone, which ONNX asks for."""
        model, x = small(size=8, widths=(4,)).float(), torch.rand(2, 9, 2, 2)
        shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("segments")},)
        program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
        values = [node.meta.get("val") for node in program.graph.nodes]
        assert not any(isinstance(value, Tensor) and value.is_complex() for value in values)
        other = torch.rand(3, 17, 2, 2)
        torch.testing.assert_close(program.module()(other), model(other))

    def test_wrong_input_is_explained(self) -> None:
        for x, model in ((torch.rand(2, 1, 8, 8), small()), (torch.rand(2, 9, 2, 2), small(in_chans=3)), (torch.rand(9, 2, 2), small())):
            with pytest.raises(InputError, match="segments"):
                model(x)
        for wrong in ({"signal": "filled"}, {"margin": -0.1}, {"widths": ()}):
            with pytest.raises(ConfigError):
                small(**wrong)


class TestMeshEncoder:
    def encoder(self, **arguments: object) -> NUFTMeshEncoder:
        torch.manual_seed(0)
        return NUFTMeshEncoder(**{"embedding": 8, "size": 10, "widths": (4, 6), **arguments}).double().eval()  # type: ignore[arg-type]

    @pytest.mark.parametrize("signal", ["solid", "boundary"])
    def test_only_the_shape_counts(self, signal: str) -> None:
        """Subdivided, moved, scaled: the same embedding; a pyramid has another."""
        encoder, (vertices, faces) = self.encoder(signal=signal), cube()
        with torch.no_grad():
            expected = encoder(vertices[None], faces)
            fine, fine_faces = finer(*finer(vertices, faces))
            torch.testing.assert_close(encoder(3 * fine[None] - 7, fine_faces[None]), expected, rtol=0, atol=1e-10)
            pyramid = torch.where(vertices[:, 2:] > 0, torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64), vertices)
            assert float((encoder(pyramid[None], faces) - expected).abs().max()) > 1e-4
        assert float(expected.norm()) == pytest.approx(1.0)

    def test_it_fills_a_cube(self) -> None:
        vertices, faces = cube()
        volume = self.encoder(size=24, smoothing=1.0).draw(vertices[None], faces)
        assert volume.shape == (1, 1, 24, 24, 24)
        assert float(volume[0, 0, 12, 12, 12]) == pytest.approx(1.0, abs=0.01) and abs(float(volume[0, 0, 0, 0, 0])) < 0.01
        assert float(volume.mean()) * 1.2**3 == pytest.approx(1.0, rel=1e-12)

    def test_every_parameter_and_vertex_gets_a_gradient(self) -> None:
        encoder, (vertices, faces) = self.encoder(), cube()
        vertices = (vertices[None] + 0.1 * torch.rand(2, 8, 3, dtype=torch.float64)).requires_grad_()
        (encoder.train()(vertices, faces) * torch.rand(8)).sum().backward()
        assert all(weight.grad is not None and bool(weight.grad.any()) for weight in encoder.parameters())
        assert vertices.grad is not None and bool(torch.isfinite(vertices.grad).all()) and bool(vertices.grad.any())

    def test_wrong_input_is_explained(self) -> None:
        vertices, faces = cube()
        with pytest.raises(InputError, match="no extent"):
            self.encoder()(torch.zeros(1, 4, 3, dtype=torch.float64), faces[:1] * 0)
        with pytest.raises(InputError, match="vertex 8"):
            self.encoder()(vertices[None], faces + 1)

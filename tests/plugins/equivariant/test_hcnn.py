"""Hyperbolic layers and networks: what defines each, flat space as the limit, and a straightforward version of the paper's code."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import randomise, without_gradient
from cnnkit.weights import load_weights
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.hyperbolic import LorentzBatchNorm, LorentzConv, LorentzLinear, LorentzPool, LorentzRegression
from cnnkit_equivariant.lorentz import Lorentz, inner
from cnnkit_equivariant.models.hcnn import HyperbolicResNet

pytestmark = pytest.mark.paper("hcnn")

SMALL = {"depths": (1, 2, 1), "widths": (5, 6, 7), "in_chans": 2, "num_classes": 4}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def stirred(layer: nn.Module) -> nn.Module:
    """Return a layer with other parameters than its first, in double precision."""
    layer = layer.double()
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.add_(0.3 * draw(*parameter.shape, seed=number))
    return layer


class TestConvolution:
    @pytest.mark.parametrize("dims", [1, 2, 3])
    @pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), (2, 2, 2)])
    def test_it_is_the_linear_layer_on_concatenated_windows(self, dims: int, stride: int, padding: int, dilation: int) -> None:
        """The definition: points in a window joined, the time of the whole recomputed from all times, one matrix on it."""
        manifold = Lorentz(0.7).double()
        layer = stirred(LorentzConv(manifold, 3, 4, 3, dims=dims, stride=stride, padding=padding, dilation=dilation))
        x = draw(2, 3, *(7, 6, 5)[:dims])
        points = F.pad(x, (padding, padding) * dims)
        time = manifold.time(points, dim=1)
        whole = torch.cat([time, points], 1)
        for axis in range(2, 2 + dims):
            reach = 2 * dilation + 1
            whole = whole.unfold(axis, reach, stride)[..., ::dilation]
        whole = whole.flatten(2 + dims)  # B, 1 + C, *places, pixels
        joined_time = (whole[:, :1].square().sum(-1) - (whole.shape[-1] - 1) / manifold.k).sqrt()
        joined = whole[:, 1:].movedim(-1, 2).flatten(1, 2)
        torch.testing.assert_close(-joined_time.square() + joined.square().sum(1, keepdim=True), -torch.ones_like(joined_time) / 0.7)
        expected = torch.einsum("bi...,oi->bo...", joined, layer.weight.flatten(1))
        expected = expected + (joined_time * layer.time_weight.view(-1, *[1] * dims)) + layer.bias.view(-1, *[1] * dims)
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)

    def test_a_window_of_one_is_the_linear_layer(self) -> None:
        manifold = Lorentz(2.0).double()
        conv, linear = stirred(LorentzConv(manifold, 3, 4, 1)), LorentzLinear(manifold, 3, 4).double()
        linear.load_state_dict({key: value.flatten(1) if value.ndim > 1 else value for key, value in conv.state_dict().items()})
        x = draw(2, 3, 5, 6)
        torch.testing.assert_close(conv(x), linear(x.movedim(1, -1)).movedim(-1, 1), rtol=1e-12, atol=1e-12)


class TestFlatLimit:
    """As the curvature goes to 0 each layer goes to the ordinary one, at the rate of its square root or faster."""

    @pytest.mark.parametrize(("curvature", "bound"), [(1e-4, 0.3), (1e-8, 3e-3)])
    def test_convolution(self, curvature: float, bound: float) -> None:
        """The time part becomes constant, and joins the bias."""
        layer = stirred(LorentzConv(Lorentz(curvature).double(), 3, 4, 3, padding=1))
        x = draw(2, 3, 6, 6)
        flat = F.conv2d(x, layer.weight, layer.bias + layer.time_weight / curvature**0.5, padding=1)
        torch.testing.assert_close(layer(x), flat, rtol=0, atol=bound)

    def test_without_a_weight_on_time_it_is_the_ordinary_one_at_any_curvature(self) -> None:
        layer = stirred(LorentzConv(Lorentz(3.0).double(), 3, 4, 3))
        nn.init.zeros_(layer.time_weight)
        x = draw(2, 3, 6, 6)
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias), rtol=1e-13, atol=1e-13)

    def test_normalisation(self) -> None:
        layer = stirred(LorentzBatchNorm(Lorentz(1e-9).double(), 3)).train()
        x = draw(4, 3, 5, 5)
        centred = x - x.mean((0, 2, 3), keepdim=True)
        flat = layer.gamma * centred / (centred.norm(dim=1).mean() + 1e-5) + layer.mean.view(-1, 1, 1)
        torch.testing.assert_close(layer(x), flat, rtol=0, atol=1e-6)

    def test_regression_and_pooling(self) -> None:
        manifold = Lorentz(1e-9).double()
        head, x = stirred(LorentzRegression(manifold, 3, 4)), draw(6, 3)
        flat = F.linear(x, head.normal, -head.offset * head.normal.norm(dim=1))
        torch.testing.assert_close(head(x), flat, rtol=0, atol=1e-4)
        y = draw(2, 3, 4, 4)
        torch.testing.assert_close(LorentzPool(manifold)(y), y.mean((2, 3)), rtol=0, atol=1e-6)


class TestBatchNorm:
    @pytest.mark.parametrize("curvature", [0.3, 1.0, 4.0])
    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-7), (torch.float32, 2e-4)])
    def test_the_output_has_the_learnt_mean_and_dispersion(self, curvature: float, dtype: torch.dtype, bound: float) -> None:
        """In the tangent space of the learnt point, distances have the mean ``gamma``; fresh layers give 1."""
        manifold = Lorentz(curvature).to(dtype)
        layer = LorentzBatchNorm(manifold, 4).to(dtype).train()
        x = 0.8 * draw(8, 4, 5, 5, dtype=dtype) + draw(4, 1, 1, seed=3, dtype=dtype)
        for gamma, point in ((1.0, torch.zeros(4)), (1.7, draw(4, seed=5))):
            nn.init.constant_(layer.gamma, gamma)
            with torch.no_grad():
                layer.mean.copy_(point)
            out = manifold.point(layer(x).movedim(1, -1).flatten(0, 2))
            centre = manifold.point(layer.mean)
            assert manifold.distance(centre.expand_as(out), out).mean().item() == pytest.approx(gamma, rel=max(bound, 3e-5))

    def test_the_input_centroid_goes_to_the_learnt_point(self) -> None:
        """The points' geodesics from the centroid keep their directions: one more point at the centroid ends at the learnt one."""
        manifold = Lorentz(0.8).double()
        layer = stirred(LorentzBatchNorm(manifold, 3)).train()
        x = draw(16, 3)
        with_centre = torch.cat([x, manifold.centroid(x, (0,))])
        torch.testing.assert_close(layer(with_centre)[-1], layer.mean.detach(), rtol=0, atol=1e-10)

    def test_it_is_maps_and_transport(self) -> None:
        """The paper's formula, step by step."""
        manifold = Lorentz(1.4).double()
        layer = stirred(LorentzBatchNorm(manifold, 3)).train()
        x = draw(10, 3)
        points, origin = manifold.point(x), manifold.point(torch.zeros(1, 3, dtype=torch.float64))
        mean, beta = manifold.point(manifold.centroid(x, (0,))), manifold.point(layer.mean)[None]
        tangent = manifold.transport(mean, origin, manifold.log(mean, points))
        tangent = tangent * layer.gamma / (inner(tangent, tangent).sqrt().mean() + 1e-5)
        expected = manifold.exp(beta, manifold.transport(origin, beta, tangent))
        torch.testing.assert_close(layer(x), expected[:, 1:], rtol=0, atol=1e-10)

    def test_running_statistics_come_to_those_of_the_data(self) -> None:
        """After many batches evaluation does what training does."""
        layer = stirred(LorentzBatchNorm(Lorentz(0.9).double(), 3))
        x = draw(64, 3) + 1
        for _ in range(300):
            layer.train()(x)
        torch.testing.assert_close(layer.eval()(x), layer.train()(x), rtol=0, atol=1e-9)

    def test_equal_points_have_finite_gradients(self) -> None:
        layer, x = LorentzBatchNorm(Lorentz(), 3).train(), torch.ones(4, 3, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None and bool(torch.isfinite(x.grad).all())


class TestRegression:
    @pytest.mark.parametrize("curvature", [0.3, 1.0, 4.0])
    def test_logits_are_distances_from_hyperplanes(self, curvature: float) -> None:
        """The nearest point of the plane, found by a numerical search, is as far as the logit says."""
        from scipy.optimize import minimize

        manifold = Lorentz(curvature).double()
        head = stirred(LorentzRegression(manifold, 2, 1))
        x = draw(1, 2)
        logit, steep = head(x).item(), head.normal.norm().item()
        root = float(manifold.k.sqrt())
        direction = (head.normal / steep).detach()[0]
        foot = direction * (torch.sinh(root * head.offset.detach()) / root)  # Nearest to the origin.
        across = torch.stack([-direction[1], direction[0]])

        def distance(step) -> float:
            # The plane is the geodesic through the foot across the direction.
            on_plane = manifold.boost(manifold.exp0(across * float(step[0])), foot)
            return manifold.distance(manifold.point(x[0]), manifold.point(on_plane)).item()

        assert head(foot[None]).item() == pytest.approx(0, abs=1e-10)
        assert minimize(distance, [0.1], tol=1e-12).fun * steep == pytest.approx(abs(logit), rel=1e-6)

    def test_gradients(self) -> None:
        head = stirred(LorentzRegression(Lorentz(0.6).double(), 3, 4))
        assert torch.autograd.gradcheck(head, (draw(5, 3).requires_grad_(),))


class TestNetwork:
    @pytest.mark.parametrize(("k", "head_k"), [(1.0, 1.0), (0.5, 0.5), (2.0, 0.8)])
    def test_it_computes_what_the_straightforward_version_does(self, plain: Callable[[str], ModuleType], k: float, head_k: float) -> None:
        """With its weights, read in the layout of the paper's code; whole points, unfolded windows and maps there."""
        torch.manual_seed(2)
        other = plain("hcnn").Classifier((1, 2, 1), (5, 6, 7), 4, 2, k, head_k)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if name.endswith("beta"):
                    space = 0.3 * torch.randn(len(parameter) - 1)
                    parameter.copy_(torch.cat([(space.square().sum() + k).sqrt()[None], space]))
                if name.endswith("gamma"):
                    parameter.fill_(1.3)
            for name, buffer in other.named_buffers():
                if name.endswith("running_mean"):
                    buffer[1:] = 0.2 * torch.randn(len(buffer) - 1)
        model = HyperbolicResNet(**SMALL, curvature=1 / k, head_curvature=1 / head_k)
        other.eval()
        assert load_weights(model, other.state_dict()) == "official"
        other, model, x = other.double(), model.double().eval(), draw(3, 2, 9, 8)
        with torch.no_grad():
            # Our points are those with exact times; theirs carry what single precision left of them.
            torch.testing.assert_close(model.embed(x), other.embed(x)[:, 1:], rtol=2e-6, atol=2e-6)
            torch.testing.assert_close(model(x), other(x), rtol=5e-6, atol=5e-6)
            other.train()
            model.train()
            torch.testing.assert_close(model(x), other(x), rtol=5e-6, atol=5e-6)

    def test_it_has_the_parameters_of_the_papers_code(self, plain: Callable[[str], ModuleType]) -> None:
        """But for the rows that would make time parts, which are never used there, the time parts of means, and constants."""
        other = plain("hcnn").Classifier((2, 2, 2, 2), (64, 128, 256, 512), 10, 3)
        unused = 0
        for name, parameter in other.named_parameters():
            if name.endswith((".scale", ".k")):
                unused += parameter.numel()
            if name.endswith("linearized_kernel.weight.weight"):
                unused += parameter.shape[1] + 1
            unused += name.endswith("beta")
        ours = sum(p.numel() for p in create_model("equivariant/lorentz_resnet18", num_classes=10).parameters())
        assert ours == sum(p.numel() for p in other.parameters()) - unused

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_features_lie_on_the_manifold(self, dtype: torch.dtype) -> None:
        """After every layer, to 1e-5 of the time part's square."""
        torch.manual_seed(0)
        model = HyperbolicResNet(**SMALL, curvature=0.6).to(dtype).train()
        worst = []

        def check(module: nn.Module, args: object, out: Tensor) -> None:
            point = model.manifold.point(out.flatten(2).movedim(1, -1) if out.ndim > 2 else out)
            worst.append(float(((inner(point, point) + 1 / model.manifold.k) / point[..., :1].square()).abs().max()))

        for module in model.modules():
            if isinstance(module, (LorentzConv, LorentzBatchNorm, LorentzPool, nn.ReLU)):
                module.register_forward_hook(check)
        model(draw(3, 2, 9, 9, dtype=dtype))
        assert len(worst) > 10 and max(worst) < 1e-5

    @pytest.mark.parametrize(("encoder", "head"), [("lorentz", "lorentz"), ("euclidean", "lorentz"), ("lorentz", "euclidean")])
    def test_curvatures_learn(self, encoder: str, head: str) -> None:
        """Every parameter gets a finite gradient, the curvatures too."""
        model = HyperbolicResNet(**SMALL, encoder=encoder, head=head, learn_curvature=True).train()
        model(draw(4, 2, 8, 8, dtype=torch.float32)).square().mean().backward()
        assert without_gradient(model) == []
        assert sum(name.endswith("log_curvature") for name, _ in model.named_parameters()) == (encoder == "lorentz") + (head == "lorentz")

    def test_a_hybrid_is_clipped(self) -> None:
        model = randomise(HyperbolicResNet(**SMALL, encoder="euclidean", clip=1.5), gain=9.0)
        with torch.no_grad():
            points = model.head_manifold.log0(model.embed(5 * draw(6, 2, 8, 8, dtype=torch.float32)))
        assert float(points.norm(dim=1).max()) == pytest.approx(1.5, rel=1e-5)

    def test_steps_at_a_high_rate_stay_finite(self) -> None:
        """Without a Riemannian optimizer and without any clipping of gradients; tests/bench takes a thousand."""
        torch.manual_seed(0)
        model = HyperbolicResNet(depths=(1,), widths=(4,), in_chans=1, num_classes=3, learn_curvature=True).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, target = draw(6, 1, 4, 4, dtype=torch.float32), torch.arange(6) % 3
        for _ in range(60):
            loss = F.cross_entropy(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert bool(torch.isfinite(loss))
        assert loss.item() < 0.3

    @pytest.mark.parametrize(
        ("change", "said"),
        [({"encoder": "lorenz"}, "lorentz"), ({"depths": (1,)}, "as many"), ({"clip": 0}, "clip"), ({"curvature": -1.0}, "more than 0")],
    )
    def test_arguments_that_mean_nothing(self, change: dict, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            HyperbolicResNet(**{**SMALL, **change})

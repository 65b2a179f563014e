"""The network of distances against the SchNet of torch-geometric, and what a distance cannot tell. Its symmetries: test_symmetries.py."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_near
from cnnkit_equivariant.models._radial import GaussianBasis, cosine_envelope, envelope, lengths
from cnnkit_equivariant.models.invariant import Invariant
from torch_geometric.nn.models import SchNet

CUTOFF = 4.0
ELEMENTS = ("H", "C", "N", "O", "Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_equals_the_schnet_of_torch_geometric(dtype: torch.dtype, tolerance: float) -> None:
    """With the same weights and the cosine taper; their Gaussians stand at places of single precision."""
    count, filters, layers, gaussians = 12, 10, 2, 9
    torch.manual_seed(0)
    positions = 3 * torch.rand(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    pairs = torch.nonzero((torch.cdist(positions, positions) < CUTOFF) & ~torch.eye(7, dtype=torch.bool)).t()
    vectors, species = positions[pairs[0]] - positions[pairs[1]], torch.arange(7) % 3
    theirs = SchNet(
        hidden_channels=count,
        num_filters=filters,
        num_interactions=layers,
        num_gaussians=gaussians,
        cutoff=CUTOFF,
        interaction_graph=lambda pos, batch: (pairs, vectors.norm(dim=1)),
    )
    ours = Invariant(
        elements=("H", "He", "Li"), cutoff=CUTOFF, channels=count, filters=filters, layers=layers, gaussians=gaussians, taper="cosine"
    )
    names = {"filter": "mlp", "to_message": "conv.lin1", "update.0": "conv.lin2", "update.2": "lin"}
    state, found = theirs.state_dict(), ours.state_dict()
    found["embedding.weight"] = state["embedding.weight"][1:4]
    for key in found:
        for name, other in names.items():
            if f".{name}." in key:
                found[key] = state[key.replace(f".{name}.", f".{other}.")]
    for at, other in ((0, "lin1"), (2, "lin2")):
        found |= {f"head.{at}.{part}": state[f"{other}.{part}"] for part in ("weight", "bias")}
    ours.load_state_dict(found)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    energy = ours.atomwise(species, vectors, pairs).energy.sum()
    assert_near(energy.detach(), theirs(species + 1, positions).detach()[0, 0], tolerance)


def test_it_has_the_size_of_the_equivariant_network() -> None:
    with on_meta():
        sizes = [count_params(create_model(f"equivariant/{name}", dims=3, elements=ELEMENTS)) for name in ("invariant", "escn")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_one_round_of_distances_tells_no_angle() -> None:
    """Three atoms in a line or at an angle are one to a single layer, where ends do not see each other; eSCN tells them apart."""
    from cnnkit_equivariant.models.escn import ESCN

    straight = torch.tensor([[-1.5, 0, 0], [1.5, 0, 0]], dtype=torch.float64)
    bent = torch.tensor([[-1.5, 0, 0], [0.2, 1.4866, 0]], dtype=torch.float64)
    bent[1] *= 1.5 / bent[1].norm()
    pairs, species = torch.tensor([[1, 2], [0, 0]]), torch.tensor([0, 1, 1])
    torch.manual_seed(0)
    for model, tells in ((Invariant(elements=("C", "O"), layers=1, channels=8), False), (ESCN(elements=("C", "O"), num_layers=1), True)):
        one, other = (model.double().atomwise(species, vectors, pairs).energy[0] for vectors in (straight, bent))
        assert (abs(float(one - other)) > 1e-3) == tells and (tells or abs(float(one - other)) < 1e-12)


@pytest.mark.parametrize("power", [2, 5])
def test_the_envelope_ends_with_two_derivatives(power: int) -> None:
    at = torch.tensor([0.0, 1.7, CUTOFF, CUTOFF + 1], dtype=torch.float64, requires_grad=True)
    value = envelope(at, CUTOFF, power=power)
    (first,) = torch.autograd.grad(value.sum(), at, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), at)
    assert float(value[0]) == 1 and 0 < float(value[1]) < 1
    for each in (value, first, second):
        assert float(each[2:].abs().max()) < 1e-13


def test_the_cosine_ends_with_one_derivative() -> None:
    at = torch.tensor([0.0, CUTOFF / 2, CUTOFF, CUTOFF + 1], dtype=torch.float64, requires_grad=True)
    value = cosine_envelope(at, CUTOFF)
    (first,) = torch.autograd.grad(value.sum(), at)
    torch.testing.assert_close(value.detach(), torch.tensor([1.0, 0.5, 0, 0], dtype=torch.float64))
    assert float(first[2:].abs().max()) < 1e-15


def test_gaussians_stand_at_even_steps() -> None:
    basis = GaussianBasis(5, CUTOFF, width=2.0).double()
    found = basis(torch.tensor([1.0, 2.5], dtype=torch.float64))
    places = torch.linspace(0, CUTOFF, 5, dtype=torch.float64)
    wanted = torch.exp(-0.5 * ((torch.tensor([[1.0], [2.5]], dtype=torch.float64) - places) / 2.0) ** 2)
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)


def test_a_vector_without_length_passes_no_gradient() -> None:
    vectors = torch.tensor([[0.0, 0, 0], [3.0, 0, 4.0]], dtype=torch.float64, requires_grad=True)
    found, apart = lengths(vectors)
    found.sum().backward()
    assert found.tolist() == [0, 5] and apart.tolist() == [False, True] and vectors.grad is not None
    assert vectors.grad[0].tolist() == [0, 0, 0] and vectors.grad[1].tolist() == pytest.approx([0.6, 0, 0.8])


@pytest.mark.parametrize("args", [{"layers": 0}, {"taper": "none"}, {"gaussians": 1}])
def test_arguments_that_make_no_network(args: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="accepted"):
        Invariant(**args)  # type: ignore[arg-type]

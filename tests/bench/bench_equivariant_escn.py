"""The default eSCN beside a straightforward version of the same network, with the same weights: energies, forces, a step of training.

The straightforward version has the structure of the authors' code: one linear map after the other, coefficients sorted by indices, e3nn's
Wigner matrices, channels mixed at the points of the grid. One thread; both run in turns, and the minimum of the repeats counts, in
processor time. Exits with 1 where ours is not faster by the target, or if energies or forces differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from turns import in_turns, plain

TARGET, TOLERANCE = 1.5, 1e-5
ELEMENTS = ("Cu", "O")


class Peer:
    """The straightforward version as a potential.

    Args:
        ours: Whose size, grid and weights it takes.
    """

    def __init__(self, ours: Any) -> None:
        block = ours.layer_blocks[1].message_block.so2_block_source
        size = {
            "num_layers": len(ours.layer_blocks),
            "lmax": ours.lmax,
            "mmax": ours.mmax,
            "sphere_channels": ours.sphere_embedding.embedding_dim,
            "hidden_channels": block.fc1_m0.out_features,
            "edge_channels": block.fc1_dist0.in_features,
            "num_gaussians": ours.distance_expansion.count,
            "basis_width_scalar": ours.distance_expansion.width,
        }
        self.network = plain("equivariant", "escn").PlainESCN(
            **size,
            cutoff=ours.cutoff,
            max_num_elements=len(ELEMENTS) + 1,
            grid=(ours.grid.values, ours.grid.integrals),
            taper=ours.taper,
            neighbors=ours.neighbors,
            message_act="gate",
            mirror=True,
            regress_forces=False,
        )
        state = self.network.state_dict()
        for key, value in ours.state_dict().items():
            if key in state:
                place = state[key][1:] if key.endswith("embedding.weight") else state[key]
                (place[:, : value.shape[1]] if value.ndim > 1 else place).copy_(value)
        state["energy_block.fc3.weight"].mul_(1000)

    def __call__(self, graph: Any, *, forces: bool, train: bool = False) -> dict[str, Tensor]:
        """Return the energy and the forces."""
        positions = graph.pos.detach().requires_grad_(forces)
        with torch.set_grad_enabled(forces):
            source, target = graph.edge_index
            vectors = positions[source] - positions[target] + graph.shifts @ graph.cell[0]
            energy = self.network(torch.where(graph.z == 29, 1, 2), vectors, graph.edge_index)[0].sum()
            if not forces:
                return {"energy": energy}
            (slope,) = torch.autograd.grad(energy, positions, create_graph=train)
        return {"energy": energy, "forces": -slope}


def learn(found: dict[str, Tensor]) -> None:
    """Run the backward pass of a loss of both."""
    (found["forces"].square().sum() + found["energy"].sum()).backward()


def main() -> int:
    """Run all modes, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=3, help="of four atoms in each direction")
    parser.add_argument("--repeats", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    from ase.build import bulk
    from cnnkit.backbones import create_model
    from cnnkit_equivariant.atoms.structures import to_graph

    torch.manual_seed(0)
    ours: Any = create_model("equivariant/escn", dims=3, elements=ELEMENTS)
    peer = Peer(ours)
    atoms = bulk("Cu", cubic=True) * ((args.cells,) * 3)
    atoms.rattle(0.1, seed=0)
    graph = to_graph(atoms, ours.cutoff)

    def evaluate(forces: bool) -> Callable[[], dict[str, Tensor]]:
        def run() -> dict[str, Tensor]:
            with torch.no_grad():
                return ours.eval()(graph, forces=forces)  # type: ignore[no-any-return]

        return run

    modes: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "energy": (evaluate(False), lambda: peer(graph, forces=False)),
        "energy and forces": (evaluate(True), lambda: peer(graph, forces=True)),
        "a step of training": (lambda: learn(ours.train()(graph)), lambda: learn(peer(graph, forces=True, train=True))),
    }
    one, other = modes["energy and forces"][0](), modes["energy and forces"][1]()
    apart = [
        float((one[name].detach() - other[name].detach()).abs().max() / other[name].detach().abs().max()) for name in ("energy", "forces")
    ]
    print(
        f"{len(atoms)} atoms, {graph.edge_index.shape[1]} edges; energies differ by {apart[0]:.1e}, forces by {apart[1]:.1e} of the largest"
    )
    met = max(apart) < TOLERANCE
    print(f"{'':20} {'ours ms':>9} {'peer ms':>9} {'ratio':>6} target")
    for name, runs in modes.items():
        seconds, _ = in_turns(runs, args.repeats)
        ratio = seconds[1] / seconds[0]
        met &= ratio >= TARGET
        print(f"{name:20} {seconds[0] * 1e3:9.1f} {seconds[1] * 1e3:9.1f} {ratio:6.2f} >= {TARGET:g}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())

"""Convolutions in the frame of an edge beside e3nn's fully connected tensor product, and Wigner matrices beside e3nn's.

The convolution takes features into the frame of each edge, mixes them order by order and takes them back; its weights are those of the
tensor product in another basis, so that both compute the same map, which is checked. "given": Wigner matrices and harmonics are there,
as in every layer of a network but the first; "made": they are made of the edges, and the gradient goes to the edges, too. The product
takes harmonics up to L. Where it would take gigabytes or minutes it is given fewer edges, and its time is scaled to as many as ours.

One thread, float32, processor time, ours and the peer in turns, the minimum of the repeats. Exits with 1 when a target is missed or two
results differ.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from cnnkit_equivariant.so3 import order
from cnnkit_equivariant.so3.convolution import SO2Linear
from cnnkit_equivariant.so3.tensor_product import so2_weights_from_tensor_product
from cnnkit_equivariant.so3.wigner import edge_rotation, wigner, wigner_matrix
from e3nn import o3
from torch import Tensor

TARGETS = {2: 3.0, 3: 5.0, 4: 15.0, 6: 22.0}
TARGET_CHANNELS = 32  # With more channels, both are bound by their matrix products, whose ratio is smaller.
TARGET_BARE, TARGET_WIGNER, TARGET_CONSTRUCTION = 1.5, 10.0, 50.0
TOLERANCE = 1e-4
ENOUGH = 0.3
"""Seconds of one measurement beyond which nothing is repeated more often than asked for."""
MOST_RESULTS = 7_500_000
"""Numbers of a result above which the allocator fetches new pages at every call, which would be measured instead of the layer."""
MOST_NUMBERS = 20_000_000
"""Edges that the tensor product is given, times the square of the coefficients, times the channels."""


def best(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the least processor time of each run, in ms, after one that does not count; short ones are repeated up to 20 times."""
    seconds = [math.inf] * len(runs)
    for at in range(max(repeats, 20) + 1):
        for which, run in enumerate(runs):
            if at > repeats and seconds[which] * at > ENOUGH:
                continue
            start = time.process_time()
            run()
            if at:
                seconds[which] = min(seconds[which], time.process_time() - start)
    return [1e3 * each for each in seconds]


def verdict(met: bool) -> str:
    """Return what stands at the end of a line."""
    return "" if met else "  MISSED"


def matrices(edges: int, lmax: int, repeats: int) -> bool:
    """Wigner matrices of all degrees up to ``lmax``."""
    angles = 2 * math.pi * torch.rand(3, edges)
    turns = o3.angles_to_matrix(*angles)
    slopes = [torch.randn(edges, 2 * degree + 1, 2 * degree + 1) for degree in range(lmax + 1)]

    def theirs(angles: Tensor) -> list[Tensor]:
        return [o3.wigner_D(degree, *angles) for degree in range(lmax + 1)]

    def both(make: Callable[[Tensor], list[Tensor]], given: Tensor) -> Callable[[], object]:
        leaf = given.clone().requires_grad_()
        return lambda: torch.autograd.grad(make(leaf), leaf, slopes)

    apart = max(float((a - b).abs().max()) for a, b in zip(wigner(lmax, turns), theirs(angles), strict=True))
    forward = best([lambda: wigner(lmax, turns), lambda: theirs(angles)], repeats)
    backward = best([both(lambda given: wigner(lmax, given), turns), both(theirs, angles)], repeats)
    ratios = forward[1] / forward[0], backward[1] / backward[0]
    met = min(ratios) >= TARGET_WIGNER and apart < TOLERANCE
    print(
        f"{edges:6} {lmax:2} {forward[0]:9.1f} {forward[1]:9.1f} {ratios[0]:6.1f} {backward[0]:9.1f} {backward[1]:9.1f} {ratios[1]:6.1f}"
        f"  {apart:.0e}{verdict(met)}",
        flush=True,
    )
    return met


class Convolution:
    """Ours and e3nn's for one ``lmax`` and number of channels, with the same weights."""

    def __init__(self, lmax: int, channels: int, edges: int) -> None:
        self.lmax, self.channels, self.degrees = lmax, channels, list(range(lmax + 1))
        irreps = o3.Irreps([(channels, (degree, 1)) for degree in self.degrees])
        start = time.process_time()
        self.product = o3.FullyConnectedTensorProduct(irreps, o3.Irreps.spherical_harmonics(lmax, p=1), irreps)
        self.construction = 1e3 * (time.process_time() - start)
        self.layer = SO2Linear(channels, channels, lmax, bias=False)
        weights = {
            (each.i_in1, each.i_in2, each.i_out): weight[:, 0].detach() * each.path_weight
            for each, weight in zip(self.product.instructions, self.product.weight_views(), strict=True)
        }
        weight, outer = so2_weights_from_tensor_product(weights, lmax)
        self.layer.load_state_dict({"weight": weight, **{f"weights.{at}": each for at, each in enumerate(outer)}})
        self.vectors = torch.randn(edges, 3)
        self.x = torch.randn(edges, order.size(lmax), channels)
        # The product is given coefficients channel by channel, as it wants them: the change is not counted.
        few = max(1, min(edges, MOST_NUMBERS // (order.size(lmax) ** 2 * channels)))
        self.share = edges / few
        self.few_vectors, self.few_x = self.vectors[:few], self.flat(self.x[:few])

    def flat(self, x: Tensor) -> Tensor:
        """Return coefficients ``(E, K, C)`` in the layout of e3nn."""
        return torch.cat([part.mT.flatten(1) for part in x.split([2 * degree + 1 for degree in self.degrees], 1)], 1)

    def turns(self, vectors: Tensor) -> Tensor:
        """Return the matrices into the frames of the edges."""
        return wigner_matrix(self.lmax, edge_rotation(vectors), by_order=True)

    def harmonics(self, vectors: Tensor) -> Tensor:
        """Return what the product is given of the edges."""
        return o3.spherical_harmonics(self.degrees, vectors, True, "component")

    def ours(self, turns: Tensor, x: Tensor) -> Tensor:
        """Into the frames, order by order, and back."""
        return turns.mT @ self.layer(turns @ x)

    def apart(self) -> float:
        """Return the largest difference of the results, of their range, over the edges that both take."""
        with torch.no_grad():
            theirs = self.product(self.few_x, self.harmonics(self.few_vectors))
            ours = self.flat(self.ours(self.turns(self.few_vectors), self.x[: len(self.few_x)]))
        return float((ours - theirs).abs().max() / theirs.abs().max())

    def times(self, repeats: int, *, made: bool, backward: bool) -> tuple[float, float]:
        """Return ms of ours and of e3nn's, for as many edges."""
        turns, harmonics = self.turns(self.vectors), self.harmonics(self.few_vectors)

        def run(make, apply, vectors: Tensor, given: Tensor, x: Tensor, parameters: list[Tensor]) -> Callable[[], object]:
            if not backward:
                return lambda: apply(make(vectors) if made else given, x)
            leaves = [x.clone().requires_grad_(), *parameters] + [vectors.clone().requires_grad_()] * made
            slope = torch.randn_like(x)
            return lambda: torch.autograd.grad(apply(make(leaves[-1]) if made else given, leaves[0]), leaves, slope)

        ours = run(self.turns, self.ours, self.vectors, turns, self.x, list(self.layer.parameters()))
        theirs = run(
            self.harmonics, lambda y, x: self.product(x, y), self.few_vectors, harmonics, self.few_x, list(self.product.parameters())
        )
        with torch.set_grad_enabled(backward):
            found = best([ours, theirs], repeats)
        return found[0], found[1] * self.share

    def bare(self, repeats: int, *, backward: bool) -> tuple[float, float]:
        """Return ms of the layer in the frame, and of its matrix products alone on operands that lie ready."""
        edges = max(1, MOST_RESULTS // (order.size(self.lmax) * self.channels))
        x = self.x[:edges, order.to_m_order(self.lmax)].requires_grad_(backward)
        slope = torch.randn_like(x)
        sizes = [count * self.channels for count in order.order_sizes(self.lmax)]
        inputs = [part.contiguous().detach().requires_grad_(backward) for part in x.flatten(1).split(sizes, 1)]
        weights = [torch.randn(size, size).requires_grad_(backward) for size in sizes]
        slopes = [part.contiguous() for part in slope.flatten(1).split(sizes, 1)]
        leaves = [x, *self.layer.parameters()]

        def products() -> list[Tensor]:
            return [part @ weight for part, weight in zip(inputs, weights, strict=True)]

        if not backward:
            with torch.no_grad():
                found = best([lambda: self.layer(x), products], repeats)
        else:
            found = best(
                [
                    lambda: torch.autograd.grad(self.layer(x), leaves, slope),
                    lambda: torch.autograd.grad(products(), [*inputs, *weights], slopes),
                ],
                repeats,
            )
        return found[0], found[1]


def exponent(times: dict[int, float]) -> float:
    """Return the slope of the logarithm of the time over that of L, fitted from L = 2 on."""
    points = [(math.log(lmax), math.log(ms)) for lmax, ms in times.items() if lmax >= 2]
    if len(points) < 2:
        return math.nan
    mean = [sum(values) / len(points) for values in zip(*points, strict=True)]
    return sum((a - mean[0]) * (b - mean[1]) for a, b in points) / sum((a - mean[0]) ** 2 for a, _ in points)


def convolutions(channels: int, degrees: Sequence[int], edges: int, repeats: int) -> bool:
    """One table; return whether all targets were met."""
    print(f"\nC = {channels}, {edges} edges: ms of ours, of e3nn's product, and their ratio")
    columns = [(made, backward) for made in (False, True) for backward in (False, True)]
    heads = [f"{'made' if made else 'given'}, {'both ways' if backward else 'forward'}" for made, backward in columns]
    print(" L " + "".join(f"{head:>28}" for head in heads) + "   differ  e3nn's edges")
    times: dict[tuple[bool, bool, int], dict[int, float]] = {}
    bares: list[tuple[int, list[tuple[float, float]]]] = []
    built: list[tuple[int, float, float]] = []
    met = True
    for lmax in degrees:
        pair = Convolution(lmax, channels, edges)
        apart, line, good = pair.apart(), f"{lmax:2} ", True
        for made, backward in columns:
            ours, theirs = pair.times(repeats, made=made, backward=backward)
            times.setdefault((made, backward, 0), {})[lmax] = ours
            times.setdefault((made, backward, 1), {})[lmax] = theirs
            good &= made or channels != TARGET_CHANNELS or theirs / ours >= TARGETS.get(lmax, 0)
            line += f"{ours:10.1f} {theirs:10.0f} {theirs / ours:6.1f}"
        good &= apart < TOLERANCE
        print(f"{line}  {apart:.0e} {len(pair.few_x):7}{verdict(good)}", flush=True)
        bares.append((lmax, [pair.bare(repeats, backward=backward) for backward in (False, True)]))
        built.append((lmax, best([partial(SO2Linear, channels, channels, lmax)], repeats)[0], pair.construction))
        met &= good
        del pair
    for head, key in zip(heads, columns, strict=True):
        print(f"time grows as L to the {exponent(times[*key, 0]):.1f}, e3nn's to the {exponent(times[*key, 1]):.1f}: {head}")
    for lmax, ways in bares:
        ratios = [layer / products for layer, products in ways]
        shown = [f"{layer:.1f} ms, its products {products:.1f}, {layer / products:.2f}x" for layer, products in ways]
        print(f"L = {lmax}: layer {shown[0]}; both ways {shown[1]}{verdict(max(ratios) <= TARGET_BARE)}")
        met &= max(ratios) <= TARGET_BARE
    for lmax, ours, theirs in built:
        print(f"L = {lmax}: constructed in {ours:.1f} ms, e3nn's product in {theirs:.0f}{verdict(ours < TARGET_CONSTRUCTION)}")
        met &= ours < TARGET_CONSTRUCTION
    return met


def main() -> int:
    """Print the tables, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edges", type=int, default=10_000)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--degrees", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--skip-matrices", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    met = True
    if not args.skip_matrices:
        print("Wigner matrices, l = 0..L: ms of ours, of e3nn, ratio; forward, then both ways; largest difference")
        met &= all([matrices(edges, lmax, args.repeats) for edges in (1_000, args.edges) for lmax in args.degrees])
    met &= all([convolutions(channels, args.degrees, args.edges, args.repeats) for channels in args.channels])
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())

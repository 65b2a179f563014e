"""Layers and the network that commute with down-scaling, beside the same with a Fourier transform there and back for every resolution.

The peer is the straightforward version of the tests, with the same weights. One thread, single precision; ours and the peer run in turns,
and the minimum of the repeats counts, in processor time. The last lines set a batch beside its pictures one by one. Exits with 1 when ours
takes longer, or two results differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from turns import Pairing, in_turns, plain

TARGET = 1.0
TOLERANCE = 1e-3


def learning(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """Return a function that runs forward and backward, and returns the result: gradients are compared in double precision by a test."""

    def both() -> Tensor:
        leaf = x.clone().requires_grad_()
        result = run(leaf)
        torch.autograd.grad(result.square().mean(), leaf)
        return result.detach()

    return both


def quiet(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """Return a function that runs forward alone."""

    def forward() -> Tensor:
        with torch.no_grad():
            return run(x)

    return forward


def pairings(batch: int, sizes: list[int]) -> list[Pairing]:
    """Return activation, convolution and network at each size."""
    from cnnkit_equivariant.models.scale_fourier import ScaleFourier
    from cnnkit_equivariant.scale import FourierConv, ShellActivation

    straight, channels, found = plain("equivariant", "scale_fourier"), (16, 32, 32), []
    peer = straight.Network(channels, (1, 1, 1), inputs=1, classes=10, modes=27, local=5, hidden=64).float().eval()
    for number in range(len(channels)):
        layer = peer.get_submodule(f"L{number}")
        layer.L = torch.nn.Parameter(layer.L.detach().to(torch.complex64))
    model = ScaleFourier(channels=channels, hidden=64).eval()
    model.load_state_dict(straight.ours(peer.state_dict()))
    conv, act = FourierConv(32, 32, bias=False), ShellActivation(32)
    conv.load_state_dict({name: model.convs[2].state_dict()[name] for name in ("taps", "mixture")})

    def their_act(x: Tensor) -> Tensor:
        return torch.fft.ifft2(peer.NL2(torch.fft.fft2(x, norm="forward")), norm="forward").real

    def their_conv(x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x, norm="forward")
        return torch.fft.ifft2(peer.L2(spectrum) + peer.conv2(spectrum), norm="forward").real

    for size in sizes:
        maps, pictures = torch.randn(batch, 32, size, size), torch.rand(batch, 1, size, size)
        for name, x, ours, theirs in (
            ("activation", maps, act, their_act),
            ("convolution", maps, conv, their_conv),
            ("network", pictures, model.resolutions, peer),
        ):
            found.append(Pairing(f"{name}, {size} x {size}, forward", quiet(ours, x), quiet(theirs, x)))
            found.append(Pairing(f"{name}, {size} x {size}, both ways", learning(ours, x), learning(theirs, x)))
    for size in sizes[:1]:
        pictures = torch.rand(batch, 1, size, size)
        single = quiet(lambda x: torch.cat([model(one[None]) for one in x]), pictures)
        found.append(Pairing(f"network, {size} x {size}: one by one", quiet(model, pictures), single))
    return found


def measure(pairing: Pairing, repeats: int) -> bool:
    """Print one line; return whether target and agreement were met."""
    seconds, results = in_turns((pairing.ours, pairing.peer), repeats)
    ratio = seconds[0] / seconds[1]
    apart = float((results[0] - results[1]).abs().max() / results[1].abs().max())
    print(f"{pairing.name:40} {seconds[0] * 1e3:9.1f} {seconds[1] * 1e3:9.1f} {ratio:6.2f} <= {TARGET:g}  {apart:.1e}", flush=True)
    return ratio <= TARGET and apart < TOLERANCE


def main() -> int:
    """Run the pairings, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=[15, 27, 41], type=lambda text: [int(part) for part in text.split(",")], metavar="ODD,...")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'what':40} {'ours ms':>9} {'peer ms':>9} {'ratio':>6} target  largest difference, of the largest value")
    met = [measure(pairing, args.repeats) for pairing in pairings(args.batch, args.sizes)]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())

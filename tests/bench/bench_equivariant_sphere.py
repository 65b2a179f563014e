"""The transform of the sphere beside straightforward versions: one dense matrix of scipy's harmonics, and an FFT with one einsum.

One thread; ours and the peer run in turns, and the minimum of the repeats counts, in processor time. Their results must agree. Exits with 1
when a ratio is under its target or two results differ. A target of 0 only shows the ratio.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from cnnkit_equivariant.models._spherical_layers import Block
from cnnkit_equivariant.sphere.projection import grid_directions
from cnnkit_equivariant.sphere.transform import SphereTransform, ring_weights
from scipy.special import sph_harm_y
from torch import Tensor
from turns import Pairing, in_turns

TOLERANCE = 1e-4


def dense_matrix(lmax: int, rings: int) -> Tensor:
    """Return scipy's harmonics at every point of the grid, ``(rings * rings, M * L)`` in our order of coefficients."""
    points = grid_directions(rings, rings).reshape(-1, 3)
    theta, phi = np.arccos(np.clip(points[:, 2], -1, 1)), np.arctan2(points[:, 1], points[:, 0])
    degree, order = np.arange(lmax + 1), np.arange(-lmax, lmax + 1)[:, None]
    table = sph_harm_y(np.broadcast_to(degree, (len(order), lmax + 1)), order, theta[:, None, None], phi[:, None, None])
    return torch.from_numpy(np.where(abs(order) <= degree, table, 0).reshape(len(points), -1)).to(torch.complex64)


def against_dense(lmax: int, channels: int, target: float) -> Pairing:
    """Forward transform of spin 0 beside one product with the conjugate harmonics."""
    grid = SphereTransform(lmax, spins=(0,))
    x = torch.randn(1, grid.longitudes, grid.rings, channels, dtype=torch.complex64)
    flat = x[0].transpose(0, 1).reshape(-1, channels).contiguous()
    area = torch.from_numpy(ring_weights(grid.rings)).repeat_interleave(grid.longitudes) * 2 * np.pi / grid.longitudes
    matrix = (dense_matrix(lmax, grid.rings).conj() * area[:, None]).to(torch.complex64).mT.contiguous()
    return Pairing(
        f"degree {lmax}, {channels} fields: dense harmonics", lambda: grid.analyse(x).flatten(), lambda: (matrix @ flat).flatten(), target
    )


def against_fft(lmax: int, channels: int, target: float) -> Pairing:
    """There and back of spins 0 and 1 beside FFTs along the rings and an einsum with the same tables."""
    grid = SphereTransform(lmax)
    x = torch.randn(2, grid.longitudes, grid.rings, channels, dtype=torch.complex64)
    plain = x.permute(3, 0, 2, 1).contiguous()  # (N, S, H, W), as people keep fields.
    analysis, synthesis = grid.analysis.to(torch.complex64), grid.synthesis.to(torch.complex64)
    orders = torch.arange(-lmax, lmax + 1) % grid.longitudes

    def peer() -> Tensor:
        rows = torch.fft.fft(plain, dim=-1)[..., orders]
        coefficients = torch.einsum("smlh,nshm->nslm", analysis, rows)
        rows = torch.einsum("smhl,nslm->nshm", synthesis, coefficients)
        full = torch.zeros(*rows.shape[:3], grid.longitudes, dtype=rows.dtype)
        full[..., orders] = rows
        return (torch.fft.ifft(full, dim=-1) * grid.longitudes).permute(1, 3, 2, 0).flatten()

    return Pairing(
        f"degree {lmax}, {channels} fields, there and back: FFT, einsum", lambda: grid.synthesise(grid.analyse(x)).flatten(), peer, target
    )


def real_input(lmax: int, channels: int, target: float) -> Pairing:
    """A real field of spin 0 beside the same as a complex one."""
    grid = SphereTransform(lmax, spins=(0,))
    x = torch.randn(1, grid.longitudes, grid.rings, channels)
    twice = x.to(torch.complex64)
    return Pairing(
        f"degree {lmax}, {channels} real fields: as complex ones",
        lambda: grid.analyse(x).flatten(),
        lambda: grid.analyse(twice).flatten(),
        target,
    )


def spectral_shortcut(bandwidth: int, channels: int, target: float) -> Pairing:
    """A residual block whose shortcut stays in the spectral domain beside one that goes to the grid and back for both branches."""
    torch.manual_seed(0)
    block = Block(channels, channels, bandwidth=bandwidth, residual=True).eval()
    torch.nn.init.ones_(block.norm2.scale)
    x = block.grid.analyse(torch.randn(2, 2 * bandwidth, 2 * bandwidth, 4, channels, dtype=torch.complex64))

    def peer() -> Tensor:
        grid = block.grid
        fields = block.act(grid.synthesise(block.norm(block.conv(grid.analyse(grid.synthesise(x))))))
        branch = grid.synthesise(block.norm2(block.conv2(grid.analyse(fields))))
        again = grid.analyse(grid.synthesise(x))
        shortcut = grid.synthesise(block.shortcut_norm(again @ block.shortcut.to(again.dtype)))
        return block.act2(shortcut + branch).flatten()

    return Pairing(f"residual block, bandwidth {bandwidth}: grid between layers", lambda: block(x).flatten(), peer, target)


def measure(pairing: Pairing, repeats: int) -> bool:
    """Print one line; return whether target and agreement were met."""
    seconds, results = in_turns((pairing.ours, pairing.peer), repeats)
    ratio = seconds[1] / seconds[0]
    apart = ((results[0] - results[1]).norm() / results[1].norm()).item()
    wanted = f">= {pairing.target:g}" if pairing.target else ""
    print(f"{pairing.name:58} {seconds[0] * 1e3:9.2f} {seconds[1] * 1e3:9.2f} {ratio:6.2f} {wanted:7} {apart:.1e}", flush=True)
    return ratio >= pairing.target and apart < TOLERANCE


def main() -> int:
    """Run the pairings, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'pairing':58} {'ours ms':>9} {'peer ms':>9} {'ratio':>6} {'target':7} difference, of the norm")
    pairings = (
        against_dense(15, 64, 3.0),
        against_dense(31, 64, 6.0),
        against_fft(15, 64, 1.5),
        against_fft(31, 64, 1.2),
        real_input(15, 64, 0.0),
        real_input(31, 64, 1.2),
        spectral_shortcut(16, 32, 1.2),
    )
    with torch.inference_mode():
        met = [measure(pairing, args.repeats) for pairing in pairings]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())

"""Screen metals for how strongly they bind what adsorbs on them, and draw the volcano.

    python apps/materials/adsorption_screen.py -o OUT --metals Cu,Ag,Pd,Pt --adsorbates O,H

Every metal gets a slab, at the lattice constant that the calculator itself finds; every adsorbate is set on every site and relaxed.
``OUT`` receives ``screen.html`` (the volcanoes, who binds where and how strongly), ``screen.csv`` with a row for each start, and
``relaxed.extxyz`` with the relaxed structures. ``--calculator checkpoint`` takes the potential of cnnkit that ``--ckpt`` names, or the
built-in one; ``emt`` takes ASE's effective-medium theory, which knows Al, Ni, Cu, Pd, Ag, Pt and Au, and C, H, N and O for
demonstrations only: its energies rank nothing in a laboratory.

An adsorption energy is that of slab and adsorbate less those of the clean slab and of the gas, half a molecule where the gas has two
atoms. ``--reference atom`` takes free atoms instead; ``--reference strongest`` counts from the metal that binds best, for potentials
that never saw a gas. The exit status is 1 if a relaxation failed; the others are there.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import product
from pathlib import Path
from typing import Any, Literal

import ase.io
import click
import cnnkit
import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, fcc111, molecule
from ase.constraints import FixAtoms
from ase.data import chemical_symbols, reference_states
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

SURFACES: dict[str, Callable[..., Atoms]] = {"fcc111": fcc111, "fcc100": fcc100}
GASES = {"H": "H2", "N": "N2", "O": "O2", "C": "", "S": "", "CO": "CO", "OH": "", "NO": "NO"}
"""The gas that an adsorbate comes from; none for those that no simple gas gives, which are counted from free atoms."""
OPTIMA = {"H": -0.24}
"""Where the top of the volcano lies in eV, as far as it is common knowledge: hydrogen evolution, where the free energy is zero."""
HEIGHTS = {"ontop": 1.7, "bridge": 1.5, "fcc": 1.3, "hcp": 1.3, "hollow": 1.2}
"""Where an adsorbate starts above the topmost layer, in A."""
LOOSE = 3.5
"""Height in A above which an adsorbate has left the surface."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#8c564b")  # Told apart by all eyes.

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 900px; padding: 0 1rem; color: #222; background: #fafafa }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } .failed { color: #a00 }
svg { width: 100%; height: auto; background: #fff }
table { border-collapse: collapse } td, th { padding: .15rem .9rem .15rem 0; text-align: left } td.number { text-align: right }
"""


@dataclass(frozen=True)
class Settings:
    """What to screen, and how.

    Args:
        output: Folder for everything that is written.
        metals: Symbols of face-centred metals.
        adsorbates: Of :data:`GASES`.
        sites: Names of sites of the surface; all that it has if there are none.
        surface: ``"fcc111"`` or ``"fcc100"``.
        size: Atoms along each side of the slab.
        layers: Of the slab; the lower half is fixed.
        calculator: ``"emt"`` or ``"checkpoint"``.
        checkpoint: Of a potential; the built-in one if not given.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        reference: ``"gas"``, ``"atom"`` or ``"strongest"``.
        fmax: Largest force of a relaxed structure, in eV/A.
        steps: Of a relaxation at most.
        progress: Show progress on stderr.
    """

    output: Path
    metals: tuple[str, ...] = ("Ni", "Cu", "Pd", "Ag", "Pt", "Au")
    adsorbates: tuple[str, ...] = ("O", "H")
    sites: tuple[str, ...] = ()
    surface: str = "fcc111"
    size: int = 2
    layers: int = 3
    calculator: Literal["emt", "checkpoint"] = "checkpoint"
    checkpoint: Path | None = None
    device: str = "auto"
    reference: Literal["gas", "atom", "strongest"] = "gas"
    fmax: float = 0.05
    steps: int = 200
    progress: bool = True


@dataclass(frozen=True)
class Bound:
    """What became of an adsorbate that was set on a site.

    Args:
        metal: Of the slab.
        adsorbate: Its formula.
        site: Where it started.
        ended: The nearest site where it came to rest, or ``"left"``.
        energy: Of adsorption, in eV.
        height: Above the topmost layer, in A.
        force: Largest at the end, in eV/A.
        atoms: The relaxed structure.
        error: Why there is none of this.
    """

    metal: str
    adsorbate: str
    site: str
    ended: str = ""
    energy: float = float("nan")
    height: float = float("nan")
    force: float = float("nan")
    atoms: Atoms | None = None
    error: str = ""


def make_calculator(settings: Settings) -> Any:
    """Return what gives energies and forces.

    Raises:
        CnnkitError: If the checkpoint cannot be used.
    """
    if settings.calculator == "emt":
        from ase.calculators.emt import EMT

        return EMT()
    from cnnkit_equivariant import Calculator

    return Calculator(settings.checkpoint, device=settings.device)


def check(settings: Settings) -> Settings:
    """Fill in the sites, and say what is not known before anything is computed.

    Raises:
        CnnkitError: Naming what there is.
    """
    for metal in settings.metals:
        number = chemical_symbols.index(metal) if metal in chemical_symbols else 0
        if not number or (reference_states[number] or {}).get("symmetry") != "fcc":
            raise cnnkit.CnnkitError(f"{metal} is no metal with a face-centred lattice; accepted: Al, Ni, Cu, Pd, Ag, Pt, Au and others")
    known = tuple(SURFACES[settings.surface]("Cu", (1, 1, 2)).info["adsorbate_info"]["sites"])
    for kind, words, accepted in (("adsorbate", settings.adsorbates, tuple(GASES)), ("site", settings.sites, known)):
        strange = [word for word in words if word not in accepted]
        if strange:
            raise cnnkit.CnnkitError(f"{', '.join(strange)}: not a known {kind} of {settings.surface}; accepted: {', '.join(accepted)}")
    if not settings.metals or not settings.adsorbates:
        raise cnnkit.CnnkitError("there is nothing to screen; name metals and adsorbates")
    if settings.checkpoint is not None and not settings.checkpoint.is_file():  # Known before a second of importing torch.
        raise cnnkit.CnnkitError(f"checkpoint {settings.checkpoint} does not exist")
    return replace(settings, sites=settings.sites or known)


def relaxed(atoms: Atoms, settings: Settings, calculator: Any, *, cell: bool = False) -> float:
    """Relax a structure in place and return its energy in eV."""
    atoms.calc = calculator
    moving: Any = FrechetCellFilter(atoms) if cell else atoms
    with LBFGS(moving, logfile=None) as optimizer:  # type: ignore[arg-type]
        optimizer.run(fmax=settings.fmax, steps=settings.steps)
    return float(atoms.get_potential_energy())


def clean_slab(metal: str, settings: Settings, calculator: Any) -> tuple[Atoms, float]:
    """Return a relaxed slab whose lower half is fixed, and its energy in eV."""
    block = bulk(metal, cubic=True)
    relaxed(block, settings, calculator, cell=True)
    constant = float(block.cell.lengths().mean())
    slab = SURFACES[settings.surface](metal, (settings.size, settings.size, settings.layers), a=constant, vacuum=8.0)
    slab.set_constraint(FixAtoms(mask=slab.get_tags() > (settings.layers + 1) // 2))
    return slab, relaxed(slab, settings, calculator)


def free_energy(adsorbate: str, settings: Settings, calculator: Any) -> float:
    """Return the energy in eV of what an adsorbate is counted from: its share of a gas, or its free atoms."""
    gas = GASES[adsorbate] if settings.reference == "gas" else ""
    if settings.reference == "strongest":
        return 0.0
    if gas:
        free = molecule(gas)
        return relaxed(free, settings, calculator) * len(species(adsorbate)) / len(free)
    return sum(relaxed(Atoms(symbol), settings, calculator) for symbol in species(adsorbate).symbols)


def species(adsorbate: str) -> Atoms:
    """Return the adsorbate as it is set on a surface: its first atom below."""
    atoms = Atoms(adsorbate)
    atoms.positions[1:, 2] = 1.15
    return atoms


def bind(slab: Atoms, adsorbate: str, site: str, settings: Settings, calculator: Any) -> tuple[Atoms, float, str, float]:
    """Set an adsorbate on a site and relax; return the structure, its energy, where it ended and how high."""
    atoms = slab.copy()
    add_adsorbate(atoms, species(adsorbate), HEIGHTS[site], site, offset=(settings.size - 1) // 2)
    energy = relaxed(atoms, settings, calculator)
    first = len(slab)
    height = float(atoms.positions[first, 2] - atoms.positions[:first, 2].max())
    return atoms, energy, ended(atoms, first) if height < LOOSE else "left", height


def ended(atoms: Atoms, first: int) -> str:
    """Return the name of the site nearest to an atom, seen from above."""
    told = atoms.info["adsorbate_info"]
    sites = {name: [place] for name, place in told["sites"].items()}
    sites["bridge"] = [(0.5, 0), (0, 0.5)] + [(0.5, 0.5)] * ("hollow" not in sites)  # ASE names one of those that symmetry makes equal.
    whole = np.array(atoms.cell)[:2, :2]
    beside = atoms.positions[first, :2] - atoms.positions[atoms.get_tags() == 1, :2]

    def away(place: tuple[float, float]) -> float:
        steps = (beside - np.array(place) @ told["cell"]) @ np.linalg.inv(whole)
        return float(np.linalg.norm((steps - np.round(steps)) @ whole, axis=1).min())

    return min(sites, key=lambda name: min(map(away, sites[name])))


def screen(settings: Settings, calculator: Any) -> Iterator[Bound]:
    """Relax every adsorbate on every site of every metal; what fails is told and costs no other."""
    gases = {adsorbate: _try(free_energy, adsorbate, settings, calculator) for adsorbate in settings.adsorbates}
    for metal in settings.metals:
        slab = _try(clean_slab, metal, settings, calculator)
        for adsorbate, site in product(settings.adsorbates, settings.sites):
            start, gas = Bound(metal, adsorbate, site), gases[adsorbate]
            failed = next((each for each in (slab, gas) if isinstance(each, Exception)), None)
            found = failed or _try(bind, slab[0], adsorbate, site, settings, calculator)
            if isinstance(found, Exception):
                yield replace(start, error=(str(found).strip() or type(found).__name__).splitlines()[0])
                continue
            atoms, energy, where, height = found
            force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
            atoms.info |= {"metal": metal, "adsorbate": adsorbate, "site": site, "ended": where}
            yield replace(start, ended=where, energy=energy - slab[1] - gas, height=height, force=force, atoms=frozen(atoms))


def _try(work: Callable[..., Any], *args: Any) -> Any:
    """Return what came out, or the error that one structure alone ended in."""
    try:
        return work(*args)
    except (cnnkit.CnnkitError, ArithmeticError, ValueError, RuntimeError, NotImplementedError) as error:
        return error


def frozen(atoms: Atoms) -> Atoms:
    """Return a structure with its results, apart from the calculator that goes on to the next."""
    from ase.calculators.singlepoint import SinglePointCalculator

    copied = atoms.copy()
    copied.info.pop("adsorbate_info", None)
    copied.calc = SinglePointCalculator(copied, energy=atoms.get_potential_energy(), forces=atoms.get_forces(apply_constraint=False))
    return copied


def strongest(results: Sequence[Bound]) -> dict[tuple[str, str], Bound]:
    """Return the start that ended lowest for each adsorbate and metal; those that left the surface do not count."""
    best: dict[tuple[str, str], Bound] = {}
    for one in results:
        if not one.error and one.ended != "left":
            key = one.adsorbate, one.metal
            best[key] = min(best.get(key, one), one, key=lambda each: each.energy)
    return best


def from_strongest(results: Sequence[Bound]) -> list[Bound]:
    """Count the energies of each adsorbate from the metal that binds it best."""
    lowest: dict[str, float] = {}
    for (adsorbate, _), one in strongest(results).items():
        lowest[adsorbate] = min(lowest.get(adsorbate, one.energy), one.energy)
    return [replace(one, energy=one.energy - lowest.get(one.adsorbate, 0.0)) for one in results]


def volcano(adsorbate: str, best: Sequence[Bound], settings: Settings) -> str:
    """Return the volcano of an adsorbate as SVG: how far each metal's energy is from the one at the top."""
    known = adsorbate in OPTIMA and settings.reference == "gas"
    energies = [one.energy for one in best]
    top = OPTIMA[adsorbate] if known else sum(energies) / len(energies)
    reach = 1.15 * max(*(abs(energy - top) for energy in energies), 0.1)
    width, height, left, floor = 860, 320, 60, 270
    centre, scale = left + (width - left - 30) / 2, (width - left - 30) / 2 / reach

    def place(energy: float) -> tuple[float, float]:
        return centre + (energy - top) * scale, 40 + abs(energy - top) / reach * (floor - 40)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="13" font-family="sans-serif">']
    legs = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(top - reach), place(top), place(top + reach)))
    parts.append(f'<polyline points="{legs}" fill="none" stroke="#bbb" stroke-width="2"/>')
    parts.append(f'<line x1="{left}" x2="{width - 30}" y1="{floor}" y2="{floor}" stroke="#222"/>')
    for value in axis(top - reach, top + reach):
        x, _ = place(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 5}" stroke="#222"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 20}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{centre}" y="{floor + 40}" text-anchor="middle">adsorption energy of {escape(adsorbate)}, eV</text>')
    named = f"top at {top:.2f} eV" if known else f"top at the mean, {top:.2f} eV: nothing better is known here"
    parts.append(f'<text x="{centre}" y="22" text-anchor="middle" fill="#777">{named}</text>')
    parts.append(f'<text x="{left}" y="{floor - 8}" fill="#777">binds too strongly</text>')
    parts.append(f'<text x="{width - 30}" y="{floor - 8}" text-anchor="end" fill="#777">binds too weakly</text>')
    for index, one in enumerate(sorted(best, key=lambda one: one.energy)):
        x, y = place(one.energy)
        told = escape(f"{one.metal}: {one.energy:.3f} eV on {one.ended}")
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{COLOURS[index % len(COLOURS)]}"><title>{told}</title></circle>')
        parts.append(f'<text x="{x + 9:.1f}" y="{y - 6 + 16 * (index % 2):.1f}" font-weight="bold">{escape(one.metal)}</text>')
    return "".join(parts) + "</svg>"


def axis(low: float, high: float) -> list[float]:
    """Return about eight round numbers between two."""
    power = 10.0 ** np.floor(np.log10((high - low) / 8))
    step = next(float(factor * power) for factor in (1, 2, 5, 10) if factor * power >= (high - low) / 8)
    return [round(index * step, 10) for index in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def page(results: Sequence[Bound], settings: Settings) -> str:
    """Return the page: volcanoes, the strongest site of every metal, every start, and what failed."""
    best, body = strongest(results), []
    for adsorbate in settings.adsorbates:
        found = [one for (name, _), one in best.items() if name == adsorbate]
        body.append(f"<h2>{escape(adsorbate)} on {settings.surface}</h2>")
        body.append(volcano(adsorbate, found, settings) if found else "<p>It stayed on none of the surfaces.</p>")
        rows = "".join(_row(one.metal, one.ended, one.energy, one.height) for one in sorted(found, key=lambda one: one.energy))
        body.append(f"<table><tr><th>metal</th><th>site</th><th>energy, eV</th><th>height, A</th></tr>{rows}</table>" if rows else "")
    rows = "".join(
        _row(one.metal, one.adsorbate, one.site, one.ended + "*" * (one.force > settings.fmax), one.energy, one.height)
        for one in results
        if not one.error
    )
    head = "<tr><th>metal</th><th>adsorbate</th><th>start</th><th>end</th><th>energy, eV</th><th>height, A</th></tr>"
    trouble = "".join(
        f'<p class="failed">{escape(one.adsorbate)} on {escape(one.metal)}, {escape(one.site)}: {escape(one.error)}</p>'
        for one in results
        if one.error
    )
    counted = {"gas": "the gas", "atom": "free atoms", "strongest": "the metal that binds best"}[settings.reference]
    source = (
        "ASE's EMT, which is for demonstrations" if settings.calculator == "emt" else str(settings.checkpoint or "the built-in potential")
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Adsorption screen</title><style>{STYLE}</style></head>'
        f"<body><h1>Adsorption on {escape(', '.join(settings.metals))}</h1>{trouble}{''.join(body)}<h2>Every start</h2>"
        f"<table>{head}{rows}</table><p>Energies count from {counted}, by {escape(source)}. Slabs of {settings.size} x {settings.size} "
        f"x {settings.layers} atoms were relaxed to {settings.fmax:g} eV/A; * marks what did not get there in {settings.steps} steps.</p>"
        "</body></html>\n"
    )


def _row(*values: str | float) -> str:
    cells = (f"<td>{escape(value)}</td>" if isinstance(value, str) else f'<td class="number">{value:.3f}</td>' for value in values)
    return f"<tr>{''.join(cells)}</tr>"


def table(results: Sequence[Bound]) -> str:
    """Return a row for each start as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("Metal", "Adsorbate", "Start", "End", "Adsorption energy (eV)", "Height (A)", "Largest force (eV/A)", "Error"))
    for one in results:
        numbers = ("", "", "") if one.error else (f"{one.energy:.6f}", f"{one.height:.4f}", f"{one.force:.4f}")
        writer.writerow((one.metal, one.adsorbate, one.site, one.ended, *numbers, one.error))
    return text.getvalue()


def write(path: Path, text: str) -> Path:
    """Write a file so that it is never seen half."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return path


def run(settings: Settings) -> int:
    """Screen, write everything, and return the exit status."""
    settings = check(settings)
    calculator = make_calculator(settings)
    settings.output.mkdir(parents=True, exist_ok=True)
    results = []
    count = len(settings.metals) * len(settings.adsorbates) * len(settings.sites)
    for number, one in enumerate(screen(settings, calculator), start=1):
        results.append(one)
        if settings.progress:
            told = one.error or f"{one.energy:.3f} eV, {one.ended}"
            print(f"{number}/{count} {one.adsorbate} on {one.metal}, {one.site}: {told}", file=sys.stderr)
    if settings.reference == "strongest":
        results = from_strongest(results)
    structures = io.StringIO()
    ase.io.write(structures, [one.atoms for one in results if one.atoms is not None], format="extxyz")
    write(settings.output / "relaxed.extxyz", structures.getvalue())
    write(settings.output / "screen.csv", table(results))
    print(write(settings.output / "screen.html", page(results, settings)))
    return int(any(one.error for one in results))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@click.command(help=__doc__.split("\n\n")[0] if __doc__ else None)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for everything that is written.")
@click.option("--metals", default=",".join(Settings.metals), show_default=True, help="Face-centred metals.")
@click.option("--adsorbates", default=",".join(Settings.adsorbates), show_default=True, help=f"Of {', '.join(GASES)}.")
@click.option("--sites", default="", help="Of the surface; all by default: ontop, bridge, fcc, hcp; of fcc100 ontop, bridge, hollow.")
@click.option("--surface", type=click.Choice(list(SURFACES)), default="fcc111", show_default=True)
@click.option("--size", type=click.IntRange(min=1), default=2, show_default=True, help="Atoms along each side of the slab.")
@click.option("--layers", type=click.IntRange(min=2), default=3, show_default=True, help="Of the slab; the lower half is fixed.")
@click.option("--calculator", type=click.Choice(["emt", "checkpoint"]), default="checkpoint", show_default=True)
@click.option("--ckpt", "checkpoint", type=click.Path(path_type=Path), help="A potential; the built-in one by default.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@click.option("--reference", type=click.Choice(["gas", "atom", "strongest"]), default="gas", show_default=True, help="What counts as 0 eV.")
@click.option(
    "--fmax", type=click.FloatRange(min=0, min_open=True), default=0.05, show_default=True, help="Largest force at the end, eV/A."
)
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True, help="Of a relaxation at most.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def main(metals: str, adsorbates: str, sites: str, quiet: bool, **others: Any) -> None:
    """Read the command line."""
    settings = Settings(metals=_words(metals), adsorbates=_words(adsorbates), sites=_words(sites), progress=not quiet, **others)
    try:
        sys.exit(run(settings))
    except cnnkit.CnnkitError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

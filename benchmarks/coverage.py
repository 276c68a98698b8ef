"""Whether what is stated is right: intervals, photons, probabilities, numbers and draws.

    python benchmarks/coverage.py gaussian-2d [--movies 240] [--sparse] [--seed 0]
    python benchmarks/coverage.py astigmatic-3d --movie FRAMES --truth TRUTH --camera CAMERA \\
                                  [--psf PSF] [--no-polish] [--frames 300]

Without a movie: what a model's network states of fresh movies of its own recipe, which neither its
training nor its calibration has seen, by thirds of the stated photons and depths; also the number
of molecules in frames and regions, and draws around molecules that are alone, of all densities of
the recipe or (`--sparse`) of a tenth.  If draws are of the posterior, truth and draw can be
exchanged: as often as a draw holds exactly one where the truth is alone, the truth holds exactly
one where a draw is.  With a movie: its table, by true molecules that are alone within a micrometre
or not, and on in one frame or several.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from decode.config import TrainConfig, from_mapping
from decode.emitters import EmitterSet
from decode.io.tables import read_table
from decode.metrics import Errors, _isolated, match, reliability
from decode.models import load_model
from decode.network.molecules import MoleculePosterior
from decode.training.learner import counted
from decode.training.validation import posterior_of
from decode.verbs.localize import localize

SEED = 86028121
"""difference of the seed of fresh movies to that of the recipe"""
SIDE_PX, N_FRAMES, MOVIES_AT_ONCE = 40, 6, 4
BORDER_NM = 450.0
REGION_PX, AROUND_NM, DRAWS, FEW = 8, 450.0, 20, 5
"""side of regions whose molecules are counted, and half the side of the squares around those that
are alone; number of draws, and of those that these are looked for in"""
BRIGHT = 1000.0
"""photons of those"""
SPARSE = 0.1
"""share of the densities of the recipe"""
CLEAR, DARK, IN_FOCUS_NM = (2000.0, 10000.0), (5.0, 60.0), 350.0
"""photons, background and distance from focus of those that are counted besides all"""
SAME_NM = 0.05
"""distance of one molecule in two frames"""


def several(truth: EmitterSet) -> Tensor:
    """(n,) bool: which are on in a frame beside their own, too."""
    place = [tuple(xy) for xy in (truth.xyz[:, :2] / SAME_NM).round().long().tolist()]
    known = set(zip(place, truth.frame.tolist(), strict=True))
    return torch.tensor(
        [
            (xy, frame - 1) in known or (xy, frame + 1) in known
            for xy, frame in zip(place, truth.frame.tolist(), strict=True)
        ]
    )


def thirds(values: Tensor) -> list[Tensor]:
    """Rows by the order of their values."""
    third = torch.empty_like(values, dtype=torch.int64)
    third[values.argsort()] = 3 * torch.arange(len(values)) // max(1, len(values))
    return [third == i for i in range(3)]


def show(
    table: EmitterSet,
    truth: EmitterSet,
    field_nm: tuple[float, float],
    *,
    two_d: bool,
    of_movie: bool,
) -> None:
    """Print shares of errors within their intervals, bias of photons, and reliability."""
    far = torch.tensor(field_nm) - BORDER_NM

    def inner(emitters: EmitterSet) -> Tensor:
        xy = emitters.xyz[:, :2]
        return ((xy > BORDER_NM) & (xy < far)).all(1)

    pairs = match(truth, table, two_d=two_d)
    true = torch.zeros(len(table), dtype=torch.bool)
    true[pairs[:, 1]] = True
    own, row = pairs[inner(truth)[pairs[:, 0]]].unbind(1)
    found, known = table[row], truth[own]
    alone = _isolated(truth)[own]
    groups = {"all": alone | ~alone, "alone": alone, "crowded": ~alone}
    if of_movie:
        long = several(truth)[own]
        groups |= {
            f"{name}, {frames}": groups[name] & rows
            for name in ("alone", "crowded")
            for frames, rows in (("one frame", ~long), ("several", long))
        }
    sorted_by = (
        {"photons": found.photons} if two_d else {"photons": found.photons, "z": found.xyz[:, 2]}
    )
    for name, values in sorted_by.items():
        for part, rows in zip(("low", "middle", "high"), thirds(values), strict=True):
            groups[f"{name}, {part}"] = rows
    for name, rows in groups.items():
        shares = (
            f"{q} {e.coverage_68:.3f}/{e.coverage_95:.3f}"
            for q, e in errors(found[rows], known[rows], two_d=two_d)
        )
        bias = float(found.photons[rows].sum() / known.photons[rows].sum().clamp_min(1) - 1)
        print(f"{name:20}{int(rows.sum()):7d}", *shares, f"photons {bias:+.3f}")
    if table.probability is not None:
        judged = inner(table)
        stated = reliability(table.probability[judged], true[judged])
        if stated is not None:
            print(f"expected calibration error {stated.expected_error:.4f}")


def errors(found: EmitterSet, known: EmitterSet, *, two_d: bool) -> Iterator[tuple[str, Errors]]:
    """Errors of each quantity, where there are enough."""
    assert found.xyz_sigma is not None
    for i, axis in enumerate("xy" if two_d else "xyz"):
        half = None if found.xyz_95 is None else found.xyz_95[:, i]
        told = Errors.of(found.xyz[:, i] - known.xyz[:, i], found.xyz_sigma[:, i], half)
        if told is not None:
            yield axis, told
    assert found.photons_sigma is not None
    told = Errors.of(found.photons - known.photons, found.photons_sigma, found.photons_95)
    if told is not None:
        yield "photons", told


def own_recipe(name: str, movies: int, *, sparse: bool, seed: int) -> None:
    """Print what the network states of movies of its own recipe."""
    model = load_model(name).eval()
    config = from_mapping(TrainConfig, model.record.config, "the recipe of the model")
    forward, pixel = config.forward_model(), config.pixel_size_nm
    if sparse:
        low, high = config.scene.density_per_um2
        scene = replace(config.scene, density_per_um2=(low, low + (high - low) * SPARSE))
        forward = replace(forward, scene=scene)
    rng = torch.Generator().manual_seed(config.seed + SEED + seed)
    tables, truths, numbers, regions = [], [], [], []
    exactly, converse = [], []
    side_nm = SIDE_PX * pixel
    for i in range(movies // MOVIES_AT_ONCE):
        batch = forward.sample(MOVIES_AT_ONCE, N_FRAMES, (SIDE_PX, SIDE_PX), rng)
        with torch.no_grad():
            molecules = posterior_of(model, batch).molecules()
        truth = counted(batch, config.training)
        truth = truth[((truth.xyz[:, :2] > 0) & (truth.xyz[:, :2] < side_nm)).all(1)]
        first = i * MOVIES_AT_ONCE * N_FRAMES
        tables.append(molecules.above(0.5).table(first_frame=first))
        truths.append(replace(truth, frame=truth.frame + first))
        counts = molecules.counts()
        number = torch.bincount(truth.frame, minlength=counts.n_frames).double()
        numbers.append(torch.stack([number, counts.mean, counts.rank(number)], 1))
        draws = [molecules.sample(rng) for _ in range(DRAWS)]
        counted_in = torch.stack([in_regions(d, molecules, pixel) for d in draws])
        excess = in_regions(truth, molecules, pixel) - counted_in.mean(0)
        regions.append(torch.stack([excess.square(), counted_in.var(0) * (1 + 1 / DRAWS)]))
        background = batch.background.flatten(0, 1).mean((1, 2))
        exactly += [once(truth, drawn, background, side_nm) for drawn in draws[:FEW]]
        converse += [once(drawn, truth, background, side_nm) for drawn in draws[:FEW]]
    table, truth = EmitterSet.cat(tables), EmitterSet.cat(truths)
    show(table, truth, (side_nm, side_nm), two_d=not model.network.axial, of_movie=False)
    number, expected, below = torch.cat(numbers).T
    held = ((below - 0.5).abs() < 0.475).double().mean()
    print(f"expected over true number {expected.sum() / number.sum():.3f}")
    print(f"numbers of a frame within their 95 % intervals {held:.3f}")
    true, stated = torch.cat(regions, 1).mean(1)
    print(f"variance of numbers in regions of 8 x 8 pixels over the stated one {true / stated:.2f}")
    for which, cases in (("truth alone, draw", exactly), ("draw alone, truth", converse)):
        held, clear, in_focus = torch.cat(cases).T
        groups = {"all": clear >= 0, "clear": clear > 0, "clear, in focus": clear * in_focus > 0}
        shares = (f"{n} {held[rows].mean():.3f} of {rows.sum()}" for n, rows in groups.items())
        print(f"{which} holds exactly one:", *shares, sep="  ")


def in_regions(emitters: EmitterSet, molecules: MoleculePosterior, pixel: float) -> Tensor:
    """(regions,) numbers of emitters."""
    n_frames, height, width = molecules.shape
    rows, columns = height // REGION_PX, width // REGION_PX
    x, y = (emitters.xyz[:, :2] / (REGION_PX * pixel)).long().unbind(1)
    region = (emitters.frame * rows + y.clamp(0, rows - 1)) * columns + x.clamp(0, columns - 1)
    return torch.bincount(region, minlength=n_frames * rows * columns).double()


def once(one: EmitterSet, other: EmitterSet, background: Tensor, side_nm: float) -> Tensor:
    """(n, 3) of each that is alone in one set: whether the other holds exactly one around it, and
    whether it is clear and in focus."""
    xy = one.xyz[:, :2]
    inside = ((xy > BORDER_NM) & (xy < side_nm - BORDER_NM)).all(1)
    alone = one[_isolated(one) & inside & (one.photons > BRIGHT)]
    near = (other.xyz[None, :, :2] - alone.xyz[:, None, :2]).abs().amax(2) < AROUND_NM
    held = (near & (other.frame == alone.frame[:, None])).sum(1) == 1
    dark = background[alone.frame]
    clear = (alone.photons > CLEAR[0]) & (alone.photons < CLEAR[1])
    clear &= (dark > DARK[0]) & (dark < DARK[1])
    return torch.stack([held, clear, alone.xyz[:, 2].abs() < IN_FOCUS_NM], 1).double()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--movies", type=int, default=60)
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--movie", type=Path)
    for name in ("--truth", "--camera", "--psf"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--no-polish", action="store_true")
    parser.add_argument("--frames", type=int, default=300)
    given = parser.parse_args()
    if given.movie is None:
        own_recipe(given.model, given.movies, sparse=given.sparse, seed=given.seed)
        return
    model = load_model(given.model)
    table = localize(
        given.movie,
        model=model,
        camera=given.camera,
        psf=given.psf,
        polish=False if given.no_polish else None,
        frames=slice(0, given.frames),
    )
    truth = read_table(given.truth)
    truth = truth[truth.frame < given.frames]
    field = table.facts.field_nm
    assert field is not None
    show(table, truth, field, two_d=not model.network.axial, of_movie=True)


if __name__ == "__main__":
    main()

"""Linking: molecules joined or parted by mistake, errors of merged positions, and a refit against
the merge.

    python benchmarks/linking.py [tables] [filaments] [refit] [million] [--seed 1] [--molecules 600]

Tables: molecules blink with k_on 0.7, k_off 0.12 and k_bleach 0.22 a frame and are never dark for
more than 3 frames; 0.1 and 1 of them are on at once per square micrometre; x, y and z have the
precision of their photons, which differ between frames.  Joined are found molecules with rows of
several true ones; parted are true molecules whose rows are in several found ones.  Filaments: the
same along lines.  Refit: movies by the forward model, rows fitted frame by frame, molecules merged
and refitted.  Without names, all but the million are run.  Times are of CPU.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from decode.emitters import EmitterSet, correlations
from decode.io.movies import Movie
from decode.io.movies.array import ArrayPart
from decode.likelihood import fit_jointly
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import render
from decode.postprocess.link import Kinetics, Linking, linked, merged, refitted

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

KINETICS = Kinetics(k_on=0.7, k_off=0.12, k_bleach=0.22)
LONGEST_DARK, DEPTH_NM, BACKGROUND = 3, 600.0, 15.0
CAMERAS = {
    "EMCCD": Camera(
        baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
    ),
    "sCMOS": Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.3, qe=0.8),
}
PSF = GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=200.0)


class Scene(NamedTuple):
    """Rows of true molecules."""

    frame: Integers
    molecule: Integers
    photons: Floats
    place: Floats
    """(molecules, 3) nm"""


def blinking(
    density: float,
    side_nm: float,
    n_frames: int,
    rng: np.random.Generator,
    *,
    filaments: int = 0,
    margin_nm: float = 0.0,
) -> Scene:
    """Molecules of which so many are on at once per square micrometre."""
    on = density * ((side_nm - 2 * margin_nm) / 1e3) ** 2
    n = rng.poisson(on * (n_frames + 60) * KINETICS.k_bleach)
    start = rng.integers(-60, n_frames, n)
    lit, dark, alive = np.ones(n, np.bool_), np.zeros(n, np.int64), np.ones(n, np.bool_)
    frames, molecules = [], []
    for step in range(400):
        now = start + step
        shown = np.flatnonzero(alive & lit & (now >= 0) & (now < n_frames))
        frames.append(now[shown])
        molecules.append(shown)
        draw, again = rng.random((2, n))
        leaves = lit & (draw < KINETICS.leaves)
        wakes = ~lit & ((draw < KINETICS.wakes) | (dark >= LONGEST_DARK))
        alive &= ~(leaves & (again >= KINETICS.returns))
        lit = (lit & ~leaves) | wakes
        dark = np.where(lit, 0, dark + 1)
        if not alive.any():
            break
    frame, molecule = np.concatenate(frames), np.concatenate(molecules)
    order = np.argsort(frame, kind="stable")
    frame, molecule = frame[order], molecule[order]
    place = np.empty((n, 3))
    place[:, :2] = rng.uniform(margin_nm, side_nm - margin_nm, (n, 2))
    place[:, 2] = rng.uniform(-DEPTH_NM, DEPTH_NM, n)
    if filaments:
        line, along = rng.integers(0, filaments, n), rng.uniform(0, 1, n)
        ends = rng.uniform(0, side_nm, (2, filaments, 2))
        place[:, :2] = ends[0, line] + along[:, None] * (ends[1] - ends[0])[line]
        place[:, :2] += rng.normal(0, 12, (n, 2))
    # molecules differ in brightness, and the frames of one by the share that it is on
    flux = 2000 * rng.gamma(4, 0.25, n)[molecule] * rng.uniform(0.1, 1.0, len(frame))
    return Scene(frame, molecule, np.maximum(flux, 150.0), place)


def table(scene: Scene, side_nm: float, n_frames: int, rng: np.random.Generator) -> EmitterSet:
    """Rows with Gaussian errors, as stated."""
    bright, depth = scene.photons, scene.place[scene.molecule, 2] / DEPTH_NM
    one = 180 / np.sqrt(bright) * np.sqrt(1 + 300 / bright) * (1 + 0.5 * depth**2)
    sigma = np.stack([one, one * (1 + 0.2 * depth), 2.5 * one], 1)
    seen = scene.place[scene.molecule] + sigma * rng.normal(size=sigma.shape)
    side = int(side_nm / 100)
    return EmitterSet(
        frame=torch.from_numpy(scene.frame),
        xyz=torch.from_numpy(seen),
        photons=torch.from_numpy(bright),
        xyz_sigma=torch.from_numpy(sigma),
        metadata={
            "n_frames": n_frames,
            "pixel_size_nm": 100.0,
            "width_px": side,
            "height_px": side,
        },
    )


class Faults(NamedTuple):
    joined: float
    parted: float
    whose: Integers
    """(molecules,) the true one that most rows are of"""
    true: npt.NDArray[np.bool_]
    """whether all rows are of that one"""


def faults(linking: Linking, molecule: Integers) -> Faults:
    both, count = np.unique(np.stack([linking.track, molecule], 1), axis=0, return_counts=True)
    n_true = np.bincount(both[:, 0])
    _, parts = np.unique(both[:, 1], return_counts=True)
    order = np.lexsort((-count, both[:, 0]))
    first = order[np.searchsorted(both[order, 0], np.arange(len(n_true)))]
    return Faults(
        float((n_true > 1).mean()), float((parts > 1).mean()), both[first, 1], n_true == 1
    )


def numbers(values: npt.ArrayLike, digits: int = 2) -> str:
    return "/".join(f"{value:.{digits}f}" for value in np.asarray(values).tolist())


def errors(whole: EmitterSet, truth: Floats, which: npt.NDArray[np.bool_]) -> str:
    """Errors of some molecules against what they state."""
    assert whole.xyz_sigma is not None
    error = whole.xyz.double().numpy()[which] - truth[which]
    sigma = whole.xyz_sigma.double().numpy()[which]
    pull = error / sigma
    rms, said = (np.sqrt((v**2).mean(0)) for v in (error, sigma))
    return (
        f"rms {numbers(rms)} nm, stated {numbers(said)}, ratio {numbers(said / rms, 3)}, "
        f"pull {numbers(np.sqrt((pull**2).mean(0)), 3)}"
    )


def tables(rng: np.random.Generator, *, filaments: int = 0) -> None:
    for density, side, n_frames in ((0.1, 20_000.0, 1500), (1.0, 10_000.0, 600)):
        scene = blinking(density, side, n_frames, rng, filaments=filaments)
        rows = table(scene, side, n_frames, rng)
        began = time.process_time()
        linking = linked(rows)
        took = time.process_time() - began
        whole = merged(rows, linking)
        found = faults(linking, scene.molecule)
        kinetics = linking.kinetics
        print(
            f"{density:g} a um^2, {len(rows)} rows, {linking.n_molecules} molecules found: joined "
            f"{found.joined:.2%} (stated {(1 - linking.probability).mean():.2%}), parted "
            f"{found.parted:.2%}; gap {linking.gap}, k_on {kinetics.k_on:.2f}, k_off "
            f"{kinetics.k_off:.3f}, k_bleach {kinetics.k_bleach:.3f}; {took:.1f} s"
        )
        several = np.bincount(linking.track) > 1
        truth = scene.place[found.whose]
        print("  merged, of one molecule:", errors(whole, truth, several & found.true))
        error = np.abs(whole.xyz.numpy() - truth)
        assert whole.xyz_sigma is not None
        within = [(error < k * whole.xyz_sigma.numpy())[several].mean() for k in (1, 2)]
        print(f"  all: {within[0]:.3f} within 1 sigma (.683), {within[1]:.3f} within 2 (.954)")
        doubtful = linking.probability < 0.99
        if doubtful.any():
            one, said = found.true[doubtful].mean(), linking.probability[doubtful].mean()
            print(
                f"  {doubtful.sum()} are below 0.99: {one:.2f} of them are one, stated {said:.2f}"
            )


def localized(
    camera: Camera, scene: Scene, side: int, n_frames: int, seed: int
) -> tuple[EmitterSet, torch.Tensor]:
    """A movie, and its rows, fitted frame by frame with their neighbours."""
    rng = torch.Generator().manual_seed(seed)
    truth = EmitterSet(
        frame=torch.from_numpy(scene.frame),
        xyz=torch.from_numpy(scene.place[scene.molecule]).float(),
        photons=torch.from_numpy(scene.photons).float(),
        background=torch.full((len(scene.frame),), BACKGROUND),
    )
    light = render(
        PSF,
        frame=truth.frame,
        xyz=truth.xyz,
        photons=truth.photons,
        n_frames=n_frames,
        shape=(side, side),
    )
    adu = camera.sample(light + BACKGROUND, rng)
    # rows are fitted from near the truth, as from a network's molecules
    off = torch.randn(len(truth), 3, generator=rng) * torch.tensor([30.0, 30.0, 80.0])
    near = replace(truth, xyz=truth.xyz + off, photons=0.8 * truth.photons)
    fit = fit_jointly(PSF, camera, adu, near, link=False)
    matrix = fit.covariance[:, :4, :4]
    scale = matrix.diagonal(dim1=1, dim2=2).sqrt()
    rows = EmitterSet(
        frame=truth.frame,
        xyz=fit.xyz.float(),
        photons=fit.photons.float(),
        background=fit.background.float(),
        xyz_sigma=fit.xyz_sigma.float(),
        photons_sigma=fit.photons_sigma.float(),
        correlation=correlations(matrix / (scale[:, :, None] * scale[:, None])).float(),
        metadata={
            "n_frames": n_frames,
            "pixel_size_nm": 100.0,
            "width_px": side,
            "height_px": side,
        },
    )
    return rows, adu


def refit(rng: np.random.Generator, *, molecules: int) -> None:
    side = 64
    for density, brightness in ((0.06, 1.0), (0.06, 0.3), (0.3, 1.0)):
        for name, camera in CAMERAS.items():
            n_frames = round(molecules / (density * 27 * KINETICS.k_bleach))
            scene = blinking(density, 6400.0, n_frames, rng, margin_nm=600.0)
            scene = scene._replace(photons=np.maximum(brightness * scene.photons, 120.0))
            rows, adu = localized(camera, scene, side, n_frames, int(rng.integers(2**31)))
            linking = linked(rows)
            whole = merged(rows, linking)
            movie = Movie([ArrayPart.of(adu.numpy())], range(n_frames))
            began = time.process_time()
            better = refitted(rows, linking, whole, psf=PSF, camera=camera, movie=movie)
            took = time.process_time() - began
            found = faults(linking, scene.molecule)
            truth = scene.place[found.whose]
            which = found.true & (np.bincount(linking.track) > 1)
            assert better.polished is not None
            print(
                f"{density:g} a um^2, {name}, {scene.photons.mean():.0f} photons, {which.sum()} "
                f"molecules of several rows, "
                f"{int(better.polished.sum())} refitted, {1e3 * took / len(rows):.1f} ms a row"
            )
            print("  merged  ", errors(whole, truth, which))
            print("  refitted", errors(better, truth, which))
            for label, part in (
                ("all", which),
                ("sigmas that differ", which & _uneven(rows, linking)),
            ):
                print(f"  {label}:", _gain(whole, better, truth, part))
            start = truth_of_photons(scene, linking)[which]
            for label, each in (("merged", whole), ("refitted", better)):
                assert each.photons_sigma is not None
                pull = (each.photons.numpy()[which] - start) / each.photons_sigma.numpy()[which]
                print(f"  photons {label}: pull {pull.mean():+.2f} +- {pull.std():.2f}")


def _uneven(rows: EmitterSet, linking: Linking) -> npt.NDArray[np.bool_]:
    """Molecules whose least and most certain rows differ by a factor of 2 or more."""
    assert rows.xyz_sigma is not None
    sigma = rows.xyz_sigma[:, 0].double().numpy()
    low, high = np.full(linking.n_molecules, np.inf), np.zeros(linking.n_molecules)
    np.minimum.at(low, linking.track, sigma)
    np.maximum.at(high, linking.track, sigma)
    return high > 2 * low


def _gain(
    whole: EmitterSet, better: EmitterSet, truth: Floats, which: npt.NDArray[np.bool_]
) -> str:
    """Mean square errors in units of the variance of the merge, molecule by molecule."""
    assert whole.xyz_sigma is not None
    sigma = whole.xyz_sigma.double().numpy()
    before, after = (
        (((each.xyz.double().numpy() - truth) / sigma)[which] ** 2).ravel()
        for each in (whole, better)
    )
    change = (after - before) / before.mean()
    return (
        f"square error of the refit over that of the merge {1 + change.mean():.3f} +- "
        f"{change.std() / np.sqrt(len(change)):.3f} ({which.sum()} molecules)"
    )


def truth_of_photons(scene: Scene, linking: Linking) -> Floats:
    """(molecules,) true photons of the rows of each."""
    return np.bincount(linking.track, scene.photons).astype(np.float64)


def million(rng: np.random.Generator) -> None:
    side, n_frames = 50_000.0, 1900
    scene = blinking(0.21, side, n_frames, rng)
    rows = table(scene, side, n_frames, rng)
    began = time.process_time()
    linking = linked(rows)
    linked_at = time.process_time()
    whole = merged(rows, linking)
    done = time.process_time()
    found = faults(linking, scene.molecule)
    print(
        f"{len(rows)} rows to {len(whole)} molecules: {linked_at - began:.0f} s to link, "
        f"{done - linked_at:.0f} s to merge; joined {found.joined:.2%}, parted {found.parted:.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("tables", "filaments", "refit", "million")
    parser.add_argument("parts", nargs="*", choices=[*names, []], default=list(names[:3]))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--molecules", type=int, default=600)
    options = parser.parse_args()
    work = {
        "tables": lambda rng: tables(rng),
        "filaments": lambda rng: tables(rng, filaments=40),
        "refit": lambda rng: refit(rng, molecules=options.molecules),
        "million": million,
    }
    for name in options.parts:
        print(name)
        work[name](np.random.default_rng(options.seed))


if __name__ == "__main__":
    main()

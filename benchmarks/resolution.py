"""Fourier ring correlation of simulated filaments against its analytic value.

    python benchmarks/resolution.py [--seeds 6] [--blinks]

Localizations lie along straight filaments at random, so many a nanometre, each with a Gaussian
error sigma.  The power of a straight line of length l with n localizations is
n^2 sinc^2(q l cos a) at the angle a; its mean over a ring is n^2 / (pi q l), as the integral of
sinc^2(u) over all u is 1.  With d = n / l localizations a nanometre the structure has d / (pi q)
times the power of the noise, and with s = d / (2 pi q) exp(-4 pi^2 sigma^2 q^2) for each half, the
correlation is s / (1 + s) (Nieuwenhuizen et al., Nature Methods 10, 557, 2013, eq. 3).  At 1/7,
s = 1/6, or q^2 exp(8 pi^2 sigma^2 q^2) = (3 d / pi)^2, which Lambert's W solves:

    R = 1 / q = 2 pi sigma sqrt(2 / W(72 d^2 sigma^2)).

With `--blinks`, each molecule is on for 2.5 frames on the average.  Then the noise has 1 + m
exp(-4 pi^2 sigma^2 q^2) times the power, m = 3 the number of other localizations of a blink that a
localization has on the average, and the equation is solved by bisection.  A split of single
localizations at random is shown beside it: it takes blinks for structure.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import lambertw

from decode.emitters import EmitterSet
from decode.quality.resolution import fourier_ring_correlation

DENSITIES = (0.03, 0.1, 0.3, 1.0, 2.0)
"""localizations a nanometre"""
SIGMA_NM, SIDE_NM, FILAMENTS, FRAMES = 10.0, 8000.0, 20, 3000
ON_TIME = 2.5


def expected(density: float, sigma: float, others: float = 0.0) -> float:
    """Resolution in nm at which the correlation is 1/7.

    >>> round(expected(0.1, 10.0), 2) == round(expected(0.1, 10.0, 1e-12), 2)
    True
    """
    if others == 0:
        return 2 * math.pi * sigma * math.sqrt(2 / lambertw(72 * (density * sigma) ** 2).real)

    def beyond(q: float) -> float:
        left = math.exp(-4 * (math.pi * sigma * q) ** 2)
        return density / (math.pi * q) * left - (1 + others * left) / 3

    return 1 / float(brentq(beyond, 1e-6, 1 / sigma))


def filaments(density: float, *, blinks: bool, seed: int, sigma: float = SIGMA_NM) -> EmitterSet:
    """Localizations along straight lines through the field."""
    rng = np.random.default_rng(seed)
    on = ON_TIME if blinks else 1.0
    start, angle = rng.uniform(0, SIDE_NM, (FILAMENTS, 2)), rng.uniform(0, np.pi, FILAMENTS)
    number = rng.poisson(density / on * 2 * SIDE_NM, FILAMENTS)
    which = np.repeat(np.arange(FILAMENTS), number)
    along = rng.uniform(-SIDE_NM, SIDE_NM, len(which))
    place = start[which] + along[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)[which]
    place = place[((place > 0) & (place < SIDE_NM)).all(1)]
    lasts = rng.geometric(1 / on, len(place))
    first = rng.integers(0, FRAMES, len(place))
    molecule = np.repeat(np.arange(len(place)), lasts)
    after = np.arange(len(molecule)) - np.repeat(np.cumsum(lasts) - lasts, lasts)
    frame = first[molecule] + after
    seen = place[molecule] + sigma * rng.normal(size=(len(molecule), 2))
    rows = np.flatnonzero(frame < FRAMES)
    rows = rows[np.argsort(frame[rows], kind="stable")]
    return EmitterSet(
        frame=torch.from_numpy(frame[rows]),
        xyz=torch.from_numpy(np.column_stack([seen[rows], np.zeros(len(rows))])),
        photons=torch.full((len(rows),), 1000.0),
        xyz_sigma=torch.full((len(rows), 3), sigma),
        metadata={"n_frames": FRAMES},
    )


def split_at_random(molecules: EmitterSet, seed: int) -> EmitterSet:
    """The same, each localization in a frame of its own choice: what a split of single
    localizations sees."""
    rng = np.random.default_rng(seed)
    frame = torch.from_numpy(np.sort(rng.integers(0, FRAMES, len(molecules))))
    shuffled = molecules[torch.from_numpy(rng.permutation(len(molecules)))]
    return EmitterSet(
        frame=frame,
        xyz=shuffled.xyz,
        photons=shuffled.photons,
        xyz_sigma=shuffled.xyz_sigma,
        metadata=molecules.metadata,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--blinks", action="store_true")
    options = parser.parse_args()
    # of a geometric on-time with mean t, a localization has 2 (t - 1) others on the average
    others = 2 * (ON_TIME - 1) if options.blinks else 0.0
    print(
        "per nm  expected nm  measured nm  mean/expected  worst  within 2 errors  at random  CPU s"
    )
    for density in DENSITIES:
        begun = time.process_time()
        truth = expected(density, SIGMA_NM, others)
        values, errors, random = [], [], []
        for seed in range(options.seeds):
            seen = filaments(density, blinks=options.blinks, seed=seed)
            found = fourier_ring_correlation(seen)
            values.append(found.value_nm or math.nan)
            errors.append(found.error_nm or math.nan)
            if options.blinks and seed == 0:
                other = fourier_ring_correlation(split_at_random(seen, seed))
                random.append(other.value_nm or math.nan)
        value, error = np.array(values), np.array(errors)
        covered = int((np.abs(value - truth) < 2 * error).sum())
        print(
            f"{density:6.2f}  {truth:11.1f}  {value.mean():6.1f}+-{error.mean():4.1f}  "
            f"{value.mean() / truth:13.3f}  {np.abs(value / truth - 1).max():5.3f}  "
            f"{covered:9d} of {len(value)}  {np.mean(random) if random else math.nan:9.1f}  "
            f"{(time.process_time() - begun) / len(value):5.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

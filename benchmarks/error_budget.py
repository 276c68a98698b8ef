"""What `decode quality` names first in tables with one planted fault, and whether the resolution
that it predicts is the one that it observes.

    python benchmarks/error_budget.py [--tables 10] [--faults none drift ...] [--seed 0]

Tables are drawn of filaments in a field of 6.4 um, each molecule on for two frames on the average,
with exponential photons and standard deviations that fall as their root; `FAULTS` says what is
wrong with each kind.  "none" has no fault: the photons limit it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from decode.emitters import EmitterSet
from decode.verbs.quality import assess

SIDE_NM, FILAMENTS, FRAMES, PIXEL_NM, ON_TIME = 6400.0, 14, 3000, 100.0, 2.0


@final
@dataclass(frozen=True, kw_only=True)
class Fault:
    """A table by its numbers."""

    names: str
    """the part that should be named first"""
    per_nm: float = 0.4
    """molecules a nanometre of filament"""
    sigma_nm: float = 9.0
    """standard deviation at 1000 photons"""
    excess: float = 1.0
    """errors over what is stated"""
    drift_nm: float = 0.0
    """range of the drift along each axis"""
    locked_nm: float = 0.0
    """amplitude of a bias that repeats with the pixels"""
    dim_nm: float = 0.0
    """displacement of dim molecules against bright ones"""


FAULTS: Mapping[str, Fault] = {
    "none": Fault(names="photons"),
    "photons": Fault(names="photons", sigma_nm=25.0),
    "excess": Fault(names="excess", excess=2.0),
    "drift": Fault(names="drift", drift_nm=80.0),
    "density": Fault(names="density", per_nm=0.02),
    "pixels": Fault(names="misfit", locked_nm=15.0),
    "brightness": Fault(names="misfit", dim_nm=30.0),
}


def table(fault: Fault, seed: int) -> EmitterSet:
    """Molecules of filaments with a fault, whose size varies by 20 % from seed to seed."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.9, 1.1)
    start, angle = rng.uniform(0, SIDE_NM, (FILAMENTS, 2)), rng.uniform(0, np.pi, FILAMENTS)
    number = rng.poisson(fault.per_nm * 2 * SIDE_NM, FILAMENTS)
    which = np.repeat(np.arange(FILAMENTS), number)
    along = rng.uniform(-SIDE_NM, SIDE_NM, len(which))
    place = start[which] + along[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)[which]
    place = place[((place > 0) & (place < SIDE_NM)).all(1)]
    lasts = rng.geometric(1 / ON_TIME, len(place))
    first = rng.integers(0, FRAMES, len(place))
    molecule = np.repeat(np.arange(len(place)), lasts)
    frame = first[molecule] + np.arange(len(molecule)) - np.repeat(np.cumsum(lasts) - lasts, lasts)
    rows = np.flatnonzero(frame < FRAMES)
    rows = rows[np.argsort(frame[rows], kind="stable")]
    place, frame = place[molecule[rows]], frame[rows]
    photons = 300 + rng.exponential(1200, len(rows))
    sigma = fault.sigma_nm * np.sqrt(1000 / photons)
    seen = place + size * fault.locked_nm * np.sin(2 * np.pi * place / PIXEL_NM)
    seen = seen + fault.excess * sigma[:, None] * rng.normal(size=seen.shape)
    seen += size * _drift(fault.drift_nm, rng)[frame]
    seen[:, 0] += size * fault.dim_nm * (photons < np.median(photons))
    return EmitterSet(
        frame=torch.from_numpy(frame),
        xyz=torch.from_numpy(np.column_stack([seen, np.zeros(len(rows))])),
        photons=torch.from_numpy(photons),
        xyz_sigma=torch.from_numpy(np.column_stack([sigma, sigma, np.full_like(sigma, np.nan)])),
        metadata={"n_frames": FRAMES, "pixel_size_nm": PIXEL_NM},
    )


def _drift(nm: float, rng: np.random.Generator) -> np.ndarray:
    """(frames, 2) nm, a smooth path that bends once or twice."""
    time = np.linspace(0, 1, FRAMES)[:, None]
    path = np.sin(2 * np.pi * rng.uniform(0.4, 0.9, 2) * time + rng.uniform(0, 2 * np.pi, 2))
    return nm * (path - path.min(0)) / np.ptp(path, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=10)
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    print(
        "fault       named first  agree  predicted/observed     observed nm  named            CPU s"
    )
    for name in options.faults:
        begun = time.process_time()
        named: Counter[str] = Counter()
        ratios, observed = [], []
        for seed in range(options.seed, options.seed + options.tables):
            budget = assess(table(FAULTS[name], seed)).budget
            if budget is None:
                named["no budget"] += 1
                continue
            if options.verbose:
                parts = ", ".join(f"{p.cause} {p.nm2 or math.nan:.0f}" for p in budget.parts)
                print(f"  {parts}; {budget.predicted_nm:.1f} {budget.observed_nm:.1f}", flush=True)
            named[budget.parts[0].cause] += 1
            ratios.append(budget.predicted_nm / budget.observed_nm)
            observed.append(budget.observed_nm)
        ratio = np.array(ratios or [math.nan])
        agree = int((np.abs(ratio - 1) <= 0.1).sum())
        print(
            f"{name:<11} {named[FAULTS[name].names]:5d} of {options.tables:<3d} "
            f"{agree:2d} of {len(ratio):<2d} {ratio.min():.3f} {ratio.mean():.3f} "
            f"{ratio.max():.3f}  {np.mean(observed or [math.nan]):11.1f}  {dict(named)}  "
            f"{(time.process_time() - begun) / options.tables:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

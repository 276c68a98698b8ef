"""Drift of simulated filaments: error, coverage of its stated uncertainty, refusals, CPU time.

    python benchmarks/drift.py [short] [long] [blinks] [few] [jump] [flat] [--seeds 3]

Labels sit every 8 nm along straight filaments at random angles, in 3D; sigmas are 12 nm on the
median laterally, 2.2 times as much axially; the stage moves by 300, 300 and 150 nm along 12 random
knots.  `blinks`: each molecule is on for 10 successive frames; `few`: a fifth of the molecules;
`jump`: by 80 nm; `flat`: molecules without structure, of which no drift can be told.  Errors are
root mean squares over the frames, nm.  Without names, all parts but `long` are run.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from decode.emitters import EmitterSet
from decode.errors import Undetermined
from decode.postprocess.drift import drift_of_molecules

KNOTS, AMPLITUDE_NM = 12, (300.0, 300.0, 150.0)
LABEL_NM, SIGMA_NM, AXIAL = 8.0, 12.0, 2.2


@final
@dataclass(frozen=True, kw_only=True)
class Scene:
    """Molecules with a known drift."""

    n_frames: int = 2000
    n_molecules: int = 12_000
    """drawn; those inside the field are kept"""
    side_nm: float = 6400.0
    filaments: int = 20
    """0: molecules are anywhere"""
    blink_frames: int = 1
    jump_nm: float = 0.0
    """along x and y, at 0.4 of the movie"""

    def sample(self, seed: int) -> tuple[EmitterSet, np.ndarray]:
        """Molecules, and the drift (frames, 3) in nm, 0 on the average."""
        rng = np.random.default_rng(seed)
        place = self._places(rng)
        if self.blink_frames > 1:
            place = np.repeat(place[: len(place) // self.blink_frames], self.blink_frames, axis=0)
        begins = rng.integers(0, self.n_frames, len(place) // self.blink_frames)
        frame = np.repeat(begins, self.blink_frames)
        frame += np.tile(np.arange(self.blink_frames), len(begins))
        place, frame = place[: len(frame)], np.minimum(frame, self.n_frames - 1)
        drift = self._drift(rng)
        lateral = np.clip(SIGMA_NM * np.exp(rng.normal(0, 0.3, len(frame))), 5, 40)
        sigma = lateral[:, None] * [1.0, 1.0, AXIAL]
        seen = place + drift[frame] + sigma * rng.normal(size=place.shape)
        order = np.argsort(frame, kind="stable")
        molecules = EmitterSet(
            frame=torch.from_numpy(frame[order]),
            xyz=torch.from_numpy(seen[order]),
            photons=torch.full((len(frame),), 1000.0),
            xyz_sigma=torch.from_numpy(sigma[order]),
            metadata={"n_frames": self.n_frames},
        )
        return molecules, drift

    def _places(self, rng: np.random.Generator) -> np.ndarray:
        n, side = self.n_molecules, self.side_nm
        if not self.filaments:
            return rng.uniform((0, 0, -300), (side, side, 300), (n, 3))
        start = rng.uniform(0, side, (self.filaments, 2))
        angle, slope = (
            rng.uniform(0, np.pi, self.filaments),
            rng.uniform(-0.05, 0.05, self.filaments),
        )
        depth = rng.uniform(-300, 300, self.filaments)
        which = rng.integers(0, self.filaments, n)
        along = np.round(rng.uniform(-side / 2, side / 2, n) / LABEL_NM) * LABEL_NM
        x = start[which, 0] + along * np.cos(angle[which])
        y = start[which, 1] + along * np.sin(angle[which])
        place = np.stack([x, y, depth[which] + slope[which] * along], 1)
        return place[((place[:, :2] > 0) & (place[:, :2] < side)).all(1)]

    def _drift(self, rng: np.random.Generator) -> np.ndarray:
        knots = np.linspace(0, self.n_frames - 1, KNOTS)
        walk = CubicSpline(knots, rng.normal(size=(KNOTS, 3)).cumsum(0))(np.arange(self.n_frames))
        drift = (walk - walk.min(0)) / np.ptp(walk, axis=0) * AMPLITUDE_NM
        drift[int(0.4 * self.n_frames) :, :2] += self.jump_nm
        return drift - drift.mean(0)


SHORT = Scene()
PARTS = {
    "short": SHORT,
    "long": Scene(n_frames=10_000, n_molecules=60_000, side_nm=12_800.0, filaments=60),
    "blinks": replace(SHORT, blink_frames=10),
    "few": replace(SHORT, n_molecules=2400),
    "jump": replace(SHORT, jump_nm=80.0),
    "flat": replace(SHORT, filaments=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("parts", nargs="*", default=[name for name in PARTS if name != "long"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("part    seed     rows    x     y     z  covered  jumps  CPU s")
    for name in options.parts:
        for seed in range(1, options.seeds + 1):
            print(f"{name:7} {seed:4} {row(PARTS[name], seed)}", flush=True)


def row(scene: Scene, seed: int) -> str:
    """Figures of one table."""
    molecules, truth = scene.sample(seed)
    start = time.process_time()
    try:
        found = drift_of_molecules(molecules)
    except Undetermined as refusal:
        return f"{len(molecules):8} refused: {str(refusal)[:60]}..."
    spent = time.process_time() - start
    error = found.xyz - truth
    error -= error.mean(0)
    x, y, z = np.sqrt((error**2).mean(0))
    covered = (np.abs(error) < found.sigma).mean()
    return (
        f"{len(molecules):8} {x:5.2f} {y:5.2f} {z:5.2f} {covered:7.2f}   {found.jumps} {spent:6.1f}"
    )


if __name__ == "__main__":
    main()

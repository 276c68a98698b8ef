"""What the checks after a localization find: in movies that fit model, PSF and camera, and in
movies that do not.

    python benchmarks/checks.py [--kinds gaussian measured] [--cases matched ...] [--movies 20]
        [--seed 1000] [--frames 80] [--keep evidence.jsonl] [--read evidence.jsonl] [--usual]
    python benchmarks/checks.py --cost [--frames 200]

Movies of 64 x 64 pixels are drawn by the recipes of the shipped models (`configs/gaussian-2d.yaml`,
`configs/astigmatic-3d.yaml`) within the ranges of `SCENES`.  Each line says how many movies were
flagged, and in how many the first check that failed names the right cause.  Then follow, for each
statistic of matched movies, its least, median and largest value.  Limits are those of the models
(`decode calibrate checks`); with `--usual`, those by the kind of PSF.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decode.acquisition import acquisition_for
from decode.config import TrainConfig, load_config
from decode.io.cameras import CameraFile
from decode.io.movies import open_array
from decode.io.psfs import PSFFile
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.network.record import ModelRecord
from decode.optics.camera import Camera
from decode.optics.psf import render
from decode.priors.drawn import DrawnPSFs
from decode.quality.checks import checks_of
from decode.quality.evidence import Evidence
from decode.quality.limits import Limits
from decode.training.diagnosis import trained_flicker
from decode.verbs.checking import Checking
from decode.verbs.localize import localize_movie

CONFIGS = Path(__file__).parents[1] / "configs"
SIDE_PX = 64
MODELS = {"gaussian": "gaussian-2d", "measured": "astigmatic-3d"}
SCENES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "gaussian": {"density_per_um2": (0.1, 1.0), "z_nm": (-250.0, 250.0)},
    "measured": {"density_per_um2": (0.05, 0.4), "z_nm": (-500.0, 500.0)},
}
LIGHT = {
    "flux_photons": (1000.0, 6000.0),
    "on_time_frames": (1.0, 4.0),
    "background_photons": (10.0, 100.0),
}
DENSE = {"gaussian": (5.0, 6.0), "measured": (3.5, 4.5)}
"""molecules on at once per square micrometre"""
DRIFT_NM = {"gaussian": (0.0, 600.0), "measured": (-400.0, 400.0)}
"""focus of the first and of the last frame"""
FAR_NM = (-1000.0, 1000.0)
"""depths of the PSFs of movies whose focus drifts"""
SPHERICAL_WAVES = 0.06
"""error of the spherical aberration, rms"""
CAUSES: Mapping[str, frozenset[str]] = {
    "sigma 0.8": frozenset({"PSF width"}),
    "sigma 1.2": frozenset({"PSF width"}),
    "gain 0.7": frozenset({"camera noise"}),
    "gain 1.3": frozenset({"camera noise"}),
    "no maps": frozenset({"camera maps"}),
    "astigmatic": frozenset({"elongation"}),
    "drift": frozenset({"focus drift"}),
    "dense": frozenset({"density"}),
    "other microscope": frozenset({"PSF misfit", "PSF width"}),
    "spherical": frozenset({"spherical aberration", "PSF misfit", "PSF width"}),
    "transposed": frozenset({"orientation"}),
}
"""names of the checks that name the right cause"""
_BOTH = ("matched", "gain 0.7", "gain 1.3", "no maps", "drift", "dense")
CASES = {
    "gaussian": (*_BOTH, "sigma 0.8", "sigma 1.2", "astigmatic"),
    "measured": (*_BOTH, "other microscope", "spherical", "transposed"),
}


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A movie, and what its user states."""

    adu: Tensor
    """(frame, y, x)"""
    camera: Camera
    sigma_nm: float | None
    psf: PSFFile | None


def simulated(kind: str, case: str, seed: int, n_frames: int) -> Simulated:
    """The movie of a case."""
    rng = torch.Generator().manual_seed(seed)
    config = load_config(CONFIGS / f"{MODELS[kind]}.yaml")
    if kind == "gaussian":  # a width that is wrong by 20 % is still one that the model knows
        config = replace(config, psf=replace(config.psf, sigma_px=(1.0, 1.65), told_error=0.0))
    scene = {**SCENES[kind], **LIGHT}
    if case == "dense":
        scene["density_per_um2"] = DENSE[kind]
    if case == "no maps":  # more light drowns what maps say
        scene["background_photons"] = (3.0, 10.0)
    filmed = config
    if case == "drift":  # PSFs that are known as far as the focus drifts
        filmed = replace(config, scene=replace(config.scene, z_nm=FAR_NM))
        scene = {"z_nm": config.scene.z_nm, **scene}
    if case == "astigmatic":
        filmed = load_config(CONFIGS / f"{MODELS['measured']}.yaml")
        scene["z_nm"] = SCENES["measured"]["z_nm"]
    drift_nm = DRIFT_NM[kind] if case == "drift" else (0.0, 0.0)
    light, psfs = drawn(filmed, scene, rng, n_frames, drift_nm=drift_nm)
    recording, stated = cameras(config, rng, without_maps=case == "no maps")
    sigma_nm, psf = None, None
    if kind == "measured":
        if case == "other microscope":
            psfs = config.forward_model().psfs.draw(1, rng)
        error = SPHERICAL_WAVES if case == "spherical" else 0.0
        psf = calibrated(config, psfs, spherical_waves=error)
    elif case != "astigmatic":
        sigma_nm = float(psfs.conditioning.values["psf_sigma_px"]) * config.pixel_size_nm
    by, _, factor = case.partition(" ")
    if by == "sigma" and sigma_nm is not None:
        sigma_nm *= float(factor)
    if by == "gain":
        stated = replace(stated, e_per_adu=stated.e_per_adu * float(factor))
    adu = recording.sample(light, rng)
    if case == "transposed":
        adu, stated = adu.mT.contiguous(), transposed(stated)
    return Simulated(adu=adu, camera=stated, sigma_nm=sigma_nm, psf=psf)


def drawn(
    config: TrainConfig,
    scene: Mapping[str, tuple[float, float]],
    rng: torch.Generator,
    n_frames: int,
    *,
    drift_nm: tuple[float, float],
) -> tuple[Tensor, DrawnPSFs]:
    """(frame, y, x) expected photons of a movie whose focus drifts, and its PSF."""
    model = config.forward_model()
    prior = replace(model.scene, **scene)
    shape, pixel = (SIDE_PX, SIDE_PX), config.pixel_size_nm
    emitters = prior.sample_emitters(1, n_frames, shape, pixel, rng)
    start, end = drift_nm
    xyz = emitters.xyz.clone()
    xyz[:, 2] += start + (end - start) * emitters.frame / n_frames
    psfs = model.psfs.draw(1, rng)
    light = prior.sample_background(1, n_frames, shape, rng)[0]
    for part in psfs.lights:
        light = light + render(
            part.psf,
            frame=emitters.frame,
            xyz=xyz,
            photons=emitters.photons * part.share,
            n_frames=n_frames,
            shape=shape,
            parameters=part.parameters.expand(len(xyz), -1),
        )
    return light, psfs


def calibrated(config: TrainConfig, psfs: DrawnPSFs, *, spherical_waves: float) -> PSFFile:
    """The PSF as beads tell it, and with a further error, of the sign and at most so large that the
    shipped model still takes the PSF."""
    optics = {name: float(value) for name, value in psfs.conditioning.values.items()}
    told = optics["zernike_4_0_waves"]
    room = config.psf.spherical_waves + abs(told)
    optics["zernike_4_0_waves"] -= math.copysign(min(spherical_waves, room), told)
    psf = config.psf.pupil(optics, config.pixel_size_nm)
    return PSFFile(psf=psf, z_range_nm=(-750.0, 750.0))


def cameras(
    config: TrainConfig, rng: torch.Generator, *, without_maps: bool
) -> tuple[Camera, Camera]:
    """The camera that records, and the one that is stated."""
    prior = replace(config.camera, unmapped=0.0)
    if without_maps:
        pattern = (0.5, 1.0)
        prior = replace(prior, emccd_fraction=0.0, unmapped=1.0, fixed_pattern_e=pattern)
    both = prior.draw(1, (SIDE_PX, SIDE_PX), rng)
    return both.recording.of_movie(0), both.stated.of_movie(0)


def transposed(camera: Camera) -> Camera:
    """A camera whose maps are (x, y)."""
    values = {f.name: getattr(camera, f.name) for f in fields(camera)}
    maps = {name: v.mT for name, v in values.items() if isinstance(v, Tensor)}
    return replace(camera, **maps)


@torch.no_grad()
def evidence_of(made: Simulated, model: Localizer) -> Evidence:
    """What is seen of a movie localized by a model."""
    camera = CameraFile(camera=made.camera, pixel_size_nm=100.0)
    with open_array(made.adu.numpy()) as movie:
        # checks fit their molecules again: the network alone is enough, and quick
        known = acquisition_for(movie, model, camera=camera, psf_sigma_nm=made.sigma_nm)
        checking = Checking(movie, model, known, psf=made.psf)
        for chunk in localize_movie(movie, model, known, psf=made.psf, polish=False):
            checking.see(chunk)
    evidence = checking.evidence
    assert evidence is not None
    return evidence


@torch.no_grad()
def cost(kind: str, n_frames: int, seed: int) -> str:
    """CPU time of the checks over that of localizing by the network alone."""
    made, model = simulated(kind, "matched", seed, n_frames), load_model(MODELS[kind])
    camera = CameraFile(camera=made.camera, pixel_size_nm=100.0)
    shares = []
    with open_array(made.adu.numpy()) as movie:
        known = acquisition_for(movie, model, camera=camera, psf_sigma_nm=made.sigma_nm)
        for _ in range(4):  # the first one also starts PyTorch
            start, checked = time.process_time(), 0.0
            checking = Checking(movie, model, known, psf=made.psf)
            checked += time.process_time() - start
            for chunk in localize_movie(movie, model, known, psf=made.psf, polish=False):
                before = time.process_time()
                checking.see(chunk)
                checked += time.process_time() - before
            before = time.process_time()
            n_lone = 0 if checking.evidence is None else checking.evidence.n_lone
            checked += time.process_time() - before
            shares.append(checked / (time.process_time() - start - checked))
    share = sorted(shares[1:])[1]
    return f"{kind:9} {n_frames} frames, {n_lone} lone molecules: checks {share:.1%} of localizing"


def report(kept: list[dict[str, Any]], *, usual: bool) -> None:
    """Print what was flagged by the limits of the models, or by the usual ones, and the figures of
    matched movies."""
    seen = {(line["kind"], line["case"]) for line in kept}
    for kind, case in sorted(seen):
        chosen = [line for line in kept if (line["kind"], line["case"]) == (kind, case)]
        known = {f.name for f in fields(Evidence)}
        stated = [line["evidence"] for line in chosen]
        found = [Evidence(**{k: v for k, v in e.items() if k in known}) for e in stated]
        record = load_model(MODELS[kind]).record
        limits = Limits.of(ModelRecord() if usual else record, found[0].kind)
        light = trained_flicker(record)
        checks = [checks_of(e, limits=limits, flicker=light) for e in found]
        failed = [[check.name for check in of_movie if check.failed] for of_movie in checks]
        flagged = [names for names in failed if names]
        right = sum(names[0] in CAUSES.get(case, ()) for names in flagged)
        first = dict(Counter(names[0] for names in flagged).most_common())
        said = f"{kind:9} {case:17} flagged {len(flagged)} of {len(found)}"
        print(f"{said}, right cause first {right}; first: {first}")
        if case == "matched":
            for name in (f.name for f in fields(Evidence) if f.name not in ("kind", "turn")):
                values = np.array([getattr(e, name) for e in found], float)
                if np.isfinite(values).any():
                    low, middle, high = np.nanquantile(values, [0, 0.5, 1])
                    print(f"    {name:14} {low:8.3f} {middle:8.3f} {high:8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Checks of simulated movies.")
    parser.add_argument("--kinds", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--movies", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=80)
    parser.add_argument("--keep", type=Path, help="file to append the evidence to")
    parser.add_argument("--read", type=Path, nargs="+", help="evidence that was kept, to report")
    parser.add_argument("--usual", action="store_true", help="limits by the kind of PSF alone")
    parser.add_argument("--cost", action="store_true", help="CPU time of the checks alone")
    args = parser.parse_args()
    if args.cost:
        for kind in args.kinds:
            print(cost(kind, args.frames, args.seed))
        return
    if args.read:
        report([json.loads(line) for path in args.read for line in path.open()], usual=args.usual)
        return
    models = {kind: load_model(MODELS[kind]) for kind in args.kinds}
    kept: list[dict[str, Any]] = []
    for seed in range(args.seed, args.seed + args.movies):
        for kind in args.kinds:
            for case in args.cases or CASES[kind]:
                made = simulated(kind, case, seed, args.frames)
                try:
                    evidence = asdict(evidence_of(made, models[kind]))
                except ValueError as error:  # a movie that the model refuses is not localized
                    print(f"{kind} {case} {seed}: {error}")
                    continue
                kept.append({"kind": kind, "case": case, "seed": seed, "evidence": evidence})
                if args.keep:
                    with args.keep.open("a") as file:
                        file.write(json.dumps(kept[-1]) + "\n")
    report(kept, usual=args.usual)


if __name__ == "__main__":
    main()

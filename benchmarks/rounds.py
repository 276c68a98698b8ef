"""What a second round of `decode run` recovers of the accuracy that a wrong prior or PSF costs.

    python benchmarks/rounds.py OUT [--minutes 5] [--frames 300] [--cases right prior psf]

A movie of 64 x 64 pixels is simulated by a pupil with a cylindrical lens, and a stack of its beads.
`right`: the recipe is as estimated.  `prior`: its photons and its background are three times as
large.  `psf`: the beads have 0.5 rad more spherical aberration than the movie.  For each, 3D
efficiency with and without polishing, of the model of each round.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import torch

import decode
from decode.emitters import EmitterSet
from decode.io.cameras import CameraFile, write_camera
from decode.io.movies import write_movie
from decode.io.tables import write_table
from decode.optics.camera import Camera
from decode.optics.psf import PSF, render
from decode.optics.pupil import PupilPSF
from decode.priors.scene import Scene
from decode.verbs.finish import Finish

SIDE_PX, PIXEL_NM = 64, 100.0
CAMERA = CameraFile(
    camera=Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.5, qe=0.9), pixel_size_nm=PIXEL_NM
)
SCENE = Scene(
    density_per_um2=(0.35, 0.35),
    flux_photons=(3000.0, 3000.0),
    flux_variation=(0.3, 0.3),
    on_time_frames=(2.0, 2.0),
    z_nm=(-500.0, 500.0),
    filaments=0.0,
    background_photons=(25.0, 25.0),
)
PUPIL = PupilPSF(
    numerical_aperture=1.4,
    wavelength_nm=670.0,
    pixel_size_nm=PIXEL_NM,
    zernike_nm={(2, 2): 60.0, (3, 1): 10.0, (3, -1): -8.0, (4, 0): 10.0},
)
SPHERICAL_WAVES = -0.5 / (2 * math.pi)
WRONG = 3.0
STEP_NM, BEAD_PHOTONS = 25.0, 60000.0
DEPTHS_NM = (-800.0, 800.0)


def movie(psf: PSF, out: Path, n_frames: int) -> tuple[Path, EmitterSet]:
    """A movie's file and its molecules."""
    rng, shape = torch.Generator().manual_seed(7), (SIDE_PX, SIDE_PX)
    molecules = SCENE.sample_emitters(1, n_frames, shape, PIXEL_NM, rng)
    light = (
        render(
            psf,
            frame=molecules.frame,
            xyz=molecules.xyz,
            photons=molecules.photons,
            n_frames=n_frames,
            shape=shape,
        ).detach()
        + SCENE.sample_background(1, n_frames, shape, rng)[0]
    )
    write_movie(out / "movie.tif", CAMERA.camera.sample(light, rng).round().to(torch.int32).numpy())
    inside = ((molecules.xyz[:, :2] > 0) & (molecules.xyz[:, :2] < SIDE_PX * PIXEL_NM)).all(1)
    write_table(molecules[inside], out / "truth.csv")
    return out / "movie.tif", molecules[inside]


def beads(psf: PSF, path: Path) -> None:
    """A stack of four beads."""
    rng = torch.Generator().manual_seed(8)
    z = torch.arange(DEPTHS_NM[0], DEPTHS_NM[1] + 1, STEP_NM)
    place = torch.cartesian_prod(torch.tensor([2030.0, 6120.0]), torch.tensor([2070.0, 5990.0]))
    frame = torch.arange(len(z)).repeat_interleave(len(place))
    xyz = torch.cat([place.repeat(len(z), 1), z.repeat_interleave(len(place))[:, None]], 1)
    light = render(
        psf,
        frame=frame,
        xyz=xyz,
        photons=torch.full((len(frame),), BEAD_PHOTONS),
        n_frames=len(z),
        shape=(80, 80),
    ).detach()
    write_movie(path, CAMERA.camera.sample(light + 20, rng).round().to(torch.int32).numpy())


def efficiencies(folder: Path, file: Path, truth: EmitterSet) -> str:
    """3D efficiency of each round's model, by the network and polished."""
    said = []
    for number, model in enumerate(sorted(folder.glob("model*.safetensors"), key=len_of), 1):
        for polish in (False, True):
            found = decode.localize(file, model=model, camera=CAMERA, polish=polish)
            result = decode.evaluate(found, truth, field_nm=(SIDE_PX * PIXEL_NM,) * 2)
            how = "polished" if polish else "network"
            said.append(
                f"round {number} {how} {result.efficiency_3d:.1f} (Jaccard {result.jaccard:.3f}, "
                f"{result.rmse_lateral_nm:.1f}, {result.rmse_axial_nm:.1f} nm)"
            )
    return "; ".join(said)


def len_of(path: Path) -> int:
    return len(path.name)


def case(name: str, out: Path, minutes: float, n_frames: int) -> None:
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    aberrated = PUPIL.with_spherical(SPHERICAL_WAVES if name == "psf" else 0.0)
    assert aberrated is not None
    file, truth = movie(aberrated.tabulated(DEPTHS_NM), folder, n_frames)
    stack = folder / "beads.tif"
    if not stack.exists():
        beads(PUPIL.tabulated(DEPTHS_NM), stack)
    write_camera(folder / "stated.yaml", CAMERA)
    run = decode.run.steps(
        file,
        [stack],
        folder / "stated.yaml",
        folder / "out",
        z_step_nm=STEP_NM,
        downwards=False,
        minutes=minutes,
        rounds=1 if name == "right" else 2,
        finishing=Finish(drift=False, link=False, report=False),
    )
    for step in run:
        stage, files = step.detail.name, step.detail.files
        if not files and stage != "rounds":
            continue
        print(f"{name}: {stage}: {step.message}", *step.warnings, sep="\n    ", flush=True)
        if name == "prior" and stage == "estimate":
            recipe = folder / "out" / "train.yaml"
            recipe.write_text(wrong(recipe.read_text()))
    print(f"{name}: {efficiencies(folder / 'out', file, truth)}", flush=True)


def wrong(recipe: str) -> str:
    """A recipe whose photons and background are too large."""
    for key in ("flux_photons", "background_photons"):
        found = re.search(rf"^  {key}: \[(.*?), (.*?)\]", recipe, re.MULTILINE)
        assert found is not None
        low, high = (WRONG * float(value) for value in found.groups())
        recipe = recipe.replace(found.group(0), f"  {key}: [{low:g}, {high:g}]")
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy that a second round recovers.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", nargs="+", default=["right", "prior", "psf"])
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training")
    parser.add_argument("--frames", type=int, default=300)
    args = parser.parse_args()
    for name in args.cases:
        case(name, args.out, args.minutes, args.frames)


if __name__ == "__main__":
    main()

"""Accuracy of a model on simulations of its recipe: isolated molecules against the bound, and
crowded ones.

    python benchmarks/accuracy.py [--model gaussian-2d] [--recipe train.yaml] [--n 400] [--movies 6]
    [-o docs/images]

Isolated molecules are on in one frame only, so that network and bound use the same data.  PSF and
background are in the middle of the recipe's ranges (for a Gaussian, three widths), the cameras an
EMCCD and an sCMOS in the middle of theirs, or the recipe's own; the noise is that of the seed.
Crowded molecules are scored as the SMLM Challenge 2016 does; those below a quarter of the mean flux
need not be found.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from matplotlib import pyplot as plt

from decode.conditioning import AstigmaticPupil
from decode.config import TrainConfig, from_mapping, load_config
from decode.devices import choose_device, keep_freed_memory
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.optics.blur import BlurredPSF
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF
from decode.priors.camera import CameraPrior
from decode.priors.psf import MeasuredPSF, PSFPrior
from decode.priors.pupils import PupilPrior
from decode.training.validation import Isolated, characterize, localize_isolated

AXES = ("x", "y", "z")


class Optics(NamedTuple):
    """A PSF, and the values that the model is conditioned on."""

    name: str
    psf: PSF
    context: Mapping[str, float]


def optics_of(config: TrainConfig, model: Localizer) -> list[Optics]:
    """PSFs in the middle of a recipe's ranges."""
    return OPTICS[type(config.psf)](config, model)


def of_widths(config: TrainConfig, model: Localizer) -> list[Optics]:
    """Gaussians of three widths within the range."""
    low, high = (math.log(s) for s in config.psf.sigma_px)
    sigmas = [round(math.exp(low + share * (high - low)), 1) for share in (0.13, 0.5, 0.87)]
    return [
        Optics(
            f"sigma {sigma} px",
            GaussianPSF(
                sigma * config.pixel_size_nm,
                pixel_size_nm=config.pixel_size_nm,
                depth_nm=config.psf.depth_nm,
            ),
            {"psf_sigma_px": sigma},
        )
        for sigma in sigmas
    ]


def of_pupil(config: TrainConfig, model: Localizer) -> list[Optics]:
    """The pupil in the middle of the ranges, as a spline."""
    pupil = config.forward_model().psf
    low, high = config.scene.z_nm
    steps = math.ceil((high - low + 100) / 50)
    spline = pupil.to_spline(z_range_nm=(low - 50, high + 50), z_step_nm=(high - low + 100) / steps)
    return [Optics("middle pupil", spline, AstigmaticPupil.of_pupil(pupil).values)]


def of_file(config: TrainConfig, model: Localizer) -> list[Optics]:
    """The measured PSF, in the middle of its field and with its mean blur."""
    if model.domain.kind is AstigmaticPupil:
        return of_pupil(config, model)
    psf, blur = config.forward_model().psf, sum(config.psf.blur_nm) / 2
    ends = psf.field_nm or ()
    context = {
        name: sum(range_nm) / 2 for name, range_nm in zip(psf.parameter_names, ends, strict=False)
    }
    return [Optics("measured", BlurredPSF(psf, blur) if blur > 0 else psf, context)]


OPTICS = {PSFPrior: of_widths, PupilPrior: of_pupil, MeasuredPSF: of_file}


def cameras_of(config: TrainConfig) -> dict[str, Camera]:
    """Cameras in the middle of a recipe's ranges, their fields numbers."""
    own = config.forward_model().cameras.known
    if own is None:
        return {"EMCCD": emccd(config.camera), "sCMOS": scmos(config.camera)}
    values = {f.name: getattr(own, f.name) for f in fields(own)}
    maps = {name: value for name, value in values.items() if torch.is_tensor(value)}
    return {"own": replace(own, **{name: float(value.median()) for name, value in maps.items()})}


def emccd(prior: CameraPrior) -> Camera:
    return Camera(
        baseline=prior.baseline,
        e_per_adu=sum(prior.emccd_e_per_adu) / 2,
        read_noise_e=sum(prior.emccd_read_noise_e) / 2,
        qe=sum(prior.qe) / 2,
        em_gain=math.sqrt(math.prod(prior.em_gain)),
        spurious_e=sum(prior.spurious_e) / 2,
    )


def scmos(prior: CameraPrior) -> Camera:
    return Camera(
        baseline=prior.baseline,
        e_per_adu=sum(prior.scmos_e_per_adu) / 2,
        read_noise_e=math.sqrt(math.prod(prior.scmos_read_noise_e)),
        qe=sum(prior.qe) / 2,
    )


def fluxes_of(config: TrainConfig) -> list[float]:
    """Photons within the recipe's range: round numbers, or the ends and the middle of a narrow
    range."""
    low, high = config.scene.flux_photons
    round_numbers = [f for f in (1000.0, 2000.0, 5000.0, 15000.0) if low <= f <= high]
    return round_numbers if len(round_numbers) >= 3 else [low, math.sqrt(low * high), high]


def by_axis(values: tuple[float, float, float], form: str) -> str:
    return " ".join("     -" if math.isnan(v) else f"{v:6{form}}" for v in values)


def isolated_row(r: Isolated) -> str:
    """Figures of a row."""
    ratio = tuple(e / b for e, b in zip(r.rmse_nm, r.bound_nm, strict=True))
    assert len(ratio) == 3
    return (
        f"{r.found:5.3f}  {by_axis(r.rmse_nm, '.1f')}  {by_axis(r.bound_nm, '.1f')}  "
        f"{by_axis(ratio, '.2f')}  "
        f"{by_axis(r.error_over_sigma, '.2f')}  {by_axis(r.coverage, '.2f')}  "
        f"{r.photons_ratio:12.3f}"
    )


def summary(results: Sequence[Isolated]) -> str:
    """Root mean square errors over rows, divided by those of the bound."""
    parts = []
    for axis, name in enumerate(AXES):
        bound = math.hypot(*(r.bound_nm[axis] for r in results))
        if not math.isnan(bound):
            ratio = math.hypot(*(r.rmse_nm[axis] for r in results)) / bound
            worst = sorted(r.error_over_sigma[axis] for r in results)
            parts.append(f"{name} {ratio:.2f} (error/sigma {worst[0]:.2f} to {worst[-1]:.2f})")
    return ", ".join(parts)


class Key(NamedTuple):
    """The conditions of a row of isolated molecules."""

    camera: str
    optics: str
    photons: float
    background: float
    z_nm: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="gaussian-2d", help="name or file")
    parser.add_argument(
        "--recipe", type=Path, help="the simulations to measure by; default: the model's own record"
    )
    parser.add_argument(
        "--photons", type=float, nargs="+", help="per molecule; default: some of the recipe's range"
    )
    parser.add_argument(
        "--background",
        type=float,
        nargs="+",
        help="photons per pixel; default: the recipe's middle",
    )
    parser.add_argument("--depths", type=int, default=7, help="of a 3D model")
    parser.add_argument("--n", type=int, default=400, help="isolated molecules per row")
    parser.add_argument("--movies", type=int, default=6, help="crowded movies per row")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", "-o", type=Path, help="folder for the picture; none without it")
    arguments = parser.parse_args()
    keep_freed_memory()
    model, name = load_model(arguments.model), Path(arguments.model).stem
    if arguments.recipe is not None:
        config = load_config(arguments.recipe)
    elif model.record.config:
        config = from_mapping(TrainConfig, model.record.config, f"the record of {arguments.model}")
    else:
        parser.error(
            f"{arguments.model} has no record of its training; name a recipe with --recipe"
        )
    axial = model.network.axial
    low, high = config.scene.z_nm
    # at the very ends of the range the network knows that no molecule lies beyond, which the bound
    # does not
    depths = torch.linspace(0.9 * low, 0.9 * high, arguments.depths).tolist() if axial else [0.0]
    photons = arguments.photons or fluxes_of(config)
    backgrounds = arguments.background or [math.sqrt(math.prod(config.scene.background_photons))]

    print(f"{name}: isolated molecules, {arguments.n} a row")
    print(
        f"{'camera':6}  {'PSF':13}  photons  background  z, nm  found  {'RMSE x y z, nm':20}  "
        f"{'bound x y z, nm':20}  "
        f"{'RMSE/bound':20}  {'error/sigma':20}  {'within 95 %':20}  photons/true"
    )
    results: dict[Key, Isolated] = {}
    conditions = product(
        cameras_of(config).items(), optics_of(config, model), photons, backgrounds, depths
    )
    for (camera_name, camera), optics, light, background, z in conditions:
        key = Key(camera_name, optics.name, light, background, z)
        results[key] = localize_isolated(
            model,
            camera,
            optics.psf,
            photons=light,
            background=background,
            z_nm=z,
            context=optics.context,
            n=arguments.n,
        )
        print(
            f"{camera_name:6}  {optics.name:13}  {light:7.0f}  {background:10.1f}  {z:5.0f}  "
            + isolated_row(results[key])
        )
    print(f"RMSE over bound, root mean squares of all rows: {summary(list(results.values()))}")
    for light in photons:
        print(
            f"  at {light:.0f} photons: "
            f"{summary([r for key, r in results.items() if key.photons == light])}"
        )

    slices = 5 if axial else 1
    print(
        f"\n{name}: crowded molecules, {arguments.movies} movies of 6 frames of 56 x 56 pixels a "
        "row"
    )
    rows = characterize(
        model, config, choose_device(arguments.device), n_movies=arguments.movies, depths=slices
    )
    print("density, /um2  photons  z, nm  background  Jaccard  RMSE lateral, nm  axial, nm")
    for row in rows:
        print(
            f"{row['density_per_um2']:13.2f}  {row['flux_photons']:7.0f}  "
            f"{row.get('z_nm', 0.0):5.0f}  "
            f"{row['background_photons']:10.1f}  {row['jaccard']:7.3f}  "
            f"{row['rmse_lateral_nm']:16.1f}  "
            + (f"{row['rmse_axial_nm']:9.1f}" if axial else "        -")
        )
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        draw(results, rows, axial, arguments.out / f"accuracy_{name}.png")


def draw(
    results: Mapping[Key, Isolated], rows: Sequence[Mapping[str, float]], axial: bool, file: Path
) -> None:
    """Draw errors of isolated molecules with their bound, calibration of the sigmas, and Jaccard
    index by density."""
    matplotlib.use("Agg")
    first = next(iter(results))
    shown = [
        key for key in results if (key.camera, key.background) == (first.camera, first.background)
    ]
    figure, (errors, honesty, crowded) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    if axial:
        # one curve an axis, at each number of photons, over depth
        light = sorted({key.photons for key in shown})
        for axis, color in enumerate(("C0", "C1", "C2")):
            for i, photons in enumerate(light):
                of = [key for key in shown if key.photons == photons and key.optics == first.optics]
                z, alpha = [key.z_nm for key in of], (i + 1) / len(light)
                errors.plot(
                    z,
                    [results[k].rmse_nm[axis] for k in of],
                    f"{color}o-",
                    alpha=alpha,
                    markersize=3,
                    label=f"{AXES[axis]}, {photons:.0f} photons" if i == len(light) - 1 else None,
                )
                errors.plot(z, [results[k].bound_nm[axis] for k in of], f"{color}--", alpha=alpha)
                honesty.plot(
                    z,
                    [results[k].error_over_sigma[axis] for k in of],
                    f"{color}o-",
                    alpha=alpha,
                    markersize=3,
                )
        errors.set(xlabel="z, nm", title=f"isolated, {first.camera}: RMSE (dashed: bound)")
        honesty.set(xlabel="z, nm")
    else:
        for i, name in enumerate(dict.fromkeys(key.optics for key in shown)):
            of = [key for key in shown if key.optics == name]
            light = [key.photons for key in of]
            for axis in (0, 1):
                style, label = ("o-", "s-")[axis], f"{AXES[axis]}, {name}"
                errors.plot(
                    light,
                    [results[k].rmse_nm[axis] for k in of],
                    f"C{i}{style}",
                    markersize=3,
                    label=label,
                )
                honesty.plot(
                    light,
                    [results[k].error_over_sigma[axis] for k in of],
                    f"C{i}{style}",
                    markersize=3,
                )
            errors.plot(light, [results[k].bound_nm[0] for k in of], f"C{i}--")
        errors.set(
            xlabel="photons", xscale="log", title=f"isolated, {first.camera}: RMSE (dashed: bound)"
        )
        honesty.set(xlabel="photons", xscale="log")
    errors.set(ylabel="nm", yscale="log")
    errors.legend(fontsize=7)
    honesty.axhline(1, color="grey", linestyle=":")
    honesty.set(ylim=(0, 2), title="error over stated sigma")
    for i, flux in enumerate(sorted({row["flux_photons"] for row in rows})):
        of_flux = [row for row in rows if row["flux_photons"] == flux]
        densities = sorted({row["density_per_um2"] for row in of_flux})
        mean = [
            sum(r["jaccard"] for r in of_flux if r["density_per_um2"] == d)
            / sum(r["density_per_um2"] == d for r in of_flux)
            for d in densities
        ]
        crowded.plot(densities, mean, f"C{i}o-", markersize=3, label=f"{flux:.0f} photons")
    title = "crowded: Jaccard index" + (" (mean over depths)" if axial else "")
    crowded.set(xlabel="molecules on at once per square micrometre", ylim=(0, 1), title=title)
    crowded.legend(fontsize=7)
    figure.savefig(file, dpi=110)
    print(f"picture: {file.name}")


if __name__ == "__main__":
    main()

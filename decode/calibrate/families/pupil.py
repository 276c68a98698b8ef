"""Pupils: aberrations of a high-aperture objective, and a phase mask."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from decode.calibrate.bead_fit import BeadFit, centroids
from decode.calibrate.beads import BeadSet
from decode.calibrate.families.family import Family, FamilyFit, Optics
from decode.calibrate.phase_mask import fit_phase_mask, refine_phase_mask
from decode.calibrate.pupil import PupilFit, fit_images, fit_pupil, spread
from decode.calibrate.pupil_likelihood import brightness
from decode.optics.pupil import PupilPSF
from decode.progress import Steps

__all__ = ["PupilFamily"]

IMAGES_OF_A_REFIT = 60
FEWEST_PLANES_OF_A_REFIT = 5
STEPS_OF_A_REFIT = 5
STEPS_OF_A_MASK_S_REFIT = 40
SPLINE_MARGIN_NM = 100.0
"""margin beyond the stack of the spline that measures the light"""


@final
class PupilFamily(Family[PupilPSF]):
    """The wave in the pupil of an objective whose aperture, wavelength and indices are known."""

    def __init__(self, optics: Optics) -> None:
        self.optics = optics

    def fit(self, beads: BeadSet) -> Steps[FamilyFit[PupilPSF]]:
        psf = self._nominal(beads)
        from_nothing = fit_phase_mask.steps if self.optics.phase_mask else fit_pupil.steps
        found = yield from from_nothing(
            beads.crops,
            z_nm=beads.z_nm,
            psf=psf,
            camera=beads.camera,
            free=_free(psf),
        )
        fit = _in_focus(found, beads)
        return FamilyFit(fit=fit, uniform=fit, without=lambda i: self._without(fit, beads, i))

    def work(self, beads: BeadSet) -> tuple[float, float]:
        return 4, 1

    def moved(
        self, fit: BeadFit[PupilPSF], *, places_nm: Tensor, offsets_nm: Tensor
    ) -> BeadFit[PupilPSF]:
        offset = pad(offsets_nm.mean(0), (0, 1))
        psf = copy.deepcopy(fit.psf)
        psf.offset_nm += offset
        return replace(fit, psf=psf, xyz=fit.xyz - offset)

    def of_molecules(self, psf: PupilPSF) -> PupilPSF:
        if not psf.bead_diameter_nm:
            return psf
        molecule = copy.deepcopy(psf)
        molecule.bead_diameter_nm = 0.0
        return molecule

    def _nominal(self, beads: BeadSet) -> PupilPSF:
        optics = self.optics
        return PupilPSF(
            numerical_aperture=optics.numerical_aperture,
            wavelength_nm=optics.wavelength_nm,
            immersion_index=optics.immersion_index,
            sample_index=optics.sample_index,
            bead_diameter_nm=optics.bead_diameter_nm,
            pixel_size_nm=beads.pixel_size_nm,
            scan="stage",
            patch_px=beads.side_px,
        )

    def _without(self, fit: BeadFit[PupilPSF], beads: BeadSet, i: int) -> Steps[BeadFit[PupilPSF]]:
        """The fit without the i-th bead, refined from the pupil of all beads."""
        others = beads.without(i)
        n, planes = others.crops.shape[:2]
        some = spread(planes, max(FEWEST_PLANES_OF_A_REFIT, IMAGES_OF_A_REFIT // n))
        refine = partial(fit_images.steps, steps=STEPS_OF_A_REFIT)
        if self.optics.phase_mask:
            refine = partial(refine_phase_mask.steps, steps=STEPS_OF_A_MASK_S_REFIT)
        found = yield from refine(
            others.crops[:, some].flatten(0, 1),
            source=torch.arange(n).repeat_interleave(len(some)),
            z_nm=others.z_nm[some].repeat(n),
            psf=fit.psf,
            xyz_nm=fit.xyz[beads.others(i)],
            camera=others.camera,
            free=_free(fit.psf),
        )
        return _in_focus(found, others)


def _free(psf: PupilPSF) -> list[str]:
    return [*psf.parameter_names, "numerical_aperture"]


def _in_focus(found: PupilFit, beads: BeadSet) -> BeadFit[PupilPSF]:
    """The fit with emitters at the centroid of their light in focus, and in focus at z = 0 of the
    stage."""
    psf, side, pixel = found.psf, beads.side_px, beads.pixel_size_nm
    middle = torch.tensor([[side / 2 * pixel] * 2 + [0.0]])
    middle[:, 2] = found.xyz_nm[:, 2].mean()
    image = psf.integrate_pixels(middle).detach()
    seen = torch.cat([middle[0, :2] - centroids(image, pixel)[0], middle[0, 2:]])
    psf.offset_nm.add_(seen)
    xyz = found.xyz_nm - seen
    light = _light(psf, xyz, beads)
    return BeadFit(
        psf=psf,
        xyz=xyz,
        photons=light[..., 0],
        background=light[..., 1].mean(1),
        jitter=torch.zeros(len(beads), len(beads.z_nm), 3),
        deviance=found.misfit,
    )


def _light(psf: PupilPSF, xyz: Tensor, beads: BeadSet) -> Tensor:
    """(n, z, 2) photons and background of beads at (n, 3) in every plane, fitted or not."""
    n, planes, side = len(beads), len(beads.z_nm), beads.side_px
    low, high = float(beads.z_nm[0]), float(beads.z_nm[-1])
    spline = psf.to_spline(z_range_nm=(low - SPLINE_MARGIN_NM, high + SPLINE_MARGIN_NM))
    at = xyz[:, None] + pad(beads.z_nm[:, None], (2, 0))
    share = spline.integrate_pixels(at.flatten(0, 1)).detach()[:, :side, :side]
    noise = beads.camera.typical_noise
    slope, floor = float(noise.excess), float(noise.floor)
    return brightness(beads.crops.flatten(0, 1), share, slope, floor / slope).view(n, planes, 2)

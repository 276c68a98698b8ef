"""The pupil from the blinking movie itself, starting from a nominal or an outdated one."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from decode.calibrate.pupil import PupilFit, fit_images, spread
from decode.calibrate.pupil_likelihood import brightness, noise_of
from decode.defects import defects_of, with_bad_pixels
from decode.io.cameras import CameraFile
from decode.io.movies import WHOLE, Selection, open_movie
from decode.io.psfs import PSFFile
from decode.optics.camera import Camera
from decode.optics.pupil import PupilPSF

__all__ = ["InSituFit", "crop_spots", "fit_in_situ", "mirrored", "refine_in_situ"]

FEWEST_SPOTS = 20
"""fewest spots; fewer do not cover the depth of focus"""
SIDES_PX = (25, 19, 15)
"""smaller sides of spots, for movies in which few stand alone in the whole patch of the PSF"""
ENOUGH_SPOTS, MOST_SPOTS = 200, 400
"""number of spots from which no smaller side is tried; most that are fitted"""
TRIMMED_SPOTS, TRIMS = 50, 3
"""spots from which a trim leaves three of four and no longer half of them; number of trims"""
NOISE_SIGMAS = 2.0
"""by how many standard deviations of its noise the misfit of a spot may exceed 1"""
UNDETERMINED_NM = 50.0
"""standard deviation of a Zernike coefficient from which it counts as undetermined"""
DECISIVE = 5.0
"""log-likelihood ratio of a decision: odds of 150 to 1"""


@final
@dataclass(frozen=True, kw_only=True)
class InSituFit:
    """The pupil that explains the spots, and what the spots do not determine.

    Images of a pupil W at z and of its mirror -W(-rho) at -z are the same (the fields are complex
    conjugates) unless the sample's refractive index differs from the immersion's.  The movie
    therefore does not determine the direction of z, which is that of the pupil at the start, if its
    aberrations determine it.  The scale of z is the depth of focus, and as accurate as numerical
    aperture, wavelength and index.
    """

    fit: PupilFit
    """pupil, positions and light of the spots used; its z is relative to the pupil's focus"""
    used: Tensor
    """(n,) bool; spots that were used; the others are not explained by one molecule"""
    mirror_ratio: float
    """log-likelihood ratio of the pupil to its mirror"""
    side_ratio: float
    """median log-likelihood ratio of the z of a spot to the best z on the other side of focus"""
    sign_known: bool
    """whether the direction of z is known: from the movie, or else from the pupil at the start"""
    undetermined: tuple[str, ...]
    """parameters that the spots do not determine"""

    @property
    def psf(self) -> PupilPSF:
        return self.fit.psf

    @property
    def sides_differ(self) -> bool:
        """Whether spots differ above and below focus; if not, z is known up to its sign."""
        return self.side_ratio > DECISIVE

    @property
    def verdict(self) -> str:
        """What the movie does not determine, in sentences."""
        said = [self._direction(), self._scale()]
        if self.undetermined:
            said.append(f"The spots do not determine {', '.join(self.undetermined)}.")
        return " ".join(filter(None, said))

    def _direction(self) -> str:
        if not self.sides_differ:
            return (
                "The PSF looks the same above and below focus, so only the distance of a molecule "
                "from focus can be known, not the side: use it in 2D, or add astigmatism."
            )
        if not self.sign_known:
            return (
                "This pupil and its mirror image explain the movie equally well, and the starting "
                "PSF does not say which is right: z may be upside down. Start from a PSF with the "
                "right sign of astigmatism, or calibrate with beads."
            )
        if self.mirror_ratio < DECISIVE:
            stated = "The direction of z is that of the starting PSF"
            return f"{stated}; the movie itself does not determine it."
        return ""

    def _scale(self) -> str:
        if "numerical_aperture" not in self.fit.names:
            stated = "the stated numerical aperture, wavelength and refractive index"
            return f"The scale of z is as right as {stated}."
        aperture, deviation = self.fit["numerical_aperture"]
        known = f"{200 * deviation / aperture:.1f} %"
        return f"The scale of z is known to {known}, by way of the aperture's fit."


def crop_spots(
    light: Tensor,
    *,
    psf: PupilPSF,
    camera: Camera,
    max_spots: int = MOST_SPOTS,
    snr: float = 8.0,
) -> Tensor:
    """Bright spots that stand alone, cut from a movie.

    Args:
        light: (frame, y, x) photons before quantum efficiency, as `Camera.to_photons` gives them.
        psf: gives the side of the crops.
        camera: gives the noise.
        max_spots: most spots; the brightest are taken, spread over the movie's frames.
        snr: least signal-to-noise ratio of a spot.

    Returns:
        (n, patch_px, patch_px) photons, background included.

    Raises:
        ValueError: if fewer than 20 spots stand alone.
    """
    half = psf.patch_px // 2
    width = 1.6 * psf.wavelength_nm / (4 * float(psf.numerical_aperture) * psf.pixel_size_nm)
    narrow, wide = _gaussian(width), _gaussian(4 * width)
    slope, floor = noise_of(camera)
    window = 2 * half + 1
    crops, strength = [], []
    for frame in light[:, None].float():
        level = _smooth(frame, wide)
        signal = _smooth(frame, narrow) - level
        noise = (slope * (level.clamp_min(0) + floor)).sqrt() * narrow.square().sum()
        ratio = (signal / noise)[0]
        peak = (ratio == F.max_pool2d(ratio[None], 3, 1, 1)[0]) & (ratio > snr / 2)
        crowd = F.avg_pool2d(peak[None].float(), window, 1, half)[0] * window**2
        alone = peak & (crowd < 1.5) & (ratio > snr)
        alone[:half] = alone[-half:] = alone[:, :half] = alone[:, -half:] = False
        for y, x in alone.nonzero().tolist():
            crops.append(frame[0, y - half : y + half + 1, x - half : x + half + 1])
            strength.append(float(ratio[y, x]))
    if len(crops) < FEWEST_SPOTS:
        raise ValueError(
            f"only {len(crops)} spots of the movie are bright and stand alone, "
            f"{FEWEST_SPOTS} are needed; give more frames, or calibrate with beads"
        )
    chosen = torch.tensor(strength).argsort(descending=True)[:max_spots].sort().values
    return torch.stack(crops)[chosen]


def refine_in_situ(
    movie: Path | str,
    camera: CameraFile,
    start: PSFFile,
    *,
    free: tuple[str, ...] | None = None,
    n_frames: int = 500,
    selection: Selection = WHOLE,
) -> tuple[PSFFile, str]:
    """Refine the pupil of a file by a movie of blinking molecules.

    Args:
        movie: a file that `open_movie` reads; some of its molecules stand alone.
        camera: camera of the movie.
        start: an outdated calibration, or a nominal pupil; molecules are assumed within its range
            of depth.
        free: as for `fit_in_situ`.
        n_frames: number of frames to use, spread over the movie.
        selection: channel, position and plane of a file that holds several, and frames to leave
            out.

    Returns:
        The refined PSF, and sentences on what the movie does not determine.

    Raises:
        ValueError: if the PSF is no pupil, its pixels are not the camera's, or too few molecules
            stand alone.
    """
    psf = start.psf
    if not isinstance(psf, PupilPSF):
        command = "decode calibrate psf --model pupil"
        raise ValueError(f"only a pupil can be refined by a movie; make one with `{command}`")
    if abs(psf.pixel_size_nm / camera.pixel_size_nm - 1) > 0.01:
        sizes = f"{psf.pixel_size_nm:g} nm, the camera's {camera.pixel_size_nm:g} nm"
        raise ValueError(f"the PSF's pixels are {sizes}; start from a PSF of this camera")
    with open_movie(movie, selection=selection) as frames:
        own = with_bad_pixels(frames, camera.camera)
        unusable = defects_of(frames, own).frames
        usable = torch.tensor([i for i in range(len(frames)) if i not in unusable])
        chosen = usable[spread(len(usable), n_frames).unique()].tolist()
        images = [frames.read(i, i + 1)[0].astype("float32") for i in chosen]
        adu = torch.stack([torch.from_numpy(image) for image in images])
    cut, spots = _spots_alone(own.without_bad(own.to_photons(adu)), psf, camera.camera)
    depth = max(abs(z) for z in start.z_range_nm)
    found = fit_in_situ(spots, psf=cut, camera=camera.camera, free=free, z_range_nm=depth)
    whole = found.psf.with_patch(psf.patch_px)
    sources = (*start.sources, str(movie))
    refined = replace(start, psf=whole, pupil=None, sources=sources, figures={})
    return refined, found.verdict


def _spots_alone(light: Tensor, psf: PupilPSF, camera: Camera) -> tuple[PupilPSF, Tensor]:
    """Spots in the largest patch in which enough stand alone, and the PSF cut to it."""
    *larger, smallest = (psf.patch_px, *(side for side in SIDES_PX if side < psf.patch_px))
    for side in larger:
        cut = psf.with_patch(side)
        with suppress(ValueError):
            spots = crop_spots(light, psf=cut, camera=camera)
            if len(spots) >= ENOUGH_SPOTS:
                return cut, spots
    cut = psf.with_patch(smallest)
    return cut, crop_spots(light, psf=cut, camera=camera)


def fit_in_situ(
    spots: Tensor,
    *,
    psf: PupilPSF,
    camera: Camera,
    free: tuple[str, ...] | None = None,
    z_range_nm: float = 700.0,
    steps: int = 8,
) -> InSituFit:
    """Refine the pupil by the likelihood of single molecules of unknown position and light.

    Spots that one molecule does not explain hold hidden neighbours, which would blur the pupil and
    bend it: fits are followed by trims, each of which leaves out up to half of the spots, the least
    explained ones, until noise explains all that are left (the trimmed likelihood of Hadi and
    Luceño, Comput. Stat. Data Anal. 25, 251, 1997).

    Args:
        spots: (n, patch_px, patch_px) photons before quantum efficiency, one molecule in each; see
            `crop_spots`.
        psf: start of the fit; its even aberrations (n even) determine the direction of z.
        camera: gives the noise.
        free: names of the fitted parameters, see `fit_images`; None: aberrations and blur.
        z_range_nm: molecules lie within this distance of focus.
        steps: largest number of steps of each fit.

    Raises:
        ValueError: if there are too few spots or their shape is wrong.
    """
    if len(spots) < FEWEST_SPOTS:
        needed = f"at least {FEWEST_SPOTS} are needed"
        raise ValueError(f"{len(spots)} spots do not determine a pupil, {needed}")
    source = torch.arange(len(spots))
    if free is None:
        free = tuple(name for name in psf.parameter_names if name != "apodization")

    def fit(start: PupilPSF, xyz: Tensor, which: Tensor, steps: int) -> PupilFit:
        n = int(which.sum())
        return fit_images(
            spots[which],
            source=source[:n],
            z_nm=torch.zeros(n, dtype=spots.dtype),
            psf=start,
            xyz_nm=xyz,
            camera=camera,
            free=free,
            steps=steps,
        )

    used = torch.ones(len(spots), dtype=torch.bool)
    found = fit(psf, _start(spots, psf, camera, z_range_nm), used, steps)
    for _ in range(TRIMS):
        kept = _explained(spots[used], found, camera)
        used[used.clone()] = kept
        # z may have been caught on the wrong side while the pupil was wrong
        start = _start(spots[used], found.psf, camera, z_range_nm)
        found = fit(found.psf, start, used, steps)
        if bool(kept.all()):
            break

    upside_down = found.xyz_nm * found.xyz_nm.new_tensor([1, 1, -1])
    mirror_ratio = fit(mirrored(found.psf), upside_down, used, 3).loss - found.loss
    opposite = _other_side(spots[used], found, camera, z_range_nm)
    return InSituFit(
        fit=found,
        used=used,
        mirror_ratio=mirror_ratio,
        side_ratio=float(opposite.median()),
        sign_known=mirror_ratio > DECISIVE or _nearer_than_mirror(found.psf, psf),
        undetermined=_undetermined(found),
    )


def _undetermined(found: PupilFit) -> tuple[str, ...]:
    """Zernike coefficients that the spots do not determine."""
    deviations = found.covariance.diagonal().clamp_min(0).sqrt().tolist()
    return tuple(
        name
        for name, deviation in zip(found.names, deviations, strict=True)
        if name.startswith("zernike") and deviation > UNDETERMINED_NM
    )


def mirrored(psf: PupilPSF) -> PupilPSF:
    """The pupil -W(-rho), whose image at -z is that of `psf` at z if the indices are equal."""
    twin = copy.deepcopy(psf)
    even = torch.tensor([n % 2 == 0 for n, _ in psf.modes], dtype=torch.bool)
    with torch.no_grad():
        twin.zernike_nm[even] *= -1
        twin.offset_nm[2] *= -1
        if twin.phase_mask_nm is not None:
            twin.phase_mask_nm.copy_(-twin.phase_mask_nm.flip(0, 1))
    return twin


def _nearer_than_mirror(found: PupilPSF, start: PupilPSF) -> bool:
    """Whether even aberrations of the start clearly favour a pupil over its mirror."""
    even = torch.tensor([n % 2 == 0 for n, _ in start.modes], dtype=torch.bool)
    before, after = start.zernike_nm.detach()[even], found.zernike_nm.detach()[even]
    return float((after - before).norm()) < 0.7 * float((after + before).norm())


@torch.no_grad()
def _losses(spots: Tensor, psf: PupilPSF, camera: Camera, xyz: Tensor) -> Tensor:
    """(n, k) negative quasi-log-likelihood of spots at places (n, k, 3), with their best light."""
    slope, floor = noise_of(camera)
    columns = []
    for place in xyz.unbind(1):
        share = torch.cat([psf.integrate_pixels(part) for part in place.split(64)]).double()
        light = brightness(spots.double(), share, slope, floor)
        mean = light[:, 0, None, None] * share + light[:, 1, None, None] + floor
        lost = mean - (spots.double() + floor) * mean.clamp_min(1e-3).log()
        columns.append(lost.sum((1, 2)) / slope)
    return torch.stack(columns, 1)


def _start(spots: Tensor, psf: PupilPSF, camera: Camera, z_range_nm: float) -> Tensor:
    """(n, 3) position of each molecule, nm, by its centroid and the most likely z of a grid."""
    border = torch.ones(spots.shape[-2:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    at = (torch.arange(spots.shape[-1], dtype=spots.dtype) + 0.5) * psf.pixel_size_nm
    middle = spots.shape[-1] / 2 * psf.pixel_size_nm
    # far from the middle there is more noise than light
    window = torch.exp(-(((at - middle) / (3.5 * psf.pixel_size_nm)) ** 2) / 2)
    dark = spots[:, border].median(1).values[:, None, None]
    light = (spots - dark).clamp_min(0) * window * window[:, None]
    total = light.sum((1, 2)).clamp_min(1e-6)
    xy = torch.stack([(light.sum(1) * at).sum(1), (light.sum(2) * at).sum(1)], 1) / total[:, None]
    z = torch.linspace(-z_range_nm, z_range_nm, 2 * round(z_range_nm / 100) + 1, dtype=spots.dtype)
    depths = z[None, :, None].expand(len(spots), -1, 1)
    places = torch.cat([xy[:, None].expand(-1, len(z), 2), depths], 2)
    places = places - psf.offset_nm.to(spots.dtype)
    best = _losses(spots, psf, camera, places).argmin(1)
    return places[torch.arange(len(spots)), best]


def _explained(spots: Tensor, found: PupilFit, camera: Camera) -> Tensor:
    """(n,) bool: which spots look like one molecule; at least the better half."""
    slope, floor = noise_of(camera)
    with torch.no_grad():
        share = torch.cat([found.psf.integrate_pixels(part) for part in found.xyz_nm.split(64)])
    mean = found.photons[:, None, None] * share + found.background[:, None, None]
    misfit = ((spots - mean) ** 2 / (slope * (mean + floor).clamp_min(1e-3))).mean((1, 2))
    noise = (2 / spots.shape[-1] ** 2) ** 0.5
    # while the pupil is wrong noise explains none, so a spot is held against the others too
    n_best = max(len(spots) // 2, min(TRIMMED_SPOTS, len(spots) * 3 // 4))
    best = misfit.sort().values[n_best - 1]
    return misfit <= best.clamp_min(1 + NOISE_SIGMAS * noise)


def _other_side(spots: Tensor, found: PupilFit, camera: Camera, z_range_nm: float) -> Tensor:
    """(m,) log-likelihood ratio of the z of spots out of focus to the best z on the other side."""
    xyz = found.xyz_nm + found.psf.offset_nm.to(spots.dtype)
    out = xyz[:, 2].abs() > 150
    if out.sum() < 5:
        return torch.zeros(1)
    xyz, spots = xyz[out], spots[out]
    z = torch.arange(0, z_range_nm + 1, 50.0, dtype=spots.dtype)
    beyond = -xyz[:, 2:].sign() * z
    beyond = torch.cat(
        [beyond, -xyz[:, 2:]], 1
    )  # the mirrored place itself, should all look the same
    places = torch.cat([xyz[:, None, :2].expand(-1, beyond.shape[1], 2), beyond[..., None]], 2)
    shift = found.psf.offset_nm.to(spots.dtype)
    here = _losses(spots, found.psf, camera, (xyz - shift)[:, None])[:, 0]
    return _losses(spots, found.psf, camera, places - shift).amin(1) - here


def _gaussian(sigma_px: float) -> Tensor:
    """A normalized Gaussian kernel, three sigma to either side."""
    reach = max(1, round(3 * sigma_px))
    kernel = torch.exp(-((torch.arange(-reach, reach + 1) / sigma_px) ** 2) / 2)
    return kernel / kernel.sum()


def _smooth(image: Tensor, kernel: Tensor) -> Tensor:
    """An image (1, y, x) convolved along y and x, its border repeated."""
    reach = len(kernel) // 2
    padded = F.pad(image[None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[0]

"""polish: a network's molecules refined by the likelihood of the frames, neighbours and successive frames jointly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import conv2d, pad

from decode.emitters import EmitterSet
from decode.likelihood.single import Fit, scaled_deviance
from decode.optics.camera import DARKEST, Camera
from decode.optics.psf import PSF

__all__ = ["fit_jointly", "polish", "windows_for"]

AT_ONCE, DRAWN_AT_ONCE = 1024, 4096
"""emitters worked on at a time: fewer, and threads wait for the interpreter; more, and the cache is left"""
MOST_NEIGHBOURS = 6
"""the nearest, fitted together with an emitter; the light of the others is taken as it stands"""
STAGES = ((1.15, 4, 0.5), (1.04, 2, 2.0))
"""steps in small windows, which are cheap, then in large ones, for the rest of what the frames tell: the most that a
bound there may be over that of the whole patch; the largest number of steps; and how many standard deviations the last
one may have.  Each is many times shorter than the one before, and one from near the maximum is as good as many (Le
Cam's one-step estimator: van der Vaart, Asymptotic Statistics, 1998, sec. 5.7)"""
DAMPING = 1e-2
"""of the Fisher information, relative to its diagonal: keeps emitters that cannot be told apart from running off"""
PRIOR_WIDTH = 2.0
"""standard deviations of the network's that hold a molecule to its place while it is fitted"""
LINK_SIGMAS = 3.0
"""of the distance within which molecules of successive frames are one"""
FAR_NM = 1e3
"""no molecule moves so far from frame to frame"""
SMOOTH_PX, ENOUGH_FRAMES = 3.0, 8
"""background changes over more than this, which shows in the mean of so many frames"""
MOST_MOVED, EXPLAINED = 2.5, 1.15
"""standard deviations of the network's; a molecule that was moved further had another's light in its window, unless
the fit leaves no more than noise, less than so much deviance per degree of freedom: then it may move twice as far"""
BOLD = 5.0
"""times smaller than the network's sigma is that of a fit among neighbours whose sigma is half believed"""
NETWORK_SHARE = 0.1
"""weight of the network's estimate where it is as certain as the fit: both err, and not quite together"""


@torch.no_grad()
def polish(
    psf: PSF, camera: Camera, adu: Tensor, emitters: EmitterSet, *, parameters: Tensor | None = None
) -> EmitterSet:
    """Refine a network's molecules by the likelihood of the frames they were found in.

    The fit of `fit_jointly` and the network's estimate are combined.  Where noise explains what the fit leaves (a
    deviance d per degree of freedom up to `EXPLAINED`), the network's weight is `NETWORK_SHARE` times the fit's
    variance over its own, axis by axis: none where the fit is much more certain, all where the likelihood says nothing,
    as of z beyond the depths that the PSF was measured at.  The fit's weight falls as d^(-3/2) where more is left, for
    then there is light that it does not know of.  The variance is that of the mixture of both, in which a fit among
    neighbours has less weight if it claims to be much more certain than the network (`BOLD`).  The numbers were chosen
    on simulations.  A molecule stays as the network has it where the fit did not come to rest, made the frames less
    likely, or moved further than the network's uncertainty allows.

    Args:
        psf: the point spread function.
        camera: its maps, if any, are as large as the frames.
        adu: (t, y, x) counts of successive frames.  The more, the better are background and blinking known.
        emitters: with `background`, `xyz_sigma` and `photons_sigma`; frames count from the first of `adu`.  z is not
            fitted where its sigma is NaN.
        parameters: (n, p) PSF parameters per emitter, or None.

    Returns:
        The molecules in the same order, with `goodness` (deviance per degree of freedom) and `polished` (whether the
        fit was taken).

    Raises:
        ValueError: if the table lacks a column, or a molecule lies in none of the frames.
    """
    if emitters.xyz_sigma is None or emitters.photons_sigma is None or emitters.background is None:
        raise ValueError("only molecules with uncertainties and background can be polished, as a network finds them")
    axial = not bool(emitters.xyz_sigma[:, 2].isnan().all())
    fit = fit_jointly(psf, camera, adu, emitters, axial=axial, parameters=parameters)
    axes = [0, 1, 2] if axial else [0, 1]
    moved = ((fit.xyz - emitters.xyz) / emitters.xyz_sigma)[:, axes].abs().amax(1)
    allowed = torch.where(fit.deviance < EXPLAINED, 2 * MOST_MOVED, MOST_MOVED)
    polished = fit.converged & (moved < allowed) & torch.isfinite(fit.covariance[:, axes, axes]).all(1)

    variance = fit.covariance.diagonal(dim1=1, dim2=2)
    fitted = _Normal(torch.cat([fit.xyz, fit.photons[:, None]], 1), variance[:, :4])
    network = _Normal(
        torch.cat([emitters.xyz, emitters.photons[:, None]], 1).to(fitted.mean),
        torch.cat([emitters.xyz_sigma, emitters.photons_sigma[:, None]], 1).to(fitted.mean).square(),
    )
    trust = (fit.deviance[:, None] / EXPLAINED).clamp_min(1) ** -1.5
    share = (NETWORK_SHARE * fitted.variance / network.variance).clamp_max(1)
    weight = (trust * (1 - share)).where(polished[:, None] & fitted.variance.isfinite(), 0.0)
    mean = network.mean.lerp(fitted.mean.where(weight > 0, network.mean), weight)
    # among others a fit knows only of those that it was given, and may be bold
    bold = network.variance[:, :2].sum(1) / fitted.variance[:, :2].sum(1) / BOLD**2
    doubt = torch.where(fit.alone, 0.0, bold)[:, None]
    variance = network.mixed_variance(fitted, weight / (1 + doubt), mean)
    dtype = emitters.xyz.dtype
    sigma = variance.sqrt().to(dtype)
    return replace(
        emitters,
        xyz=mean[:, :3].to(dtype),
        photons=mean[:, 3].to(emitters.photons.dtype),
        background=fit.background.where(polished, emitters.background),
        xyz_sigma=sigma[:, :3],
        photons_sigma=sigma[:, 3],
        goodness=fit.deviance,
        polished=polished,
    )


class _Normal(NamedTuple):
    """Independent normal distributions of x, y, z and photons, (n, 4) each."""

    mean: Tensor
    variance: Tensor

    def mixed_variance(self, other: _Normal, weight: Tensor, mean: Tensor) -> Tensor:
        """Mean square distance from a mean of the mixture of both: where they are apart, one of them errs.

        Args:
            other: its values count where it has a weight.
            weight: (n, 4) of the other.
            mean: (n, 4).
        """
        own = self.variance + (self.mean - mean) ** 2
        others = other.variance + (other.mean - mean) ** 2
        return own.lerp(others.where(weight > 0, own), weight)


@torch.no_grad()
def fit_jointly(
    psf: PSF,
    camera: Camera,
    adu: Tensor,
    emitters: EmitterSet,
    *,
    axial: bool = True,
    parameters: Tensor | None = None,
) -> Fit:
    """Maximum-likelihood molecules of a movie: neighbours share the light, successive frames the position.

    Fisher scoring (Smith et al., Nature Methods 7, 373, 2010) on the likelihood of `scaled_deviance`.  In a step every
    emitter solves for itself and its nearest neighbours in a window around it, against the light of all others, and
    takes its own part of the solution (a restricted additive Schwarz method; Cai and Sarkis, SIAM J. Sci. Comput. 21,
    792, 1999).  Windows are small at first, and large for the last step (`STAGES`).  Photons and background are each
    frame's own; the position of a molecule that stays on is one for all its frames, found from the sum of what each
    says of it when everything else is projected out.  The background has the shape of the frames' mean without
    emitters, blurred; its height is each emitter's own.  Stated uncertainties of the start act as a prior,
    `PRIOR_WIDTH` times as wide, on emitters with neighbours; they are not in the covariance but for those of
    neighbours.

    Args:
        psf, camera, adu, parameters: as for `polish`.
        emitters: where to start.
        axial: fit z; otherwise it stays.

    Returns:
        A fit per row of `emitters`.  `converged`: it came to rest, and no further from the frames than it began.
        The covariance is NaN for an axis that is not fitted.
    """
    n, device, dtype = len(emitters), emitters.xyz.device, emitters.xyz.dtype
    axes = [0, 1, 2] if axial else [0, 1]
    d = len(axes)
    if emitters.background is None:
        raise ValueError("the molecules to fit need a background to start from")
    if n and (int(emitters.frame.min()) < 0 or int(emitters.frame.max()) >= len(adu)):
        raise ValueError(f"there are molecules outside the {len(adu)} frames; count frames from the first of them")
    bright, dark = emitters.photons.clamp_min(1), emitters.background.clamp_min(DARKEST)
    start = torch.cat([emitters.xyz[:, axes], bright[:, None], dark[:, None]], 1)
    belief = torch.zeros_like(start)
    if emitters.xyz_sigma is not None and emitters.photons_sigma is not None:
        sigma = torch.cat([emitters.xyz_sigma[:, axes], emitters.photons_sigma[:, None]], 1)
        belief[:, :-1] = (PRIOR_WIDTH * sigma) ** -2
    sides = windows_for(psf, camera, axial=axial, most=[most for most, _, _ in STAGES])
    cuts = [psf.with_patch(side) for side in sides]
    reach_nm = psf.pixel_size_nm * cuts[0].patch_px / 2
    neighbours = _neighbours(emitters, reach_nm)
    crowd = (neighbours >= 0).sum(1)
    belief[crowd == 0] = 0  # what stands alone needs no holding
    density = (1 + crowd) / (torch.pi * reach_nm**2)

    theta = start.clone()
    covariance, stated = start.new_zeros(2, n, d + 2, d + 2)
    deviance, first, lost = start.new_zeros(3, n)
    track, n_tracks = torch.arange(n, device=device), n
    arrived = torch.zeros(n, dtype=torch.bool, device=device)
    longest = start.new_tensor([psf.pixel_size_nm / 2] * 2 + [150.0] * (d - 2) + [torch.inf] * 2)
    for cut, (_, most_steps, at_rest) in zip(cuts, STAGES, strict=True):
        windows = _Windows(cut, camera, adu, emitters, axes, parameters, start, belief)
        moving = torch.ones(n, dtype=torch.bool, device=device)
        for step in range(most_steps if n else 0):
            rows = torch.nonzero(moving)[:, 0]
            windows.draw(rows, theta)
            if step in (0, 2):
                windows.see_background()
            rows = rows[torch.argsort(crowd[rows], stable=True)]
            change = torch.zeros_like(theta)
            for m in crowd[rows].unique().tolist():
                for part in rows[crowd[rows] == m].split(max(16, AT_ONCE // (1 + m))):
                    change[part], covariance[part], deviance[part] = windows.solve(part, neighbours[part, :m], theta)
            if step == 0:
                first = deviance.clone()
            if step == 1 and cut is cuts[0]:
                track, n_tracks = _tracks(emitters, theta[:, :d], covariance[:, :d, :d], density)
            own, change = covariance[rows], change[rows]
            change, own = _one_position(theta[rows], change, own, track[rows], n_tracks, d)
            stated[rows] = own
            new = theta[rows] + change.clamp(-longest, longest)
            new[:, d] = torch.maximum(new[:, d], 0.3 * theta[rows, d])
            new[:, d + 1].clamp_min_(DARKEST)
            # light is linear, and follows the position in a step
            step_sigmas = ((new - theta[rows]).abs() / own.diagonal(dim1=1, dim2=2).sqrt())[:, :d].amax(1)
            theta[rows] = new
            arrived[rows] = step_sigmas < 1.5 * at_rest
            if step > 0 or cut is not cuts[0]:  # molecules of a track stop together
                restless = torch.zeros(n_tracks, dtype=torch.bool, device=device)
                restless[track[rows[step_sigmas > at_rest]]] = True
                moving = restless[track]
            if not bool(moving.any()):
                break
        lost += deviance - first
    worse = start.new_zeros(n_tracks).index_add_(0, track, lost)[track] > 0.1
    everything = start.new_full((n, 5, 5), torch.nan)
    fitted = torch.tensor([*axes, 3, 4], device=device)
    everything[:, fitted[:, None], fitted] = stated
    xyz = emitters.xyz.clone()
    xyz[:, axes] = theta[:, :d]
    return Fit(
        xyz=xyz,
        photons=theta[:, d],
        background=theta[:, d + 1],
        covariance=everything,
        deviance=deviance / (windows.n_pixels() - d - 2).clamp_min(1).to(dtype),
        converged=arrived & ~worse & torch.isfinite(theta).all(1),
        alone=start.new_zeros(n_tracks).index_add_(0, track, crowd.to(dtype))[track] == 0,
    )


def windows_for(psf: PSF, camera: Camera, *, axial: bool, most: Sequence[float]) -> list[int]:
    """Sides in pixels of the smallest windows whose bounds are less than so many times that of the whole patch.

    The Cramer-Rao bound of 1000 photons on 20 photons per pixel, mean over some depths.
    """
    depths = torch.linspace(-500.0, 500.0, 5) if axial else torch.zeros(1)
    k = psf.patch_px
    middle = torch.full((len(depths), 2), (k // 2 + 0.5) * psf.pixel_size_nm)
    device = next((tensor.device for tensor in psf.parameters()), None)
    image = psf.integrate_pixels_with_slopes(torch.cat([middle, depths[:, None]], 1).to(device)).double()
    slopes = torch.cat([image[:, 1 : 4 if axial else 3] * 1000, image[:, :1], torch.ones_like(image[:, :1])], 1)
    weight = 1 / camera.typical_noise.variance(1000 * image[:, 0] + 20)

    def bound(side: int) -> Tensor:
        edge = (k - side) // 2
        part = slice(edge, edge + side)
        j, w = slopes[:, :, part, part].flatten(2), weight[:, None, part, part].flatten(2)
        covariance = torch.linalg.pinv((j * w) @ j.mT, rtol=1e-14, hermitian=True)
        return covariance.diagonal(dim1=1, dim2=2)[:, : slopes.shape[1] - 2].clamp_min(0).sqrt()

    whole = bound(k).clamp_min(1e-12)
    sides: list[int] = []
    side = min(7, k)
    for limit in most:  # the largest comes first, as windows grow
        while side < k and float((bound(side) / whole).mean(0).amax()) >= limit:
            side += 2
        sides.append(min(side, k))
    return sides


@final
class _Windows:
    """Square windows of the frames around emitters, and the light of all emitters in the frames."""

    def __init__(
        self,
        psf: PSF,
        camera: Camera,
        adu: Tensor,
        emitters: EmitterSet,
        axes: list[int],
        parameters: Tensor | None,
        start: Tensor,
        belief: Tensor,
    ) -> None:
        self.psf, self.axes, self.parameters, self.start, self.belief = psf, axes, parameters, start, belief
        device, dtype = start.device, start.dtype
        n, k = len(start), psf.patch_px
        height, width = adu.shape[1:]
        self.place = emitters.xyz
        # windows may hang over the border: frames have a margin, whose pixels do not count
        corner = torch.floor(self.place[:, :2] / psf.pixel_size_nm).long() - k // 2
        self.corner = corner.minimum(corner.new_tensor([width, height])).clamp_min(-k)
        camera = camera.to(device)
        photons = camera.without_bad(camera.to_photons(adu.to(device)))
        self.photons = pad(photons.to(dtype), (k, k, k, k))
        self.light, self.background = torch.zeros_like(self.photons), torch.zeros_like(self.photons[0])
        counts = start.new_ones(height, width)
        if camera.bad is not None:
            counts = counts.masked_fill(camera.bad, 0)
        self.within = pad(counts, (k, k, k, k))
        self.excess, self.floor = (
            value if value.numel() == 1 else pad(value.expand(height, width), (k, k, k, k), value=1.0).flatten()
            for value in (
                camera.excess_factor / torch.as_tensor(camera.qe, dtype=dtype, device=device),
                camera.noise_floor.to(device, dtype),
            )
        )
        stride = width + 2 * k
        reach = torch.arange(k, device=device)
        self.reach, self.offset = reach, (reach[:, None] * stride + reach).flatten()
        self.first = (self.corner[:, 1] + k) * stride + self.corner[:, 0] + k
        self.first_of_frame = emitters.frame.to(device) * self.within.numel()
        # of every pixel by position and photons; a last pixel, all zeros, is for what lies outside the window
        self.slopes = start.new_zeros(n, k * k + 1, len(axes) + 1)
        self.drawn = start.new_zeros(n)

    def draw(self, rows: Tensor, theta: Tensor) -> None:
        """Images of emitters and their slopes by position and photons; in the frames they take the old ones' place."""
        d = len(self.axes)
        for part in rows.split(DRAWN_AT_ONCE):
            position = self.place[part].clone()
            position[:, self.axes] = theta[part, :d]
            position[:, :2] -= self.corner[part] * self.psf.pixel_size_nm
            own = None if self.parameters is None else self.parameters[part]
            image = self.psf.integrate_pixels_with_slopes(position, own).flatten(2).to(theta.dtype)
            bright = theta[part, d]
            change = bright[:, None] * image[:, 0] - self.drawn[part, None] * self.slopes[part, :-1, d]
            pixel = (self.first + self.first_of_frame)[part, None] + self.offset
            self.light.view(-1).index_add_(0, pixel.view(-1), change.view(-1))
            slopes = image[:, [*(axis + 1 for axis in self.axes), 0]]
            slopes[:, :d] *= bright[:, None, None]
            self.slopes[part, :-1] = slopes.mT
            self.drawn[part] = bright

    def see_background(self) -> None:
        """What shines evenly: the frames without the light of emitters, their mean blurred."""
        k = len(self.reach)
        rest, light = (frames[:, k:-k, k:-k] for frames in (self.photons - self.light, self.light))
        level = rest.median().clamp_min(DARKEST)
        excess, floor = (
            value if value.numel() == 1 else value.view_as(self.within)[k:-k, k:-k]
            for value in (self.excess, self.floor)
        )
        weight = self.within[k:-k, k:-k] / (excess * (light.clamp_min(0) + level) + floor)
        sigma = SMOOTH_PX * max(1.0, ENOUGH_FRAMES / len(rest)) ** 0.5
        above, below = _blurred(torch.stack([(weight * rest).mean(0), weight.mean(0)]), sigma)
        self.background[k:-k, k:-k] = above / below.clamp_min(1e-12)

    def solve(self, rows: Tensor, beside: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of emitters with as many neighbours (n, m) each.

        Returns:
            The step (n, p), the covariance (n, p, p) where the emitters are, and the deviance (n,) there.
        """
        together = torch.cat([rows[:, None], beside], 1)
        pixel = self.first[rows, None] + self.offset
        shape, within = _taken(self.background, pixel), _taken(self.within, pixel)
        excess, floor = (value if value.numel() == 1 else _taken(value, pixel) for value in (self.excess, self.floor))
        pixel += self.first_of_frame[rows, None]
        measured = _taken(self.photons, pixel)
        height = theta[rows, -1:] - shape[:, shape.shape[1] // 2, None]
        mean = shape.add_(height).add_(_taken(self.light, pixel))
        deviance = (scaled_deviance(measured, mean, excess, floor) * within).sum(1)
        root = (within / (excess * mean.clamp_min(DARKEST) + floor)).sqrt_()
        # by positions and photons of the emitter, then of its neighbours, and by the background
        slope = self._seen(together).mul_(root[:, :, None])
        flat = torch.stack([root, root * measured.sub_(mean)], 1)
        by_flat, of_flat = flat @ slope, flat @ flat.mT
        information = pad(slope.mT @ slope, (0, 1, 0, 1))
        information[:, :-1, -1] = information[:, -1, :-1] = by_flat[:, 0]
        information[:, -1, -1] = of_flat[:, 0, 0]
        belief = pad(self.belief[together, :-1].flatten(1), (0, 1))
        score = torch.cat([by_flat[:, 1], of_flat[:, :1, 1]], 1)
        score[:, :-1] += belief[:, :-1] * (self.start[together, :-1] - theta[together, :-1]).flatten(1)
        scale = information.diagonal(dim1=1, dim2=2).clamp_min(1e-20).rsqrt()
        # correlations, not information, are inverted: units of nm and photons differ by orders of magnitude
        information *= scale[:, :, None] * scale[:, None, :]
        belief *= scale**2
        own = [*range(len(self.axes) + 1), -1]
        step = _solved(information, belief + DAMPING, (score * scale)[:, :, None])[:, own, 0] * scale[:, own]
        belief[:, own] = 0
        unit = torch.eye(slope.shape[2] + 1, dtype=slope.dtype, device=slope.device)[:, own].expand(len(rows), -1, -1)
        covariance = _solved(information, belief + 1e-5, unit)[:, own]
        return step, covariance * (scale[:, own, None] * scale[:, None, own]), deviance

    def n_pixels(self) -> Tensor:
        """(n,) pixels of each window that count: inside the frame, and not bad."""
        return _taken(self.within, self.first[:, None] + self.offset).sum(1)

    def _seen(self, emitters: Tensor) -> Tensor:
        """Slopes of emitters (n, m) as the window of the first of each row sees them: (n, pixels, m (axes + 1))."""
        k = len(self.reach)
        offset = self.corner[emitters[:, :1]] - self.corner[emitters]
        x, y = (offset[:, :, axis, None] + self.reach for axis in (0, 1))
        # a coordinate outside makes the sum so large that it is the pixel of zeros
        x, y = (torch.where((at >= 0) & (at < k), at * step, k * k) for at, step in ((x, 1), (y, k)))
        pixel = (y[..., None] + x[:, :, None]).clamp_(max=k * k).add_((emitters * (k * k + 1))[..., None, None])
        slopes = self.slopes.flatten(0, 1).index_select(0, pixel.flatten(2).mT.reshape(-1))
        return slopes.view(len(emitters), k * k, -1)


def _solved(matrix: Tensor, more: Tensor, right: Tensor) -> Tensor:
    """Solutions (n, q, r) of positive definite matrices (n, q, q), to whose diagonals more (n, q) is added."""
    return torch.cholesky_solve(right, torch.linalg.cholesky_ex(matrix + torch.diag_embed(more))[0])


def _taken(values: Tensor, index: Tensor) -> Tensor:
    # much faster on a CPU than indexing
    return values.view(-1).index_select(0, index.view(-1)).view(index.shape)


def _one_position(
    theta: Tensor, change: Tensor, covariance: Tensor, track: Tensor, n_tracks: int, d: int
) -> tuple[Tensor, Tensor]:
    """Steps and covariances where the rows of a track have one position.

    Each row's position, with all else projected out, is Gaussian with its part of the covariance; their product is
    the molecule's, and the other unknowns of a row follow it.
    """
    within = covariance[:, :d, :d]
    known = torch.linalg.inv(within)
    said = theta[:, :d] + change[:, :d]
    total = known.new_zeros(n_tracks, d, d).index_add_(0, track, known)
    summed = known.new_zeros(n_tracks, d).index_add_(0, track, (known @ said[:, :, None])[:, :, 0])
    common = torch.linalg.inv_ex(total[track])[0]
    shift = (common @ summed[track][:, :, None])[:, :, 0] - said
    gain = covariance[:, d:, :d] @ known
    change, covariance = change.clone(), covariance.clone()
    change[:, :d] += shift
    change[:, d:] += (gain @ shift[:, :, None])[:, :, 0]
    covariance[:, d:, d:] += gain @ (common - within) @ gain.mT
    covariance[:, :d, :d] = common
    covariance[:, d:, :d] = gain @ common
    covariance[:, :d, d:] = covariance[:, d:, :d].mT
    return change, covariance


def _tracks(emitters: EmitterSet, place: Tensor, covariance: Tensor, density: Tensor) -> tuple[Tensor, int]:
    """(n,) number of the molecule that each row shows, and how many there are.

    Rows of successive frames are one molecule if each is the other's nearest, their distance is within `LINK_SIGMAS` of
    what the covariances of their places (n, d) allow, and it is likelier to be so small by them than by chance, for
    molecules of this density (n,) per nm^2.
    """
    n, device = len(emitters), place.device
    frame = emitters.frame.cpu().numpy()
    # frames lie apart along a third axis
    places = np.column_stack([emitters.xyz[:, :2].double().cpu().numpy(), frame * FAR_NM])
    tree, a_frame = _tree(places), np.array([0.0, 0.0, FAR_NM])
    _, after = tree.query(places + a_frame, distance_upper_bound=FAR_NM / 4)
    _, before = tree.query(places - a_frame, distance_upper_bound=FAR_NM / 4)
    rows = np.flatnonzero(after < n)
    rows = rows[before[after[rows]] == rows]
    earlier, later = (torch.from_numpy(index).to(device) for index in (rows, after[rows]))
    apart = place[earlier] - place[later]
    spread = covariance[earlier] + covariance[later]
    square = (apart * torch.linalg.solve_ex(spread, apart)[0]).sum(1)
    by_chance = 2 * torch.pi * density[earlier] * torch.linalg.det(spread[:, :2, :2]).clamp_min(0).sqrt()
    same = (square < (-2 * by_chance.log()).clamp_max(LINK_SIGMAS**2)).cpu().numpy()
    links = coo_array((np.ones(same.sum()), (rows[same], after[rows][same])), shape=(n, n))
    n_tracks, track = connected_components(links.tocsr(), directed=False)
    return torch.from_numpy(track.astype(np.int64)).to(device), int(n_tracks)


def _neighbours(emitters: EmitterSet, reach_nm: float) -> Tensor:
    """Rows of the nearest emitters of the same frame within reach (n, up to `MOST_NEIGHBOURS`), -1 for none."""
    n, device = len(emitters), emitters.xyz.device
    if n < 2:
        return torch.full((n, 0), -1, device=device)
    # frames lie apart along a third axis, so that one tree serves them all
    xy, frame = (column.double().cpu().numpy() for column in (emitters.xyz[:, :2], emitters.frame))
    places = np.column_stack([xy, frame * 2 * reach_nm])
    _, found = _tree(places).query(places, k=min(MOST_NEIGHBOURS + 1, n), distance_upper_bound=reach_nm)
    found = np.where(found == np.arange(n)[:, None], n, found)
    # an emitter is its own nearest, unless another is at the very same place
    found = np.take_along_axis(found, np.argsort(found == n, 1, kind="stable"), 1)[:, :MOST_NEIGHBOURS]
    return torch.from_numpy(np.where(found == n, -1, found)).to(device)


def _tree(places: npt.NDArray[np.float64]) -> cKDTree:
    # a balanced tree parts equal coordinates at the next larger number; next to 0 a processor set to flush denormal
    # numbers makes it 0 again, and SciPy 1.17 recurses until the stack is full
    return cKDTree(places, balanced_tree=False)


def _blurred(images: Tensor, sigma_px: float) -> Tensor:
    """(n, y, x) blurred by a Gaussian, with zeros beyond their sides."""
    half = int(3 * sigma_px + 0.5)
    reach = torch.arange(-half, half + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (reach / sigma_px) ** 2)
    rows = conv2d(images[:, None], kernel[None, None, None] / kernel.sum(), padding=(0, half))
    return conv2d(rows, kernel[None, None, :, None] / kernel.sum(), padding=(half, 0))[:, 0]

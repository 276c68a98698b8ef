"""The quasi-likelihood of images under a pupil that all of them share, and steps towards its
maximum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from decode.optics.camera import DARKEST, Camera, Noise
from decode.optics.pupil import PupilPSF

__all__ = ["FreeParameters", "PupilLikelihood", "State", "brightness", "noise_of", "parameters_of"]

APERTURE = "numerical_aperture"
LEAST_BLUR_NM = 20.0
"""least blur at the start, as its slope is 0 at 0"""
FARTHEST_NM = 200.0
"""largest distance that a source moves in a step"""
TRIALS = 6
"""trials of increasing damping before a step is given up"""


@final
class FreeParameters:
    """The fitted parameters of a pupil, their start values and their limits.

    A row holds all parameters: those of `psf.parameter_names`, and the numerical aperture.

    Args:
        psf: start of the pupil.
        names: names of the fitted parameters; None: all but the aperture.
        prior_nm: standard deviation of a Gaussian prior on every Zernike coefficient, about 0.
        dtype: type of the rows.

    Raises:
        ValueError: if a name is none of the pupil's parameters.
    """

    def __init__(
        self,
        psf: PupilPSF,
        names: Sequence[str] | None,
        *,
        prior_nm: float,
        dtype: torch.dtype,
    ) -> None:
        known = (*psf.parameter_names, APERTURE)
        self.names = psf.parameter_names if names is None else tuple(names)
        if unknown := set(self.names) - set(known):
            raise ValueError(
                f"{sorted(unknown)} are no parameters of this pupil, choose from {', '.join(known)}"
            )
        modes = self._modes = len(psf.modes)
        self.choose = torch.eye(len(known), dtype=dtype)[[known.index(name) for name in self.names]]
        """(p, all) takes the free ones out of a row"""
        aperture = psf.numerical_aperture
        self.start = torch.cat([parameters_of(psf), aperture[None]]).detach().to(dtype)
        if "blur_nm" in self.names:
            self.start[modes] = self.start[modes].clamp_min(LEAST_BLUR_NM)
        nominal = float(aperture)
        self._lowest = torch.full_like(self.start, -torch.inf)
        self._highest = torch.full_like(self.start, torch.inf)
        self._lowest[modes] = 0
        self._lowest[-1] = 0.85 * nominal
        self._highest[-1] = min(1.15 * nominal, psf.immersion_index)
        # a weak prior holds what the images leave open
        self.precision = torch.zeros(len(known), dtype=torch.float64)
        self.precision[:modes] = prior_nm**-2

    @property
    def with_aperture(self) -> bool:
        return APERTURE in self.names

    def limited(self, row: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(row, self._lowest), self._highest)

    @torch.no_grad()
    def put_into(self, psf: PupilPSF, row: Tensor) -> None:
        """Give a pupil the parameters of a row."""
        modes = self._modes
        psf.zernike_nm.copy_(row[:modes])
        psf.blur_nm.copy_(row[modes])
        psf.apodization.copy_(row[modes + 1])
        if self.with_aperture:
            psf.numerical_aperture.copy_(row[-1])


class State(NamedTuple):
    """Parameters of the pupil, positions of the sources, and light of the images."""

    row: Tensor
    """(p + 1,) values of all parameters"""
    xyz: Tensor
    """(sources, 3) nm from the outer corner of the crop"""
    light: Tensor
    """(images, 2) photons, and background per pixel"""
    loss: float
    """negative quasi-log-likelihood, less the logarithm of the prior"""


class _Reduced(NamedTuple):
    """Normal equations of pupil and position of each image, its light eliminated."""

    information: Tensor
    """(n, p + 3, p + 3)"""
    score: Tensor
    """(n, p + 3)"""
    light_step: Callable[[Tensor], Tensor]
    """step of photons and background, given a step of the others"""


class _PupilAlone(NamedTuple):
    """Normal equations of the pupil, the sources' positions eliminated, too."""

    information: Tensor
    """(p, p)"""
    score: Tensor
    """(p,)"""
    position_step: Callable[[Tensor], Tensor]
    """(sources, 3) step of the positions, given a step of the pupil"""


@final
class PupilLikelihood:
    """The quasi-likelihood (Wedderburn, Biometrika 61, 439, 1974) of images.

    Args:
        images: (n, y, x) photons before quantum efficiency.
        source: (n,) int64, which source an image shows.
        z_nm: (n,) of the image's plane, added to the source's z.
        psf: the pupil; its parameters are those of a state's row.
        camera: gives the noise; None: only photons are noisy.
        free: the fitted parameters of the pupil.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        source: Tensor,
        z_nm: Tensor,
        psf: PupilPSF,
        camera: Camera | None,
        free: FreeParameters,
    ) -> None:
        self._images, self._source, self._z_nm = images, source, z_nm.to(images.dtype)
        self._psf, self._free = psf, free
        self._slope, self._floor = noise_of(camera)
        self._counted = images.double() + self._floor
        self._with_aperture = _FreeAperture(psf)

    def start(self, xyz_nm: Tensor) -> State:
        """The state of the given pupil with sources at (m, 3) nm and the light that fits best."""
        row, xyz = self._free.start, xyz_nm.detach().to(self._images.dtype).clone()
        share = self._shares(row, xyz)
        light = brightness(self._images.double(), share, self._slope, self._floor)
        return State(row, xyz, light, self._loss(row, light, share))

    def step(self, state: State, damping: float) -> tuple[State, float]:
        """A step of Fisher scoring with Levenberg-Marquardt damping.

        Returns:
            A better state, or the same if none was found; the damping for the next step.
        """
        reduced = self._reduced(state)
        whole, gradient, position_step = self._pupil_alone(reduced, len(state.xyz), damping)
        fitted = self._free.choose.double()
        whole = whole + self._prior_information()
        gradient = gradient - fitted @ (self._free.precision * state.row.double())
        for _ in range(TRIALS):
            change = _inverse(whole + damping * whole.diagonal().diag()) @ gradient
            shift = position_step(change)
            change_of_row = (change @ fitted).to(state.row)
            row = self._free.limited(state.row + change_of_row)
            xyz = state.xyz + shift.clamp(-FARTHEST_NM, FARTHEST_NM).to(state.xyz)
            of_image = torch.cat(
                [change.expand(len(self._source), len(change)), shift[self._source]], 1
            )
            light = state.light + reduced.light_step(of_image)
            light[:, 0] = light[:, 0].clamp_min(1)
            loss = self._loss(row, light, self._shares(row, xyz))
            if loss < state.loss:
                return State(row, xyz, light, loss), max(damping / 10, 1e-6)
            damping *= 10
        return state, damping

    def covariance(self, state: State) -> Tensor:
        """(p, p) covariance of the free parameters, with everything else unknown."""
        alone = self._pupil_alone(self._reduced(state), len(state.xyz), 0.0)
        return _inverse(alone.information + self._prior_information())

    def misfit(self, state: State) -> float:
        """Mean squared residual over its expected variance."""
        mean = _mean(state.light, self._shares(state.row, state.xyz))
        variance = self._slope * (mean + self._floor).clamp_min(1e-3)
        return float(((self._images - mean) ** 2 / variance).mean())

    def _model(self, row: Tensor, position: Tensor) -> Tensor:
        """(n, y, x) share of the light in each pixel."""
        rows = row[:-1].expand(len(position), len(row) - 1)
        if not self._free.with_aperture:
            return self._psf.integrate_pixels(position, rows)
        return functional_call(
            self._with_aperture, {"psf.numerical_aperture": row[-1]}, (position, rows)
        )

    def _positions(self, xyz: Tensor) -> Tensor:
        """(n, 3) nm of each image."""
        position = xyz[self._source].clone()
        position[:, 2] += self._z_nm
        return position

    @torch.no_grad()
    def _shares(self, row: Tensor, xyz: Tensor) -> Tensor:
        parts = self._positions(xyz).split(32)
        return torch.cat([self._model(row, part) for part in parts]).double()

    def _loss(self, row: Tensor, light: Tensor, share: Tensor) -> float:
        mean = (_mean(light, share) + self._floor).clamp_min(1e-3)
        likelihood = float((mean - self._counted * mean.log()).sum()) / self._slope
        return likelihood + float((self._free.precision * row.double() ** 2).sum()) / 2

    def _prior_information(self) -> Tensor:
        fitted = self._free.choose.double()
        return fitted @ self._free.precision.diag() @ fitted.mT

    def _reduced(self, state: State) -> _Reduced:
        """Eliminate photons and background of each image (Schur complement)."""
        choose, row, light = self._free.choose, state.row, state.light
        p, position = len(choose), self._positions(state.xyz)
        information, score, coupling, own = [], [], [], []
        for chosen in torch.arange(len(self._images)).split(32):
            here = position[chosen]

            def moved(step: Tensor, here: Tensor = here) -> Tensor:
                return self._model(row + step[:p] @ choose, here + step[p:])

            def slope_along(axis: Tensor, moved: Callable[[Tensor], Tensor] = moved) -> Tensor:
                return jvp(moved, (torch.zeros_like(axis),), (axis,))[1]

            axes = torch.eye(p + 3, dtype=row.dtype, device=row.device)
            with torch.no_grad():
                slopes = vmap(slope_along, out_dims=-1, chunk_size=5)(axes).double()
                share = self._model(row, here).double()
            photons, mean = light[chosen, 0, None, None], _mean(light[chosen], share)
            weight = 1 / (self._slope * (mean + self._floor).clamp_min(1e-3)).flatten(1)
            outer = (slopes * photons[..., None]).flatten(1, 2)
            inner = torch.stack([share, torch.ones_like(share)], -1).flatten(1, 2)
            residual = (weight * (self._images[chosen].double() - mean).flatten(1))[..., None]
            weighted = outer * weight[..., None]
            cross = weighted.mT @ inner
            solve = torch.linalg.inv(inner.mT @ (inner * weight[..., None]))
            light_score = inner.mT @ residual
            information.append(weighted.mT @ outer - cross @ solve @ cross.mT)
            score.append((outer.mT @ residual - cross @ solve @ light_score)[..., 0])
            coupling.append(solve @ cross.mT)
            own.append((solve @ light_score)[..., 0])
        couplings, owns = torch.cat(coupling), torch.cat(own)

        def light_step(step: Tensor) -> Tensor:
            return owns - (couplings @ step[..., None])[..., 0]

        return _Reduced(torch.cat(information), torch.cat(score), light_step)

    def _pupil_alone(self, reduced: _Reduced, sources: int, damping: float) -> _PupilAlone:
        """Eliminate the position of each source from the sum of its images."""
        information, score, _ = reduced
        p = len(self._free.choose)
        size = p + 3
        total = information.new_zeros(sources, size, size).index_add(0, self._source, information)
        slope = score.new_zeros(sources, size).index_add(0, self._source, score)
        own = total[:, p:, p:]
        own = own + (damping + 1e-9) * torch.diag_embed(own.diagonal(dim1=1, dim2=2) + 1e-12)
        solve = torch.linalg.inv(own)
        coupling = solve @ total[:, p:, :p]
        alone = (solve @ slope[:, p:, None])[..., 0]
        whole = (total[:, :p, :p] - total[:, :p, p:] @ coupling).sum(0)
        gradient = (slope[:, :p] - (total[:, :p, p:] @ alone[..., None])[..., 0]).sum(0)

        def position_step(change: Tensor) -> Tensor:
            return alone - coupling @ change

        return _PupilAlone(whole, gradient, position_step)


def noise_of(camera: Camera | None) -> tuple[float, float]:
    """(slope, floor) of the variance slope * (mean + floor) of a median pixel; None: only
    photons are noisy."""
    noise = Noise(1.0, 0.0) if camera is None else camera.typical_noise
    slope = float(noise.excess)
    # an image of few photons has variance even where none is expected
    return slope, float(noise.floor) / slope + DARKEST


def parameters_of(psf: PupilPSF) -> Tensor:
    """The pupil's own row of `parameter_names`: (p,)."""
    return torch.cat([psf.zernike_nm, psf.blur_nm[None], psf.apodization[None]]).detach()


def brightness(images: Tensor, share: Tensor, slope: float, floor: float) -> Tensor:
    """Photons and background of each image (n, y, x) by weighted least squares, given the share
    (n, y, x): (n, 2)."""
    weight = 1 / (
        slope * (images.clamp_min(0) + floor + images.clamp_min(0).mean((1, 2), keepdim=True))
    )
    design = torch.stack([share, torch.ones_like(share)], -1).flatten(1, 2)
    weighted = design * weight.flatten(1)[..., None]
    light = torch.linalg.solve(weighted.mT @ design, (weighted.mT @ images.flatten(1)[..., None]))[
        ..., 0
    ]
    return torch.stack([light[:, 0].clamp_min(1), light[:, 1].clamp_min(0)], 1)


def _mean(light: Tensor, share: Tensor) -> Tensor:
    """(n, y, x) expected photons."""
    return light[:, 0, None, None] * share + light[:, 1, None, None]


class _FreeAperture(nn.Module):
    """`integrate_pixels` as a module's forward, which is what `functional_call` takes."""

    def __init__(self, psf: PupilPSF) -> None:
        super().__init__()
        self.psf = psf

    def forward(self, xyz: Tensor, parameters: Tensor) -> Tensor:
        return self.psf.integrate_pixels(xyz, parameters)


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse after scaling to a unit diagonal: units of nm and apertures differ by orders of
    magnitude."""
    scale = matrix.diagonal().clamp_min(1e-12).sqrt()
    outer = scale[:, None] * scale
    return torch.linalg.pinv(matrix / outer, hermitian=True) / outer if len(matrix) else matrix

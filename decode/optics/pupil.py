"""PupilPSF: the vectorial image of a freely rotating dipole, from the wave in the pupil."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from math import ceil, comb, pi, sqrt
from typing import Any, Literal, Self, final

import torch
from torch import Tensor, nn

from decode.optics.psf import LARGEST, PSF, Table
from decode.optics.spline import SplinePSF

__all__ = ["PupilPSF", "noll", "zernike"]

MODES: tuple[tuple[int, int], ...] = (
    (2, -2), (2, 2), (3, -1), (3, 1), (3, -3), (3, 3), (4, 0), (4, 2), (4, -2), (4, 4), (4, -4)
)  # fmt: skip
"""(n, m) of the modes of a pupil by default: Noll 5 to 15; below these lie phase,
position and focus"""

ABERRATIONS = {
    (2, -2): "astigmatism at 45°",
    (2, 2): "astigmatism along x and y",
    (3, -1): "coma along y",
    (3, 1): "coma along x",
    (3, -3): "trefoil, sine",
    (3, 3): "trefoil, cosine",
    (4, 0): "spherical aberration",
    (4, 2): "secondary astigmatism along x and y",
    (4, -2): "secondary astigmatism at 45°",
    (4, 4): "quadrafoil, cosine",
    (4, -4): "quadrafoil, sine",
}
"""names of Zernike modes (n, m)"""


SPHERICAL = (4, 0)
DEPTHS_NM = (-750.0, 750.0)
"""depths at which molecules are bright and sharp enough to be found"""
DEPTHS_AT_ONCE = {"cpu": 32, "cuda": 512}
"""planes of a spline computed at a time, by device"""
FREE_NUMBERS = ("numerical_aperture", "blur_nm", "apodization")
"""numbers that a fit may change besides the aberrations"""
FIXED_NUMBERS = (
    "wavelength_nm",
    "sample_index",
    "immersion_index",
    "depth_nm",
    "scan",
    "bead_diameter_nm",
    "grid",
)


@final
class PupilPSF(PSF):
    """The image of a freely rotating molecule by an aplanatic objective of high aperture.

    Three dipoles (along x, y and z) make two field components each in the pupil; each is imaged by
    itself and the intensities are added.  The field behind a coverslip is that of Novotny and
    Hecht, Principles of Nano-Optics (2012), eqs 10.32 to 10.38, as used by Mortensen et al., Nature
    Methods 7, 377 (2010), and Stallinga and Rieger, Optics Express 18, 24461 (2010); light beyond
    the critical angle is included.  Aberrations are phases in the pupil (Siemons et al., Optics
    Express 26, 8397, 2018).  The coverslip is taken to match the immersion.

    z grows away from the objective: an emitter at z > 0 lies beyond the focal plane, as does a bead
    after its stage has moved z away from the objective.  With `scan="emitter"` z is the height in
    the sample above the plane in focus, with `scan="stage"` the displacement of the stage (where
    indices differ, the focus moves by another distance).  z = 0 is in focus: the least-squares fit
    of defocus to the index mismatch at `depth_nm` is subtracted.

    The wave front is W = sum_nm c_nm Z_nm + mask in nm of path, the phase 2 pi W / wavelength, and
    the field at r the Fourier sum of exp(i phase + i k r).  A positive (2, 2) elongates the spot
    along y at z > 0, and along x at z < 0.  A stack with the wrong sign of z is fitted equally well
    by -W(-rho), unless indices differ.

    Args:
        numerical_aperture: numerical aperture of the objective, at most `immersion_index`.
        wavelength_nm: wavelength of the emission in vacuum.
        pixel_size_nm: side of a pixel in object space.
        sample_index: refractive index around the emitter; None: that of the immersion.
        immersion_index: refractive index of immersion and coverslip.
        depth_nm: distance of the plane z = 0 from the coverslip.
        scan: what z moves: the "emitter", or the "stage" with the sample.
        zernike_nm: coefficients in nm rms by (n, m), m < 0 for sines; None: `MODES`, all 0.
        phase_mask_nm: (grid, grid) path in nm over the pupil, rows along y; None: there is none.
        blur_nm: standard deviation of a Gaussian blur beyond all this (vibration, spectrum, tube
            lens).
        apodization: loss towards the rim, where the amplitude is exp(-apodization) of an aplanatic
            objective's.
        bead_diameter_nm: diameter of a uniformly bright ball in place of the molecule; 0 for
            molecules.
        offset_nm: (x, y, z) added to every position: where a calibration sees an emitter that lies
            at the origin.
        patch_px: side of the patch drawn around an emitter.
        grid: points across the pupil.  The computed image is periodic: light further than grid *
            wavelength / (4 NA) from the emitter wraps around.  None takes the fewest points that
            keep such light out of the patch.

    Raises:
        ValueError: if the aperture, an index or a size is impossible, or the mask does not fit the
            grid.

    Example:
        >>> psf = PupilPSF(
        ...     numerical_aperture=1.4,
        ...     wavelength_nm=670.0,
        ...     pixel_size_nm=100.0,
        ...     zernike_nm={(2, 2): 60.0},
        ...     patch_px=15,
        ... )
        >>> above = psf.integrate_pixels(torch.tensor([[750.0, 750.0, 300.0]]))[0]
        >>> bool(above[:, 7].sum() > above[7].sum())  # longer along y
        True
    """

    kind = "pupil"

    def __init__(
        self,
        *,
        numerical_aperture: float,
        wavelength_nm: float,
        pixel_size_nm: float,
        sample_index: float | None = None,
        immersion_index: float = 1.518,
        depth_nm: float = 0.0,
        scan: Literal["emitter", "stage"] = "emitter",
        zernike_nm: Mapping[tuple[int, int], float] | None = None,
        phase_mask_nm: Tensor | None = None,
        blur_nm: float = 0.0,
        apodization: float = 0.0,
        bead_diameter_nm: float = 0.0,
        offset_nm: tuple[float, float, float] = (0.0, 0.0, 0.0),
        patch_px: int = 25,
        grid: int | None = None,
    ) -> None:
        super().__init__(pixel_size_nm, patch_px)
        sample_index = immersion_index if sample_index is None else sample_index
        if not 0 < numerical_aperture <= immersion_index:
            raise ValueError(
                f"numerical_aperture is {numerical_aperture}, must be positive and at most the "
                f"immersion's refractive index {immersion_index}"
            )
        if not (wavelength_nm > 0 and sample_index >= 1):
            raise ValueError(
                f"wavelength_nm ({wavelength_nm}) must be positive, sample_index ({sample_index}) "
                ">= 1"
            )
        if not (depth_nm >= 0 and blur_nm >= 0 and bead_diameter_nm >= 0):
            raise ValueError("depth_nm, blur_nm and bead_diameter_nm must not be negative")
        if scan not in ("emitter", "stage"):
            raise ValueError(f'scan is "{scan}", must be "emitter" or "stage"')
        if grid is None and phase_mask_nm is not None:
            grid = len(phase_mask_nm)
        if grid is None:
            reach = patch_px * pixel_size_nm * numerical_aperture / wavelength_nm
            grid = 2 * ceil(2 * reach)
        if grid not in range(4, LARGEST + 1, 2):
            raise ValueError(f"grid is {grid}, must be even and from 4 to {LARGEST}")
        given = dict.fromkeys(MODES, 0.0) if zernike_nm is None else zernike_nm
        self.modes = tuple(given)
        self.parameter_names = (
            *(f"zernike_{n}_{m}_nm" for n, m in self.modes),
            "blur_nm",
            "apodization",
        )
        self.wavelength_nm = wavelength_nm
        self.sample_index, self.immersion_index = sample_index, immersion_index
        self.depth_nm = depth_nm
        self.scan = scan
        self.bead_diameter_nm = bead_diameter_nm
        self.grid = grid
        # known to a per cent or two at best, so a fit may free it; fixed unless it does
        self.numerical_aperture = nn.Parameter(
            torch.tensor(float(numerical_aperture)), requires_grad=False
        )
        self.zernike_nm = nn.Parameter(torch.tensor([float(c) for c in given.values()]))
        self.blur_nm = nn.Parameter(torch.tensor(float(blur_nm)))
        self.apodization = nn.Parameter(torch.tensor(float(apodization)))
        self.phase_mask_nm = self._mask(phase_mask_nm)
        self.offset_nm: Tensor
        self.register_buffer("offset_nm", torch.tensor([float(v) for v in offset_nm]))
        self._register_grid()

    def _mask(self, phase_mask_nm: Tensor | None) -> nn.Parameter | None:
        """A phase mask as a parameter of its own.

        Raises:
            ValueError: if it is not (grid, grid).
        """
        if phase_mask_nm is None:
            return None
        expected = (self.grid, self.grid)
        if phase_mask_nm.shape != expected:
            shape = tuple(phase_mask_nm.shape)
            raise ValueError(f"the phase mask has shape {shape}, expected {expected}")
        return nn.Parameter(phase_mask_nm.detach().clone())

    def _register_grid(self) -> None:
        """Compute the constants of the pupil: coordinates, coverage of the cells at the rim, and
        modes."""
        self._rho: Tensor
        self._cos: Tensor
        self._sin: Tensor
        self._cover: Tensor
        self._basis: Tensor
        grid = self.grid
        at = (torch.arange(grid, dtype=torch.float64) + 0.5) * 2 / grid - 1
        y, x = torch.meshgrid(at, at, indexing="ij")
        azimuth = torch.atan2(y, x)
        rho = torch.hypot(x, y).clamp_max(1)  # the middle of a cell on the rim may lie outside
        fine = (torch.arange(16, dtype=torch.float64) + 0.5) / 16 - 0.5
        fine = (at[:, None] + fine * 2 / grid).flatten()
        within = torch.hypot(fine, fine[:, None]) <= 1
        basis = [zernike(n, m, rho, azimuth) for n, m in self.modes]
        buffers = {
            "_rho": rho,
            "_cos": azimuth.cos(),
            "_sin": azimuth.sin(),
            "_cover": within.double().view(grid, 16, grid, 16).mean((1, 3)),
            "_basis": torch.stack([*basis, rho])[:-1],
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    @property
    def z_range_nm(self) -> tuple[float, float] | None:
        return DEPTHS_NM

    def settings(self) -> dict[str, Any]:
        free = {name: float(getattr(self, name).detach()) for name in FREE_NUMBERS}
        fixed = {name: getattr(self, name) for name in FIXED_NUMBERS}
        zernike_nm = zip(self.modes, self.zernike_nm.tolist(), strict=True)
        places = {
            "zernike_nm": [[n, m, c] for (n, m), c in zernike_nm],
            "offset_nm": self.offset_nm.tolist(),
        }
        return super().settings() | free | fixed | places

    def arrays(self) -> dict[str, Tensor]:
        if self.phase_mask_nm is None:
            return {}
        return {"phase_mask_nm": self.phase_mask_nm.detach().cpu()}

    @classmethod
    def rebuilt(cls, settings: dict[str, Any], arrays: dict[str, Tensor]) -> Self:
        zernike_nm = {(int(n), int(m)): c for n, m, c in settings.pop("zernike_nm")}
        offset_nm = tuple(settings.pop("offset_nm"))
        mask = arrays.get("phase_mask_nm")
        return cls(phase_mask_nm=mask, zernike_nm=zernike_nm, offset_nm=offset_nm, **settings)

    def integrate_pixels(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        centres = (
            torch.arange(self.patch_px, dtype=xyz.dtype, device=xyz.device) + 0.5
        ) * self.pixel_size_nm
        return self._image(xyz, parameters, centres)

    def tabulated(self, z_range_nm: tuple[float, float]) -> SplinePSF:
        low, high = z_range_nm
        # a spline levels off within two planes of its ends
        return self.to_spline(z_range_nm=(low - 50, high + 50))

    def with_spherical(self, waves: float) -> PupilPSF | None:
        if SPHERICAL not in self.modes:
            return None
        other = deepcopy(self)
        with torch.no_grad():
            other.zernike_nm[self.modes.index(SPHERICAL)] += waves * self.wavelength_nm
        return other

    def tables(self) -> tuple[Table, ...]:
        return self._aberrations(), self._optics()

    def _aberrations(self) -> Table:
        noll_index = {noll(index): index for index in range(1, 67)}
        milliwaves = 1000 / self.wavelength_nm
        rows = []
        for mode, nm in zip(self.modes, self.zernike_nm.tolist(), strict=True):
            n, m = mode
            name = ABERRATIONS.get(mode, f"Zernike n = {n}, m = {m}")
            index = str(noll_index.get(mode, ""))
            rows.append((name, f"{n}, {m}", index, f"{nm:z.1f}", f"{nm * milliwaves:z.0f}"))
        total = float(self.zernike_nm.detach().norm())
        rows.append(("all together", "", "", f"{total:.1f}", f"{total * milliwaves:.0f}"))
        columns = ("aberration", "n, m", "Noll", "nm rms", "mλ rms")
        return Table("Aberrations in the pupil", columns, tuple(rows))

    def _optics(self) -> Table:
        indices = f"{self.sample_index:g}, {self.immersion_index:g}"
        rows = (
            ("numerical aperture", f"{self.numerical_aperture.item():.3f}"),
            ("wavelength", f"{self.wavelength_nm:g} nm"),
            ("refractive index of sample, immersion", indices),
            ("blur beyond diffraction", f"{self.blur_nm.item():.1f} nm"),
            ("loss towards the rim", f"{self.apodization.item():.3f}"),
        )
        return Table("Optics", (), rows)

    @torch.no_grad()
    def to_spline(
        self,
        *,
        z_range_nm: tuple[float, float],
        z_step_nm: float = 20.0,
        oversampling: int = 2,
        patch_px: int = 0,
    ) -> SplinePSF:
        """The same images as a `SplinePSF`, whose cost does not depend on the pupil.

        Args:
            z_range_nm: first and last depth; the spline levels off within two planes of them, so
                extend the range by these.
            z_step_nm: distance between planes.
            oversampling: voxels along the side of a pixel.
            patch_px: side of the patch that holds light; 0: that of this PSF.

        Raises:
            ValueError: if the range is empty.
        """
        low, high = z_range_nm
        if not (high > low and z_step_nm > 0):
            raise ValueError(
                f"z_range_nm is {z_range_nm} in steps of {z_step_nm}, must rise in positive steps"
            )
        side = (patch_px or self.patch_px) * oversampling
        voxel = self.pixel_size_nm / oversampling
        centres = (torch.arange(side, dtype=self._rho.dtype, device=self._rho.device) + 0.5) * voxel
        n_planes = ceil((high - low) / z_step_nm - 1e-9) + 1
        steps = torch.arange(n_planes, dtype=centres.dtype, device=centres.device)
        z = low + z_step_nm * steps
        stack = torch.cat(
            [
                self._image(torch.stack([middle, middle, depth], 1), None, centres)
                for depth in z.split(DEPTHS_AT_ONCE[z.device.type])
                for middle in [torch.full_like(depth, side * voxel / 2)]
            ]
        )
        return SplinePSF.from_stack(
            stack.cpu().numpy(),
            z_start_nm=low,
            z_step_nm=z_step_nm,
            pixel_size_nm=self.pixel_size_nm,
            oversampling=oversampling,
        )

    def _image(self, xyz: Tensor, parameters: Tensor | None, centres: Tensor) -> Tensor:
        """Light in pixels around (centres, centres) nm: (n, len(centres), len(centres)).

        All that follows the field is linear in the intensity, so it is done on the spectrum, where
        pixel, blur, bead
        and position are products: exact, and x and y cost nothing.
        """
        dtype = xyz.dtype
        xyz = xyz + self.offset_nm.to(dtype)
        modes = len(self.modes)
        zernike_nm = self.zernike_nm if parameters is None else parameters[:, :modes]
        blur_nm = (
            (self.blur_nm if parameters is None else parameters[:, modes])
            .to(dtype)
            .reshape(-1, 1, 1)
        )
        apodization = (
            (self.apodization if parameters is None else parameters[:, modes + 1])
            .to(dtype)
            .reshape(-1, 1, 1)
        )
        aperture = self.numerical_aperture.to(dtype)
        spectrum = torch.fft.rfft2(
            self._intensity(xyz[:, 2], zernike_nm.to(dtype), apodization, aperture)
        )

        n = 2 * self.grid
        per_nm = 2 * aperture / (self.wavelength_nm * self.grid)
        fx = torch.arange(self.grid + 1, dtype=dtype, device=xyz.device) * per_nm
        fy = torch.fft.fftfreq(n, 1 / n, dtype=dtype, device=xyz.device) * per_nm
        f2 = fy[:, None] ** 2 + fx**2
        transfer = torch.exp(-2 * (pi * blur_nm) ** 2 * f2)
        if self.bead_diameter_nm:
            transfer = transfer * _ball(self.bead_diameter_nm, f2)
        # what is summed over x twice stands for the other half of a real image's spectrum
        twice = torch.full_like(fx, 2)
        twice[0] = twice[-1] = 1
        to_x = torch.exp(2j * pi * centres[:, None] * fx) * (
            twice * torch.sinc(fx * self.pixel_size_nm)
        )
        to_y = torch.exp(2j * pi * centres[:, None] * fy) * torch.sinc(fy * self.pixel_size_nm)
        phase_x, phase_y = (
            torch.exp(-2j * pi * xyz[:, :1] * fx),
            torch.exp(-2j * pi * xyz[:, 1:2] * fy),
        )
        spectrum = (
            spectrum
            * (transfer * (self.pixel_size_nm * per_nm) ** 2)
            * phase_y[:, :, None]
            * phase_x[:, None, :]
        )
        return ((to_y @ spectrum) @ to_x.mT).real

    def _intensity(
        self, z: Tensor, zernike_nm: Tensor, apodization: Tensor, aperture: Tensor
    ) -> Tensor:
        """Light around the axis; its sum is 1 up to the discretization of the rim.

        Its period is grid * wavelength / (2 NA); its sampling holds all frequencies.

        Args:
            z: (n,) nm.
            zernike_nm: (p,) or (n, p).
            apodization: (1 or n, 1, 1).
            aperture: () numerical aperture.

        Returns:
            (n, 2 grid, 2 grid); the emitter sits at [0, 0], negative coordinates wrap around.
        """
        grids = (self._rho, self._cover, self._basis)
        rho, cover, basis = (grid.to(z.dtype) for grid in grids)
        k0 = 2 * pi / self.wavelength_nm
        lateral = aperture * rho
        n_s, n_i = self.sample_index, self.immersion_index
        # slopes end 1e-6 before grazing, where they would be infinite
        below = (n_s**2 - lateral**2).clamp_min(1e-6).sqrt() * (lateral < n_s)
        beyond = (lateral**2 - n_s**2).clamp_min(1e-6).sqrt() * (lateral >= n_s)
        kz_s = torch.complex(below, beyond)
        kz_i = (n_i**2 - lateral**2).clamp_min(1e-6).sqrt()
        fields = self._fields(kz_s, kz_i, lateral)

        weight = cover * kz_i
        weight = weight / weight.sum()

        def mean(value: Tensor) -> Tensor:
            return (weight * value).sum()

        light_i = kz_i - mean(kz_i)
        focus = mean(light_i * below) / mean(light_i**2)
        mismatch = self.depth_nm * (below - focus * kz_i)
        way, height = kz_i, torch.full_like(z, self.depth_nm)
        if self.scan == "emitter":
            way, height = below, (self.depth_nm + z).clamp_min(0)
        path = torch.tensordot(zernike_nm, basis, 1) + mismatch
        if self.phase_mask_nm is not None:
            path = path + self.phase_mask_nm.to(z.dtype)
        # the mean of the way is a phase of the whole, taken out for float32's sake
        phase = k0 * (path + z[:, None, None] * (way - mean(way)))
        decay = torch.exp(-k0 * height[:, None, None] * beyond - apodization * rho**2)
        wave = torch.polar(cover * decay, phase)
        n = 2 * self.grid
        image = torch.fft.ifft2(wave[:, None] * fields, s=(n, n), norm="ortho")
        # the slope of abs() costs as much as the transform
        intensity = (image.real**2 + image.imag**2).sum(1)
        # the light of the pupil's area; the grid's own is less, for a cell on the rim has its part
        # in amplitude
        light = (cover * decay**2 * fields.abs().square().sum(0)).sum((1, 2))
        return intensity / light[:, None, None]

    def _fields(self, kz_s: Tensor, kz_i: Tensor, lateral: Tensor) -> Tensor:
        """Fields of the dipoles in the pupil: (5, grid, grid) complex.

        The x component of the dipole along y equals the y component of the dipole along x, so five
        fields suffice for six.

        Args:
            kz_s, kz_i: (grid, grid) axial wave numbers in sample and immersion, over that of
                vacuum.
            lateral: (grid, grid) lateral wave number, over that of vacuum.
        """
        # Fresnel transmission over kz_s (the Weyl expansion's 1 / kz_s cancels it at grazing),
        # times the square root of kz_i that keeps the energy of a ray when the sphere of rays
        # becomes a flat pupil
        n_s, n_i = self.sample_index, self.immersion_index
        cos, sin = self._cos.to(lateral.dtype), self._sin.to(lateral.dtype)
        p = kz_i.sqrt() * 2 * n_s * n_i / (n_i**2 * kz_s + n_s**2 * kz_i)
        s = kz_i.sqrt() * 2 / (kz_s + kz_i)
        radial = p * kz_s / n_s
        axial = -p * lateral / n_s
        return torch.stack(
            [
                radial * cos**2 + s * sin**2,
                radial * sin**2 + s * cos**2,
                sqrt(2) * (radial - s) * cos * sin,
                axial * cos,
                axial * sin,
            ]
        )


def _ball(diameter_nm: float, f2: Tensor) -> Tensor:
    """Spectrum of a uniformly bright ball's light at squared frequencies `f2`, nm^-2."""
    # a ball's shadow: 3 (sin q - q cos q) / q^3; below 0.03 the series, for the difference cancels
    q = pi * diameter_nm * f2.clamp_min(1e-12).sqrt()
    safe = q.clamp_min(0.03)
    ball = 3 * (safe.sin() - safe * safe.cos()) / safe**3
    return torch.where(q < 0.03, 1 - q**2 / 10, ball)


def zernike(n: int, m: int, rho: Tensor, azimuth: Tensor) -> Tensor:
    """Zernike polynomial with mean square 1 over the unit disc.

    Noll, J. Opt. Soc. Am. 66, 207 (1976), eqs 1 and 2.

    Args:
        n, m: radial order and azimuthal frequency; m >= 0 is the cosine, m < 0 the sine.
        rho: (...) distance from the axis, 1 on the rim.
        azimuth: (...) angle from x towards y, radians.

    Raises:
        ValueError: if there is no such polynomial.
    """
    order = abs(m)
    if order > n or (n - order) % 2:
        raise ValueError(f"there is no Zernike polynomial of n = {n}, m = {m}")
    half = (n - order) // 2
    radial = sum(
        (
            (-1) ** k * comb(n - k, k) * comb(n - 2 * k, half - k) * rho ** (n - 2 * k)
            for k in range(half + 1)
        ),
        torch.zeros_like(rho),
    )
    if m == 0:
        return sqrt(n + 1) * radial
    return (
        sqrt(2 * (n + 1))
        * radial
        * (torch.cos(order * azimuth) if m > 0 else torch.sin(order * azimuth))
    )


def noll(index: int) -> tuple[int, int]:
    """(n, m) of Noll's index, from 1 (Noll 1976, table I): even indices are cosines.

    Raises:
        ValueError: if the index is below 1.
    """
    if index < 1:
        raise ValueError(f"Noll's indices count from 1, not {index}")
    n = 0
    while (n + 1) * (n + 2) // 2 < index:
        n += 1
    rank = index - n * (n + 1) // 2  # 1 .. n + 1 within the order
    m = 2 * (rank // 2) if n % 2 == 0 else 2 * ((rank - 1) // 2) + 1
    return n, m if index % 2 == 0 else -m

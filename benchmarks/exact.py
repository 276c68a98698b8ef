"""The exact posterior: effective samples, error against quadrature, speed, coverage, and numbers of
molecules against a long chain.

    python benchmarks/exact.py [lone] [grid] [pairs] [counts] [--molecules 200] [--spots 12]
                               [--steps 40000] [--seed 7] [--psf psf.h5]

Molecules are simulated: 500 to 4000 photons on 20 a pixel, EMCCD, sCMOS and sCMOS with maps, a
round and an astigmatic Gaussian, and a measured PSF where one is stated.  Without names, all parts
are run.  Speeds are of CPU time, the best of three rounds.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from decode.emitters import EmitterSet
from decode.io.psfs import read_psf
from decode.likelihood import (
    PixelLikelihood,
    Prior,
    count_posterior,
    exact_posterior,
    fit_jointly,
    pixels_of,
)
from decode.likelihood.polish import windows_for
from decode.likelihood.windows import MAX_BOUND_RATIO
from decode.optics.camera import Camera
from decode.optics.gaussian import GaussianPSF
from decode.optics.psf import PSF, render

SIDE, BACKGROUND = 33, 20.0
CAMERAS = {
    "EMCCD": Camera(
        baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0, spurious_e=0.002
    ),
    "sCMOS": Camera(baseline=100.0, e_per_adu=0.46, read_noise_e=1.3, qe=0.8),
}
MAPS = torch.Generator().manual_seed(0)
MAPPED = replace(
    CAMERAS["sCMOS"],
    e_per_adu=0.46 + 0.02 * torch.randn(SIDE, SIDE, generator=MAPS),
    read_noise_e=1.3 + 0.5 * torch.randn(SIDE, SIDE, generator=MAPS).abs(),
)
ROUND = GaussianPSF(130.0, pixel_size_nm=100.0)
PSFS = {
    False: ROUND,
    True: GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=200.0),
}
DISTANCES_NM = (100.0, 150.0, 200.0, 300.0, 400.0)
"""between the two molecules of spots that are counted"""
EVEN = torch.ones(SIDE, SIDE)


def scene(n: int, k: int, apart_nm: float, rng: torch.Generator, *, axial: bool) -> EmitterSet:
    """One spot of k molecules in every second frame."""
    low = torch.tensor([1600.0, 1600.0, -300.0 if axial else 0.0])
    size = torch.tensor([100.0, 100.0, 600.0 if axial else 0.0])
    angle = 2 * torch.pi * torch.rand(n, generator=rng)
    step = apart_nm * torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
    first = low + torch.rand(n, 3, generator=rng) * size
    return EmitterSet(
        frame=2 * torch.arange(n).repeat_interleave(k),
        xyz=torch.stack([first + j * step for j in range(k)], 1).flatten(0, 1),
        photons=(500 if k == 1 else 1000)
        * (8 if k == 1 else 3) ** torch.rand(n * k, generator=rng),
        background=torch.full((n * k,), BACKGROUND),
    )


@torch.no_grad()
def recorded(psf: PSF, camera: Camera, truth: EmitterSet, rng: torch.Generator) -> Tensor:
    light = render(
        psf,
        frame=truth.frame,
        xyz=truth.xyz,
        photons=truth.photons,
        n_frames=int(truth.frame.max()) + 1,
        shape=(SIDE, SIDE),
    )
    return camera.sample(light + BACKGROUND, rng)


def fitted(psf: PSF, camera: Camera, adu: Tensor, start: EmitterSet, *, axial: bool) -> EmitterSet:
    """The fit of `polish` without any network."""
    fit = fit_jointly(psf, camera, adu, start, axial=axial, background=EVEN)
    return EmitterSet(
        frame=start.frame,
        xyz=fit.xyz.float(),
        photons=fit.photons.float(),
        background=fit.background.float(),
        xyz_sigma=fit.xyz_sigma.float(),
    )


def coverage(found: EmitterSet, truth: EmitterSet, *, axial: bool, paired: bool = False) -> str:
    """Shares of errors within 1 and 2 sigma, which are 0.68 and 0.95 if sigmas are right."""
    assert found.xyz_sigma is not None
    error = found.xyz - truth.xyz
    if paired:  # in the order that is nearer to the truth
        pairs, other = (
            error.view(-1, 2, 3),
            (found.xyz.view(-1, 2, 3) - truth.xyz.view(-1, 2, 3).flip(1)),
        )
        swap = other[..., :2].square().sum((1, 2)) < pairs[..., :2].square().sum((1, 2))
        error = other.where(swap[:, None, None], pairs).flatten(0, 1)
    z = (error / found.xyz_sigma)[:, : 3 if axial else 2].abs()
    rmse = error[:, :2].square().mean().sqrt()
    within = ", ".join(f"{(z < limit).double().mean():.2f}" for limit in (1, 2))
    return f"within 1 and 2 sigma {within}, lateral RMSE {rmse:.1f} nm"


def lone(n: int, measured: PSF | None, rng: torch.Generator) -> None:
    kinds: list[tuple[str, PSF, bool]] = [("2D", PSFS[False], False), ("3D", PSFS[True], True)]
    if measured is not None:
        kinds.append(("measured 3D", measured, True))
    for kind, psf, axial in kinds:
        for name, camera in (CAMERAS | {"sCMOS with maps": MAPPED}).items():
            truth = scene(n, 1, 0.0, rng, axial=axial)
            adu, pixels = recorded(psf, camera, truth, rng), pixels_of(camera)
            start = fitted(psf, camera, adu, truth, axial=axial)

            seconds = math.inf
            for _ in range(4):  # the first fills the table
                began = time.thread_time()
                found = exact_posterior(
                    psf, camera, adu, start, axial=axial, background=EVEN, pixels=pixels
                )
                seconds = min(seconds, time.thread_time() - began)
            speed = n / seconds
            assert found.ess is not None
            tenth, middle = found.ess.quantile(torch.tensor([0.1, 0.5])).tolist()
            print(
                f"lone {kind} {name}: "
                f"ESS {middle:.2f}, lower decile {tenth:.2f}, "
                f"{speed:.0f} molecules/s"
            )
            print(f"  fit:   {coverage(start, truth, axial=axial)}")
            print(f"  exact: {coverage(found, truth, axial=axial)}", flush=True)


@torch.no_grad()
def quadrature(
    psf: GaussianPSF,
    camera: Camera,
    adu: Tensor,
    found: EmitterSet,
    truth: EmitterSet,
    *,
    axial: bool,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (q,) on a dense grid in double precision; see
    tests/test_importance.py.  The window is that around the start, the truth."""
    axes = [0, 1, 2] if axial else [0, 1]
    (side,) = windows_for(psf, camera, axial=axial, most=[MAX_BOUND_RATIO])
    assert found.xyz_sigma is not None
    assert found.background is not None
    assert found.photons_sigma is not None
    cut = GaussianPSF(**psf.settings()).double().with_patch(side)
    corner = (truth.xyz[0, :2] / 100).floor().long() - side // 2
    rows, columns = (slice(int(c), int(c) + side) for c in corner.flip(0))
    counts = adu[rows, columns].flatten().double()
    mean = torch.cat([found.xyz[0, axes], found.photons, found.background]).double()
    mean[:2] -= 100 * corner
    sigma = torch.cat([found.xyz_sigma[0, axes], found.photons_sigma, torch.tensor([1.5])])
    root = torch.diag(sigma.double())
    for reach, n in ((5.0, 7), (4.5, 9), (4.5, 9 if axial else 13)):
        grid = torch.cartesian_prod(*[torch.linspace(-reach, reach, n).double()] * len(mean))
        unknown = mean + grid @ root.mT
        unknown = unknown[(unknown[:, -2:] > 1).all(1)]
        xyz = found.xyz.double().repeat(len(unknown), 1)
        xyz[:, axes] = unknown[:, : len(axes)]
        light = torch.cat([cut.integrate_pixels(part).flatten(1) for part in xyz.split(2**13)])
        light = unknown[:, -2:-1] * light + unknown[:, -1:]
        log_prob = -unknown[:, -2:].log().sum(1)
        for count, expected in zip(counts, light.T, strict=True):
            nodes = torch.linspace(float(expected.min()), float(expected.max()), 200).double()
            values = camera.log_prob(count.expand(200), nodes)
            log_prob += torch.from_numpy(CubicSpline(nodes, values)(expected))
        weight = log_prob.softmax(0)
        mean = weight @ unknown
        covariance = ((unknown - mean) * weight[:, None]).mT @ (unknown - mean)
        root = torch.linalg.cholesky(covariance)
    mean[:2] += 100 * corner
    return mean, covariance.diagonal().sqrt()


def grid(rng: torch.Generator) -> None:
    for axial, psf in PSFS.items():
        for name, camera in CAMERAS.items():
            n, axes = (3, [0, 1, 2]) if axial else (10, [0, 1])
            truth = scene(n, 1, 0.0, rng, axial=axial)
            adu = recorded(psf, camera, truth, rng)
            found = exact_posterior(psf, camera, adu, truth, axial=axial, background=EVEN)
            assert found.xyz_sigma is not None
            assert found.photons_sigma is not None
            off, wide = [], []
            for i in range(n):
                mean, sigma = quadrature(
                    psf, camera, adu[2 * i], found[i : i + 1], truth[i : i + 1], axial=axial
                )
                own = torch.cat([found.xyz[i, axes], found.photons[i : i + 1]])
                spread = torch.cat([found.xyz_sigma[i, axes], found.photons_sigma[i : i + 1]])
                off.append(((own - mean[:-1]) / sigma[:-1]).abs().max())
                wide.append((spread / sigma[:-1] - 1).abs().max())
            print(
                f"grid {'3D' if axial else '2D'} {name}, {n} molecules: largest error of means "
                f"{max(off):.3f} sigma, of sigmas {100 * max(wide):.1f} %",
                flush=True,
            )


def pairs(n: int, rng: torch.Generator) -> None:
    camera, axial = CAMERAS["EMCCD"], False
    pixels = pixels_of(camera)
    for apart_nm in DISTANCES_NM:
        truth = scene(n, 2, apart_nm, rng, axial=axial)
        adu = recorded(ROUND, camera, truth, rng)
        start = fitted(ROUND, camera, adu, truth, axial=axial)
        # an interval holds the truth as often as it says where truths are drawn from the prior
        found = exact_posterior(
            ROUND,
            camera,
            adu,
            start,
            axial=axial,
            background=EVEN,
            pixels=pixels,
            prior=Prior(photons=(1000.0, 3000.0)),
        )
        assert found.ess is not None
        print(f"pairs {apart_nm:.0f} nm apart: ESS {found.ess.median():.2f}")
        print(f"  fit:   {coverage(start, truth, axial=axial, paired=True)}")
        print(f"  exact: {coverage(found, truth, axial=axial, paired=True)}", flush=True)


class Chain:
    """Reversible jump between one and three molecules (Green, Biometrika 82, 711, 1995): steps of
    one molecule or the background, birth and death, split and merge; many spots at a time."""

    def __init__(
        self, adu: Tensor, pixels: PixelLikelihood, centre: Tensor, side: int, rng: torch.Generator
    ) -> None:
        self.rng, self.n_spots, self.side_nm = rng, len(adu), 100.0 * side
        self.psf = ROUND.with_patch(side)
        self.adu, self.pixels = adu.flatten(1)[:, None], pixels
        self.places = torch.arange(side**2).expand(len(adu), -1)
        self.xy = centre[:, None].repeat(1, 3, 1).double()
        self.photons = torch.full((len(adu), 3), 2000.0).double()
        self.background = torch.full((len(adu),), BACKGROUND).double()
        self.number = torch.ones(len(adu), dtype=torch.int64)
        self.log_prob = self.of(self.xy, self.photons, self.background, self.number)

    def of(self, xy: Tensor, photons: Tensor, background: Tensor, number: Tensor) -> Tensor:
        """Log of likelihood, prior and density of the process, 1 molecule per square um."""
        on = torch.arange(3) < number[:, None]
        xyz = torch.cat([xy, torch.zeros_like(xy[..., :1])], 2).float()
        images = self.psf.integrate_pixels(xyz.flatten(0, 1)).flatten(1).unflatten(0, (-1, 3))
        light = ((photons * on)[..., None] * images).sum(1) + background[:, None]
        seen = self.pixels.log_prob(self.adu, light.clamp_min(0.05)[:, None, None], self.places)
        each = math.log(1e-6) - math.log(math.log(1e4)) - photons.log()
        inside = ((xy > 0) & (xy < self.side_nm)).all(2) & (photons > 100) & (photons < 1e6)
        possible = (inside | ~on).all(1) & (background > 0.05) & (number > 0) & (number < 4)
        log_prob = seen.sum((1, 2, 3)) + (each * on).sum(1) - background.log()
        return log_prob.masked_fill(~possible, -torch.inf)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.rng, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.rng, dtype=torch.float64)

    def take(
        self, ratio: Tensor, xy: Tensor, photons: Tensor, background: Tensor, number: Tensor
    ) -> None:
        new = self.of(xy, photons, background, number)
        yes = self.uniform(self.n_spots).log() < new - self.log_prob + ratio
        self.xy = xy.where(yes[:, None, None], self.xy)
        self.photons = photons.where(yes[:, None], self.photons)
        self.background = background.where(yes, self.background)
        self.number = number.where(yes, self.number)
        self.log_prob = new.where(yes, self.log_prob)

    def step(self) -> None:
        n, rows = self.n_spots, torch.arange(self.n_spots)
        xy, photons, background = self.xy.clone(), self.photons.clone(), self.background.clone()
        kind = float(self.uniform(1))
        one = (self.uniform(n) * self.number).long()
        if kind < 0.6:
            length = 10 ** (-1.5 * float(self.uniform(1)))
            xy[rows, one] += 60 * length * self.normal(n, 2)
            change = 0.3 * length * self.normal(n)
            photons[rows, one] *= change.exp()
            more = 0.2 * length * self.normal(n)
            self.take(change + more, xy, photons, background * more.exp(), self.number)
            return
        up = self.uniform(n) < 0.5
        if kind < 0.75:  # birth of the last, or death of any
            last = (self.number - 1).clamp_min(0)
            born = self.number.clamp_max(2)
            ratio_up = (
                math.log(self.side_nm**2) - (self.number + 1.0).log() + math.log(math.log(1e4))
            )
            ratio_down = (
                self.number.double().log() - math.log(self.side_nm**2) - math.log(math.log(1e4))
            )
            new_xy, new_photons = self.side_nm * self.uniform(n, 2), 100 * 1e4 ** self.uniform(n)
            ratio = torch.where(
                up, ratio_up + new_photons.log(), ratio_down - photons[rows, one].log()
            )
            down = ~up
            xy[rows[down], one[down]], photons[rows[down], one[down]] = (
                xy[rows[down], last[down]],
                photons[rows[down], last[down]],
            )
            xy[rows[up], born[up]], photons[rows[up], born[up]] = new_xy[up], new_photons[up]
            self.take(ratio, xy, photons, background, self.number + torch.where(up, 1, -1))
            return
        spread = 120.0
        other = (one + 1 + (self.uniform(n) * (self.number - 1)).long()) % self.number
        born, last = self.number.clamp_max(2), (self.number - 1).clamp_min(0)
        share, apart = self.uniform(n), spread * self.normal(n, 2)
        for i in range(n):
            if up[i]:
                place, light = xy[i, one[i]].clone(), photons[i, one[i]].clone()
                xy[i, one[i]], xy[i, born[i]] = (
                    place + (1 - share[i]) * apart[i],
                    place - share[i] * apart[i],
                )
                photons[i, one[i]], photons[i, born[i]] = share[i] * light, (1 - share[i]) * light
            else:
                light = photons[i, one[i]] + photons[i, other[i]]
                share[i], apart[i] = photons[i, one[i]] / light, xy[i, one[i]] - xy[i, other[i]]
                place = share[i] * xy[i, one[i]] + (1 - share[i]) * xy[i, other[i]]
                xy[i, one[i]], photons[i, one[i]] = place, light
                xy[i, other[i]], photons[i, other[i]] = (
                    xy[i, last[i]].clone(),
                    photons[i, last[i]].clone(),
                )
                if one[i] == last[i]:
                    xy[i, other[i]], photons[i, other[i]] = place, light
        before = torch.where(up, self.number, self.number - 1).clamp_min(1)
        whole = torch.where(
            up, self.photons[rows, one], self.photons[rows, one] + self.photons[rows, other]
        )
        log_q = -apart.square().sum(1) / (2 * spread**2) - math.log(2 * math.pi * spread**2)
        ratio = whole.log() - (before + 1.0).log() - log_q
        ratio = torch.where(up, ratio, -ratio)
        self.take(ratio, xy, photons, background, self.number + torch.where(up, 1, -1))

    def run(self, steps: int) -> Tensor:
        """(n, 3) shares of the steps with one, two and three molecules, of the last 4 in 5."""
        shares = torch.zeros(self.n_spots, 3, dtype=torch.float64)
        for step in range(steps):
            self.step()
            if step >= steps // 5:
                shares[torch.arange(self.n_spots), self.number - 1] += 1
        return shares / shares.sum(1, keepdim=True)


@torch.no_grad()
def counts(n: int, steps: int, rng: torch.Generator) -> None:
    camera = CAMERAS["EMCCD"]
    pixels = pixels_of(camera)
    for apart_nm in DISTANCES_NM:
        truth = scene(n, 2, apart_nm, rng, axial=False)
        adu, rows = recorded(ROUND, camera, truth, rng), torch.arange(2 * n).view(n, 2)
        # the same window for all spots
        (side,) = windows_for(ROUND, camera, axial=False, most=[MAX_BOUND_RATIO])
        low, high = (truth.xyz[rows][..., :2] / 100).floor().aminmax(dim=1)
        side += int((high - low).max())
        began = time.process_time()
        found = count_posterior(
            ROUND, camera, adu, truth, together=rows, axial=False, background=EVEN, pixels=pixels
        )
        speed = n / (time.process_time() - began)
        corner = torch.div(low + high, 2, rounding_mode="floor").long() - side // 2
        cut = torch.stack(
            [adu[2 * i, y : y + side, x : x + side] for i, (x, y) in enumerate(corner.tolist())]
        )
        centre = truth.xyz[rows][..., :2].mean(1) - 100 * corner
        halves = [Chain(cut, pixels, centre, side, rng).run(steps) for _ in range(2)]
        chain = (halves[0] + halves[1]) / 2
        off, scatter = (found - chain).abs().amax(1), (halves[0] - halves[1]).abs().amax(1)
        p = ", ".join(f"{value:.2f}" for value in found.mean(0).tolist())
        print(
            f"counts {apart_nm:.0f} nm apart: p(1), p(2), p(3) on average {p}; "
            f"from a long chain by "
            f"{off.median():.3f} (median), {off.max():.3f} (largest); two chains differ by "
            f"{scatter.median():.3f}, {scatter.max():.3f}; {speed:.1f} spots/s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[[], "lone", "grid", "pairs", "counts"])
    parser.add_argument("--molecules", type=int, default=200)
    parser.add_argument("--spots", type=int, default=12)
    parser.add_argument("--steps", type=int, default=40000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--psf", type=Path, help="PSF file of a further kind of lone molecules")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(arguments.seed)
    parts = arguments.parts or ["lone", "grid", "pairs", "counts"]
    if "lone" in parts:
        measured = read_psf(arguments.psf).psf if arguments.psf else None
        lone(arguments.molecules, measured, rng)
    if "grid" in parts:
        grid(rng)
    if "pairs" in parts:
        pairs(arguments.molecules // 2, rng)
    if "counts" in parts:
        counts(arguments.spots, arguments.steps, rng)


if __name__ == "__main__":
    main()

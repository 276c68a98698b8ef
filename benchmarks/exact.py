"""The exact posterior: effective samples, error against quadrature, speed, coverage, and numbers of
molecules against a long chain.

    python benchmarks/exact.py [lone] [grid] [pairs] [counts] [--molecules 200] [--gridded 3]
                               [--spots 6] [--steps 24000] [--seed 7] [--psf psf.h5]

Molecules are simulated: 500 to 4000 photons on 20 a pixel, EMCCD and sCMOS with and without maps, a
round and an astigmatic Gaussian, and a measured PSF where one is stated.  Without names, all parts
are run.  Speeds are of CPU time, the best of three rounds.
"""

from __future__ import annotations

import argparse
import math
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from decode.emitters import EmitterSet
from decode.io.psfs import read_psf
from decode.likelihood import (
    Prior,
    count_posterior,
    exact_posterior,
    fit_jointly,
    pixels_of,
)
from decode.likelihood.pixels import ExactPixels, LogCubic
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
CAMERAS["sCMOS with maps"] = replace(
    CAMERAS["sCMOS"],
    e_per_adu=0.46 + 0.02 * torch.randn(SIDE, SIDE, generator=MAPS),
    read_noise_e=1.3 + 0.5 * torch.randn(SIDE, SIDE, generator=MAPS).abs(),
)
CAMERAS["EMCCD with maps"] = replace(
    CAMERAS["EMCCD"],
    baseline=100.0 + torch.randn(SIDE, SIDE, generator=MAPS),
    em_gain=300.0 * (1 + 0.03 * torch.randn(SIDE, SIDE, generator=MAPS)),
)
ROUND = GaussianPSF(130.0, pixel_size_nm=100.0)
PSFS = {
    False: ROUND,
    True: GaussianPSF(130.0, pixel_size_nm=100.0, depth_nm=400.0, gap_nm=200.0),
}
DISTANCES_NM = (100.0, 150.0, 200.0, 300.0, 400.0)
"""between the two molecules of spots that are counted"""
EVEN = torch.ones(SIDE, SIDE)
LEAST, MOST = math.log(100.0), math.log(1e6)
"""of the logarithm of photons of `Prior`"""


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


def kinds(measured: PSF | None) -> list[tuple[str, PSF, bool]]:
    """Names of PSFs, and whether z is unknown."""
    both: list[tuple[str, PSF, bool]] = [("2D", PSFS[False], False), ("3D", PSFS[True], True)]
    return both if measured is None else [*both, ("measured 3D", measured, True)]


def lone(n: int, measured: PSF | None, rng: torch.Generator) -> None:
    for kind, psf, axial in kinds(measured):
        for name, camera in CAMERAS.items():
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
    psf: PSF, camera: Camera, adu: Tensor, found: EmitterSet, truth: EmitterSet, *, axial: bool
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (q,) on a dense grid in double precision; see
    tests/test_importance.py.  The window is that around the start, the truth."""
    axes = [0, 1, 2] if axial else [0, 1]
    (side,) = windows_for(psf, camera, axial=axial, most=[MAX_BOUND_RATIO])
    assert found.xyz_sigma is not None
    assert found.background is not None
    assert found.photons_sigma is not None
    cut = deepcopy(psf).double().with_patch(side)
    corner = (truth.xyz[0, :2] / 100).floor().long() - side // 2
    rows, columns = (slice(int(c), int(c) + side) for c in corner.flip(0))
    counts = adu[rows, columns].reshape(1, 1, -1)
    pixels = ExactPixels(camera.crop(rows, columns))
    numbers = torch.arange(side**2)[None]
    mean = torch.cat([found.xyz[0, axes], found.photons, found.background]).double()
    mean[:2] -= 100 * corner
    # of a background that all pixels tell
    level = 1.5 * float(camera.typical_noise.variance(torch.tensor(BACKGROUND))) ** 0.5 / side
    sigma = torch.cat([found.xyz_sigma[0, axes], found.photons_sigma, torch.tensor([level])])
    root = torch.diag(sigma.double())
    for reach, n in ((5.0, 7), (5.0, 7), (4.5, 9), (4.5, 9 if axial else 13)):
        grid = torch.cartesian_prod(*[torch.linspace(-reach, reach, n).double()] * len(mean))
        unknown = mean + grid @ root.mT
        unknown = unknown[(unknown[:, -2:] > 1).all(1)]
        # light is linear in photons and background: images are drawn once for each position
        places, which = unknown[:, : len(axes)].unique(dim=0, return_inverse=True)
        xyz = found.xyz.double().repeat(len(places), 1)
        xyz[:, axes] = places
        images = torch.cat([cut.integrate_pixels(part).flatten(1) for part in xyz.split(2**11)])
        log_prob = -unknown[:, -2:].log().sum(1)
        for i, image in enumerate(images.T):
            expected = unknown[:, -2] * image[which] + unknown[:, -1]
            nodes = torch.linspace(float(expected.min()), float(expected.max()), 200).double()
            values = pixels.log_prob(
                counts[..., i : i + 1], nodes.view(1, -1, 1, 1), numbers[:, i : i + 1]
            )
            log_prob += torch.from_numpy(CubicSpline(nodes, values.flatten())(expected))
        weight = log_prob.softmax(0)
        mean = weight @ unknown
        covariance = ((unknown - mean) * weight[:, None]).mT @ (unknown - mean)
        root = torch.linalg.cholesky(covariance)
    mean[:2] += 100 * corner
    return mean, covariance.diagonal().sqrt()


def grid(n: int, measured: PSF | None, rng: torch.Generator) -> None:
    for kind, psf, axial in kinds(measured):
        for name, camera in CAMERAS.items():
            axes = [0, 1, 2] if axial else [0, 1]
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
                f"grid {kind} {name}, {n} molecules: largest error of means "
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


class Chains:
    """Reversible jump between one and three molecules (Green, Biometrika 82, 711, 1995) in c chains
    of the spots: a reference, whose births know nothing of the counts.

    `number` molecules lie at `xy` (c, 3, 2), with logarithms of photons `u` (c, 3) and of the
    background `v` (c,), in which the prior is flat.
    """

    def __init__(
        self, table: LogCubic, centre: Tensor, side: int, m: int, rng: torch.Generator
    ) -> None:
        self.rng, self.n, self.m, self.c = rng, len(centre), m, len(centre) * m
        self.table, self.side_nm = table, 100.0 * side
        self.edges = 100.0 * torch.arange(side + 1)
        self.number = torch.arange(self.c) % 3 + 1
        self.xy = centre.double().repeat_interleave(m, 0)[:, None] + 60 * self.normal(3, 2)
        self.u = (4000 / self.number.double()).log()[:, None].repeat(1, 3)
        self.v = torch.full((self.c,), math.log(BACKGROUND), dtype=torch.float64)
        self.log_prob = self.of(self.xy, self.u, self.v, self.number)

    def of(self, xy: Tensor, u: Tensor, v: Tensor, number: Tensor) -> Tensor:
        """(c,) log of likelihood and prior, 1 molecule per square um."""
        on = torch.arange(3) < number[:, None]
        across = torch.special.ndtr((self.edges - xy.float()[..., None]) / 130.0).diff(dim=-1)
        light = torch.einsum(
            "ck,cky,ckx->cyx", (u.exp() * on).float(), across[:, :, 1], across[:, :, 0]
        )
        expected = light.flatten(1) + v.exp().float()[:, None]
        seen = self.table(expected.view(self.n, self.m, 1, -1)).flatten()
        inside = ((xy > 0) & (xy < self.side_nm)).all(2) & (u > LEAST) & (u < MOST)
        possible = (inside | ~on).all(1) & (number > 0) & (number < 4)
        possible &= (v > math.log(0.05)) & (v < math.log(1e5))
        each = math.log(1e-6) - math.log(MOST - LEAST)
        return (seen + each * number).masked_fill(~possible, -torch.inf)

    def uniform(self, *more: int) -> Tensor:
        return torch.rand(self.c, *more, generator=self.rng, dtype=torch.float64)

    def normal(self, *more: int) -> Tensor:
        return torch.randn(self.c, *more, generator=self.rng, dtype=torch.float64)

    def take(self, ratio: Tensor, xy: Tensor, u: Tensor, v: Tensor, number: Tensor) -> None:
        new = self.of(xy, u, v, number)
        yes = self.uniform().log() < new - self.log_prob + ratio
        self.xy, self.u = xy.where(yes[:, None, None], self.xy), u.where(yes[:, None], self.u)
        self.v, self.number = v.where(yes, self.v), number.where(yes, self.number)
        self.log_prob = new.where(yes, self.log_prob)

    def step(self) -> None:
        rows, number = torch.arange(self.c), self.number
        xy, u, v = self.xy.clone(), self.u.clone(), self.v.clone()
        one = (self.uniform() * number).long().clamp_max(2)
        other = (one + 1 + (self.uniform() * (number - 1)).long().clamp_max(1)) % number
        kind, length = float(torch.rand(1, generator=self.rng)), 10 ** (-2 * self.uniform())
        if kind < 0.4:
            xy[rows, one] += 150 * length[:, None] * self.normal(2)
            u[rows, one] += 0.6 * length * self.normal()
            v += 0.1 * length * self.normal()
            self.take(torch.zeros(self.c), xy, u, v, number)
        elif kind < 0.5:
            xy += 40 * length[:, None, None] * self.normal(3, 2)
            u += 0.2 * length[:, None] * self.normal(3)
            v += 0.05 * length * self.normal()
            self.take(torch.zeros(self.c), xy, u, v, number)
        elif kind < 0.65:  # two molecules, about the same centre with the same light
            total = torch.logaddexp(u[rows, one], u[rows, other])
            share = (u[rows, one] - total).exp()[:, None]
            centre = share * xy[rows, one] + (1 - share) * xy[rows, other]
            apart = xy[rows, one] - xy[rows, other] + 80 * length[:, None] * self.normal(2)
            logit = u[rows, one] - u[rows, other] + length * self.normal()
            share = logit.sigmoid()
            xy[rows, one] = centre + (1 - share)[:, None] * apart
            xy[rows, other] = centre - share[:, None] * apart
            u[rows, one], u[rows, other] = total + share.log(), total + (1 - share).log()
            self.take(torch.zeros(self.c), xy, u, v, number.where(number > 1, 0))
        elif kind < 0.83:
            self.birth(one)
        else:
            self.split(one, other, spread=100.0 if kind < 0.92 else 200.0)

    def birth(self, one: Tensor) -> None:
        """Of a faint molecule anywhere, or the death of such a one."""
        rows, number, xy, u = torch.arange(self.c), self.number, self.xy.clone(), self.u.clone()
        up, last, born = self.uniform() < 0.5, number - 1, number.clamp_max(2)
        faint = math.log(12.0)
        log_q = -2 * math.log(self.side_nm) - math.log(faint)
        died = (log_q + number.log()).masked_fill(u[rows, one] > LEAST + faint, -torch.inf)
        ratio = torch.where(up, -log_q - (number + 1).log(), died)
        down = torch.nonzero(~up)[:, 0]
        xy[down, one[down]], u[down, one[down]] = xy[down, last[down]], u[down, last[down]]
        rows, born = rows[up], born[up]
        xy[rows, born] = self.side_nm * self.uniform(2)[up]
        u[rows, born] = LEAST + faint * self.uniform()[up]
        self.take(ratio, xy, u, self.v, number + torch.where(up, 1, -1))

    def split(self, one: Tensor, other: Tensor, spread: float) -> None:
        """Of a molecule about its centre, or two merged."""
        rows, number, xy, u = torch.arange(self.c), self.number, self.xy.clone(), self.u.clone()
        up, last = self.uniform() < 0.5, number - 1
        total = torch.where(up, u[rows, one], torch.logaddexp(u[rows, one], u[rows, other]))
        share = torch.where(up, self.uniform(), (u[rows, one] - total).exp())
        share = share.clamp(1e-9, 1 - 1e-9)
        apart = torch.where(up[:, None], spread * self.normal(2), xy[rows, one] - xy[rows, other])
        centre = torch.where(up[:, None], xy[rows, one], xy[rows, other] + share[:, None] * apart)
        second = torch.where(up, number.clamp_max(2), other)
        xy[rows, second] = torch.where(up[:, None], centre - share[:, None] * apart, xy[rows, last])
        u[rows, second] = torch.where(up, total + (1 - share).log(), u[rows, last])
        first = torch.where(~up & (one == last), other, one)
        xy[rows, first] = torch.where(up[:, None], centre + (1 - share)[:, None] * apart, centre)
        u[rows, first] = torch.where(up, total + share.log(), total)
        log_q = share.log() + (1 - share).log() - apart.square().sum(1) / (2 * spread**2)
        log_q = log_q - math.log(2 * math.pi * spread**2)
        ratio = -torch.where(up, number + 1, number).log() - log_q
        number = number + torch.where(up, 1, -1)
        self.take(torch.where(up, ratio, -ratio), xy, u, self.v, number)

    def run(self, steps: int) -> Tensor:
        """(n, m, 3) shares of the steps with one, two and three molecules, of the last 3 in 4."""
        shares = torch.zeros(self.c, 3, dtype=torch.float64)
        for step in range(steps):
            self.step()
            if step >= steps // 4:
                shares[torch.arange(self.c), self.number - 1] += 1
        shares = shares / shares.sum(1, keepdim=True)
        return shares.view(self.n, self.m, 3)


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
        table = LogCubic.of(
            pixels,
            cut.flatten(1)[:, None],
            pixel=torch.zeros(n, side**2, dtype=torch.int64),
            counts=torch.ones(n, side**2),
            most=2000.0,
        )
        chains = Chains(table, centre, side, 48, rng).run(steps)
        long, error = chains.mean(1), chains.std(1) / 48**0.5
        off = (found.probability - long).abs().amax(1)
        stated, known = found.error.amax(1), error.amax(1)
        p = ", ".join(f"{value:.2f}" for value in found.probability.mean(0).tolist())
        print(
            f"counts {apart_nm:.0f} nm apart: p(1), p(2), p(3) on average {p}; "
            f"from long chains by {off.median():.3f} (median), {off.max():.3f} (largest); "
            f"standard errors stated {stated.median():.3f}, {stated.max():.3f}, of the long chains "
            f"{known.median():.3f}, {known.max():.3f}; {speed:.2f} spots/s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[[], "lone", "grid", "pairs", "counts"])
    parser.add_argument("--molecules", type=int, default=200)
    parser.add_argument("--gridded", type=int, default=3, help="molecules of each grid")
    parser.add_argument("--spots", type=int, default=6)
    parser.add_argument("--steps", type=int, default=24000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--psf", type=Path, help="PSF file of a further kind of lone molecules")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(arguments.seed)
    parts = arguments.parts or ["lone", "grid", "pairs", "counts"]
    measured = read_psf(arguments.psf).psf if arguments.psf else None
    if "lone" in parts:
        lone(arguments.molecules, measured, rng)
    if "grid" in parts:
        grid(arguments.gridded, measured, rng)
    if "pairs" in parts:
        pairs(arguments.molecules // 2, rng)
    if "counts" in parts:
        counts(arguments.spots, arguments.steps, rng)


if __name__ == "__main__":
    main()

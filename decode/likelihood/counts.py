"""How many molecules a spot is: the posterior over their number."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from decode.emitters import EmitterSet
from decode.likelihood.importance import Model, Moments, Prior
from decode.likelihood.pixels import PixelLikelihood, pixels_of
from decode.likelihood.windows import Frames, Windows
from decode.optics.camera import Camera
from decode.optics.psf import PSF

__all__ = ["MOST", "count_posterior"]

MOST = 3
"""most molecules of a spot"""
SPLIT_NM, DIRECTIONS = 80.0, 4
"""distance of the halves of a molecule from its place, and the directions that are tried"""
BESIDE_NM, FAINT = 200.0, 0.2
"""distance at which a further molecule is tried, and its share of the photons"""
PARTICLES, MOVES, STAGES = 800, 6, 30
"""of the sampler: samples, steps of each between two temperatures, and most temperatures"""
SPOTS_AT_ONCE = 16
"""spots that are sampled together"""
KEPT = 0.5
"""share of effective particles after a change of the temperature"""
WIDER = 1.5
"""width of the distribution that the particles begin with, over that around the mode"""
NODES = 11
"""of the likelihood's polynomials, as particles spread more widely than samples of a proposal"""


@torch.no_grad()
def count_posterior(
    psf: PSF,
    camera: Camera,
    adu: Tensor,
    emitters: EmitterSet,
    *,
    together: Tensor | None = None,
    density_per_um2: float = 1.0,
    axial: bool = True,
    prior: Prior | None = None,
    pixels: PixelLikelihood | None = None,
    background: Tensor | None = None,
    n_particles: int = PARTICLES,
    seed: int = 0,
) -> Tensor:
    """Probabilities that spots are one, two or three molecules.

    The evidence of each number is the integral of the exact likelihood over its molecules, with
    the prior of `exact_posterior` and molecules that are placed at random with a density (a Poisson
    process; for an unordered set its density is that of the number times the product of those of
    the molecules).  It is computed by a sequential Monte Carlo sampler (Del Moral, Doucet and
    Jasra, J. R. Stat. Soc. B 68, 411, 2006): particles start from a Gaussian around the most likely
    of several modes, and pass to the posterior over distributions between both, with steps of
    random-walk Metropolis.

    Args:
        psf, camera, adu, axial, prior, pixels, background: as for `exact_posterior`.
        emitters: molecules with `background`.
        together: (n, k) rows of one frame, at most `MOST`, that are each one spot; None: every row.
        density_per_um2: of molecules that are on; within the depths of `prior`, where z is unknown.
        n_particles: of the sampler.
        seed: of the particles.

    Returns:
        (n, 3) float64 probabilities of one, two and three.

    Raises:
        ValueError: if a spot holds more than `MOST` rows, or depths are unknown and unlimited.

    Example:
        >>> from decode import Camera, GaussianPSF
        >>> from decode.optics.psf import render
        >>> psf = GaussianPSF(130.0, pixel_size_nm=100.0)
        >>> camera = Camera(baseline=100.0, e_per_adu=1.0, read_noise_e=1.0)
        >>> pair = EmitterSet(
        ...     frame=torch.tensor([0, 0]),
        ...     xyz=torch.tensor([[1600.0, 1600.0, 0.0], [1850.0, 1600.0, 0.0]]),
        ...     photons=torch.tensor([2000.0, 1500.0]),
        ...     background=torch.tensor([10.0, 10.0]),
        ... )
        >>> light = render(
        ...     psf,
        ...     frame=pair.frame,
        ...     xyz=pair.xyz,
        ...     photons=pair.photons,
        ...     n_frames=1,
        ...     shape=(33, 33),
        ... )
        >>> adu = camera.sample(10 + light.detach(), torch.Generator().manual_seed(0))
        >>> p = count_posterior(
        ...     psf, camera, adu, pair, together=torch.tensor([[0, 1]]), axial=False
        ... )
        >>> bool(p[0, 0] < 0.01), bool(p[0, 1] > 0.8)
        (True, True)
    """
    prior = prior or Prior()
    rows = torch.arange(len(emitters))[:, None] if together is None else together
    if rows.shape[1] > MOST:
        raise ValueError(f"a spot of {rows.shape[1]} molecules: at most {MOST} are told apart")
    depth = prior.depth_nm[1] - prior.depth_nm[0]
    if axial and not math.isfinite(depth):
        raise ValueError("state the depths of the molecules (Prior.depth_nm), as z is unknown")
    axes = [2, 0, 1] if axial else [0, 1]
    frames = Frames(psf, camera, adu, emitters, axes=axes, background=background)
    model = Model(axes, prior, pixels or pixels_of(camera), NODES)
    per_nm2 = density_per_um2 * 1e-6 / (depth if axial else 1.0)
    # of each molecule: places per area and depth, and the constant of a log-uniform density
    each = math.log(per_nm2) - math.log(math.log(prior.photons[1] / prior.photons[0]))
    rng = torch.Generator().manual_seed(seed)
    found = torch.zeros(len(rows), MOST, dtype=torch.float64)
    parameters = psf.parameters_at(emitters.xyz)
    for part in torch.arange(len(rows)).split(SPOTS_AT_ONCE) if len(rows) else ():
        windows = frames.windows(rows[part], parameters)
        for k, supposed in enumerate(_hypotheses(windows, model), 1):
            modes = model.mode(supposed)
            found[part, k - 1] = k * each + _log_evidence(model, supposed, modes, n_particles, rng)
    return found.softmax(1)


def _hypotheses(windows: Windows, model: Model) -> list[Windows]:
    """Windows with one, two and three molecules, near the most likely."""
    k = windows.xyz.shape[1]
    light = windows.photons.clamp_min(model.prior.photons[0])
    total = light.sum(1, keepdim=True)
    centre = (windows.xyz * (light / total)).sum(1, keepdim=True)
    one = _with(windows, centre, total)
    best = [_settled(one, model)]
    for n in range(2, MOST + 1):
        last = best[-1]
        tried = [_with(last, *split) for split in _splits(last, n - 2)]
        if n == k:
            tried.append(_with(windows, windows.xyz, light))
        best.append(_likeliest([_settled(each, model) for each in tried], model))
    return best


def _splits(windows: Windows, last: int) -> list[tuple[Tensor, Tensor]]:
    """Positions and photons with one molecule more: each is split, or a fainter one is beside."""
    xyz, light = windows.xyz, windows.photons
    made = []
    for j in range(last + 1):
        for step in range(DIRECTIONS):
            angle = math.pi * step / DIRECTIONS
            away = xyz.new_tensor([math.cos(angle), math.sin(angle), 0.0])
            halves, photons = xyz.clone(), light.clone()
            halves[:, j] += SPLIT_NM * away
            photons[:, j] /= 2
            other = (xyz[:, j] - SPLIT_NM * away)[:, None]
            made.append(
                (torch.cat([halves, other], 1), torch.cat([photons, photons[:, j : j + 1]], 1))
            )
            for side in (-1, 1):
                beside = (xyz[:, j] + side * BESIDE_NM * away)[:, None]
                faint = FAINT * light[:, j : j + 1]
                made.append((torch.cat([xyz, beside], 1), torch.cat([light, faint], 1)))
    return made


def _with(windows: Windows, xyz: Tensor, photons: Tensor) -> Windows:
    """The same windows with other molecules."""
    parameters = windows.parameters
    if parameters is not None:
        of_first = parameters.unflatten(0, (len(xyz), -1))[:, :1]
        parameters = of_first.expand(-1, xyz.shape[1], -1).flatten(0, 1)
    return replace(windows, xyz=xyz, photons=photons, parameters=parameters)


def _settled(windows: Windows, model: Model) -> Windows:
    """The windows with their molecules at the mode."""
    (k, t), d = windows.shape, len(model.axes)
    side_nm = windows.psf.patch_px * windows.psf.pixel_size_nm
    mean = model.mode(windows).mean.to(windows.xyz)
    xyz = windows.xyz.clone()
    xyz[..., model.axes] = mean[:, : k * d].unflatten(1, (k, d))
    xyz[..., :2].clamp_(1.0, side_nm - 1.0)
    xyz[..., 2].clamp_(*model.prior.depth_nm)
    photons = mean[:, k * d : k * d + k * t].unflatten(1, (k, t))
    least, most = model.prior.photons
    background = mean[:, k * d + k * t :].clamp(*model.prior.background)
    return replace(
        windows, xyz=xyz, photons=photons.clamp(1.01 * least, most), background=background
    )


def _likeliest(tried: list[Windows], model: Model) -> Windows:
    """Of several starts, the best of each window."""
    values = torch.stack(
        [model.log_prob(each, each.start(model.axes)[:, None])[:, 0] for each in tried]
    )
    which = values.argmax(0)
    rows = torch.arange(len(which))

    def of(name: str) -> Tensor:
        return torch.stack([getattr(each, name) for each in tried])[which, rows]

    return replace(tried[0], xyz=of("xyz"), photons=of("photons"), background=of("background"))


def _log_evidence(
    model: Model, windows: Windows, modes: Moments, m: int, rng: torch.Generator
) -> Tensor:
    """(n,) logarithm of the integral of likelihood and prior over the unknowns."""
    n, q = modes.mean.shape
    root = WIDER * torch.linalg.cholesky(modes.covariance)
    log_volume = root.diagonal(dim1=1, dim2=2).log().sum(1) + q / 2 * math.log(2 * math.pi)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    def log_start(x: Tensor) -> Tensor:
        apart = torch.linalg.solve_triangular(root, (x - modes.mean[:, None]).mT, upper=False)
        return -apart.square().sum(1) / 2 - log_volume[:, None]

    def log_prob(x: Tensor) -> Tensor:
        return model.log_prob(windows, x.to(windows.xyz.dtype))

    x = modes.mean[:, None] + normal(n, m, q) @ root.mT
    start, target = log_start(x), log_prob(x)
    beta, evidence = x.new_zeros(n, 1), x.new_zeros(n)
    for _ in range(STAGES):
        rise = target - start
        step = _step(rise, 1 - beta)
        log_weight = (step * rise).where(step > 0, 0.0)
        evidence += log_weight.logsumexp(1) - math.log(m)
        beta = beta + step
        chosen = _resampled(log_weight.softmax(1), rng)
        x = x.gather(1, chosen[..., None].expand(-1, -1, q))
        start, target = start.gather(1, chosen), target.gather(1, chosen)
        if bool((beta >= 1).all()):
            break
        apart = x - x.mean(1, keepdim=True)
        spread = apart.mT @ apart / m
        scale = spread.diagonal(dim1=1, dim2=2)
        jump = torch.linalg.cholesky(spread + torch.diag_embed(1e-9 * scale + 1e-12))
        for move in range(MOVES):
            # long and short steps take turns
            length = (2.4 if move % 2 else 1.0) / q**0.5
            new = x + length * normal(n, m, q) @ jump.mT
            new_start, new_target = log_start(new), log_prob(new)
            gain = (1 - beta) * (new_start - start) + beta * (new_target - target)
            taken = torch.rand(n, m, generator=rng, dtype=torch.float64).log() < gain
            x = new.where(taken[..., None], x)
            start, target = new_start.where(taken, start), new_target.where(taken, target)
    return evidence


def _step(rise: Tensor, left: Tensor) -> Tensor:
    """(n, 1) change of the temperature after which `KEPT` of the particles are effective."""
    low, high = torch.zeros_like(left), left
    for _ in range(25):
        middle = (low + high) / 2
        weight = (middle * rise).softmax(1)
        enough = 1 / weight.square().sum(1, keepdim=True) > KEPT * rise.shape[1]
        low, high = middle.where(enough, low), high.where(enough, middle)
    whole = 1 / (left * rise).softmax(1).square().sum(1, keepdim=True) > KEPT * rise.shape[1]
    # particles where nothing is possible are lost at once, however small the step
    return left.where(whole, low.clamp_min(1e-3).minimum(left))


def _resampled(weight: Tensor, rng: torch.Generator) -> Tensor:
    """(n, m) particles that stay, by systematic resampling."""
    n, m = weight.shape
    at = (torch.rand(n, 1, generator=rng, dtype=torch.float64) + torch.arange(m)) / m
    return torch.searchsorted(weight.cumsum(1), at).clamp_max(m - 1)

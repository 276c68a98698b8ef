"""How many molecules a spot is: the posterior over their number."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from decode.emitters import EmitterSet
from decode.likelihood.importance import Model, Prior
from decode.likelihood.pixels import LogCubic, PixelLikelihood, pixels_of
from decode.likelihood.windows import Frames, Windows
from decode.optics.camera import DARKEST, Camera
from decode.optics.psf import PSF

__all__ = ["MOST", "Numbers", "count_posterior"]

MOST = 3
"""most molecules of a spot"""
CHAINS, STEPS, BURN_IN = 48, 5000, 0.25
"""chains of each spot, steps of each, and the share of these that is left out"""
SPOTS_AT_ONCE = 8
"""spots that are sampled together"""
STEP_NM, STEP_LOG_PHOTONS, STEP_LOG_BACKGROUND = 150.0, 0.6, 0.1
"""longest steps of one molecule and the background; most are shorter, down to a hundredth"""
SPLIT_NM = 120.0
"""standard deviation along an axis of the distance of the two that one is split into"""
CELL_NM, DEEP_CELLS, LIGHT_CELLS = 100.0, 8, 8
"""of the map by which molecules are added: side of its cells, their number along z, and along the
logarithm of photons"""
ANYWHERE = 0.3
"""share of the added molecules that is drawn from the prior instead"""


class Numbers(NamedTuple):
    """How many molecules each of n spots is."""

    probability: Tensor
    """(n, 3) float64, of one, two and three"""
    error: Tensor
    """(n, 3) float64, its standard error, from the spread of independent chains"""


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
    n_steps: int = STEPS,
    seed: int = 0,
) -> Numbers:
    """Probabilities that spots are one, two or three molecules.

    The posterior is that of the exact likelihood, the prior of `exact_posterior`, and molecules
    that are placed at random with a density (a Poisson process) in the window.  It is sampled by
    reversible jumps (Green, Biometrika 82, 711, 1995): steps of the molecules, birth and death,
    split and merge.  Births come from a map of what one molecule more would explain.  Chains that
    start from one, from two and from three molecules run beside one another; their spread states
    the error of the probabilities.

    Args:
        psf, camera, adu, axial, prior, pixels, background: as for `exact_posterior`.
        emitters: molecules with `background`.
        together: (n, k) rows of one frame, at most `MOST`, that are each one spot; None: every row.
        density_per_um2: of molecules that are on; within the depths of `prior`, where z is unknown.
        n_steps: of each chain.
        seed: of the chains.

    Returns:
        The probabilities of each spot, and their standard errors.

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
        >>> one, two, three = count_posterior(
        ...     psf, camera, adu, pair, together=torch.tensor([[0, 1]]), axial=False, n_steps=400
        ... ).probability[0]
        >>> bool(one < 0.01), bool(two > 0.8)
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
    model = Model(axes, prior, pixels or pixels_of(camera))
    per_nm2 = density_per_um2 * 1e-6 / (depth if axial else 1.0)
    rng = torch.Generator().manual_seed(seed)
    probability, error = torch.zeros(2, len(rows), MOST, dtype=torch.float64)
    parameters = psf.parameters_at(emitters.xyz)
    for part in torch.arange(len(rows)).split(SPOTS_AT_ONCE) if len(rows) else ():
        spots = _Spots.of(frames.windows(rows[part], parameters), model, per_nm2)
        shares = _Chains(spots, rng).run(n_steps)
        probability[part] = shares.mean(1)
        error[part] = shares.std(1) / shares.shape[1] ** 0.5
    return Numbers(probability, error)


class _State(NamedTuple):
    """Molecules of n spots in m chains each.

    The coordinates are positions and the logarithms of photons and background.  Of the molecules
    the first `number` exist.
    """

    molecules: Tensor
    """(n, m, MOST, d + 1) float64: position along the d axes, nm, and log photons"""
    level: Tensor
    """(n, m) log background"""
    number: Tensor
    """(n, m)"""

    def where(self, yes: Tensor, other: _State) -> _State:
        """These where `yes` (n, m), else others."""
        parts = (
            new.where(yes.view(*yes.shape, *[1] * (new.ndim - 2)), old)
            for new, old in zip(self, other, strict=True)
        )
        return _State(*parts)


@final
class _Spots:
    """n spots in their windows: the density of molecules in them, and where more are added."""

    def __init__(
        self, windows: Windows, model: Model, table: LogCubic, log_density: float, one: Windows
    ) -> None:
        self.windows, self.axes, self.prior = windows, model.axes, model.prior
        self.one = one
        self.table, self._log_density = table, log_density
        self._side_nm = windows.psf.patch_px * windows.psf.pixel_size_nm
        least, most = self.prior.depth_nm
        ends = [(least, most), (0.0, self._side_nm), (0.0, self._side_nm)][-len(self.axes) :]
        light = tuple(math.log(photons) for photons in self.prior.photons)
        self._low, self._high = torch.tensor([*ends, light], dtype=torch.float64).T
        self.births = self._map()

    @classmethod
    def of(cls, windows: Windows, model: Model, per_nm2: float) -> _Spots:
        """Spots in a Poisson process of a density per area and depth."""
        brightest = 2 * float(windows.photons_seen.max()) + 100.0
        table = LogCubic.of(
            model.pixels, windows.adu, pixel=windows.pixel, counts=windows.seen, most=brightest
        )
        return cls(windows, model, table, math.log(per_nm2), _merged(windows, model))

    def inside(self, molecules: Tensor) -> Tensor:
        """Molecules (..., d + 1), moved to where the prior allows them."""
        return molecules.maximum(self._low + 1e-3).minimum(self._high - 1e-3)

    def log_prob(self, state: _State) -> Tensor:
        """(n, m) log of likelihood times prior."""
        on = torch.arange(MOST) < state.number[..., None]
        inside = ((state.molecules >= self._low) & (state.molecules <= self._high)).all(3)
        least, most = (math.log(value) for value in self.prior.background)
        possible = (inside | ~on).all(2) & (state.level >= least) & (state.level <= most)
        possible &= (state.number > 0) & (state.number <= MOST)
        which = torch.nonzero(possible.flatten())[:, 0]
        log_prob = torch.full((possible.numel(),), -torch.inf, dtype=torch.float64)
        light = self._light(state, on & possible[..., None])
        found = self.table(light.unflatten(0, possible.shape)[:, :, None]).flatten()
        each = self._log_density + self.prior.log_light(state.molecules[..., -1])
        prior = (each * on).sum(2).flatten()
        log_prob[which] = (found + prior)[which]
        return log_prob.view(possible.shape)

    def _light(self, state: _State, on: Tensor) -> Tensor:
        """(n m, p) expected photons of the molecules that are on."""
        n, m = state.level.shape
        spot = torch.arange(n)[:, None, None].expand(n, m, MOST)[on]
        chain = torch.arange(n * m).view(n, m, 1).expand(n, m, MOST)[on]
        some = state.molecules[on]
        images = self._images(some[:, :-1], spot)
        images *= some[:, -1:].exp().to(images)
        level = state.level.clamp(math.log(DARKEST), 20.0).exp().to(images)
        others = self.windows.light[:, 0]
        light = (level[..., None] + others[:, None]).flatten(0, 1)
        return light.index_add_(0, chain, images)

    def _images(self, places: Tensor, spot: Tensor) -> Tensor:
        """(r, p) shares of the light of molecules at places (r, d) of the windows of spots (r,)."""
        xyz = self.windows.xyz[spot, 0].clone()
        xyz[:, self.axes] = places.to(xyz)
        parameters = self.windows.parameters
        if parameters is not None:
            parameters = parameters.unflatten(0, (len(self.windows.adu), -1))[spot, 0]
        return self.windows.psf.integrate_pixels(xyz, parameters).flatten(1)

    def _map(self) -> _Births:
        """Where a molecule more would explain the counts, beside one and beside those listed."""
        n, d = len(self.windows.adu), len(self.axes)
        across = max(1, round(self._side_nm / CELL_NM))
        counts = torch.tensor([*[DEEP_CELLS, across, across][-d:], LIGHT_CELLS])
        high = self._high.clone()
        brightest = max(float(base.photons.sum(1).max()) for base in (self.one, self.windows))
        high[d] = high[d].clamp_max(math.log(2 * max(brightest, self.prior.photons[0])))
        steps = [torch.arange(number) + 0.5 for number in counts.tolist()]
        cells = self._low + torch.cartesian_prod(*steps) * (high - self._low) / counts
        bright = cells[:, d:].exp().to(self.windows.light)
        share = torch.full((n, len(cells)), ANYWHERE / len(cells), dtype=torch.float64)
        for base in (self.one, self.windows):
            for i, light in enumerate(self._all_light(base)):
                more = self._images(cells[:, :d], torch.tensor(i).expand(len(cells)))
                gain = self.table.of_window(i, (light + bright * more)[:, None])
                share[i] += (1 - ANYWHERE) / 2 * gain.softmax(0)
        return _Births(share, counts, self._low, high)

    def _all_light(self, base: Windows) -> Tensor:
        """(n, p) expected photons of the molecules of windows."""
        n, k = base.photons.shape[:2]
        spot = torch.arange(n).repeat_interleave(k)
        images = self._images(base.xyz.flatten(0, 1)[:, self.axes], spot).unflatten(0, (n, k))
        return (images * base.photons).sum(1) + base.background + base.light[:, 0]


@final
class _Births:
    """A density over molecules, which is even in cells of their place and light."""

    def __init__(self, share: Tensor, counts: Tensor, low: Tensor, high: Tensor) -> None:
        """Of shares (n, cells); numbers of cells along each coordinate, and their ends (d + 1,)."""
        self._share, self._counts = share, counts
        self._low, self._size = low, (high - low) / counts
        self._log_volume = float(self._size.log().sum())

    def draw(self, m: int, rng: torch.Generator) -> Tensor:
        """(n, m, d + 1)."""
        cell = torch.multinomial(self._share, m, replacement=True, generator=rng)
        corner = torch.stack(torch.unravel_index(cell, self._counts.tolist()), 2)
        within = torch.rand(corner.shape, generator=rng, dtype=torch.float64)
        return self._low + (corner + within) * self._size

    def log_prob(self, molecules: Tensor) -> Tensor:
        """(n, m) of molecules (n, m, d + 1)."""
        corner = ((molecules - self._low) / self._size).floor().long()
        inside = ((corner >= 0) & (corner < self._counts)).all(2)
        cell = torch.zeros_like(corner[..., 0])
        for axis, count in enumerate(self._counts.tolist()):
            cell = cell * count + corner[..., axis].clamp(0, count - 1)
        log_prob = self._share.gather(1, cell).log() - self._log_volume
        return log_prob.masked_fill(~inside, -torch.inf)


@final
class _Chains:
    """m chains of each of n spots, which take steps of the same kind together."""

    def __init__(self, spots: _Spots, rng: torch.Generator, m: int = CHAINS) -> None:
        self._spots, self._rng = spots, rng
        self._size = (len(spots.windows.adu), m)
        self._d = len(spots.axes)
        self._state = self._start()
        self._log_prob = spots.log_prob(self._state)

    def run(self, steps: int) -> Tensor:
        """(n, m, MOST) shares of the steps with one, two and three molecules."""
        shares = torch.zeros(*self._size, MOST, dtype=torch.float64)
        kinds = (self._one, self._birth, self._one, self._exchange, self._all, self._split)
        skipped = int(BURN_IN * steps)
        for step in range(steps):
            kinds[step % len(kinds)]()
            if step >= skipped:
                shares += one_hot(self._state.number - 1, MOST)
        return shares / shares.sum(2, keepdim=True)

    def _start(self) -> _State:
        """A third of the chains each with one, two and three molecules."""
        n, m = self._size
        windows, one = self._spots.windows, self._spots.one
        axes, k = self._spots.axes, windows.xyz.shape[1]
        number = (torch.arange(m) % MOST + 1).expand(n, m).clone()
        molecules = self._spots.births.draw(MOST * m, self._rng).unflatten(1, (m, MOST))

        def of(some: Windows) -> Tensor:
            light = some.photons.clamp_min(self._spots.prior.photons[0]).log()
            return torch.cat([some.xyz[..., axes], light], 2).double()[:, None]

        few = (number < k)[..., None]
        listed, merged = of(windows).expand(n, m, -1, -1), of(one).expand(n, m, -1, -1)
        first = merged[:, :, 0].where(few, listed[:, :, 0])
        molecules[:, :, :k] = listed
        molecules[:, :, 0] = first
        level = one.background.double().clamp(*self._spots.prior.background).log()
        level = level.expand(n, m).clone()
        return _State(self._spots.inside(molecules), level, number)

    def _uniform(self, *more: int) -> Tensor:
        return torch.rand(*self._size, *more, generator=self._rng, dtype=torch.float64)

    def _normal(self, *more: int) -> Tensor:
        return torch.randn(*self._size, *more, generator=self._rng, dtype=torch.float64)

    def _take(self, new: _State, log_ratio: Tensor) -> None:
        """Accept or refuse; `log_ratio` is that of the proposals' densities, back over there."""
        log_prob = self._spots.log_prob(new)
        yes = self._uniform().log() < log_prob - self._log_prob + log_ratio
        self._state = new.where(yes, self._state)
        self._log_prob = log_prob.where(yes, self._log_prob)

    def _any(self) -> Tensor:
        """(n, m) number of one of the molecules that exist."""
        return (self._uniform() * self._state.number).long().clamp_max(MOST - 1)

    def _lengths(self) -> Tensor:
        """(n, m, 1) of steps, short and long alike, as bright molecules lie more narrowly."""
        return (10 ** (-2 * self._uniform()))[..., None]

    def _longest(self) -> Tensor:
        return torch.tensor([STEP_NM] * self._d + [STEP_LOG_PHOTONS]).double()

    def _one(self) -> None:
        """Move one molecule, and the background."""
        old, length = self._state, self._lengths()
        chosen = one_hot(self._any(), MOST)[..., None]
        step = (length * self._longest() * self._normal(self._d + 1))[:, :, None]
        level = old.level + STEP_LOG_BACKGROUND * length[..., 0] * self._normal()
        new = _State(old.molecules + chosen * step, level, old.number)
        self._take(new, torch.zeros(self._size, dtype=torch.float64))

    def _all(self) -> None:
        """Move all molecules, and the background."""
        old, length = self._state, self._lengths()
        step = length[..., None] * self._longest() / 3 * self._normal(MOST, self._d + 1)
        level = old.level + STEP_LOG_BACKGROUND * length[..., 0] * self._normal()
        new = _State(old.molecules + step, level, old.number)
        self._take(new, torch.zeros(self._size, dtype=torch.float64))

    def _birth(self) -> None:
        """Add a molecule of the map, or take any away."""
        old, births = self._state, self._spots.births
        up = self._uniform() < 0.5
        one, last = self._any(), old.number - 1
        drawn = births.draw(self._size[1], self._rng)
        more = _put(old.molecules, old.number.clamp_max(MOST - 1), drawn)
        fewer = _put(old.molecules, one, _picked(old.molecules, last))
        born = -births.log_prob(drawn) - (old.number + 1).double().log()
        died = births.log_prob(_picked(old.molecules, one)) + old.number.double().log()
        molecules = more.where(up[..., None, None], fewer)
        number = old.number + torch.where(up, 1, -1)
        self._take(_State(molecules, old.level, number), born.where(up, died))

    def _exchange(self) -> None:
        """Move two molecules about their centre of light, and share their light anew."""
        old = self._state
        one, other = self._two()
        centre, apart, log_total, logit = _joined(
            _picked(old.molecules, one), _picked(old.molecules, other)
        )
        length = self._lengths()
        logit = logit + 2 * length[..., 0] * self._normal()
        apart = apart + STEP_NM * length * self._normal(self._d)
        first, second = _parted(centre, apart, log_total, logit)
        molecules = _put(_put(old.molecules, one, first), other, second)
        # impossible, and refused, where there is one
        number = old.number.where(old.number > 1, 0)
        ratio = torch.zeros(self._size, dtype=torch.float64)
        self._take(_State(molecules, old.level, number), ratio)

    def _split(self) -> None:
        """Split a molecule, or merge two, with the same light about the same centre."""
        old = self._state
        up = self._uniform() < 0.5
        one, other = self._two()
        chosen = _picked(old.molecules, one)
        share, apart = self._uniform().clamp(1e-6, 1 - 1e-6), SPLIT_NM * self._normal(self._d)
        first, second = _parted(chosen[..., :-1], apart, chosen[..., -1], share.logit())
        more = _put(_put(old.molecules, one, first), old.number.clamp_max(MOST - 1), second)
        centre, between, log_total, logit = _joined(chosen, _picked(old.molecules, other))
        merged = torch.cat([centre, log_total[..., None]], 2)
        fewer = self._without(one, other, merged)
        apart, share = (
            apart.where(up[..., None], between),
            share.where(up, logit.sigmoid().clamp(1e-12, 1 - 1e-12)),
        )
        before = (old.number - (~up).long()).clamp_min(1).double()
        # the density of the share, which is even, in the logarithms of both lights
        log_split = share.log() + (1 - share).log() - (apart / SPLIT_NM).square().sum(2) / 2
        log_split = log_split - self._d * (math.log(SPLIT_NM) + math.log(2 * math.pi) / 2)
        ratio = -(before + 1).log() - log_split
        number = old.number + torch.where(up, 1, -1)
        molecules = more.where(up[..., None, None], fewer)
        self._take(_State(molecules, old.level, number), ratio.where(up, -ratio))

    def _without(self, one: Tensor, other: Tensor, merged: Tensor) -> Tensor:
        """The molecules with two of them merged; the last takes the place that is free."""
        last = self._state.number - 1
        molecules = self._state.molecules
        fewer = _put(molecules, other, _picked(molecules, last))
        return _put(fewer, other.where(one == last, one), merged)

    def _two(self) -> tuple[Tensor, Tensor]:
        """Two of the molecules; of one the same twice."""
        one, number = self._any(), self._state.number
        step = 1 + (self._uniform() * (number - 1)).long().clamp_max(MOST - 2)
        return one, (one + step) % number


def _picked(molecules: Tensor, which: Tensor) -> Tensor:
    """(n, m, d + 1) the molecule of that number (n, m) in each chain."""
    index = which[..., None, None].expand(-1, -1, 1, molecules.shape[3])
    return molecules.gather(2, index)[:, :, 0]


def _put(molecules: Tensor, which: Tensor, new: Tensor) -> Tensor:
    """The molecules with another one (n, m, d + 1) in the place of that number (n, m)."""
    index = which[..., None, None].expand(-1, -1, 1, molecules.shape[3])
    return molecules.scatter(2, index, new[:, :, None])


def _joined(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre of light, distance, log of the whole light, and logit of the first's share.

    The volume is that of both positions and log photons.
    """
    logit = first[..., -1] - second[..., -1]
    share = logit.sigmoid()[..., None]
    centre = share * first[..., :-1] + (1 - share) * second[..., :-1]
    total = torch.logaddexp(first[..., -1], second[..., -1])
    return centre, first[..., :-1] - second[..., :-1], total, logit


def _parted(
    centre: Tensor, apart: Tensor, log_total: Tensor, logit: Tensor
) -> tuple[Tensor, Tensor]:
    """The two molecules, from what `_joined` gives of them."""
    share = logit.sigmoid()[..., None]
    light = log_total[..., None] + torch.nn.functional.logsigmoid(torch.stack([logit, -logit], 2))
    first = torch.cat([centre + (1 - share) * apart, light[..., :1]], 2)
    second = torch.cat([centre - share * apart, light[..., 1:]], 2)
    return first, second


def _merged(windows: Windows, model: Model) -> Windows:
    """The windows with one molecule each, at the mode."""
    light = windows.photons.clamp_min(model.prior.photons[0])
    total = light.sum(1, keepdim=True)
    centre = (windows.xyz * (light / total)).sum(1, keepdim=True)
    parameters = windows.parameters
    if parameters is not None:
        parameters = parameters.unflatten(0, (len(centre), -1))[:, 0]
    one = replace(windows, xyz=centre, photons=total, parameters=parameters)
    d = len(model.axes)
    side_nm = windows.psf.patch_px * windows.psf.pixel_size_nm
    mean = model.mode(one).mean.to(windows.xyz)
    xyz = centre.clone()
    xyz[..., model.axes] = mean[:, None, :d]
    xyz[..., :2].clamp_(1.0, side_nm - 1.0)
    xyz[..., 2].clamp_(*model.prior.depth_nm)
    return replace(
        one,
        xyz=xyz,
        photons=mean[:, d : d + 1, None].clamp(*model.prior.photons),
        background=mean[:, d + 1 :].clamp(*model.prior.background),
    )

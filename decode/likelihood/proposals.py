"""Propose and decide: a network and the light it leaves propose, the likelihood decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, pad

from decode.emitters import EmitterSet, correlations
from decode.likelihood.certainty import Certainty
from decode.likelihood.polish import (
    NETWORK_SHARE,
    NOISE_DEVIANCE,
    STAGES,
    Normal,
    Stage,
    background_of,
    fit_jointly,
    means_of,
    tracks_of,
    windows_for,
)
from decode.likelihood.single import Fit, scaled_deviance
from decode.optics.camera import DARKEST, Camera
from decode.optics.psf import PSF

__all__ = ["LEAST_PROBABILITY", "decide"]

LEAST_PROBABILITY = 0.25
"""of a molecule of the network that is worth a fit"""
ROUNDS = 2
"""in which the light that is left is searched; a third finds nothing more"""
CHALLENGES = 2
"""rounds in which groups of weak molecules are challenged by fewer"""
WEAK, UNEXPLAINED, STRONG = 8.0, 1.1, 25.0
"""photons over sigma of weak ones; of others that leave more than a deviance of the second number,
photons over sigma up to which they count as weak"""
CLUSTER_NM, AROUND_PX = 900.0, 8
"""how near to one another those of a group are; pixels around each whose deviance counts"""
SPARSE_NM, FEW = 2000.0, 5
"""only of those that have so few so near, themselves included: in simulated crowds of 60 a frame
groups that give way are true too often, and the 3D efficiency is 3 lower"""
WIDE = 2.0
"""area of a spot that is wide, over that of the smallest"""
PRICE = 16.0
"""of a molecule: how much it lowers the deviance at least"""
DEPTHS, FILTER_PX = 9, 15
"""of the matched filters: depths, and their side"""
LEAST_STATISTIC = 12.0
"""of a peak of the matched filters: chi-squared of one degree of freedom, many times over"""
LEAST_SIGNIFICANCE, LEAST_EVIDENCE, ENOUGH_EVIDENCE = 1.5, 3.0, 4.0
"""photons over their sigma of a molecule that stays in the search; the same with its neighbours in
time, in the small windows of the search, and in large ones, which tell it from the background"""
LEAST_PRESENCE = 4.0
"""photons over their sigma at a known position of a molecule that stays without such evidence"""
LINKED = (Stage(1.04, 2, 1.0), Stage(1.02, 5, 0.3))
"""steps of the fits in which the molecules of successive frames share positions; after each, those
of little evidence go"""
CERTAIN = 0.7
"""probability of a molecule of the network that stays in the search whatever its fit"""
ALIGHT, VOUCHED = 4.0, 6.0
"""photons over sigma of a molecule that is looked for in the frames before and after, and the
largest that counts there"""
SAME_NM, SAME_Z_NM = 80.0, 240.0
"""up to so far from each other, rows of successive frames show one molecule"""
APART_NM = 60.0
"""two proposals nearer to each other are one"""
PEAK_APART_NM = 150.0
"""and so are a peak and a proposal from a neighbouring frame"""
DOUBLE_NM, DOUBLE_Z_NM = 30.0, 100.0
"""two molecules of a frame that are nearer to each other are one in four of five cases"""
REACH_NM = 750.0
"""around what is new or gone, molecules are fitted again"""
PEAK_SIGMA_NM = (80.0, 80.0, 150.0)
"""of a peak of the matched filters: its prior"""
BLUR_PX = 1.5
"""of the background of many frames, whose bumps would be taken for molecules"""
DARK_SIGMAS = 3.0
"""beyond which a pixel does not count as background"""
FRAMES_AT_ONCE = 16
"""through the matched filters: their images would fill the memory"""
DRAWN_AT_ONCE = 2**12
"""molecules, likewise"""
FAR_NM = 1e5
"""between frames, where they are laid out along an axis"""
DRAWN_INFORMATION = 1.04
"""the patch in which light is taken off the frames holds all but so much of the bound"""

SHARED_NM = 250.0
"""up to so far from each other, two may share the light of one molecule"""
SURE, FOCUSED_NM, BORDER_NM = 8.0, 150.0, 200.0
"""photons over sigma that leave no doubt of an isolated molecule; width of a spot in focus; reach
of the border of the frames"""
LONE_NM, FAINT, LONE_ROWS = 1500.0, 0.6, 8
"""distance of the next row from one that is alone; share of its significance up to which others do
not count; rows that are looked at"""
OF_LONE = (-0.506, 1.279, 0.823, 0.0, 0.0, -0.216, 0.322, 0.0, -1.403, 1.997, 1.614, -2.477, 0.555)
OF_NETWORK = (
    -1.347,
    0.441,
    0.468,
    0.299,
    -1.107,
    -0.052,
    0.231,
    0.187,
    -0.322,
    0.73,
    -0.214,
    0.257,
    -0.065,
)
OF_SEARCH = (
    -2.004,
    0.548,
    0.128,
    0.189,
    -1.554,
    -0.024,
    0.165,
    0.0,
    0.549,
    0.576,
    -0.116,
    0.051,
    0.0,
)
"""of the logit of the probability that there is a molecule within 160 nm, and 320 nm along z, by
`_Hypotheses.features`: for molecules that are alone, and for others that the network proposed or
not; logistic regressions on 48 simulated movies (`benchmarks/proposals.py`).  Those of the first
are from 24 movies and an earlier search, within 250 and 500 nm, which for lone ones is nearly the
same: fitted to the later movies, whose sparse ones had uneven backgrounds, they let go of isolated
molecules far from focus."""
NEAR_NM, CROWD_NM, MOST_NEAR = 200.0, 400.0, 8
"""lengths over which doubts of a fit fall with the distance of a neighbour, and neighbours that
count"""
FAR_AWAY_NM, MEAN_SIGNAL = 2000.0, 2.5
"""distance beyond which they do not; logarithm of a usual number of photons over sigma"""


@torch.no_grad()
def decide(
    psf: PSF,
    camera: Camera,
    adu: Tensor,
    proposals: EmitterSet,
    *,
    threshold: float = 0.5,
    false_discovery_rate: float = 0.05,
    region: tuple[slice, slice] | None = None,
    axial: bool | None = None,
) -> EmitterSet:
    """Molecules of a movie: those of a network that the likelihood confirms, and those it lacks.

    All proposals are fitted together (`fit_jointly`).  Weak ones give way to one molecule far from
    focus where it explains their light as well.  Those of little evidence go; matched filters of
    the PSF at several depths look for others in the light that is left, and molecules are looked
    for in the frames before and after those they are found in.  What is new or gone is fitted again
    with all around it, and so on for some rounds.  In the end each molecule has a probability by a
    logistic regression on its evidence (photons over their sigma, also in the frames beside its
    own), the network's opinion, the width of its spot, what the fit leaves unexplained, and how
    near the border is; one for molecules that are alone, and two for the others.  Listed are the
    most probable, as many as keep the expected share of false ones (the Bayesian false discovery
    rate; Newton et al., Biostatistics 5, 155, 2004) below a limit.  One that is further than 160 nm
    from any (or 320 nm along z), as those between two molecules of a crowd, is false.

    Args:
        psf: the point spread function.
        camera: its maps, if any, are as large as the frames.
        adu: (t, y, x) counts of successive frames.
        proposals: a network's molecules down to `LEAST_PROBABILITY`, with `background`,
            `probability`, `xyz_sigma` and `photons_sigma`; frames count from the first of `adu`.
        threshold: smallest probability of a molecule that is listed.
        false_discovery_rate: largest expected share of false ones among those listed.
        region: rows and columns in whose light molecules are looked for; None: all.
        axial: fit z; otherwise it is 0, with a sigma of NaN.  None: where the PSF tells depths
            apart, and the proposals state z.

    Returns:
        Molecules in the order of frames, polished (see `polish`), with the probability that the
        likelihood leaves them.

    Raises:
        ValueError: if the proposals lack a column, or lie in none of the frames.

    Example:
        >>> from decode import Camera, GaussianPSF
        >>> camera = Camera(baseline=100.0, e_per_adu=1.0, read_noise_e=1.0)
        >>> psf = GaussianPSF(130.0, pixel_size_nm=100.0)
        >>> at = torch.tensor([[1650.0, 1420.0, 0.0]])
        >>> light = 3000 * psf.integrate_pixels(at % 100 + 100 * (psf.patch_px // 2))
        >>> expected = torch.full((1, 32, 32), 20.0)
        >>> k = psf.patch_px // 2
        >>> expected[0, 14 - k : 15 + k, 16 - k : 17 + k] += light[0].detach()
        >>> adu = camera.sample(expected, torch.Generator().manual_seed(0))
        >>> found = decide(psf, camera, adu, EmitterSet.empty())
        >>> len(found), bool((found.xyz - at).norm() < 20)
        (1, True)
    """
    proposals = _checked(proposals, adu)
    stated = proposals.xyz_sigma
    if axial is None:
        flat = stated is not None and len(stated) > 0 and bool(stated[:, 2].isnan().all())
        axial = psf.z_range_nm is not None and not flat
    search = _Search(psf, camera, adu, axial=axial, region=region)
    found = search.run(proposals)
    found = search.linked(found)
    probability = found.probability(search.field_nm)
    listed = _listed(probability, threshold=threshold, rate=false_discovery_rate)
    found = replace(found, proposed=replace(found.proposed, probability=probability.float()))
    return found[listed].molecules().sorted_by_frame()


def _checked(proposals: EmitterSet, adu: Tensor) -> EmitterSet:
    """Proposals with all their columns; there may be none."""
    if not len(proposals):
        nothing = adu.new_zeros(0, dtype=torch.float32)
        return EmitterSet(
            frame=proposals.frame,
            xyz=proposals.xyz,
            photons=nothing,
            background=nothing,
            probability=nothing,
            xyz_sigma=proposals.xyz,
            photons_sigma=nothing,
            metadata=proposals.metadata,
        ).to(adu.device)
    needed = ("background", "probability", "xyz_sigma", "photons_sigma")
    missing = [name for name in needed if name not in proposals.columns()]
    if missing:
        raise ValueError(
            f"proposals need {', '.join(missing)}: pass molecules as a network finds them"
        )
    return proposals


def _listed(probability: Tensor, *, threshold: float, rate: float) -> Tensor:
    """(n,) bool: the most probable, of which an expected share of at most `rate` is false."""
    order = torch.argsort(probability, descending=True)
    ranks = torch.arange(1, len(order) + 1, device=order.device)
    false = (1 - probability[order]).cumsum(0) / ranks
    listed = torch.zeros_like(probability, dtype=torch.bool)
    listed[order] = (false <= rate) & (probability[order] >= threshold)
    return listed


@final
@dataclass(frozen=True, kw_only=True)
class _Hypotheses:
    """Molecules that may exist, row by row."""

    proposed: EmitterSet
    """as they were proposed: the prior of their fit"""
    fit: Fit
    added: Tensor
    """(n,) bool; not of the network"""
    image: Tensor
    """(n, side, side) photons of each, as they are drawn"""

    @classmethod
    def of(cls, proposed: EmitterSet, *, added: bool, side: int) -> _Hypotheses:
        """Proposals that nothing was fitted to so far, and which are not drawn."""
        assert proposed.background is not None
        n, device = len(proposed), proposed.xyz.device
        no = torch.zeros(n, dtype=torch.bool, device=device)
        fit = Fit(
            xyz=proposed.xyz,
            photons=proposed.photons,
            background=proposed.background,
            covariance=torch.full((n, 5, 5), torch.nan, device=device),
            deviance=torch.ones(n, device=device),
            converged=no,
            alone=no,
        )
        image = torch.zeros(n, side, side, device=device)
        return cls(proposed=proposed, fit=fit, added=no | added, image=image)

    def __len__(self) -> int:
        return len(self.added)

    def __getitem__(self, rows: Tensor) -> _Hypotheses:
        return _Hypotheses(
            proposed=self.proposed[rows],
            fit=self.fit[rows],
            added=self.added[rows],
            image=self.image[rows],
        )

    def __add__(self, others: _Hypotheses) -> _Hypotheses:
        if not len(others):
            return self
        if not len(self):
            return others
        return _Hypotheses(
            proposed=EmitterSet.cat([self.proposed, others.proposed]),
            fit=Fit.cat([self.fit, others.fit]),
            added=torch.cat([self.added, others.added]),
            image=torch.cat([self.image, others.image]),
        )

    def none(self) -> _Hypotheses:
        """No rows, with the same columns."""
        return self[torch.zeros_like(self.added)]

    @property
    def frame(self) -> Tensor:
        return self.proposed.frame

    @property
    def significance(self) -> Tensor:
        """(n,) photons over their standard deviation; 0 where nothing was fitted."""
        return (self.fit.photons / self.fit.photons_sigma).nan_to_num(0.0)

    @property
    def presence(self) -> Tensor:
        """(n,) photons over their standard deviation if the position were known.

        Two that overlap are less certain each than one of them is: either may hold the light of
        both.
        """
        covariance = self.fit.covariance[:, :4, :4].double()
        fitted = covariance.diagonal(dim1=1, dim2=2).isfinite()
        unit = torch.eye(4, dtype=covariance.dtype, device=covariance.device)
        both = fitted[:, :, None] & fitted[:, None]
        information = torch.linalg.inv_ex(covariance.where(both, unit))[0]
        known = information[:, 3, 3].clamp_min(0).sqrt() * self.fit.photons
        return known.masked_fill(~fitted[:, 3], 0.0).nan_to_num(0.0).to(self.fit.photons)

    @property
    def points(self) -> npt.NDArray[np.float64]:
        """(n, 3) x and y, and the frame as a third axis along which frames lie apart."""
        xy, frame = self.fit.xyz[:, :2].double().cpu(), self.frame.double().cpu()
        return np.column_stack([xy.numpy(), frame.numpy() * FAR_NM])

    @property
    def tree(self) -> cKDTree:
        return cKDTree(self.points, balanced_tree=False)

    def crowd(self, others: _Hypotheses, reach_nm: float) -> Tensor:
        """(n,) number of the others that are near in the same frame."""
        if not len(others) or not len(self):
            return torch.zeros_like(self.frame)
        count = others.tree.query_ball_point(self.points, reach_nm, return_length=True)
        return torch.from_numpy(np.asarray(count)).to(self.frame)

    def near(self, others: _Hypotheses, reach_nm: float) -> Tensor:
        """(n,) bool: whether one of the others is near in the same frame."""
        if not len(others) or not len(self):
            return torch.zeros_like(self.added)
        distance, _ = others.tree.query(self.points, distance_upper_bound=reach_nm)
        return torch.from_numpy(np.isfinite(distance)).to(self.added.device)

    def groups(self, reach_nm: float) -> Tensor:
        """(n,) number of the group of rows that are linked by distances up to so large."""
        n = len(self)
        pairs = self.tree.query_pairs(reach_nm, output_type="ndarray")
        links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
        _, group = connected_components(links.tocsr(), directed=False)
        return torch.from_numpy(group.astype(np.int64)).to(self.added.device)

    def nearest(self, others: _Hypotheses) -> Tensor:
        """(n,) row of the nearest of the others."""
        _, row = others.tree.query(self.points)
        return torch.from_numpy(row).to(self.added.device)

    def beside(self, step: int) -> Tensor:
        """(n,) the nearest row within `SAME_NM` in the frame so many frames later; else -1."""
        if not len(self):
            return self.frame
        points = self.points + np.array([0.0, 0.0, step * FAR_NM])
        _, row = self.tree.query(points, distance_upper_bound=SAME_NM)
        return torch.from_numpy(np.where(row == len(self), -1, row)).to(self.frame.device)

    def vouched(self) -> Tensor:
        """(n,) sum of squared significance of the same molecule in the frames before and after."""
        significance, z = self.significance, self.fit.xyz[:, 2]
        total = torch.zeros_like(significance)
        for step in (-1, 1):
            row = self.beside(step)
            same = (row >= 0) & ((z[row] - z).abs() < SAME_Z_NM)
            total += torch.where(same, significance[row].clamp(0, VOUCHED) ** 2, 0.0)
        return total

    def plausible(self, z_range_nm: tuple[float, float] | None, least: float) -> Tensor:
        """(n,) bool: whether there is at least so much evidence, with that of the frames beside."""
        significance = self.significance
        evidence = (significance.square() + self.vouched()).sqrt()
        enough = (evidence > least) | (self.presence > LEAST_PRESENCE)
        enough &= significance > LEAST_SIGNIFICANCE
        if z_range_nm is not None:
            low, high = z_range_nm
            enough &= (self.fit.xyz[:, 2] > low) & (self.fit.xyz[:, 2] < high)
        assert self.proposed.probability is not None
        enough |= ~self.added & (self.proposed.probability > CERTAIN)
        if len(self) < 2:
            return enough
        # two that share the light of one molecule are both weak: only the weaker one goes
        _, rows = self.tree.query(self.points, k=2, distance_upper_bound=SHARED_NM)
        other = torch.from_numpy(rows[:, 1]).to(enough.device)
        has = other < len(self)
        other = torch.where(has, other, 0)
        stronger = has & ~enough[other] & (significance > significance[other])
        return enough | stronger

    def single(self) -> Tensor:
        """(n,) bool: whether no other row of more evidence shows the same molecule."""
        evidence = self.significance.square() + self.vouched()
        single = torch.ones_like(self.added)
        if not len(self):
            return single
        pairs = torch.from_numpy(self.tree.query_pairs(DOUBLE_NM, output_type="ndarray"))
        first, second = pairs.to(self.frame).unbind(1)
        z = self.fit.xyz[:, 2]
        same = (z[first] - z[second]).abs() < DOUBLE_Z_NM
        weaker = torch.where(evidence[first] < evidence[second], first, second)
        single[weaker[same]] = False
        return single

    def probability(self, field_nm: tuple[float, float]) -> Tensor:
        """(n,) float64: of each to be true, in a field of this width and height."""
        features = self.features(field_nm)
        lone, network, search = (
            features @ features.new_tensor(w) for w in (OF_LONE, OF_NETWORK, OF_SEARCH)
        )
        crowded = torch.where(self.added, search, network)
        return torch.sigmoid(torch.where(self.lone(), lone, crowded))

    def lone(self) -> Tensor:
        """(n,) bool: whether no row of the frame is near that may have its light."""
        n = len(self)
        _, rows = self.tree.query(
            self.points, k=range(1, LONE_ROWS + 1), distance_upper_bound=LONE_NM
        )
        rows = torch.from_numpy(rows).to(self.added.device)
        is_other = (rows < n) & (rows != torch.arange(n, device=rows.device)[:, None])
        significance = self.significance
        strength = significance[torch.where(is_other, rows, 0)].masked_fill(~is_other, 0.0)
        return (strength < FAINT * significance[:, None]).all(1)

    def features(self, field_nm: tuple[float, float]) -> Tensor:
        """(n, 13) float64: what tells true molecules from false ones.

        1; logarithms of photons over sigma, of the deviance, of that of the frames beside and of
        the width of the spot; photons over sigma, and the same over the deviance; the network's
        logit; how near the border is; by how much photons over sigma fall short of `SURE`, and the
        same times frames beside, width and logit.
        """
        assert self.proposed.probability is not None
        significance = self.significance.clamp(0.3, 100)
        sigma = self.fit.xyz_sigma[:, :2].amax(1).nan_to_num(1e3).clamp(1.0, 300.0)
        deviance = self.fit.deviance.nan_to_num(8.0).clamp(0.9, 8.0)
        bright = significance.clamp_max(20.0)
        wide = (sigma * significance / FOCUSED_NM).clamp(1.0, 8.0).log()
        beside = self.vouched().log1p()
        logit = torch.logit(self.proposed.probability.clamp(0.02, 0.995))
        xy, size = self.fit.xyz[:, :2], self.fit.xyz.new_tensor(field_nm)
        border = (-torch.minimum(xy, size - xy).amin(1).clamp_min(0.0) / BORDER_NM).exp()
        doubt = (1 - significance / SURE).clamp_min(0.0)
        columns = (
            torch.ones_like(significance),
            significance.log(),
            deviance.log(),
            beside,
            wide,
            bright,
            bright / deviance,
            logit,
            border,
            doubt,
            doubt * beside,
            doubt * wide,
            doubt * logit,
        )
        return torch.stack([column.double() for column in columns], 1)

    def molecules(self) -> EmitterSet:
        """Their table: the fit, and the network where the likelihood is flat.

        The network's weight is `NETWORK_SHARE` times the variance of the fit over its own, all
        where the fit knows nothing, as along z beyond the measured depths of the PSF.
        """
        proposed, fit = self.proposed, self.fit
        track = tracks_of(fit.xyz)
        network = Normal.of(proposed, like=proposed.xyz).with_one_position(track)
        own, own_variance = network
        mean = torch.cat([fit.xyz, fit.photons[:, None]], 1).to(own)
        variance = fit.covariance.diagonal(dim1=1, dim2=2)[:, :4].clamp_min(0).to(own)
        known = variance.isfinite() & mean.isfinite()
        share = (NETWORK_SHARE * variance / own_variance).clamp_max(1).masked_fill(~known, 1.0)
        apart = (mean - own).masked_fill(~known, 0.0)
        mixed = (own + (1 - share) * apart).where(known, own)
        spread = share * own_variance + (1 - share) * variance.where(known, own_variance)
        sigma = (spread + share * (1 - share) * apart.square()).sqrt()
        # to the last digit, as rows of one position are one measurement to whoever reads them
        mixed[:, :3], sigma[:, :3] = means_of(track, mixed[:, :3]), means_of(track, sigma[:, :3])
        # the errors of the network along the axes are taken as independent
        of_fit = (1 - share).sqrt() / sigma
        covariance = torch.where(
            known[:, :, None] & known[:, None], fit.covariance[:, :4, :4].to(own), 0.0
        )
        correlation = correlations(covariance * of_fit[:, :, None] * of_fit[:, None])
        certainty = Certainty.of(self.doubts(), track)
        half_68, half_95 = (
            sigma * factor.to(sigma) for factor in (certainty.half_68, certainty.half_95)
        )
        return replace(
            proposed,
            xyz=mixed[:, :3],
            photons=mixed[:, 3] * certainty.light.to(own),
            background=fit.background.to(own),
            xyz_sigma=half_68[:, :3],
            photons_sigma=half_68[:, 3],
            xyz_95=half_95[:, :3],
            photons_95=half_95[:, 3],
            correlation=correlation,
            goodness=fit.deviance.to(own),
            polished=fit.converged,
        )

    def doubts(self) -> Tensor:
        """(n, k) float64: what makes a fit less certain than it states, as `certainty.DOUBTS`."""
        stated, fit = self.proposed.xyz_sigma, self.fit
        assert stated is not None
        distance, row = self._neighbours(MOST_NEAR)
        near = (-distance[:, 0] / NEAR_NM).exp()
        crowd = (-distance / CROWD_NM).exp().sum(1).log1p()
        photons = fit.photons.clamp_min(1.0).double()
        neighbour = (photons[row[:, 0]] / photons).clamp(0.1, 10).log()
        neighbour = neighbour.masked_fill(distance[:, 0].isinf(), 0.0)
        middle = len(self) // 2
        usual = photons.sort().values[middle : middle + 1]
        brightness = (photons / usual).clamp(0.1, 10).log()
        lateral = fit.xyz_sigma[:, :2].mean(1).double()
        ratio = (stated[:, :2].mean(1) / lateral).nan_to_num(1.0).clamp(0.3, 20).log()
        ratio = ratio.masked_fill(self.added, 0.0)
        deviance = fit.deviance.double().nan_to_num(6.0)
        significance = self.significance.double().clamp(1, 100)
        signal = significance.log() - MEAN_SIGNAL
        width = (lateral * significance / FOCUSED_NM).nan_to_num(1.0).clamp(0.5, 10).log()
        columns = (
            torch.ones_like(near),
            near,
            crowd,
            near * self.added,
            near * ratio,
            near * neighbour,
            deviance.clamp(0.8, 6).log(),
            (deviance.clamp(1, 6) / NOISE_DEVIANCE).clamp_min(1).log(),
            width,
            signal,
            crowd * signal,
            brightness,
            crowd * brightness,
        )
        return torch.stack(columns, 1)

    def _distance(self) -> Tensor:
        """(n,) nm to the nearest other row of the frame; infinite without one."""
        return self._neighbours(1)[0][:, 0].to(self.significance)

    def _neighbours(self, most: int) -> tuple[Tensor, Tensor]:
        """(n, most) nm to the nearest others within `FAR_AWAY_NM`, infinite where there are fewer,
        and their rows."""
        n, device = len(self), self.added.device
        if n < 2:
            none = torch.full((n, most), torch.inf, dtype=torch.float64, device=device)
            return none, torch.zeros_like(none, dtype=torch.int64)
        neighbours = list(range(2, most + 2))
        distance, row = self.tree.query(self.points, neighbours, distance_upper_bound=FAR_AWAY_NM)
        row = np.where(np.isfinite(distance), row, 0)
        return torch.from_numpy(distance).to(device), torch.from_numpy(row).to(device)


@final
class _Search:
    """Frames, and the light of the molecules that are taken off them."""

    def __init__(
        self,
        psf: PSF,
        camera: Camera,
        adu: Tensor,
        *,
        axial: bool,
        region: tuple[slice, slice] | None = None,
    ) -> None:
        self._psf, self._camera, self._adu = psf, camera.to(adu.device), adu
        self.axial = axial
        self._z_range_nm = psf.z_range_nm if axial else None
        self._photons = self._camera.without_bad(self._camera.to_photons(adu)).float()
        self._noise = self._camera.noise.map(lambda value: value.to(self._photons))
        self._good = torch.ones_like(self._photons[0])
        if self._camera.bad is not None:
            self._good = self._good.masked_fill(self._camera.bad, 0)
        self._searched = torch.zeros_like(self._good, dtype=torch.bool)
        self._searched[region or (slice(None), slice(None))] = True
        side = windows_for(psf, camera, axial=self.axial, most=[DRAWN_INFORMATION])[0]
        self._drawn = psf.with_patch(side)
        # with a margin for images that hang over the border
        self._canvas = pad(torch.zeros_like(self._photons), (side,) * 4)
        self._light = self._canvas[:, side:-side, side:-side]
        self._background: Tensor | None = None
        self._level = self._light
        """(t, y, x) photons per pixel of the background"""
        self._depths, self._filters = _matched_filters(psf, self._z_range_nm, adu.device)
        area = 1 / self._filters.square().sum((1, 2))
        self._wide = area > WIDE * area.min()
        self._rejected = self._new(_checked(EmitterSet.empty(), adu))

    def run(self, proposals: EmitterSet) -> _Hypotheses:
        """All that stays of the proposals, and what is found besides."""
        found = self._fitted(self._new(proposals, added=False), None)
        self._draw(found, 1)
        for rounds_left in reversed(range(ROUNDS + 2)):
            if rounds_left > ROUNDS - CHALLENGES + 1:
                found = self._challenged(found)
            stay = found.plausible(self._z_range_nm, LEAST_EVIDENCE)
            gone, found = found[~stay], found[stay]
            self._draw(gone, -1)
            self._rejected += self._new(gone.proposed[gone.added])
            new = self._lacking(found) if rounds_left > 1 else self._rejected.none()
            if not len(gone) and not len(new):
                break
            whole = found + new
            moving = whole.near(gone + new, REACH_NM)
            self._draw(found[moving[: len(found)]], -1)
            found = self._fitted(whole, moving)
            self._draw(found[moving], 1)
        return found

    def _challenged(self, found: _Hypotheses) -> _Hypotheses:
        """The molecules, or fewer of them where these explain the frames as well.

        A molecule far from focus is long, and a network may propose several where it is, which
        share its light.  All weak ones near one another make room for the peaks of the light that
        is left without them, in the groups in which the deviance rises by less than `PRICE` for
        each that is saved.
        """
        weak = found.significance < WEAK
        weak |= (found.fit.deviance > UNEXPLAINED) & (found.significance < STRONG)
        # in a crowd, the light that is left may be of several molecules as well
        weak &= found.crowd(found, SPARSE_NM) <= FEW
        if not bool(weak.any() and self._wide.any()):
            return found
        before = self._canvas.clone()
        self._draw(found[weak], -1)
        peaks = self._new(self._peaks(self._left(), self._wide))
        peaks = self._distinct(peaks[peaks.near(found[weak], CLUSTER_NM)], found.none(), CLUSTER_NM)
        self._canvas.copy_(before)
        weak &= found.near(peaks, CLUSTER_NM)
        if not bool(weak.any()):
            return found
        old, kept = found[weak], found[~weak]
        self._draw(old, -1)
        rivals = kept + peaks
        members = old + peaks
        moving = rivals.near(members, REACH_NM)
        self._draw(kept[moving[: len(kept)]], -1)
        rivals = self._fitted(rivals, moving)
        self._draw(rivals[moving], 1)
        group = members.groups(CLUSTER_NM)
        lost = self._deviance(members, group)
        self._canvas.copy_(before)
        lost -= self._deviance(members, group)
        count = torch.bincount(group[len(old) :], minlength=len(lost))
        count -= torch.bincount(group[: len(old)], minlength=len(lost))
        better = lost + PRICE * count < 0
        # each is as it is in the better of both, by the group that is nearest
        of_kept = better[group[kept.nearest(members)]]
        of_old, of_peaks = better[group].split([len(old), len(peaks)])
        chosen = rivals[torch.cat([of_kept, of_peaks])] + kept[~of_kept] + old[~of_old]
        self._canvas.zero_()
        self._draw(chosen, 1)
        return chosen

    def _deviance(self, members: _Hypotheses, group: Tensor) -> Tensor:
        """(groups,) deviance in the pixels around the members of each."""
        light = self._light
        reach = torch.arange(-AROUND_PX, AROUND_PX + 1, device=light.device)
        place = (members.fit.xyz[:, :2] / self._psf.pixel_size_nm).floor().long()
        x, y = place[:, 0, None, None] + reach, place[:, 1, None, None] + reach[:, None]
        height, width = light.shape[1:]
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        pixel = (members.frame[:, None, None] * height + y) * width + x
        # a pixel counts once in a group
        key = (group[:, None, None] * light.numel() + pixel)[inside].unique()
        of, pixel = key // light.numel(), key % light.numel()
        at = pixel % (height * width)

        noise = self._noise.map(lambda value: value.expand(height, width).reshape(-1)[at])
        expected = (light + self._level).view(-1)[pixel]
        deviance = scaled_deviance(self._photons.view(-1)[pixel], expected, noise)
        deviance *= self._good.view(-1)[at]
        return deviance.new_zeros(int(group.max()) + 1).index_add_(0, of, deviance)

    @property
    def field_nm(self) -> tuple[float, float]:
        """Width and height of the frames."""
        height, width = self._photons.shape[1:]
        return width * self._psf.pixel_size_nm, height * self._psf.pixel_size_nm

    def linked(self, found: _Hypotheses) -> _Hypotheses:
        """Those that stay where the molecules of successive frames share positions."""
        for stage in LINKED:
            found = self._fitted(found, None, stages=[stage], link=True)
            found = found[found.plausible(self._z_range_nm, ENOUGH_EVIDENCE) & found.single()]
        return found

    def _fitted(
        self,
        found: _Hypotheses,
        moving: Tensor | None,
        *,
        stages: Sequence[Stage] = STAGES[:1],
        link: bool = False,
    ) -> _Hypotheses:
        fit = fit_jointly(
            self._psf,
            self._camera,
            self._adu,
            found.proposed,
            axial=self.axial,
            parameters=self._psf.parameters_at(found.fit.xyz),
            before=found.fit,
            moving=moving,
            stages=stages,
            link=link,
            background=self._background,
        )
        # a fit that ran away is where it was, without any significance
        finite = torch.isfinite(fit.xyz).all(1) & torch.isfinite(fit.photons + fit.background)
        lost = replace(found.fit, covariance=torch.full_like(fit.covariance, torch.nan))
        fit = fit.where(finite, lost)
        if link:  # nothing is drawn any more
            return replace(found, fit=fit)
        image = found.image.clone()
        rows = torch.arange(len(found)).to(image.device) if moving is None else moving
        image[rows] = self._image_of(fit[rows])
        return replace(found, fit=fit, image=image)

    def _corner(self, xyz: Tensor) -> Tensor:
        """(n, 2) first column and row of the images of molecules."""
        return (xyz[:, :2] / self._psf.pixel_size_nm).floor().long() - self._drawn.patch_px // 2

    def _image_of(self, fit: Fit) -> Tensor:
        """(n, side, side) photons of molecules, by their fits."""
        shift = pad(self._corner(fit.xyz) * self._psf.pixel_size_nm, (0, 1))
        place, parameters = (fit.xyz - shift).to(self._canvas), self._psf.parameters_at(fit.xyz)
        parts = range(0, len(place), DRAWN_AT_ONCE)
        images = [
            self._drawn.integrate_pixels(
                place[i : i + DRAWN_AT_ONCE],
                None if parameters is None else parameters[i : i + DRAWN_AT_ONCE],
            )
            for i in parts
        ]
        image = torch.cat(images) if images else place.new_zeros(0, *[self._drawn.patch_px] * 2)
        return image * fit.photons.to(image)[:, None, None]

    def _draw(self, found: _Hypotheses, sign: int) -> None:
        """Add the light of molecules, or take it off."""
        side, (_, height, width) = self._drawn.patch_px, self._light.shape
        corner = self._corner(found.fit.xyz)
        # those out of sight are drawn in the margin
        x, y = corner[:, 0].clamp(-side, width) + side, corner[:, 1].clamp(-side, height) + side
        stride = width + 2 * side
        reach = torch.arange(side, device=x.device)
        first = (found.frame * (height + 2 * side) + y) * stride + x
        pixel = first[:, None, None] + reach[:, None] * stride + reach
        self._canvas.view(-1).index_add_(0, pixel.view(-1), found.image.view(-1), alpha=sign)

    def _new(self, proposals: EmitterSet, *, added: bool = True) -> _Hypotheses:
        return _Hypotheses.of(proposals, added=added, side=self._drawn.patch_px)

    def _lacking(self, found: _Hypotheses) -> _Hypotheses:
        """What the light that is left, and the frames before and after, propose."""
        left = self._left()
        beside = [self._beside(found, left, step) for step in (-1, 1)]
        continued = self._new(EmitterSet.cat(beside))
        continued = self._distinct(continued, found + self._rejected, APART_NM)
        peaks = self._new(self._peaks(left))
        peaks = self._distinct(peaks, self._rejected, APART_NM)
        return continued + self._distinct(peaks, continued, PEAK_APART_NM)

    def _left(self) -> _Left:
        """Matched filters of the light that is left: the most likely depth in each pixel."""
        rest, bright = self._photons - self._light, self._light.clamp_min(0)
        level = rest.median().clamp_min(DARKEST)
        weight = self._good / self._noise.variance(bright + level)
        background = background_of(rest, weight, least_blur_px=BLUR_PX).clamp_min(DARKEST)
        # where molecules blink often, their light is in the mean of the frames as well
        dark = (rest - background).square() * weight < DARK_SIGMAS**2
        background = background_of(rest, weight * dark, least_blur_px=BLUR_PX).clamp_min(DARKEST)
        self._background = background
        # lamps flicker and bleach: each frame has a level of its own
        above, below = (weight * rest).sum((1, 2)), (weight * background).sum((1, 2))
        level = (above / below.clamp_min(1e-12)).clamp_min(0)[:, None, None] * background
        self._level = level
        weight = self._good / self._noise.variance(bright + level)
        residual = weight * (rest - level)
        parts = zip(residual.split(FRAMES_AT_ONCE), weight.split(FRAMES_AT_ONCE), strict=True)
        matched = [_matched(self._filters, *part) for part in parts]
        statistic, photons, depth = (torch.cat(maps) for maps in zip(*matched, strict=True))
        return _Left(statistic=statistic, photons=photons, depth=depth, background=background)

    def _peaks(self, left: _Left, of: Tensor | None = None) -> EmitterSet:
        """Peaks of the matched filters, the highest first; only of (depths,) some of them."""
        statistic = left.statistic
        peak = (statistic == max_pool2d(statistic, 5, 1, 2)) & (statistic > LEAST_STATISTIC)
        if of is not None:
            peak &= of[left.depth]
        place = torch.nonzero(peak & self._searched)
        highest = statistic[place.unbind(1)].argsort(descending=True)
        frame, y, x = place[highest].unbind(1)
        place = torch.stack([x + 0.5, y + 0.5], 1) * self._psf.pixel_size_nm
        depth = self._depths[left.depth[frame, y, x]]
        photons = left.photons[frame, y, x]
        sigma = photons.new_tensor(PEAK_SIGMA_NM).repeat(len(frame), 1)
        if not self.axial:
            sigma[:, 2] = torch.nan
        return _proposal(
            frame=frame,
            xyz=torch.cat([place, depth[:, None]], 1),
            photons=photons,
            background=left.background[y, x],
            xyz_sigma=sigma,
            photons_sigma=photons,
        )

    def _beside(self, found: _Hypotheses, left: _Left, step: int) -> EmitterSet:
        """Molecules in the frames beside their own, where they are not known to be on."""
        n_frames, height, width = self._light.shape
        frame = found.frame + step
        x, y = (found.fit.xyz[:, :2] / self._psf.pixel_size_nm).floor().long().unbind(1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        inside &= (frame >= 0) & (frame < n_frames)
        sure = (found.significance > ALIGHT) & (found.fit.xyz_sigma[:, :2].amax(1) < 50.0)
        rows = torch.nonzero(inside & sure & (found.beside(step) < 0))[:, 0]
        rows = rows[left.statistic[frame[rows], y[rows], x[rows]] > 0]
        frame, y, x = frame[rows], y[rows], x[rows]
        photons = left.photons[frame, y, x].clamp_min(100.0)
        return _proposal(
            frame=frame,
            xyz=found.fit.xyz[rows].to(photons),
            photons=photons,
            background=left.background[y, x],
            xyz_sigma=found.fit.xyz_sigma[rows].clamp_max(200.0).to(photons),
            photons_sigma=2 * photons,
        )

    def _distinct(self, new: _Hypotheses, known: _Hypotheses, reach_nm: float) -> _Hypotheses:
        """The new ones that are near none of the known ones, nor one another."""
        new = new[~new.near(known, reach_nm)]
        if not len(new):
            return new
        kept = np.ones(len(new), bool)
        for first, second in sorted(new.tree.query_pairs(reach_nm)):
            kept[second] &= not kept[first]
        return new[torch.from_numpy(kept).to(new.added.device)]


@final
@dataclass(frozen=True, kw_only=True)
class _Left:
    """Matched filters of the light that molecules leave, (t, y, x) each."""

    statistic: Tensor
    """twice the gain in log-likelihood by a molecule in the pixel's middle"""
    photons: Tensor
    """of this molecule"""
    depth: Tensor
    """number of its depth"""
    background: Tensor
    """(y, x) photons per pixel"""


def _proposal(
    *,
    frame: Tensor,
    xyz: Tensor,
    photons: Tensor,
    background: Tensor,
    xyz_sigma: Tensor,
    photons_sigma: Tensor,
) -> EmitterSet:
    return EmitterSet(
        frame=frame,
        xyz=xyz,
        photons=photons,
        background=background,
        probability=torch.zeros_like(photons),
        xyz_sigma=xyz_sigma,
        photons_sigma=photons_sigma,
    )


def _matched(filters: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Statistic, photons and number of the filter that fits best, (t, y, x) each.

    Args:
        filters: (n, side, side).
        residual: (t, y, x) photons that are left, times their weight.
        weight: (t, y, x) inverse variances.
    """
    kernels = filters[:, None]
    score = conv2d(residual[:, None], kernels, padding="same").clamp_min_(0)
    information = conv2d(weight[:, None], kernels.square(), padding="same").clamp_min_(1e-12)
    amplitude = score / information
    statistic, which = score.mul_(amplitude).max(1)
    return statistic, amplitude.gather(1, which[:, None])[:, 0], which


def _matched_filters(
    psf: PSF, z_range_nm: tuple[float, float] | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(n,) depths in nm, and (n, side, side) images of the PSF there, blind to even light."""
    low, high = z_range_nm or (0.0, 0.0)
    n = 1 if z_range_nm is None else DEPTHS
    edges = torch.linspace(low, high, n + 1)
    depths = (edges[1:] + edges[:-1]) / 2
    middle = torch.full((n, 2), (FILTER_PX // 2 + 0.5) * psf.pixel_size_nm)
    places = torch.cat([middle, depths[:, None]], 1).to(device)
    parameters = psf.parameters_at(places)
    images = psf.with_patch(FILTER_PX).integrate_pixels(places, parameters).float()
    return depths.to(device), images - images.mean((1, 2), keepdim=True)

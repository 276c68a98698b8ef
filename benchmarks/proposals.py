"""Which molecules are true, and how certain their fits are: the regressions of
`decode.likelihood.decide`, and how well its false discovery rate and its sigmas hold.

    python benchmarks/proposals.py [--recipe configs/astigmatic-3d.yaml] [--model astigmatic-3d]
                                   [--movies 24] [--frames 48] [--seed 11]

Movies are drawn from the recipe: PSF, camera, density, flux and background of each are its own.
Every second one is sparse, and its molecules lie over the whole range of depths.  One half of them
is fitted, the other says what share of the molecules that are listed is false.  A molecule is true
if it is paired by the rules of the SMLM Challenge 2016, but no further than 160 nm from its own,
and 320 nm along z: within 250 and 500 nm, which these rules allow, a crowd has somebody everywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from decode.config import load_config
from decode.emitters import EmitterSet
from decode.forward import ForwardModel
from decode.likelihood.certainty import DOUBTS, NORMAL_95, Certainty
from decode.likelihood.polish import tracks_of
from decode.likelihood.proposals import LEAST_PROBABILITY, _Hypotheses, _listed, _Search
from decode.metrics import match
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.network.recalibration import log_ratio, quantiles
from decode.optics.camera import Camera

SIDE_PX = 48
FIELD_NM = (100.0 * SIDE_PX, 100.0 * SIDE_PX)
KINDS = (
    # what the network and the frames beside think of a molecule that is alone counts in doubt alone
    ("lone", lambda m: m.lone(), [0, 1, 2, 5, 6, 8, 9, 10, 11, 12]),
    ("network", lambda m: ~m.lone() & ~m.added, list(range(13))),
    # nobody has an opinion on those that were added
    ("search", lambda m: ~m.lone() & m.added, [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]),
)
"""molecules of a regression of their own, and the features that it takes"""
TRUE_NM, TRUE_Z_NM = 160.0, 320.0
"""largest error of a molecule that is true"""
ALONE, RATE = 0.5, 0.05
"""weight of the crowd at which a molecule counts half; false discovery rate of a table"""
BORDER_NM, LITTLE = 450.0, 0.03
"""within which molecules lack light; nearness of a neighbour of those that count as isolated"""
QUANTITIES = ("x", "y", "z", "photons")
MOST = 3.0
"""largest ratio of true and fitted photons that counts"""


def searched(
    model: Localizer, forward: ForwardModel, n_frames: int, rng: torch.Generator
) -> tuple[_Hypotheses, EmitterSet]:
    """Molecules of one movie before the decision, and the true ones."""
    movie = forward.sample(1, n_frames, (SIDE_PX, SIDE_PX), rng)
    context = model.context_map(movie.conditioning.values)
    posterior = model(movie.frames, movie.camera, context, movie.pixel_size_nm)
    posterior = replace(posterior, recalibration=None)  # as `localize` proposes to `decide`
    proposals = movie.conditioning.placed(posterior.point_estimate(LEAST_PROBABILITY))
    camera, axial = _of_one(movie.camera), model.network.axial
    search = _Search(movie.psfs[0], camera, movie.frames[0], axial=axial)
    found = search.linked(search.run(proposals))
    # a view would keep the images of all molecules in memory
    return replace(found, image=found.image[:, :1, :1].clone()), movie.emitters


def true_of(found: _Hypotheses, truth: EmitterSet) -> Tensor:
    """(n,) bool: which are true molecules."""
    table = found.molecules()
    own, row = match(truth, table).unbind(1)
    error = table.xyz[row] - truth.xyz[own]
    near = (error[:, :2].norm(dim=1) < TRUE_NM) & (error[:, 2].abs() < TRUE_Z_NM)
    true = torch.zeros(len(found), dtype=torch.bool)
    true[row[near]] = True
    return true


def _of_one(camera: Camera) -> Camera:
    """The camera of a movie that was drawn alone: maps (y, x), or numbers."""
    values = {f.name: getattr(camera, f.name) for f in fields(camera)}
    maps = {name: v for name, v in values.items() if isinstance(v, Tensor)}
    return replace(
        camera, **{n: v.flatten()[0] if v.numel() == 1 else v[0, 0] for n, v in maps.items()}
    )


def regression(features: Tensor, true: Tensor) -> Tensor:
    """Weights of the features: a logistic regression with a weak ridge."""
    scale = features.std(0)
    scale[0] = 1.0
    x, y = (features / scale).numpy(), true.numpy()

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        logit = x @ weight
        ridge = np.append(0.0, weight[1:])
        value = (np.logaddexp(0, logit) - y * logit).sum() + ridge @ ridge / 2
        return value, x.T @ (expit(logit) - y) + ridge

    found = minimize(loss, np.zeros(x.shape[1]), jac=True, options={"maxiter": 2000})
    return torch.from_numpy(found.x) / scale


class Fits(NamedTuple):
    """Listed molecules that are true."""

    doubts: Tensor
    """(n, k)"""
    track: Tensor
    """(n,)"""
    error: Tensor
    """(n, 4) of x, y, z and photons"""
    sigma: Tensor
    """(n, 4) of the fit"""
    photons: Tensor
    """(n,)"""


def fits_of(found: _Hypotheses, truth: EmitterSet) -> Fits:
    """The molecules of a table, as their fits alone state them."""
    listed = found[_listed(found.probability(FIELD_NM), threshold=0.5, rate=RATE)]
    table, doubts, track = listed.molecules(), listed.doubts(), tracks_of(listed.fit.xyz)
    assert table.xyz_sigma is not None
    assert table.photons_sigma is not None
    stated = Certainty.of(doubts, track)
    sigma = torch.cat([table.xyz_sigma, table.photons_sigma[:, None]], 1) / stated.half_68
    photons = table.photons / stated.light
    pairs = match(truth, table)
    inner = ((table.xyz[:, :2] > BORDER_NM) & (table.xyz[:, :2] < FIELD_NM[0] - BORDER_NM)).all(1)
    own, row = pairs[inner[pairs[:, 1]]].unbind(1)
    error = torch.cat(
        [table.xyz[row] - truth.xyz[own], (photons[row] - truth.photons[own])[:, None]], 1
    )
    return Fits(doubts[row], track[row], error.double(), sigma[row].double(), photons[row].double())


def certainty(fits: Sequence[Fits]) -> Tensor:
    """(doubts, 7) `decode.likelihood.certainty.COEFFICIENTS`."""
    doubts, _, error, sigma, photons = (torch.cat(column) for column in zip(*fits, strict=True))
    # crowded movies hold most of the molecules, and are not what most users record
    weight = 1 / (ALONE + doubts[:, DOUBTS.index("crowd")].expm1())
    # of a sum, a few fits that ran away would be most
    true = (photons - error[:, 3]).clamp(photons / MOST, photons * MOST)
    light = log_ratio(doubts, photons, true, weight / photons)
    error = error.clone()
    error[:, 3] += photons * torch.expm1(doubts @ light)
    twice = doubts.repeat(2, 1), error[:, :2].mT.flatten(), sigma[:, :2].mT.flatten()
    parts = [
        (*twice, weight.repeat(2)),
        (doubts, error[:, 2], sigma[:, 2], weight),
        (doubts, error[:, 3], sigma[:, 3], weight),
    ]
    halves = [
        quantiles(x, e, normal * s, w, level)
        for level, normal in ((0.6827, 1.0), (0.95, NORMAL_95))
        for x, e, s, w in parts
    ]
    return torch.stack([light, *halves], 1)


def shown(fits: Sequence[Fits]) -> None:
    """Print the shares of errors in the intervals of 68 and 95 %."""
    groups: dict[str, list[Tensor]] = {"isolated": [], "crowded": []}
    for fit in fits:
        stated = Certainty.of(fit.doubts, fit.track)
        error = fit.error.clone()
        error[:, 3] += fit.photons * (stated.light - 1)
        within = torch.stack(
            [error.abs() < fit.sigma * half for half in (stated.half_68, stated.half_95)], 2
        )
        alone = fit.doubts[:, DOUBTS.index("near")] < LITTLE
        groups["isolated"].append(within[alone])
        groups["crowded"].append(within[~alone])
    for name, parts in groups.items():
        shares = torch.cat(parts).double().mean(0).tolist()
        print(name, *(f"{q} {a:.3f}/{b:.3f}" for q, (a, b) in zip(QUANTITIES, shares, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="configs/astigmatic-3d.yaml")
    parser.add_argument("--model", default="astigmatic-3d")
    parser.add_argument("--movies", type=int, default=24)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    forward = load_config(arguments.recipe).forward_model()
    # recipes draw short movies; in long ones the background changes as much in all
    scene = replace(forward.scene, background_drift=(-0.004, 0.001), flicker=0.1)
    sparse = replace(
        scene,
        density_per_um2=(0.02, 0.4),
        z_share=(1.0, 1.0),
        filaments=0.0,
        background_photons=(5.0, 150.0),
        flux_variation=(0.3, 0.8),
    )
    model = load_model(arguments.model)
    rng = torch.Generator().manual_seed(arguments.seed)
    with torch.no_grad():
        movies = [
            searched(model, replace(forward, scene=kind), arguments.frames, rng)
            for _ in range(arguments.movies // 2)
            for kind in (scene, sparse)
        ]
    fitted, held_out = ([m for i, m in enumerate(movies) if i // 2 % 2 == k] for k in (0, 1))
    for name, rows_of, columns in KINDS:
        x = torch.cat([m.features(FIELD_NM)[rows_of(m)] for m, _ in fitted])
        y = torch.cat([true_of(m, truth)[rows_of(m)] for m, truth in fitted])
        weight = x.new_zeros(x.shape[1])
        weight[columns] = regression(x[:, columns], y.double())
        print(name, len(x), "rows", [round(w, 3) for w in weight.tolist()])
    for rate in (0.1, 0.05, 0.02, 0.01):
        true = torch.cat(
            [
                true_of(m, truth)[_listed(m.probability(FIELD_NM), threshold=0.5, rate=rate)]
                for m, truth in held_out
            ]
        )
        print(f"rate {rate}: of {len(true)} listed {1 - true.double().mean():.3f} are false")
    shown([fits_of(*movie) for movie in held_out])
    weights = certainty([fits_of(*movie) for movie in movies])
    for name, row in zip(DOUBTS, weights.tolist(), strict=True):
        print(f"{name:34}", [round(w, 3) for w in row])


if __name__ == "__main__":
    main()

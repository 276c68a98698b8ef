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
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from decode.config import load_config
from decode.forward import ForwardModel
from decode.likelihood.proposals import LEAST_PROBABILITY, _Hypotheses, _listed, _Search
from decode.metrics import match
from decode.models import load_model
from decode.network.localizer import Localizer
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
ALONE = 0.03
"""doubt of a neighbour of molecules that count as isolated"""


def searched(
    model: Localizer, forward: ForwardModel, n_frames: int, rng: torch.Generator
) -> tuple[_Hypotheses, Tensor, Tensor]:
    """Molecules of one movie before the decision, whether each is true, and its (n, 3) errors in
    nm, which are NaN where it is not paired."""
    movie = forward.sample(1, n_frames, (SIDE_PX, SIDE_PX), rng)
    context = model.context_map(movie.conditioning.values)
    posterior = model(movie.frames, movie.camera, context, movie.pixel_size_nm)
    posterior = replace(posterior, recalibration=None)  # as `localize` proposes to `decide`
    proposals = movie.conditioning.placed(posterior.point_estimate(LEAST_PROBABILITY))
    camera, axial = _of_one(movie.camera), model.network.axial
    search = _Search(movie.psfs[0], camera, movie.frames[0], axial=axial)
    found = search.linked(search.run(proposals))
    table = found.molecules()
    truth, row = match(movie.emitters, table).unbind(1)
    error = torch.full_like(table.xyz, torch.nan)
    error[row] = table.xyz[row] - movie.emitters.xyz[truth]
    true = (error[:, :2].norm(dim=1) < TRUE_NM) & ~(error[:, 2].abs() > TRUE_Z_NM)
    return found, true, error


def _of_one(camera: Camera) -> Camera:
    """The camera of a movie that was drawn alone: maps (y, x), or numbers."""
    names = ("baseline", "e_per_adu", "read_noise_e", "qe", "em_gain", "spurious_e")
    values = {name: getattr(camera, name) for name in names}
    maps = {name: v for name, v in values.items() if isinstance(v, Tensor)}
    return replace(
        camera, **{n: v[0, 0] if v.ndim > 2 else v.flatten()[0] for n, v in maps.items()}
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


def variance(doubts: Tensor, square: Tensor) -> Tensor:
    """Weights of the doubts in the logarithm of the factor of a variance: maximum likelihood of
    normal errors (n,), squared and over the stated variance.  Wild ones count as 4 sigma."""
    weight = torch.zeros(doubts.shape[1], dtype=doubts.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_factor = doubts @ weight
        value = (log_factor + (square / log_factor.exp()).clamp_max(16)).mean()
        value = value + 1e-3 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)
    return weight.detach()


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
        x = torch.cat([m.features(FIELD_NM)[rows_of(m)] for m, _, _ in fitted])
        y = torch.cat([true[rows_of(m)] for m, true, _ in fitted])
        weight = x.new_zeros(x.shape[1])
        weight[columns] = regression(x[:, columns], y.double())
        print(name, len(x), "rows", [round(w, 3) for w in weight.tolist()])
    for rate in (0.1, 0.05, 0.02, 0.01):
        listed = [
            _listed(m.probability(FIELD_NM), threshold=0.5, rate=rate) for m, _, _ in held_out
        ]
        true = torch.cat([t[kept] for (_, t, _), kept in zip(held_out, listed, strict=True)])
        print(f"rate {rate}: of {len(true)} listed {1 - true.double().mean():.3f} are false")
    x = torch.cat([m.doubts()[true] for m, true, _ in fitted])
    y = torch.cat([(error / m.fit.xyz_sigma)[true] for m, true, error in fitted]).double()
    print("doubts", [round(w, 2) for w in variance(x, y.square().mean(1)).tolist()])
    listed = [_listed(m.probability(FIELD_NM), threshold=0.5, rate=0.05) for m, _, _ in held_out]
    for name, alone in (("isolated", True), ("crowded", False)):
        over_sigma = [
            (error / sigma_of(m))[true & rows & ((m.doubts()[:, 0] < ALONE) == alone)]
            for (m, true, error), rows in zip(held_out, listed, strict=True)
        ]
        error = torch.cat(over_sigma).abs()
        within = [f"{(error < k).double().mean():.3f}" for k in (1, 2, 3)]
        rms = [f"{r:.2f}" for r in error.square().mean(0).sqrt().tolist()]
        print(f"{name}: errors within 1, 2 and 3 sigma", *within, "rms of x, y and z", *rms)


def sigma_of(molecules: _Hypotheses) -> Tensor:
    """(n, 3) stated uncertainties."""
    sigma = molecules.molecules().xyz_sigma
    assert sigma is not None
    return sigma


if __name__ == "__main__":
    main()

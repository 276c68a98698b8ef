"""Which molecules are true: the logistic regressions of `decode.likelihood.decide`, and how well
their false discovery rate is kept.

    python benchmarks/proposals.py [--recipe configs/astigmatic-3d.yaml] [--model astigmatic-3d]
                                   [--movies 24] [--frames 48] [--seed 11]

Movies are drawn from the recipe: PSF, camera, density, flux and background of each are its own.
One half is fitted, the other says what share of the molecules that are listed is false.  A molecule
is true if it is paired by the rules of the SMLM Challenge 2016 (250 nm, 500 nm along z).
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor

from decode.config import load_config
from decode.forward import ForwardModel
from decode.likelihood.proposals import LEAST_PROBABILITY, _Hypotheses, _listed, _Search
from decode.metrics import match
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.optics.camera import Camera

SIDE_PX = 48


def searched(
    model: Localizer, forward: ForwardModel, n_frames: int, rng: torch.Generator
) -> tuple[_Hypotheses, Tensor, Tensor]:
    """Molecules of one movie before the decision, whether each is true, and errors over sigma."""
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
    true = torch.zeros(len(table), dtype=torch.bool)
    true[row] = True
    assert table.xyz_sigma is not None
    error = (table.xyz[row] - movie.emitters.xyz[truth]) / table.xyz_sigma[row]
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
    """Weights of the features: a logistic regression, ridge 1e-3."""
    weight = torch.zeros(features.shape[1], dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(features @ weight, true)
        value = value + 1e-3 * weight[1:].square().mean()
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
    forward, model = replace(forward, scene=scene), load_model(arguments.model)
    rng = torch.Generator().manual_seed(arguments.seed)
    with torch.no_grad():
        movies = [searched(model, forward, arguments.frames, rng) for _ in range(arguments.movies)]
    fitted, held_out = movies[::2], movies[1::2]
    for kind in ("network", "search"):
        rows = [(m.features(), true, m.added == (kind == "search")) for m, true, _ in fitted]
        x, y = (torch.cat([row[i][row[2]] for row in rows]) for i in (0, 1))
        x = x[:, :-1] if kind == "search" else x
        print(kind, len(x), "rows", [round(w, 3) for w in regression(x, y.double()).tolist()])
    for rate in (0.1, 0.05, 0.02, 0.01):
        listed = [_listed(m.probability(), threshold=0.5, rate=rate) for m, _, _ in held_out]
        true = torch.cat([t[kept] for (_, t, _), kept in zip(held_out, listed, strict=True)])
        print(f"rate {rate}: of {len(true)} listed {1 - true.double().mean():.3f} are false")
    error = torch.cat([e for _, _, e in held_out]).abs()
    within = [f"{(error < k).double().mean():.3f}" for k in (1, 2, 3)]
    print("errors within 1, 2 and 3 sigma:", *within)


if __name__ == "__main__":
    main()

"""calibrate checks: limits of the checks after a localization, by movies that fit a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import final

import torch

from decode.acquisition import acquisition_for
from decode.atomic import atomic
from decode.config import TrainConfig, from_mapping
from decode.io.cameras import CameraFile
from decode.io.movies import open_array
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.outputs import check_outputs, model_files
from decode.progress import Progress, Steps, Stepwise
from decode.quality.evidence import Evidence
from decode.quality.limits import Limits
from decode.verbs.checking import Checking
from decode.verbs.localize_movie import localize_movie

__all__ = ["MOVIES", "calibrate_checks"]

MOVIES = 40
"""simulated movies by which limits are fitted; about two seconds each"""
N_FRAMES, SIDE_PX = 64, 64
"""frames of a movie, and their largest side"""
DENSEST = 1.0
"""molecules on at once per square micrometre, unless the recipe asks for more: where fewer are, the
density check fails neither in 2D nor in 3D"""
SEED = 49979687
"""difference of the movies' seed to the recipe's"""


@Stepwise
def calibrate_checks(
    model: Localizer | Path | str, out: Path | str | None = None, *, movies: int = MOVIES
) -> Steps[Localizer]:
    """Fit the limits of the checks after a localization to fresh simulations of a model's recipe.

    The movies fit the model: PSF and camera are stated as the recipe says that users know them, all
    maps included, and at most `DENSEST` molecules are on.  `Limits.fitted` has the rule.  Nothing
    but the limits in the record changes.

    `calibrate_checks.steps` does the same step by step.

    Args:
        model: a model, a shipped one's name, or a model file.
        out: file to write it to, `.safetensors`, with its record beside it; None writes none.
        movies: number of simulated movies.

    Returns:
        The model, whose `record.limits` the checks go by.  Without limits, where its PSF varies
        over the field, or it takes none of the movies.

    Raises:
        ValueError: if the model does not state its recipe.
        OSError: if the file cannot be written.

    Example:
        About a minute; here one movie, from which nothing is told but that there are limits.

        >>> import decode
        >>> model = decode.calibrate_checks("gaussian-2d", movies=1)
        >>> model.record.limits["kind"], model.record.limits["misfit"]
        ('gaussian', 0.12)
    """
    if out is not None:
        check_outputs(model_files(Path(out)), inputs=[])
    localizer = model if isinstance(model, Localizer) else load_model(model)
    if not localizer.record.config:
        raise ValueError("the model does not state the recipe of its simulations; train it anew")
    config = from_mapping(TrainConfig, localizer.record.config, "the recipe of the model")
    matched = _MatchedMovies(config)
    found = []
    for i in range(movies):
        found.append(matched.evidence(localizer))
        yield Progress((i + 1) / (movies + 1), "checking movies that fit")
    evidence = [movie for movie in found if movie is not None]
    limits = None
    if evidence:
        limits = Limits.fitted(evidence).to_json(evidence[0].kind, len(evidence))
    localizer.record = replace(localizer.record, limits=limits)
    if out is not None:
        localizer.save(out)
        with atomic(Path(out).with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(localizer.record.to_json(), indent=1) + "\n")
    yield Progress(1.0, "the limits of the checks are known")
    return localizer


@final
class _MatchedMovies:
    """Movies of a recipe, whose PSF and camera are stated as they are."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        low, high = config.scene.density_per_um2
        most = max(low, min(high, DENSEST))
        scene = replace(config.scene, density_per_um2=(low, most))
        config = replace(config, scene=scene, camera=config.camera.mapped())
        self._forward = config.forward_model()
        known = self._forward.cameras.known
        height, width = (known and known.shape) or (SIDE_PX, SIDE_PX)
        self._shape = min(SIDE_PX, height), min(SIDE_PX, width)
        self._rng = torch.Generator().manual_seed(config.seed + SEED)

    @torch.no_grad()
    def evidence(self, model: Localizer) -> Evidence | None:
        """The evidence of one more movie; None where the model does not take it."""
        config = self._config
        batch = self._forward.sample(1, N_FRAMES, self._shape, self._rng)
        pixel_size_nm = batch.pixel_size_nm
        psf = config.psf.stated(batch.conditioning, pixel_size_nm, config.scene.z_nm)
        if psf is None:
            return None
        camera = CameraFile(camera=batch.camera.of_movie(0), pixel_size_nm=pixel_size_nm)
        with open_array(batch.frames[0].numpy()) as movie:
            try:
                known = acquisition_for(movie, model, camera=camera, psf_sigma_nm=psf.sigma_nm)
                checking = Checking(movie, model, known, psf=psf.file)
                for chunk in localize_movie(movie, model, known, psf=psf.file, polish=False):
                    checking.see(chunk)
            except ValueError:  # a PSF at the border of its domain, with the errors of beads
                return None
        return checking.evidence

"""calibrate model: a model's probabilities, uncertainties and counts against simulations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from decode.config import TrainConfig, from_mapping
from decode.devices import choose_device
from decode.emitters import EmitterSet
from decode.metrics import match
from decode.models import load_model
from decode.network.localizer import Localizer
from decode.network.recalibration import QUANTITIES, Numbers, Recalibration, Stated
from decode.outputs import check_outputs, model_files
from decode.progress import Progress, Steps, Stepwise, part
from decode.quality.calibration import CalibrationRecord, Measured
from decode.training.learner import counted
from decode.training.validation import posterior_of
from decode.verbs.calibrate_checks import calibrate_checks

__all__ = ["MOVIES", "calibrate_model"]

MOVIES = 480
"""simulated movies that a recalibration is fitted to; half as many others measure it"""
SPARSE = 0.1
"""share of the densities of the recipe that half of the movies of the fit have: most molecules are
in crowded movies, and most users' are not"""
FIT_SEED, RECORD_SEED = 15485863, 32452843
"""differences of their seeds to the recipe's"""
SIDE_PX, N_FRAMES, MOVIES_AT_ONCE = 40, 6, 4
"""side and number of frames of the movies"""
OF_CHECKS = 12
"""movies of the fit for each by which limits of the checks are fitted"""
CHECKED_FROM = 0.7
"""share of the work that is done by then"""
REGION_PX = 8
"""side of regions whose numbers of molecules are to vary as stated"""
BORDER_PX = 4.5
"""distance from the border within which molecules lack part of their light"""
BANDS = (0.3, 0.1, 0.03, 0.01, 0.0)
"""of the probability: of molecules that are not listed, the likely ones claim true ones first"""
REACH_NM, AXIAL_NM = 250.0, 500.0
"""distance of a true molecule that a molecule may claim"""
FAR_NM = 1e5
"""between frames, where they are laid out along an axis"""


@Stepwise
def calibrate_model(
    model: Localizer | Path | str,
    out: Path | str | None = None,
    *,
    movies: int = MOVIES,
    device: str = "auto",
) -> Steps[Localizer]:
    """Fit a model's recalibration to fresh simulations of its own recipe, and measure it on others.

    What was fitted before is forgotten.  Seeds are the recipe's plus a constant: neither the
    training nor its validation has seen these movies.  Then follow the limits of the checks after a
    localization (`calibrate_checks`).

    `calibrate_model.steps` does the same step by step.

    Args:
        model: a model, a shipped one's name, or a model file.
        out: file to write it to, `.safetensors`, with its record beside it; None writes none.
        movies: number of simulated movies of the fit.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The model, whose `recalibration` corrects what it states, and whose `record.calibration`
        says how well.

    Raises:
        ValueError: if the model does not state its recipe.
        OSError: if the file cannot be written.

    Example:
        A minute or more; here eight movies, which are too few for a model that is used.

        >>> import decode
        >>> model = decode.calibrate_model("gaussian-2d", movies=8)
        >>> model.recalibration is not None, model.record.calibration["n_frames"]
        (True, 24)
    """
    if out is not None:
        check_outputs(model_files(Path(out)), inputs=[])
    localizer = model if isinstance(model, Localizer) else load_model(model)
    if not localizer.record.config:
        raise ValueError("the model does not state the recipe of its simulations; train it anew")
    config = from_mapping(TrainConfig, localizer.record.config, "the recipe of the model")
    where = choose_device(device)
    localizer = localizer.to(where).eval()
    localizer.recalibration = None
    simulations = _Simulations(config, where)
    rounds, done = _rounds(movies), 0
    n_rounds = rounds + _rounds(movies // 2)
    parts: list[_Part] = []
    rng = torch.Generator(where).manual_seed(config.seed + FIT_SEED)
    for _ in range(rounds):
        parts.append(simulations.part(localizer, rng))
        done += 1
        yield Progress(CHECKED_FROM * done / n_rounds, "simulating movies to calibrate by")
    localizer.recalibration = _fitted(parts, two_d=simulations.two_d)
    measured = []
    rng = torch.Generator(where).manual_seed(config.seed + RECORD_SEED)
    for _ in range(n_rounds - rounds):
        measured.append(simulations.measured(localizer, rng))
        done += 1
        yield Progress(CHECKED_FROM * done / n_rounds, "measuring the calibration")
    record = CalibrationRecord.of(measured, two_d=simulations.two_d)
    localizer.record = replace(localizer.record, calibration=record.to_json())
    checked = calibrate_checks.steps(localizer.to("cpu"), out, movies=movies // OF_CHECKS)
    return (yield from part(checked, CHECKED_FROM, 1.0))


def _rounds(movies: int) -> int:
    return max(1, movies // MOVIES_AT_ONCE)


class _Part(NamedTuple):
    """What is stated of some movies, and their truth."""

    stated: Stated
    table: EmitterSet
    truth: EmitterSet
    sparse: bool
    """whether they are sparser than those of the recipe"""


@final
class _Simulations:
    """Movies of a recipe."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._forward, self._plan = config.forward_model(), config.training
        low, high = config.scene.density_per_um2
        scene = replace(config.scene, density_per_um2=(low, low + (high - low) * SPARSE))
        self._sparse = replace(self._forward, scene=scene)
        self.two_d = not config.network.axial
        self._n = 0

    @torch.no_grad()
    def part(self, model: Localizer, rng: torch.Generator) -> _Part:
        """Some movies as the network states them; frames follow on those before.

        Every second time they are sparse.
        """
        sparse = self._n % 2 == 1
        forward = self._sparse if sparse else self._forward
        batch = forward.sample(MOVIES_AT_ONCE, N_FRAMES, (SIDE_PX, SIDE_PX), rng)
        molecules, stated = posterior_of(model, batch).stated()
        first = self._n * MOVIES_AT_ONCE * N_FRAMES
        self._n += 1
        truth = counted(batch, self._plan)
        truth = _inside(truth, batch.pixel_size_nm, 0.0)
        return _Part(
            stated=stated.to("cpu"),
            table=molecules.table(first_frame=first).to("cpu"),
            truth=replace(truth, frame=truth.frame + first).to("cpu"),
            sparse=sparse,
        )

    @torch.no_grad()
    def measured(self, model: Localizer, rng: torch.Generator) -> Measured:
        """Some movies as the model lists them, and draws of the molecules."""
        batch = self._forward.sample(MOVIES_AT_ONCE, N_FRAMES, (SIDE_PX, SIDE_PX), rng)
        posterior = posterior_of(model, batch).to("cpu")
        truth = _inside(counted(batch, self._plan), batch.pixel_size_nm, 0.0).to("cpu")
        return Measured.of(
            posterior.molecules(),
            truth,
            pixel_size_nm=batch.pixel_size_nm,
            border_nm=BORDER_PX * batch.pixel_size_nm,
            two_d=self.two_d,
        )


def _inside(emitters: EmitterSet, pixel_size_nm: float, border_px: float) -> EmitterSet:
    """Those inside the frame, away from its border."""
    at = emitters.xyz[:, :2] / pixel_size_nm
    return emitters[((at > border_px) & (at < SIDE_PX - border_px)).all(1)]


def _fitted(parts: list[_Part], *, two_d: bool) -> Recalibration:
    """The recalibration of what is stated of all movies."""
    stated = Stated.cat([part.stated for part in parts])
    table = EmitterSet.cat(part.table for part in parts)
    truth = EmitterSet.cat(part.truth for part in parts)
    true_values = _values(truth)

    def judge(listed: Tensor) -> tuple[Tensor, Tensor]:
        mate = _mates(table, truth, listed, two_d=two_d)
        error = stated.mean - true_values[mate.clamp_min(0)]
        return mate >= 0, error.masked_fill((mate < 0)[:, None], torch.nan)

    at = table.xyz[:, :2] / stated.pixel_size_nm
    inner = ((at > BORDER_PX) & (at < SIDE_PX - BORDER_PX)).all(1)
    sparse = torch.tensor([part.sparse for part in parts])
    sparse = sparse.repeat_interleave(MOVIES_AT_ONCE * N_FRAMES)
    numbers = _numbers(table, truth, sparse, stated.pixel_size_nm)
    return Recalibration.fit(stated, judge, inner=inner, numbers=numbers)


def _numbers(table: EmitterSet, truth: EmitterSet, sparse: Tensor, pixel_size_nm: float) -> Numbers:
    """The true numbers in regions of the frames that are not sparse."""
    side = SIDE_PX // REGION_PX
    kept = ~sparse
    number = kept.cumsum(0) - 1

    def region(emitters: EmitterSet) -> Tensor:
        x, y = (emitters.xyz[:, :2] / (REGION_PX * pixel_size_nm)).long().clamp(0, side - 1).T
        own = (number[emitters.frame] * side + y) * side + x
        return own.where(kept[emitters.frame], -1)

    true = region(truth)
    return Numbers(
        region=region(table),
        true=torch.bincount(true[true >= 0], minlength=int(kept.sum()) * side**2),
        regions=side**2,
    )


def _values(truth: EmitterSet) -> Tensor:
    """(n, 4) by `QUANTITIES`."""
    columns = dict(zip("xyz", truth.xyz.double().T, strict=True))
    columns["photons"] = truth.photons.double()
    return torch.stack([columns[name] for name in QUANTITIES], 1)


def _mates(table: EmitterSet, truth: EmitterSet, listed: Tensor, *, two_d: bool) -> Tensor:
    """(n,) row of the truth that each molecule claims, or -1: first those that are listed."""
    assert table.probability is not None
    mate = torch.full((len(table),), -1)
    rows = torch.nonzero(listed)[:, 0]
    pairs = match(truth, table[rows], lateral_nm=REACH_NM, axial_nm=AXIAL_NM, two_d=two_d)
    mate[rows[pairs[:, 1]]] = pairs[:, 0]
    free = torch.ones(len(truth), dtype=torch.bool)
    free[pairs[:, 0]] = False
    left = torch.nonzero(free)[:, 0]
    above = torch.tensor(torch.inf)
    for least in BANDS:
        likely = (table.probability > least) & (table.probability <= above)
        rows, above = torch.nonzero(~listed & likely)[:, 0], torch.tensor(least)
        if not len(rows) or not len(left):
            continue
        tree = cKDTree(_laid_out(table[rows]), balanced_tree=False)
        distance, nearest = tree.query(_laid_out(truth[left]), distance_upper_bound=REACH_NM)
        claimed, first = np.unique(nearest[np.isfinite(distance)], return_index=True)
        own = np.flatnonzero(np.isfinite(distance))[first]
        mate[rows[torch.from_numpy(claimed)]] = left[torch.from_numpy(own)]
        free[left[torch.from_numpy(own)]] = False
        left = torch.nonzero(free)[:, 0]
    return mate


def _laid_out(emitters: EmitterSet) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(n, 3) x, y, and the frame as a third axis along which frames lie apart."""
    xy, frame = emitters.xyz[:, :2].double().numpy(), emitters.frame.double().numpy()
    return np.column_stack([xy, FAR_NM * frame])

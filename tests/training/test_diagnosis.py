"""What limits a model is said in plain words."""

from __future__ import annotations

from decode.config import TrainConfig
from decode.network.record import ModelRecord
from decode.training.diagnosis import beyond_training, diagnose

GOOD = {"isolated_error_over_bound": 1.08, "isolated_error_over_sigma": 1.0}


def figures(jaccard: dict[tuple[float, float], float]) -> list[dict[str, float]]:
    return [
        {
            "density_per_um2": density,
            "flux_photons": flux,
            "background_photons": 20.0,
            "jaccard": value,
        }
        for (density, flux), value in jaccard.items()
    ]


WELL = {(0.1, 500.0): 0.9, (0.1, 5000.0): 0.98, (3.0, 500.0): 0.6, (3.0, 5000.0): 0.7}


def test_nothing_is_said_of_a_model_that_does_well() -> None:
    assert diagnose(TrainConfig(), GOOD, figures(WELL), converged=True) == []


def test_what_limits_is_named() -> None:
    (dense,) = diagnose(
        TrainConfig(),
        GOOD,
        figures({**WELL, (3.0, 5000.0): 0.4, (3.0, 500.0): 0.3}),
        converged=True,
    )
    assert dense.startswith("too dense for this PSF: from 3.0 molecules")
    (dim,) = diagnose(TrainConfig(), GOOD, figures({**WELL, (0.1, 500.0): 0.3}), converged=True)
    assert dim.startswith("too dim: with 500 photons on 20 of background")


def test_an_unfinished_training_is_told_from_a_small_network() -> None:
    short = {"isolated_error_over_bound": 1.6, "isolated_error_over_sigma": 1.4}
    precise, honest = diagnose(TrainConfig(), short, figures(WELL), converged=False)
    assert precise.endswith("train longer")
    assert "1.40 times the stated" in honest
    assert diagnose(TrainConfig(), short, figures(WELL), converged=True)[0].endswith(
        "a larger network may do better"
    )


def test_a_movie_beyond_what_the_model_was_trained_on() -> None:
    record = ModelRecord(config={"scene": {"background_photons": [10.0, 100.0]}})
    assert (
        beyond_training(record, 8.0)
        == beyond_training(record, 120.0)
        == beyond_training(ModelRecord(), 1e4)
        == ""
    )
    assert beyond_training(record, 2.0).startswith(
        "the movie's background is about 2 photons per pixel, and the model"
    )
    assert "trained on 10 to 100" in beyond_training(record, 900.0)

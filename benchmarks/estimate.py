"""Estimates of a movie by its moments, and by a small neural posterior over the simulator's
parameters.

    decode calibrate psf sample_data/beads_3d.tif --camera sample_data/camera.yaml -o psf.h5
    python benchmarks/estimate.py psf.h5 --camera sample_data/camera.yaml
        [--movie frames.tif activations.csv]

The posterior (Papamakarios and Murray, NeurIPS 2016: a mixture of Gaussians of full covariance, by
maximum likelihood) sees the moments that `estimate_scene` fits, or those and frames, and is trained
on movies of the prior from which the
test movies come.  This favours the posterior, as the moments have no such prior.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import tifffile
import torch
from torch import Tensor, nn

from decode.estimation import SceneEstimate, estimate_scene
from decode.estimation.moments import LAGS, Moments, measure
from decode.forward import ForwardModel
from decode.io.cameras import read_camera
from decode.io.psfs import PSFFile, read_psf
from decode.optics.camera import Camera
from decode.optics.psf import PSF, render
from decode.priors.scene import Scene

Array = npt.NDArray[np.float64]

SIDE_PX = 64
LOG = {  # log-uniform
    "background_photons": (5.0, 150.0),
    "density_per_um2": (0.03, 3.0),
    "flux_photons": (500.0, 10000.0),
    "flux_variation": (0.1, 0.8),
    "on_time_frames": (0.7, 5.0),
}
BLUR_NM = (0.0, 60.0)
LINEAR = ("psf_blur_nm", "z_low_nm", "z_high_nm")
PARAMETERS = (*LOG, *LINEAR)
UNIT_NM = 100.0
"""unit of lengths, in which their numbers are of the size of the logarithms"""
CLIPS, CLIP = 16, 3
"""number of short pieces of a movie that the network sees, and their length, frames"""
TEST_SEEDS = 2_000_000


class Drawn(NamedTuple):
    """A simulated movie."""

    frames: Tensor
    """(frame, y, x) ADU"""
    truth: Array
    """(parameter,) logarithms, and lengths over UNIT_NM"""
    scene: Scene


@final
class TabulatedPSF(PSF):
    """A PSF looked up on a grid of positions (20 nm along z, an eighth of a pixel): ten times as
    fast."""

    def __init__(self, psf: PSF, z_range_nm: tuple[float, float]) -> None:
        super().__init__(psf.pixel_size_nm, psf.patch_px)
        self.z_low_nm, self.subpixels = z_range_nm[0], 8
        self.planes = 1 + round((z_range_nm[1] - z_range_nm[0]) / 20)
        x = (
            (torch.arange(self.subpixels) + 0.5) / self.subpixels + psf.patch_px // 2
        ) * psf.pixel_size_nm
        z, y, x = torch.meshgrid(
            z_range_nm[0] + 20.0 * torch.arange(self.planes), x, x, indexing="ij"
        )
        xyz = torch.stack([x, y, z], -1).reshape(-1, 3)
        with torch.no_grad():
            self.patches = torch.cat([psf.integrate_pixels(part) for part in xyz.split(1024)])

    @property
    def z_range_nm(self) -> tuple[float, float]:
        return self.z_low_nm, self.z_low_nm + 20.0 * (self.planes - 1)

    def integrate_pixels(self, xyz: Tensor, parameters: Tensor | None = None) -> Tensor:
        cell = (
            ((xyz[:, :2] / self.pixel_size_nm - self.patch_px // 2) * self.subpixels).floor().long()
        )
        x, y = cell.clamp(0, self.subpixels - 1).T
        plane = ((xyz[:, 2] - self.z_low_nm) / 20).round().long().clamp(0, self.planes - 1)
        return self.patches[(plane * self.subpixels + y) * self.subpixels + x]


def draw(
    seed: int, psf: PSF, z_range_nm: tuple[float, float], camera: Camera, frames: int
) -> Drawn:
    """A movie of the prior."""
    rng = np.random.default_rng(seed)
    fixed = {
        name: (value, value)
        for name, (a, b) in LOG.items()
        for value in [math.exp(rng.uniform(*np.log([a, b])))]
    }
    blur = rng.uniform(*BLUR_NM)
    middle, reach = sum(z_range_nm) / 2, (z_range_nm[1] - z_range_nm[0]) / 2
    centre, half = middle + reach * rng.uniform(-0.25, 0.25), reach * rng.uniform(0.1, 0.75)
    contrast, drift, filaments = (
        rng.uniform(0, 0.4),
        rng.uniform(-5e-4, 5e-4),
        float(rng.random() < 0.5),
    )
    scene = Scene(
        **fixed,
        z_nm=(centre - half, centre + half),
        filaments=filaments,
        background_contrast=(contrast, contrast),
        background_drift=(drift, drift),
    )
    model = ForwardModel.of(scene, psf, camera, blur_nm=(blur, blur))
    simulation = model.sample(1, frames, (SIDE_PX, SIDE_PX), torch.Generator().manual_seed(seed))
    # of what was drawn, and not what it was drawn from
    emitters, side_nm = simulation.emitters, SIDE_PX * psf.pixel_size_nm
    inside = ((emitters.xyz[:, :2] >= 0) & (emitters.xyz[:, :2] < side_nm)).all(1)
    values = {name: value for name, (value, _) in fixed.items()}
    lit = float(emitters.photons[inside].sum()) / values["flux_photons"]
    values["density_per_um2"] = max(lit, 1.0) / frames / (side_nm * 1e-3) ** 2
    values["background_photons"] = float(simulation.background.mean())
    truth = [math.log(values[name]) for name in LOG] + [
        v / UNIT_NM for v in (blur, centre - half, centre + half)
    ]
    return Drawn(simulation.frames[0], np.array(truth), scene)


def summaries(moments: Moments) -> Array:
    """(feature,) moments that `estimate_scene` fits and their errors, scaled for a network."""
    values, errors = moments.values, moments.errors
    light = values.brightness.sum()
    next_frame = LAGS.index(1)
    signal = max(values.touching[next_frame], errors.touching[next_frame])
    offset = values.offsets[0].clip(signal / 100)
    return np.concatenate(
        [
            np.log([max(light, 1e-3), signal, moments.steps[0], offset]),
            values.brightness / max(light, 1e-3),
            np.arcsinh(values.brightness),
            values.touching / signal,
            values.offsets / signal,
            np.log(errors.brightness),
            np.log(errors.touching),
        ]
    )


def clips(frames: Tensor, camera: Camera) -> Tensor:
    """(CLIPS, CLIP, y, x) square roots of the light of pieces spread over the movie, float16."""
    starts = np.linspace(0, len(frames) - CLIP, CLIPS).round().astype(int)
    light = torch.stack(
        [camera.to_photons(frames[start : start + CLIP].float()) for start in starts]
    )
    return light.clamp_min(0).sqrt().half()


class Movies(NamedTuple):
    """Inputs of a network, and its targets."""

    features: Tensor
    """(movie, feature)"""
    clips: Tensor
    """(movie, CLIPS, CLIP, y, x)"""
    truth: Tensor
    """(movie, parameter)"""


@final
class NeuralPosterior(nn.Module):
    """q(parameters | movie), a mixture of Gaussians; the network returns a distribution."""

    def __init__(
        self, data: Movies, *, frames: bool, components: int = 4, width: int = 128
    ) -> None:
        super().__init__()
        d = data.truth.shape[1]
        self.d, self.components = d, components
        self.location, self.scale = data.features.mean(0), data.features.std(0).clamp_min(1e-6)
        self.centre, self.spread = data.truth.mean(0), data.truth.std(0)
        self.convolutions = (
            nn.Sequential(
                nn.Conv2d(CLIP, 16, 5, 2, 2),
                nn.SiLU(),
                nn.Conv2d(16, 32, 3, 2, 1),
                nn.SiLU(),
                nn.Conv2d(32, 32, 3, 1, 1),
                nn.SiLU(),
            )
            if frames
            else None
        )
        self.network = nn.Sequential(
            nn.Linear(len(self.location) + 64 * frames, width),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(width, components * (1 + d + d * (d + 1) // 2)),
        )

    def forward(self, features: Tensor, clips: Tensor) -> torch.distributions.MixtureSameFamily:
        x = ((features - self.location) / self.scale).clamp(-6, 6)
        if self.convolutions is not None:
            seen = self.convolutions(clips.float().flatten(0, 1) / 10).unflatten(0, clips.shape[:2])
            # means over field and frames, of the features and of their squares: crowds and
            # brightness
            x = torch.cat([x, seen.mean((1, 3, 4)), seen.square().mean((1, 3, 4)).sqrt()], -1)
        out = self.network(x).unflatten(-1, (self.components, -1))
        weight, mean, entries = out.split([1, self.d, out.shape[-1] - 1 - self.d], -1)
        # parameters in units of their spread over the prior
        mean = self.centre + self.spread * mean
        factor = self.spread[:, None] * _lower(entries, self.d)
        gaussians = torch.distributions.MultivariateNormal(mean, scale_tril=factor)
        return torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(logits=weight[..., 0]), gaussians
        )


def _lower(entries: Tensor, d: int) -> Tensor:
    """(..., d, d) lower triangular with a positive diagonal."""
    rows, columns = torch.tril_indices(d, d)
    entries = torch.where(rows == columns, nn.functional.softplus(entries) + 1e-3, entries)
    factor = entries.new_zeros(*entries.shape[:-1], d * d)
    factor[..., rows * d + columns] = entries
    return factor.reshape(*entries.shape[:-1], d, d)


def train(data: Movies, *, frames: bool, seed: int, epochs: int) -> NeuralPosterior:
    """Train by maximum likelihood, stopped at the best likelihood of a held-out tenth of the
    movies."""
    torch.manual_seed(seed)
    order = torch.randperm(len(data.truth))
    held, rest = order[: len(order) // 10], order[len(order) // 10 :]
    network = NeuralPosterior(data, frames=frames)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    best, kept = math.inf, network.state_dict()
    for _ in range(epochs):
        network.train()
        for batch in rest[torch.randperm(len(rest))].split(32):
            pieces = torch.randperm(CLIPS)[:4]  # others every time, against overfitting
            seen = data.clips[batch][:, pieces] if frames else data.clips[batch, :0]
            loss = -network(data.features[batch], seen).log_prob(data.truth[batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
        schedule.step()
        network.eval()
        with torch.no_grad():
            seen = data.clips[held] if frames else data.clips[held, :0]
            loss = float(-network(data.features[held], seen).log_prob(data.truth[held]).mean())
        if loss < best:
            best, kept = loss, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return network.eval()


QUANTILES = (0.025, 0.25, 0.5, 0.75, 0.975)


@torch.no_grad()
def quantiles(ensemble: Sequence[NeuralPosterior], features: Tensor, pieces: Tensor) -> Array:
    """(parameter, quantile) of the mean of the networks' posteriors."""
    draws = []
    for network in ensemble:
        seen = pieces if network.convolutions is not None else pieces[:0]
        draws.append(network(features[None], seen[None]).sample(torch.Size([4000]))[:, 0])
    return np.asarray(np.quantile(torch.cat(draws).double().numpy(), QUANTILES, axis=0).T)


def of_moments(estimate: SceneEstimate) -> Array:
    """(parameter, quantile) of the moments' intervals, whose errors are Gaussian in each
    parameter's scale."""
    rows = []
    for name in PARAMETERS:
        stated = getattr(estimate, name)
        low, value, high = (np.log if name in LOG else lambda v: np.array(v) / UNIT_NM)(
            [stated.low, stated.value, stated.high]
        )
        half = 0.6745 / 1.96
        rows.append([low, value + half * (low - value), value, value + half * (high - value), high])
    return np.array(rows)


def table(title: str, found: Array, truth: Array) -> None:
    """Errors and coverage of (movie, parameter, quantile) against (movie, parameter)."""
    print(
        f"\n{title}: {len(truth)} movies\n{'':20s}  RMSE   median|e|  bias   50 %   95 %   width "
        "of 95 %"
    )
    for i, name in enumerate(PARAMETERS):
        unit = 1.0 if name in LOG else UNIT_NM
        error = (found[:, i, 2] - truth[:, i]) * unit
        low, q1, _, q3, high = found[:, i].T
        inside = [
            np.mean((a <= truth[:, i]) & (truth[:, i] <= b)) for a, b in ((q1, q3), (low, high))
        ]
        width = float(np.median(high - low)) * unit
        digits = 3 if name in LOG else 0
        numbers = (math.sqrt(np.mean(error**2)), float(np.median(abs(error))), error.mean())
        print(
            f"{name:20s}",
            *(f"{v:6.{digits}f}  " for v in numbers),
            *(f"{v:5.2f} " for v in inside),
            f"{width:6.{digits}f}",
        )


@torch.no_grad()
def true_scene(
    activations: Path, window: range, frames: Tensor, camera: Camera, psf: PSF
) -> dict[str, float]:
    """The true scene of these frames (numbered from 0), from a table with the header of the SMLM
    Challenge.

    A molecule is on throughout frames that are neither its first nor its last; the depth is that of
    the uniform slab with the same mean and variance; photons are those within the PSF's patch, by
    regression of the changes of light; the background is the remaining light.
    """
    rows = np.genfromtxt(activations, delimiter=",", skip_header=1)
    _, molecule, count = np.unique(rows[:, 2:5], axis=0, return_inverse=True, return_counts=True)
    molecule, number, photons = molecule.ravel(), rows[:, 1], rows[:, 5]
    first, last = np.full(len(count), np.inf), np.zeros(len(count))
    np.minimum.at(first, molecule, number)
    np.maximum.at(last, molecule, number)
    full = (number > first[molecule]) & (number < last[molecule])
    flux = np.bincount(molecule, photons * full)[count > 2] / np.bincount(molecule, full)[count > 2]
    on = photons.sum() / flux.mean()
    seen = (number > window.start) & (number <= window.stop)
    z = rows[seen, 4]
    drawn = render(
        psf,
        frame=torch.from_numpy(number[seen]).long() - 1 - window.start,
        xyz=torch.from_numpy(rows[seen, 2:5]).float(),
        photons=torch.from_numpy(photons[seen]).float(),
        n_frames=len(window),
        shape=(frames.shape[1], frames.shape[2]),
    )
    light = camera.to_photons(frames)
    change, of_molecules = light - light.mean(0), drawn - drawn.mean(0)
    caught = float((change * of_molecules).sum() / of_molecules.square().sum())
    area_um2 = frames[0].numel() * (psf.pixel_size_nm * 1e-3) ** 2
    return {
        "background_photons": float(light.mean() - caught * drawn.mean()),
        "density_per_um2": photons[seen].sum() / flux.mean() / len(window) / area_um2,
        "flux_photons": caught * flux.mean(),
        "flux_variation": flux.std() / flux.mean(),
        # molecules that are on already count as none: the time they are seen for is not their mean
        "on_time_frames": on / (first > 1).sum(),
        "psf_blur_nm": 0.0,  # movie and beads come from one microscope
        "z_low_nm": z.mean() - math.sqrt(3) * z.std(),
        "z_high_nm": z.mean() + math.sqrt(3) * z.std(),
    }


def simulate(
    arguments: argparse.Namespace, psf: PSF, z_range_nm: tuple[float, float], camera: Camera
) -> Movies:
    """Simulate movies to train on, as many as the time allows."""
    features, pieces, truth = [], [], []
    end = time.process_time() + 60 * arguments.minutes
    for seed in range(arguments.train):
        movie = draw(seed, psf, z_range_nm, camera, arguments.frames)
        features.append(summaries(measure(movie.frames, camera)))
        pieces.append(clips(movie.frames, camera))
        truth.append(movie.truth)
        if time.process_time() > end:
            break
    return Movies(
        torch.tensor(np.array(features)).float(),
        torch.stack(pieces),
        torch.tensor(np.array(truth)).float(),
    )


def compare_on_movie(
    frames_file: Path,
    activations: Path,
    arguments: argparse.Namespace,
    psf: PSFFile,
    camera: Camera,
    posteriors: dict[str, list[NeuralPosterior]],
) -> None:
    """Estimates of windows of a movie of another simulator, beside its truth."""
    movie = tifffile.imread(frames_file)
    n, length = len(movie), arguments.frames
    for start in np.linspace(0, n - length, max(1, n // length)).round().astype(int).tolist():
        window = range(start, start + length)
        frames = torch.from_numpy(movie[start : start + length].astype(np.float32))
        truth = true_scene(activations, window, frames, camera, psf.psf)
        answers = {
            "moments": of_moments(
                estimate_scene(frames, camera, psf.psf, z_range_nm=psf.z_range_nm)
            )
        }
        features = torch.tensor(summaries(measure(frames, camera))).float()
        for name, ensemble in posteriors.items():
            answers[name] = quantiles(ensemble, features, clips(frames, camera))
        print(
            f"\n{frames_file}, frames {window.start} to {window.stop - 1}\n{'':20s}  truth  "
            + "  ".join(answers)
        )
        for i, name in enumerate(PARAMETERS):
            scale = np.exp if name in LOG else lambda v: v * UNIT_NM
            cells = []
            for answer in answers.values():
                low, value, high = scale(answer[i, [0, 2, 4]])
                mark = "" if name not in truth or low <= truth[name] <= high else "*"
                cells.append(f"{value:.4g} ({low:.4g} to {high:.4g}){mark}")
            print(f"{name:20s}  {truth.get(name, math.nan):6.4g}  " + "  ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("psf", type=Path, help="PSF file of `decode calibrate psf`")
    parser.add_argument("--camera", required=True)
    parser.add_argument("--frames", type=int, default=300, help="length of every movie")
    parser.add_argument(
        "--train", type=int, default=2000, help="most movies to train on; 0: the moments alone"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="most processor time to simulate them in"
    )
    parser.add_argument("--test", type=int, default=48, help="movies to compare on")
    parser.add_argument(
        "--movie", nargs=2, action="append", default=[], metavar=("FRAMES", "ACTIVATIONS")
    )
    parser.add_argument(
        "--cache", type=Path, help="file that keeps the movies to train on; without: none is kept"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    psf, camera = read_psf(arguments.psf), read_camera(arguments.camera).camera

    fast = TabulatedPSF(psf.psf, psf.z_range_nm)
    posteriors: dict[str, list[NeuralPosterior]] = {}
    if arguments.train:
        clock = time.process_time()
        if arguments.cache is not None and arguments.cache.exists():
            data = Movies(*torch.load(arguments.cache))
        else:
            data = simulate(arguments, fast, psf.z_range_nm, camera)
            if arguments.cache is not None:
                torch.save(tuple(data), arguments.cache)
        print(
            f"{len(data.truth)} movies to train on in {time.process_time() - clock:.0f} s",
            flush=True,
        )
        for name, seen, networks, epochs in (
            ("neural", False, 5, 100),
            ("neural + frames", True, 1, 30),
        ):
            clock = time.process_time()
            posteriors[name] = [
                train(data, frames=seen, seed=seed, epochs=epochs) for seed in range(networks)
            ]
            print(f"{name}: trained in {time.process_time() - clock:.0f} s", flush=True)

    truth: list[Array] = []
    found: dict[str, list[Array]] = {name: [] for name in ("moments", *posteriors)}
    seconds = dict.fromkeys(found, 0.0)
    for seed in range(TEST_SEEDS, TEST_SEEDS + arguments.test):
        movie = draw(seed, fast, psf.z_range_nm, camera, arguments.frames)
        clock = time.process_time()
        try:
            of_movie = of_moments(
                estimate_scene(movie.frames, camera, psf.psf, z_range_nm=psf.z_range_nm)
            )
        except ValueError as error:
            print(f"seed {seed}: {error}")
            continue
        seconds["moments"] += time.process_time() - clock
        found["moments"].append(of_movie)
        truth.append(movie.truth)
        for name, ensemble in posteriors.items():
            clock = time.process_time()
            features = torch.tensor(summaries(measure(movie.frames, camera))).float()
            found[name].append(quantiles(ensemble, features, clips(movie.frames, camera)))
            seconds[name] += time.process_time() - clock
    for name, values in found.items() if truth else ():
        table(
            f"{name}, {seconds[name] / len(truth):.2f} s a movie", np.array(values), np.array(truth)
        )
    for frames_file, activations in arguments.movie:
        compare_on_movie(Path(frames_file), Path(activations), arguments, psf, camera, posteriors)


if __name__ == "__main__":
    main()

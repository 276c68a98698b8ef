"""A training step: frames a second, the simulation's share, and the ratio to a network of DECODE's
published shape.

    python benchmarks/decode_step.py [configs/astigmatic-3d.yaml] [--rounds 7] [--threads N]
    [--device cpu]

DECODE (Speiser et al., Nature Methods 18, 1082, 2021) is built here from its description, network
and loss; where it leaves a choice, the cheaper option is taken (two convolutions a stage, pooling
by maximum, 1x1 convolutions before the upsampling).  Both train on the same simulated movies, of
which every frame gets a loss; DECODE sees each in a window of three.  A step is forward pass, loss,
backward pass, clipping, optimizer and, for ours, the running average of the weights.  The
simulation is left out for both (DECODE simulates in advance, `decode train` during training) and
timed separately.  All alternate in one process, each in the memory layout in which it is faster;
times and ratios are medians.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import final

import torch
from timing import seconds
from torch import Tensor, nn
from torch.nn.functional import elu, interpolate, max_pool2d, softplus
from torch.utils.flop_counter import FlopCounterMode

from decode.config import TrainConfig, load_config
from decode.devices import choose_device, keep_freed_memory
from decode.forward import Simulation
from decode.training.learner import Learner
from decode.training.processes import Processes

THEIRS = "DECODE's shape"
WIDTH = 48
"""features of DECODE's first level"""
SCALE = (1.0, 1.0, 1000.0, 10000.0)
"""units of DECODE's x, y [px], z [nm] and photons"""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@final
class Stage(nn.Module):
    """Two 3x3 convolutions, each with an ELU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return elu(self.second(elu(self.first(x))))


@final
class PlainUNet(nn.Module):
    """Two stages down to 192 features and two up, with skips by concatenation."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        widths = (WIDTH, 2 * WIDTH, 4 * WIDTH)
        self.down = nn.ModuleList(
            Stage(i, o) for i, o in zip((n_in, *widths[:-1]), widths, strict=True)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(2 * o, o, 1) for o in widths[-2::-1])
        self.up = nn.ModuleList(Stage(2 * o, o) for o in widths[-2::-1])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, stage in enumerate(self.down):
            x = stage(max_pool2d(x, 2) if level else x)
            skips.append(x)
        for skip, narrow, stage in zip(skips[-2::-1], self.narrow, self.up, strict=True):
            # a 1x1 convolution commutes with the repetition of pixels, and is cheaper before it
            x = stage(
                torch.cat([skip, interpolate(narrow(x), scale_factor=2.0, mode="nearest")], 1)
            )
        return x


@final
class Published(nn.Module):
    """Three frames through one shared U-Net, their features through a second, and four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.frame_net = PlainUNet(1)
        self.sequence_net = PlainUNet(3 * WIDTH)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ELU(), nn.Conv2d(WIDTH, n, 1))
            for n in (1, 4, 4, 1)
        )
        nn.init.constant_(self.heads[0][2].bias, -4.0)  # type: ignore[index]

    def forward(self, windows: Tensor) -> list[Tensor]:
        """(n, 3, y, x) to logit (n, 1, y, x), mean and sigma (n, 4, y, x) of x, y, z and
        photons, and background."""
        features = self.frame_net(windows.flatten(0, 1).unsqueeze(1))
        shared = self.sequence_net(features.unflatten(0, (-1, 3)).flatten(1, 2))
        logit, mean, sigma, background = (head(shared) for head in self.heads)
        return [logit, torch.tanh(mean), softplus(sigma) + 1e-3, background]


def published_loss(model: Published, batch: Simulation, config: TrainConfig) -> Tensor:
    """Count, localization and background terms of the paper's Methods, each summed over pixels,
    a mean over frames."""
    photons = batch.camera.to_photons(batch.frames) / 100
    nothing = torch.zeros_like(photons[:, :1])
    before, after = (
        torch.cat([nothing, photons[:, :-1]], 1),
        torch.cat([photons[:, 1:], nothing], 1),
    )
    windows = torch.stack([before, photons, after], 2).flatten(0, 1)
    logit, mean, sigma, background = model(windows)
    n, _, height, width = logit.shape
    truth = batch.emitters[batch.emitters.photons >= config.training.min_photons]
    place = truth.xyz[:, :2] / batch.pixel_size_nm
    truth = truth[
        ((place >= 0) & (place < torch.tensor([width, height], device=place.device))).all(1)
    ]

    p = torch.sigmoid(logit).flatten(1)
    variance = (p * (1 - p)).sum(1)
    true_count = torch.bincount(truth.frame, minlength=n)
    count = 0.5 * ((true_count - p.sum(1)).square() / variance + variance.log())

    # a mixture over all pixels of the frame for every emitter: (emitters, 4, pixels)
    scale = torch.tensor(SCALE, device=p.device)
    row, column = torch.meshgrid(
        *(torch.arange(s, device=p.device) + 0.5 for s in (height, width)), indexing="ij"
    )
    corner = torch.stack([column, row, torch.zeros_like(row), torch.zeros_like(row)]).flatten(1)
    centre, spread = mean.flatten(2) + corner, sigma.flatten(2)
    position = (
        torch.cat(
            [truth.xyz[:, :2] / batch.pixel_size_nm, truth.xyz[:, 2:], truth.photons[:, None]], 1
        )
        / scale
    )
    deviation = (position[:, :, None] - centre[truth.frame]) / spread[truth.frame]
    log_density = (-0.5 * deviation.square() - spread.log()[truth.frame]).sum(1) - 2 * math.log(
        2 * math.pi
    )
    log_weight = (p / p.sum(1, keepdim=True)).clamp_min(1e-12).log()
    location = -torch.logsumexp(log_density + log_weight[truth.frame], 1)

    error = (
        (background.squeeze(1) - batch.background.flatten(0, 1) / 100).square().flatten(1).sum(1)
    )
    return count.mean() + location.sum() / n + error.mean()


def published_step(
    config: TrainConfig, layout: torch.memory_format, device: torch.device
) -> Callable[..., None]:
    """A training step of DECODE's shape, by AdamW."""
    model = Published().to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(batch: Simulation) -> None:
        loss = published_loss(model, batch, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.03)
        optimizer.step()
        if not bool(torch.isfinite(loss)):
            raise RuntimeError(
                "the loss of DECODE's shape is not finite: this is no fair comparison"
            )

    return step


def own_step(
    config: TrainConfig, layout: torch.memory_format, device: torch.device
) -> Callable[..., None]:
    """A step of `decode train`."""
    model = config.localizer().to(device, memory_format=layout)  # type: ignore[call-overload]
    learner = Learner(model, config.training, Processes())

    def step(batch: Simulation) -> None:
        if learner.step(batch, config.training.learning_rate) is None:
            raise RuntimeError("our loss is not finite: this is no fair comparison")

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "config",
        nargs="?",
        default=str(Path(__file__).parents[1] / "configs" / "astigmatic-3d.yaml"),
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    device = choose_device(arguments.device)
    torch.manual_seed(0)
    config = load_config(arguments.config)
    plan, forward = config.training, config.forward_model()
    rng = torch.Generator(device).manual_seed(0)
    n = plan.movies * plan.frames

    def simulate(side: int) -> Simulation:
        return forward.sample(plan.movies, plan.frames, (side, side), rng)

    sides = (plan.size_px, 40)
    batches = {side: [simulate(side) for _ in range(3)] for side in sides}
    # warm up, and find the faster layout of each
    steps: dict[str, Callable[..., None]] = {}
    for name, build in (("ours", own_step), (THEIRS, published_step)):
        tried = {}
        for layout, memory_format in LAYOUTS.items():
            step = build(config, memory_format, device)
            step(batches[sides[0]][0])
            tried[layout] = (
                min(seconds(lambda s=step, b=b: s(b), device) for b in batches[sides[0]]),
                step,
            )  # type: ignore[misc]
        layout = min(tried, key=lambda key: tried[key][0])
        steps[name] = tried[layout][1]
        listed = ", ".join(f"{key} {value[0]:.2f} s" for key, value in tried.items())
        with FlopCounterMode(display=False) as counter:
            steps[name](batches[sides[0]][0])
        macs = counter.get_total_flops() / 2 / n / sides[0] ** 2
        print(f"{name}: {macs / 1e3:.0f} kMAC a pixel; a step takes {listed}; measured {layout}")

    times: dict[tuple[str, int], list[float]] = {}
    for i in range(arguments.rounds):
        for side in sides:
            batch = batches[side][i % 3]
            for name, step in steps.items():
                times.setdefault((name, side), []).append(
                    seconds(lambda s=step, b=batch: s(b), device)
                )  # type: ignore[misc]
            times.setdefault(("simulation", side), []).append(
                seconds(lambda s=side: simulate(s), device)
            )  # type: ignore[misc]
    rate = {key: n / statistics.median(value) for key, value in times.items()}

    molecules = sum(len(b.emitters) for b in batches[sides[0]]) / 3 / n
    print(
        f"device {device}, {torch.get_num_threads()} threads, {n} frames a step, {molecules:.1f} "
        "molecules a frame"
    )
    print(f"{'':16}  frame      frames/s  thousand pixels/s")
    for (name, side), value in rate.items():
        print(f"{name:16}  {side} x {side}  {value:10.1f}  {value * side**2 / 1e3:17.1f}")
    for side in sides:
        ratios = [b / a for a, b in zip(times["ours", side], times[THEIRS, side], strict=True)]
        print(
            f"ratio at {side} x {side}: {statistics.median(ratios):.1f} "
            f"(lowest {min(ratios):.1f}, highest {max(ratios):.1f} of {arguments.rounds} rounds)"
        )
    side = sides[0]
    whole = n / rate["ours", side] + n / rate["simulation", side]
    print(
        f"ours with its simulation: {n / whole:.1f} frames of {side} x {side} a second, "
        f"simulation {100 * n / rate['simulation', side] / whole:.1f} % of it; "
        f"ratio {n / rate[THEIRS, side] / whole:.1f} if DECODE's simulation were free"
    )


if __name__ == "__main__":
    main()

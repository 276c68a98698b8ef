"""Cost of the network: multiply-accumulates per pixel, and its arithmetic rate compared with that
of a bare convolution.

    python benchmarks/network.py [--model gaussian-2d] [--threads N]

The whole inference counts, whitening and features of every frame included; the convolution is 48
channels, 3x3, on the same frames, in the same memory layout, alternating with the network in one
run.
"""

from __future__ import annotations

import argparse

import torch
from timing import seconds
from torch.utils.flop_counter import FlopCounterMode

from decode.devices import choose_device, keep_freed_memory
from decode.models import load_model
from decode.optics.camera import Camera

CAMERA = Camera(baseline=100.0, e_per_adu=45.0, read_noise_e=74.4, qe=0.9, em_gain=300.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="gaussian-2d")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    keep_freed_memory()
    n, side = (4, 256) if device.type == "cpu" else (64, 256)
    model = load_model(arguments.model).to(device)
    adu = CAMERA.sample(torch.full((1, n, side, side), 30.0, device=device))
    context = model.context_map(
        {name: (low + high) / 2 for name, (low, high) in model.context.items()}
    ).to(device)

    def network() -> None:
        features, alpha = model.encode(adu, CAMERA, context)
        past = torch.cat([torch.zeros_like(features[0, :1]), features[0, :-1]])
        future = torch.cat([features[0, 1:], torch.zeros_like(features[0, :1])])
        model.decode(
            past,
            features[0],
            future,
            alpha=alpha,
            context=context,
            shape=(side, side),
            pixel_size_nm=100.0,
        )

    convolution = torch.nn.Conv2d(48, 48, 3, padding=1).to(
        device, memory_format=torch.channels_last
    )
    x = torch.randn(n, 48, side, side, device=device).to(memory_format=torch.channels_last)

    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            network()
        macs = counter.get_total_flops() / 2
        with FlopCounterMode(display=False) as counter:
            convolution(x)
        macs_convolution = counter.get_total_flops() / 2
        for _ in range(2):
            network(), convolution(x)
        times = [
            (seconds(network, device), seconds(lambda: convolution(x), device)) for _ in range(9)
        ]
    network_s, convolution_s = (sorted(t)[len(t) // 2] for t in zip(*times, strict=True))
    rate, bare = macs / network_s / 1e9, macs_convolution / convolution_s / 1e9
    print(f"device {device}, {torch.get_num_threads()} threads, {n} frames of {side} x {side}")
    print(
        f"network: {macs / (n * side * side) / 1e3:.1f} kMAC a pixel, {n / network_s:.1f} frames a "
        "second"
    )
    print(f"arithmetic rate: network {rate:.1f}, bare 48-channel 3x3 convolution {bare:.1f} GMAC/s")
    print(f"ratio {rate / bare:.2f}")


if __name__ == "__main__":
    main()

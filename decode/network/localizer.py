"""Localizer: the network that turns a camera's counts into a SetPosterior, and its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, final

import safetensors
import safetensors.torch
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.functional import pad, silu
from torch.overrides import TorchFunctionMode

from decode.atomic import atomic
from decode.conditioning import Domain
from decode.errors import reading
from decode.network.posterior import SetPosterior
from decode.network.recalibration import REACH_OF_CROWDS_PX, Recalibration
from decode.network.record import ModelRecord
from decode.network.unet import UNet
from decode.optics.camera import Camera
from decode.optics.description import PSFDescription, describe, rebuild
from decode.optics.psf import PSF
from decode.ranges import Count, check_settings

__all__ = ["Localizer", "NetworkConfig"]

FORMAT = "decode-localizer-1"

N_IMAGES = 3
"""input channels besides the context: stabilized count, its logarithm, the noise floor"""
FLOOR_OF_BAD = 1e4
"""noise floor that marks a bad pixel for the network, photons squared; larger than that of any
working pixel"""
FIRST = "frame_net.down.0.first.weight"
"""name of the weights that act on the input channels"""


@final
@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the network."""

    frame_widths: tuple[Count, ...] = (32, 48, 64)
    """channels per level of the U-Net that sees single frames"""
    sequence_widths: tuple[Count, ...] = (32, 48, 64)
    """channels per level of the U-Net that sees the features of three consecutive frames"""
    head_width: Count = 48
    """channels before the outputs"""
    axial: bool = False
    """predict z"""
    context_width: Annotated[int, Ge(0)] = 0
    """channels of the layers through which the context scales and shifts the features of every
    block; 0: the context is only seen beside the frames, which is enough for a number or two"""

    def __post_init__(self) -> None:
        check_settings(self)
        if not (self.frame_widths and self.sequence_widths):
            raise ValueError("frame_widths and sequence_widths need at least one number each")


@final
class Localizer(nn.Module):
    """p(emitters | frames) for movies of any camera.

    The camera converts counts to photons; divided by alpha, the variance per photon (excess noise
    over quantum efficiency), these have the noise of a Poisson count plus a floor, whatever the
    camera.  The network sees their variance-stabilized value 2 sqrt(count + floor + 3/8) (Anscombe,
    Biometrika 35, 246, 1948, with the read noise of Murtagh, Starck and Bijaoui, Astron. Astrophys.
    Suppl. 112, 179, 1995), their logarithm (in which a Gaussian spot is a parabola at every
    brightness), the floor, and the context maps: what is known of the PSF. Bad pixels are filled
    from their neighbours; for a model that was trained on such cameras the floor marks them
    (`FLOOR_OF_BAD`).

    Args:
        network: shape of the network.
        context: name and (lowest, highest) value of each context map the network was trained for.
        psf, camera: those that it is trained for; None where it is trained for a range of them.

    Example:
        >>> from decode import Camera, load_model
        >>> model = load_model("gaussian-2d")
        >>> sorted(model.context)
        ['psf_sigma_px']
        >>> camera = Camera(baseline=100.0, e_per_adu=0.5, read_noise_e=1.3, qe=0.8)
        >>> counts = torch.full((1, 3, 32, 32), 120.0)  # one movie of three frames
        >>> context = model.context_map({"psf_sigma_px": 1.3})
        >>> with torch.no_grad():
        ...     posterior = model(counts, camera, context, 100.0)
        >>> len(posterior), len(posterior.point_estimate())
        (3, 0)
    """

    def __init__(
        self,
        network: NetworkConfig,
        context: Mapping[str, tuple[float, float]],
        *,
        psf: PSF | None = None,
        camera: Camera | None = None,
    ) -> None:
        super().__init__()
        self.camera = camera
        # in a tuple, for a Module takes every Module that it holds for one of its own layers
        self._psf = (psf,)
        self.network = network
        self.context = {name: (float(low), float(high)) for name, (low, high) in context.items()}
        self.record = ModelRecord()
        """how the model was trained, and how good it is"""
        self.recalibration: Recalibration | None = None
        """corrections of what it states; None: it was not fitted"""
        width, known = network.frame_widths[0], len(self.context)
        through = network.context_width if known else 0
        self.embedding = nn.Sequential(
            nn.Conv2d(known, through, 1), nn.SiLU(), nn.Conv2d(through, through, 1), nn.SiLU()
        ) if through else None  # fmt: skip
        self.frame_net = UNet(
            N_IMAGES if through else N_IMAGES + known, network.frame_widths, through
        )
        self.sequence_net = UNet(3 * width, network.sequence_widths, through)
        self.n_out = 10 if network.axial else 8
        self.head = nn.Conv2d(network.sequence_widths[0], network.head_width, 3, padding=1)
        self.out = nn.Conv2d(network.head_width, self.n_out, 1)
        nn.init.kaiming_normal_(self.head.weight, nonlinearity="relu")
        nn.init.normal_(self.out.weight, std=0.02)
        assert self.out.bias is not None
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():  # few emitters, in the middle of their pixel, a third of a pixel wide
            start = [-4.0, 0.0, 0.0, -1.0, -1.0, 6.0, -1.0, 3.0, 0.0, 5.0]
            self.out.bias.copy_(torch.tensor(start[: self.n_out]))

    @property
    def psf(self) -> PSF | None:
        """The PSF it was trained for; None: a range of them.  It stays on the CPU."""
        return self._psf[0]

    def z_range_nm(self, pixel_size_nm: float) -> tuple[float, float] | None:
        """Depths that it was trained on, nm, at this pixel size; None where its record does not
        state them."""
        depths = self.record.z_nm
        if depths is None:
            return None
        scale = pixel_size_nm / (self.record.pixel_size_nm or pixel_size_nm)
        return depths[0] * scale, depths[1] * scale

    @property
    def knows_bad_pixels(self) -> bool:
        """Whether it is trained on cameras with bad pixels; for other models they are only
        filled."""
        return self.training or self.record.max_bad_pixels > 0

    @property
    def stride(self) -> int:
        """Height and width of movies are padded to multiples of it."""
        return max(self.frame_net.stride, self.sequence_net.stride)

    @property
    def radius_px(self) -> int:
        """Largest distance, in pixels, over which a pixel's posterior depends on others; a
        recalibration looks at the crowd around, too."""
        crowd = 0 if self.recalibration is None else REACH_OF_CROWDS_PX
        return self.frame_net.radius_px + self.sequence_net.radius_px + 1 + crowd

    @property
    def domain(self) -> Domain:
        """Conditions that it was trained for."""
        return Domain(self.context, self.record.pixel_size_nm)

    def context_map(self, values: Mapping[str, float | Tensor]) -> Tensor:
        """Context from named values: numbers, or (b,) or (b, y, x) tensors.

        Returns:
            (b, n_context, 1 or y, 1 or x), scaled so that the training range is [-1, 1].

        Raises:
            ValueError: if a value is missing or unknown, or lies outside the range the network was
                trained for.
        """
        return self.domain.context_map(values)

    def forward(
        self, adu: Tensor, camera: Camera, context: Tensor, pixel_size_nm: float
    ) -> SetPosterior:
        """The posterior of every frame of some movies.

        Args:
            adu: (b, t, y, x) counts of b movies of t consecutive frames.
            camera: the camera; its fields are numbers, (y, x) maps, or broadcast against (b, 1, y,
                x).
            context: (b or 1, n_context, 1 or y, 1 or x) from `context_map`.
            pixel_size_nm: side of a pixel.

        Returns:
            The posterior of b * t frames, movie after movie.
        """
        b, t, height, width = adu.shape
        features, alpha = self.encode(adu, camera, context)
        nothing = torch.zeros_like(features[:, :1])
        past = torch.cat([nothing, features[:, :-1]], 1)
        future = torch.cat([features[:, 1:], nothing], 1)
        flat = [f.flatten(0, 1) for f in (past, features, future)]
        alpha = alpha.expand(b, t, -1, -1).flatten(0, 1) if alpha.ndim == 4 else alpha
        context = context.expand(b, -1, -1, -1).repeat_interleave(t, 0)
        return self.decode(
            *flat, alpha=alpha, context=context, shape=(height, width), pixel_size_nm=pixel_size_nm
        )

    def encode(self, adu: Tensor, camera: Camera, context: Tensor) -> tuple[Tensor, Tensor]:
        """Features of single frames, computed once for each.

        Returns:
            (b, t, features, padded y, padded x), and alpha, the variance per photon, which
            broadcasts against (b, t, y, x).
        """
        b, t, height, width = adu.shape
        noise = camera.noise.map(lambda value: value.to(adu.device, torch.float32))
        alpha, floor = torch.as_tensor(noise.excess), torch.as_tensor(noise.floor)
        count = camera.without_bad(camera.to_photons(adu)) / alpha
        floor = (floor / alpha**2).expand(b, t, height, width)
        stable = 2 * torch.sqrt((count + floor + 0.375).clamp_min(0.1))
        logarithm = torch.log((count + floor).clamp_min(0) + 2)
        stated = floor
        if camera.bad is not None and self.knows_bad_pixels:
            stated = floor.masked_fill(camera.bad.to(adu.device), FLOOR_OF_BAD)
        x = torch.stack([stable / 8 - 1, logarithm / 2 - 1, torch.log1p(stated) - 0.5], 2)
        if self.embedding is None:
            x = torch.cat([x, context.to(adu.device)[:, None].expand(b, t, -1, height, width)], 2)
        x = self._padded(x.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self._mixed(x)):
            features = self.frame_net(
                x, self._embedded(context.expand(b, -1, -1, -1).repeat_interleave(t, 0))
            )
        return features.unflatten(0, (b, t)), alpha

    def _padded(self, x: Tensor) -> Tensor:
        """Height and width become multiples of the stride."""
        down, right = -x.shape[-2] % self.stride, -x.shape[-1] % self.stride
        return pad(x, (0, right, 0, down), mode="replicate") if down or right else x

    def _embedded(self, context: Tensor) -> Tensor | None:
        """The embedding of the context that scales and shifts the blocks; None without one."""
        if self.embedding is None:
            return None
        embedded: Tensor = self.embedding(context)
        return embedded if embedded.shape[2:] == (1, 1) else self._padded(embedded)

    def decode(
        self,
        past: Tensor,
        now: Tensor,
        future: Tensor,
        *,
        alpha: Tensor,
        context: Tensor,
        shape: tuple[int, int],
        pixel_size_nm: float,
    ) -> SetPosterior:
        """The posterior of frames from the features of each, of the one before and of the one
        after.

        Args:
            past, now, future: (n, features, padded y, padded x); zeros where a movie begins or
                ends.
            alpha: from `encode`, broadcastable against (n, y, x).
            context: (n or 1, n_context, 1 or y, 1 or x) from `context_map`.
            shape: (y, x) without padding.
            pixel_size_nm: side of a pixel.
        """
        x = torch.cat([past, now, future], 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self._mixed(x)):
            x = self.out(silu(self.head(self.sequence_net(x, self._embedded(context)))))
        raw = x[..., : shape[0], : shape[1]].float()
        alpha = alpha.squeeze(1) if alpha.ndim == 4 else alpha
        photons = alpha * torch.exp(raw[:, 5].clamp(0, 12))
        # optics have no scale but that of the wavelength: z scales with the pixel as x and y do
        z_nm = 5 * pixel_size_nm * raw[:, 8] if self.network.axial else None
        depths = self.z_range_nm(pixel_size_nm)
        if z_nm is not None and depths is not None and not self.training:
            z_nm = z_nm.clamp(*depths)  # of what lies deeper it knows nothing
        return SetPosterior(
            logit=raw[:, 0].clamp(-15, 15),
            offset_px=1.5 * torch.tanh(raw[:, 1:3] / 1.5),
            offset_sigma_px=torch.exp(raw[:, 3:5].clamp(-6, 1)),
            photons=photons,
            photons_sigma=photons * torch.exp(raw[:, 6].clamp(-5, 1.5)),
            background=alpha * torch.exp(raw[:, 7].clamp(-5, 9)),
            z_nm=z_nm,
            z_sigma_nm=pixel_size_nm / 100 * torch.exp(raw[:, 9].clamp(0, 7))
            if self.network.axial
            else None,
            pixel_size_nm=pixel_size_nm,
            recalibration=None if self.training else self.recalibration,
        )

    @staticmethod
    def _mixed(x: Tensor) -> bool:
        # bfloat16 pays on GPUs; CPUs without matrix units run it many times slower than float32
        return x.device.type == "cuda" and torch.is_grad_enabled()

    @torch.no_grad()
    def inherit(self, other: Localizer) -> None:
        """Take over the weights of a trained model; parts that it lacks (context, z) keep their
        own.

        Context maps that only the other model has are fixed at the middle of their range; use
        `conditioned_on` first to fix them elsewhere.

        Raises:
            ValueError: if the networks differ in width or depth.
        """
        if other.embedding is not None and self.embedding is None:
            other = other.conditioned_on(torch.zeros(1, len(other.context), 1, 1))
        alike = replace(
            self.network, axial=other.network.axial, context_width=other.network.context_width
        )
        if alike != other.network:
            raise ValueError(
                "the model to start from has another network than the recipe; use the same, or "
                "train anew"
            )
        mine, theirs = self.state_dict(), other.state_dict()
        for name, weight in theirs.items():
            if name != FIRST and not (
                name.startswith("embedding.0.") and list(self.context) != list(other.context)
            ):
                part = tuple(
                    slice(min(a, b)) for a, b in zip(weight.shape, mine[name].shape, strict=True)
                )
                mine[name][part] = weight[part]
        if self.embedding is not None and list(self.context) == list(other.context):
            self._keep_meaning(mine, theirs, other.context)
        mine[FIRST][:, :N_IMAGES] = theirs[FIRST][:, :N_IMAGES]
        for i, context in enumerate(self.context if self.embedding is None else ()):
            if context in other.context and other.embedding is None:
                mine[FIRST][:, N_IMAGES + i] = theirs[FIRST][
                    :, N_IMAGES + list(other.context).index(context)
                ]

    def _keep_meaning(
        self,
        mine: dict[str, Tensor],
        theirs: dict[str, Tensor],
        ranges: Mapping[str, tuple[float, float]],
    ) -> None:
        """Another model's weights of the context maps, rescaled from its ranges to those of this
        model."""
        for i, (name, (low, high)) in enumerate(self.context.items()):
            other_low, other_high = ranges[name]
            weight = theirs["embedding.0.weight"][:, i] / (other_high - other_low)
            mine["embedding.0.weight"][:, i] = weight * (high - low)
            mine["embedding.0.bias"] += weight[:, 0, 0] * (low + high - other_low - other_high)

    @torch.no_grad()
    def conditioned_on(
        self, context: Tensor, *, z_sign: int = 1, z_shift_px: float = 0.0
    ) -> Localizer:
        """A model without context that acts as this one does in one context.

        Args:
            context: (1, n_context, 1, 1) from `context_map`.
            z_sign, z_shift_px: the new model's z is z_sign times this model's, plus z_shift_px
                pixel sizes.

        Raises:
            ValueError: if the context is only seen beside the frames, where it cannot be left out.
        """
        if self.embedding is None:
            raise ValueError(
                "this model needs a context: give the PSF, or its width, with the frames"
            )
        model = Localizer(
            replace(self.network, context_width=0), {}, psf=self.psf, camera=self.camera
        )
        weights = self.state_dict()
        embedded = self._embedded(context)
        for name, module in self.named_modules():
            if name.endswith("modulation"):
                scale, shift = module(embedded).flatten().chunk(2)
                first = name.replace("modulation", "first")
                weights[f"{first}.weight"] = (
                    weights[f"{first}.weight"] * (1 + scale)[:, None, None, None]
                )
                weights[f"{first}.bias"] = weights[f"{first}.bias"] * (1 + scale) + shift
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
        if self.network.axial:
            assert model.out.bias is not None
            model.out.weight[8] *= z_sign
            model.out.bias[8] = z_sign * model.out.bias[8] + z_shift_px / 5
        model.record, model.recalibration = self.record, self.recalibration
        return model.train(self.training)

    # -- files
    # ----------------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Write weights and description to one safetensors file, which appears when it is
        complete."""
        tensors, text = self._content()
        metadata = {"format": FORMAT, "about": text, "sha256": _fingerprint(tensors, text)}
        with atomic(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors, metadata))

    def sha256(self) -> str:
        """Of weights and description, hexadecimal: that of the file it is saved to."""
        return _fingerprint(*self._content())

    def _content(self) -> tuple[dict[str, Tensor], str]:
        """Weights and other arrays, and the description as JSON."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        about: dict[str, Any] = {
            "network": asdict(self.network),
            "context": self.context,
            "record": self.record.to_json(),
        }
        if self.psf is not None:
            kind, settings, arrays = describe(self.psf)
            about["psf"] = {"kind": kind, "settings": settings}
            tensors |= {f"psf.{name}": array.clone() for name, array in arrays.items()}
        if self.camera is not None:
            values = {f.name: getattr(self.camera, f.name) for f in fields(Camera)}
            about["camera"] = {name: v for name, v in values.items() if not isinstance(v, Tensor)}
            tensors |= {
                f"camera.{name}": v.cpu().clone()
                for name, v in values.items()
                if isinstance(v, Tensor)
            }
        if self.recalibration is not None:
            values = self.recalibration.tensors()
            tensors |= {f"recalibration.{name}": v.contiguous() for name, v in values.items()}
        text = json.dumps(about)  # in the order of the context, which is that of the channels
        return tensors, text

    @classmethod
    def load(cls, path: Path | str) -> Localizer:
        """Read a model; nothing in the file is executed.

        Raises:
            ValueError: if the file is truncated, was changed after it was written, or is no model
                of decode.
            OSError: if it cannot be read.
        """
        path = Path(path)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; name the model file in it, .safetensors")
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: there is no such model file; `decode models` lists the shipped ones"
            )
        with path.open(
            "rb"
        ):  # a file that may not be read is no missing one, as safetensors takes it for
            pass
        with reading(path, "a model file", "copy it again"):
            return cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> Localizer:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path}: a safetensors file, but no localizer of this version of decode ({FORMAT})"
            )
        if metadata.get("sha256") != _fingerprint(tensors, metadata.get("about", "")):
            raise ValueError(
                f"{path}: the file was changed after it was written; take a fresh copy of the model"
            )
        about = json.loads(metadata["about"])
        shape: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in about["network"].items()
        }
        besides = ("psf.", "camera.", "recalibration.")
        weights = {name: t for name, t in tensors.items() if not name.startswith(besides)}
        network = NetworkConfig(**shape)
        if len(network.frame_widths) + len(network.sequence_widths) > len(weights):
            raise ValueError("its weights do not fit its network")
        # on "meta" it costs no memory, whatever the file says of its network
        with torch.device("meta"), _Unfilled():
            _require_fit(cls(network, about["context"]), weights)
        psf = (
            PSFDescription(**about["psf"], arrays=_part(tensors, "psf."))
            if "psf" in about
            else None
        )
        maps: dict[str, Any] = _part(tensors, "camera.")
        known: dict[str, Any] = {
            "psf": None if psf is None else rebuild(psf),
            "camera": Camera(**about["camera"], **maps) if "camera" in about else None,
        }
        with _Unfilled():
            model = cls(network, about["context"], **known)
        model.load_state_dict(weights)
        model.record = ModelRecord.from_json(about["record"])
        if recalibration := _part(tensors, "recalibration."):
            model.recalibration = Recalibration.of_tensors(recalibration)
        return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


RANDOM = ("kaiming_uniform_", "normal_", "uniform_")
"""what fills the weights of layers"""


@final
class _Unfilled(TorchFunctionMode):
    """Networks are made without random weights, as those of a file follow.

    On "meta" PyTorch draws normal numbers by its compiler, whose import takes more than a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in RANDOM:
            return None
        return func(*args, **(kwargs or {}))


def _require_fit(model: Localizer, weights: Mapping[str, Tensor]) -> None:
    """Fail unless the weights have the names and shapes of the model's, and are finite."""
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if expected != {name: tuple(t.shape) for name, t in weights.items()}:
        raise ValueError("its weights do not fit its network")
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise ValueError(f"its weights {name} hold NaN or infinite values")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _fingerprint(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()

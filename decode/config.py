"""The keys of a recipe: plain dataclasses, read from YAML; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, final, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from decode.errors import brief, on_a_line, reading
from decode.forward import ForwardModel
from decode.io.yaml import parse_yaml, read_yaml
from decode.network.localizer import Localizer, NetworkConfig
from decode.priors.camera import CameraPrior, MeasuredCamera
from decode.priors.psf import MeasuredPSF, PSFPrior
from decode.priors.pupils import PupilPrior
from decode.priors.scene import Scene
from decode.ranges import Count, NonNegative, Positive, check_settings

__all__ = ["Optimization", "TrainConfig", "from_mapping", "load_config", "read_yaml", "to_mapping"]

T = TypeVar("T")


@final
@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the network is trained."""

    steps: Count = 40000
    """optimizer steps, unless a budget of minutes ends the training first"""
    movies: Count = 4
    """independent movies in a step"""
    frames: Count = 6
    """consecutive frames of each; the first and the last have one neighbour, as in a real movie"""
    size_px: Count = 32
    """side of a simulated frame"""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon or adamw"""
    learning_rate: Positive = 2e-3
    """largest learning rate, after the warm-up"""
    weight_decay: NonNegative = 1e-2
    """decoupled weight decay (AdamW)"""
    warm_up_steps: Annotated[int, Ge(0)] = 200
    """steps over which the learning rate rises linearly"""
    decay_share: Annotated[float, Gt(0), Le(1)] = 0.4
    """share of the training, at its end, over which the learning rate falls linearly to 0"""
    patience: Annotated[int, Ge(0)] = 5
    """validations without improvement after which that fall begins, even before the budget asks for
    it; 0: never"""
    average_decay: Annotated[float, Ge(0), Lt(1)] = 0.999
    """decay per step of the running average of the weights; the average is the model that is
    kept"""
    gradient_norm: Positive = 20.0
    """gradients are clipped to this norm"""
    min_photons: NonNegative = 50.0
    """molecules dimmer than this shine, but the network is not asked to find them"""
    photons: Literal["total", "core"] = "total"
    """which photons of a molecule are counted: all, or those in the Gaussian core of its PSF, for
    models that know only its width, which does not determine how much light lies in rings"""
    validate_every: Count = 2000
    """steps between validations and checkpoints"""

    def __post_init__(self) -> None:
        check_settings(self)


@final
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A recipe for a model: all that `decode train` needs, and `decode simulate` for a movie."""

    version: int = 1
    """version of this file's layout"""
    description: str = ""
    """what the model is good for, in a sentence"""
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    """seed of simulation and initial weights"""
    pixel_size_nm: Positive = 100.0
    """side of a pixel in object space"""
    scene: Scene = field(default_factory=Scene)
    """molecules and background"""
    psf: PSFPrior | PupilPrior | MeasuredPSF = field(default_factory=PSFPrior)
    """point spread function: ranges of a Gaussian, ranges of astigmatic pupils, or a calibrated
    `file`"""
    camera: CameraPrior | MeasuredCamera = field(default_factory=CameraPrior)
    """cameras: ranges, or the `file` of one"""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """shape of the network"""
    training: Optimization = field(default_factory=Optimization)
    """how it is trained"""

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ValueError(
                f"version {self.version} of the file's layout is unknown; this decode reads "
                "version 1"
            )
        check_settings(self)

    def forward_model(self) -> ForwardModel:
        """The generative model this recipe trains on.

        Raises:
            ValueError: if a file it names is wrong, or its pixels have another size.
        """
        psfs = self.psf.at(self.pixel_size_nm, self.scene.z_nm)
        return ForwardModel(self.scene, psfs, self.camera.at(self.pixel_size_nm))

    def inputs(self) -> tuple[Path, ...]:
        """The files that the recipe names: PSF, camera and the camera's maps."""
        return self.psf.files() + self.camera.files()

    def localizer(self) -> Localizer:
        """An untrained network of this shape, with the recipe's PSF and camera."""
        forward = self.forward_model()
        psfs, camera = forward.psfs, forward.cameras.known
        return Localizer(self.network, psfs.domain, psf=psfs.known, camera=camera)


def from_mapping(kind: type[T], content: Mapping[str, Any], source: str) -> T:
    """Build a dataclass from plain values.

    Raises:
        ValueError: one sentence that names the source, the key and what is wrong.
    """
    return _built(kind, content, source, ())


def _built(kind: type[T], content: Mapping[str, Any], source: str, at: tuple[str, ...]) -> T:
    """`from_mapping` of the section that lies `at` this place of the source."""
    from pydantic import TypeAdapter, ValidationError

    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in content.items():
        where = ".".join((*at, str(key)))
        if key not in hints:
            raise ValueError(f"{source}: unknown key {brief(where)}; {_known(str(key), hints)}")
        kinds = [k for k in (get_args(hints[key]) or (hints[key],)) if dataclasses.is_dataclass(k)]
        if isinstance(value, bool) and bool not in (hints[key], *get_args(hints[key])):
            raise ValueError(f"{source}: {where}: must not be {str(value).lower()}")
        if get_origin(hints[key]) is Mapping and kinds and isinstance(value, Mapping):
            # sections by names that the user chooses
            values[key] = {
                name: _section(kinds, own, source, (*at, key, str(name)))
                for name, own in value.items()
            }
        else:
            values[key] = _section(kinds, value, source, (*at, key)) if kinds else value
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problems = []
        for e in error.errors():
            where = ".".join(str(part) for part in (*at, *e["loc"]))
            message = e["msg"].replace("Value error, ", "")
            if e["type"] == "tuple_type":
                message = f"must be a list, as [{e['input']}, {e['input']}]"
            elif e["type"] == "string_type":
                message = "must be a text; put it between quotes"
            problems.append(on_a_line(f"{where}: {message}" if where else message, 200))
        raise ValueError(f"{source}: {'; '.join(problems)}") from None


def _section(kinds: Sequence[Any], value: Any, source: str, at: tuple[str, ...]) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{source}: {'.'.join(at)}: must hold `key: value` lines")
    return _built(_meant(kinds, value), value, source, at)


def _known(key: str, keys: Iterable[str]) -> str:
    """Which key may be meant, and all there are."""
    near = difflib.get_close_matches(key, keys, 1)
    hint = f"is it {near[0]}? " if near else ""
    return f"{hint}known here: {', '.join(sorted(keys))}"


def _meant(kinds: Sequence[Any], content: Mapping[str, Any]) -> Any:
    """The kind of a section whose required keys stand there, else that with most of the keys."""

    def fits(kind: Any) -> tuple[int, int]:
        fields = dataclasses.fields(kind)
        required = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
        return len(required & set(content)), len({f.name for f in fields} & set(content))

    return max(kinds, key=fits)


def to_mapping(config: Any) -> dict[str, Any]:
    """Plain values of a dataclass, as YAML or JSON holds them."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def load_config(path: Path | str, settings: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe.

    Args:
        path: YAML file.
        settings: `section.key=value` strings that replace what the file says.
    """
    content = read_yaml(path)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: write it as section.key=value")
        *sections, key = name.split(".")
        target = content
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ValueError(f"--set {setting}: {section} holds a value, not keys")
        target[key] = next(iter(parse_yaml(value, f"--set {setting}")), None)
    with reading(path, "a recipe", "check its text"):
        config = from_mapping(TrainConfig, content, str(path))
    folder = Path(path).parent
    psf, camera = config.psf.beside(folder), config.camera.beside(folder)
    return dataclasses.replace(config, psf=psf, camera=camera)

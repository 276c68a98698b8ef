"""The pages that are made from the code: commands, recipes, the Python interface, model cards.

`make docs` writes them into docs/reference and docs/models, which git ignores, so that they are
never older than the code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.main

import decode
from decode.atomic import atomic
from decode.cli import app
from decode.models import load_model, shipped_models
from decode.network.localizer import Localizer
from decode.quality.calibration import CalibrationRecord
from decode.verbs.schema import schema

ROOT = Path(__file__).resolve().parents[1]
SITE = Path(__file__).parent

TOPICS = {
    "From a movie to a figure": (
        "localize", "run", "drift", "link", "filter", "quality", "render", "report", "check_table",
        "convert", "evaluate", "assess", "score",
    ),
    "The microscope and its models": (
        "calibrate_psf", "calibrate_camera", "calibrate_model", "calibrate_checks", "estimate",
        "train", "simulate", "load_model",
    ),
    "Files": (
        "open_movie", "write_movie", "read_table", "write_table", "read_camera", "write_camera",
    ),
}  # fmt: skip
"""the verbs by what they are for; names in none of these are listed last, as nouns"""

FURTHER = {
    "What a microscope can tell": ("decode.optics.fisher", "decode.likelihood"),
    "Is the answer right?": ("decode.quality.calibration", "decode.quality.checks"),
}
"""modules whose names are public, too"""

UNSUITED = {
    "gaussian-2d": (
        "A cylindrical lens or any other engineered PSF: one molecule becomes several.  Use "
        "`astigmatic-3d`, or `decode run`.",
        "Depth: it places molecules in the plane.  Its training reaches 250 nm out of focus.",
        "Two-dimensional work at the last few percent of precision with a PSF that is known: "
        "localize with `--psf`, where the likelihood decides.",
        "Molecules of 10,000 photons or more: errors are up to 1.57 times the bound, and stated "
        "sigmas up to 1.6 times too large ([measured](../measured.md)).",
    ),
    "astigmatic-3d": (
        "A PSF without a pupil's parameters: calibrate with `decode calibrate psf`, which keeps "
        "the pupil beside the spline.",
        "Another mask than a cylindrical lens (double helix, tetrapod): train one with `decode "
        "run` or `decode localize --adapt`.",
        "Molecules of 500 photons at the ends of depth: at 675 nm 2 to 40 % of those of 1000 and "
        "2000 photons are found ([benchmarks](../benchmarks.md)).",
        "Bright molecules without polishing: at 15000 photons errors are up to 15 times the bound "
        "in z.  Where the PSF is known the likelihood decides by default; leave that on.",
        "The best that a movie allows: a model that is trained for the microscope has a 3D "
        "efficiency of 67.4 where this one has 54.8, both without polishing "
        "([training](../training.md)).",
    ),
}
"""what each shipped model is not for, as it was measured"""


def write_pages(site: Path = SITE) -> None:
    """Write all pages, those that changed only."""
    pages = {"reference/cli.md": cli(), "reference/recipes.md": recipes()}
    pages["reference/jobs.md"] = jobs()
    pages |= {"reference/api.md": api(), "models/index.md": cards()}
    pages |= {f"models/{name}.md": card(name) for name in shipped_models()}
    for name in shipped_models():
        record = load_model(name).record
        if record.calibration is not None:
            picture = site / "models" / _picture(name)
            picture.parent.mkdir(exist_ok=True)
            CalibrationRecord.of_model(record).picture(picture)
    for name, text in pages.items():
        page = site / name
        page.parent.mkdir(exist_ok=True)
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            with atomic(page) as unfinished:
                unfinished.write_text(text, encoding="utf-8")


def _lines(*parts: str | Iterable[str]) -> str:
    flat = (part if isinstance(part, str) else "\n".join(part) for part in parts)
    return "\n\n".join(part for part in flat if part).rstrip() + "\n"


def _cell(text: str) -> str:
    """A text within a row of a table."""
    return re.sub(r"\s+", " ", text).replace("|", r"\|").replace("<", r"\<").strip()


# --- commands


def commands(group: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def cli() -> str:
    """Every command with its options, as its `--help` says them."""
    program = typer.main.get_command(app)
    parts = [
        "# Commands",
        "`decode VERB --help` says the same in the terminal; `decode --install-completion` lets "
        "the shell complete verbs and options.  Results go to stdout, progress and warnings to "
        "stderr, and `--json` makes results readable by programs.",
        _cell(program.epilog or ""),
    ]
    for words, command in commands(program, ("decode",)):
        parts += _command(" ".join(words), command)
    return _lines(*parts)


def _command(called: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    yield f"## {called}"
    yield (command.help or "").replace("<", r"\<")
    shown = " ".join(p.metavar or p.human_readable_name for p in arguments)
    yield f"```text\n{called} [OPTIONS] {shown}".rstrip() + "\n```"
    rows = [(f"`{p.metavar or p.name}`", p) for p in arguments]
    rows += [(_flags(p), p) for p in options]
    if rows:
        table = ["| argument or option | what |", "|---|---|"]
        yield "\n".join(table + [f"| {name} | {_what(p)} |" for name, p in rows])
    examples = (command.epilog or "").partition("Examples:\n")[2]
    if examples:
        yield "```text\n" + "\n".join(line.strip() for line in examples.splitlines()) + "\n```"


def _flags(option: Any) -> str:
    names = [f"`{name}`" for name in (*option.opts, *option.secondary_opts)]
    return ", ".join(names) + (f" {option.metavar}" if option.metavar else "")


def _what(parameter: Any) -> str:
    notes = ["required"] if parameter.required and parameter.param_type_name == "option" else []
    default = parameter.default
    if isinstance(default, int | float | str) and not isinstance(default, bool):
        notes.append(f"default {default}")
    return _cell((parameter.help or "") + (f"  ({', '.join(notes)})" if notes else ""))


# --- recipes


def recipes() -> str:
    """Every key of a recipe, from its schema."""
    example = (ROOT / "configs" / "gaussian-2d.yaml").read_text(encoding="utf-8")
    return _lines(
        "# Recipes",
        "A recipe is the YAML file that `decode train` trains with and `decode simulate` draws "
        "movies from; `decode estimate` writes one for a movie.  Unknown keys are refused.  `[a, "
        "b]` is a range from which each movie draws.  `--set section.key=value` overrides a key "
        "on the command line, and `decode schema` prints the schema for editors.",
        f"```yaml\n{example}```",
        "## The recipe itself",
        *_sections(schema("recipe")),
    )


def jobs() -> str:
    """Every key of a job, from its schema."""
    return _lines(
        "# Jobs",
        "A job is the YAML file of `decode batch` ([many movies](../batch.md)).  Unknown keys are "
        "refused; `decode schema job` prints the schema for editors.",
        "## The job itself",
        *_sections(schema("job")),
    )


def _sections(whole: Mapping[str, Any]) -> Iterator[str]:
    yield _keys(whole["properties"], whole["$defs"])
    for name, definition in whole["$defs"].items():
        if definition.get("properties"):
            yield f"## {name}"
            yield definition.get("description", "").partition("\n\n")[0]
            yield _keys(definition["properties"], whole["$defs"])


def _keys(properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    rows = ["| key | default | what |", "|---|---|---|"]
    for key, about in properties.items():
        default = json.dumps(about["default"]) if "default" in about else ""
        if isinstance(about.get("default"), dict):
            default = ""
        kinds = [each["$ref"].rpartition("/")[2] for each in _references(about)]
        links = " or ".join(f"[{kind}](#{kind.lower()})" for kind in kinds if kind in definitions)
        what = "  ".join(filter(None, (_cell(about.get("description", "")), links)))
        shown = f"`{default}`" if default else ""
        rows.append(f"| `{key}` | {shown} | {what} |")
    return "\n".join(rows)


def _references(about: Any) -> Iterator[Mapping[str, str]]:
    if isinstance(about, Mapping):
        if "$ref" in about:
            yield about
        for key, value in about.items():
            if key != "default":
                yield from _references(value)
    elif isinstance(about, list):
        for value in about:
            yield from _references(value)


# --- the Python interface


def api() -> str:
    """All public names, by topic; their text is that of the docstrings."""
    grouped = {name for names in TOPICS.values() for name in names}
    nouns = tuple(name for name in decode.__all__ if name not in grouped)
    parts = [
        "# Python",
        "`import decode` has all names below.  A verb takes files or arrays and returns its "
        "result; long ones have `.steps(...)`, a generator of progress, which is cancelled by not "
        "asking for the next step.  Lengths are in nm, intensities in photons before quantum "
        "efficiency, arrays index (frame, y, x), and coordinates are ordered x, y, z "
        "([conventions](../concepts/conventions.md)).",
    ]
    for topic, names in TOPICS.items():
        known = [name for name in names if name in decode.__all__]
        parts += [f"## {topic}", *(_documented("decode", name) for name in known)]
    parts += ["## Nouns", *(_documented("decode", name) for name in nouns)]
    for topic, modules in FURTHER.items():
        parts.append(f"## {topic}")
        parts += [f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```" for name in modules]
    return _lines(*parts)


def _documented(module: str, name: str) -> str:
    noun = isinstance(getattr(decode, name), type)
    directive, members = ("autoclass", "\n   :members:") if noun else ("autofunction", "")
    return f"### {name}\n\n```{{eval-rst}}\n.. {directive}:: {module}.{name}{members}\n```"


# --- model cards


def cards() -> str:
    rows = ["| model | for |", "|---|---|"]
    for name in shipped_models():
        rows.append(f"| [{name}]({name}.md) | {_cell(load_model(name).record.description)} |")
    return _lines(
        "# Shipped models",
        "They come with the package and need no training.  A card says what a model serves, how "
        "good it is, how far its uncertainties can be trusted, and when another is better.  "
        "`decode models` prints the figures; so it does of a model of your own.",
        rows,
        "```{toctree}\n:hidden:\n\n" + "\n".join(shipped_models()) + "\n```",
    )


def card(name: str) -> str:
    """The card of a shipped model, from the record beside its weights."""
    model = load_model(name)
    record = model.record
    return _lines(
        f"# {name}",
        f"{record.description}.",
        "## What it serves",
        _served(model),
        "## Figures",
        "Simulated movies of its own recipe, by density and brightness (rules of the SMLM "
        "Challenge 2016: pairs within 250 nm, in 3D 500 nm in depth); nothing is polished.",
        _figures(record.figures or ()),
        "Against other programs and the bound: [measured](../measured.md), "
        "[benchmarks](../benchmarks.md).",
        "## Calibration",
        _calibration(name, model),
        "## When not to use it",
        [f"- {sentence}" for sentence in UNSUITED[name]],
        [f"- As its training said: {remark}." for remark in record.remarks or ()],
        "## How it was trained",
        f"{record.steps} steps in {record.minutes or 0:.0f} minutes on {record.hardware}, the last "
        f"of its trainings, by decode {record.decode} with the recipe `configs/{name}.yaml`.  The "
        f"whole record, with the recipe, the seed and the trainings before, lies beside the "
        f"weights: `decode/models/{name}.json`.",
    )


def _served(model: Localizer) -> str:
    config = model.record.config
    assert config is not None
    scene, camera = config["scene"], config.get("camera", {})
    rows = [("dimensions", "x, y and z" if model.network.axial else "x and y")]
    rows += [
        ("molecules on at once", _range(scene["density_per_um2"], "per square micrometre")),
        ("mean photons of a molecule in a frame", _range(scene["flux_photons"], "")),
        ("background", _range(scene["background_photons"], "photons a pixel")),
        ("depth in training", _range(scene["z_nm"], "nm")),
        ("on-time", _range(scene["on_time_frames"], "frames")),
    ]
    emccd = camera.get("emccd_fraction")
    if emccd is not None:
        rows.append(("cameras", f"EMCCD ({100 * emccd:.0f} % of the training) and sCMOS"))
    rows += [
        (f"conditioned on `{quantity}`", _range(ends, ""))
        for quantity, ends in model.context.items()
    ]
    return "\n".join(["| what | range |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def _range(ends: Any, unit: str) -> str:
    low, high = ends
    return f"{low:g} to {high:g} {unit}".strip()


def _figures(figures: Iterable[Mapping[str, Any]]) -> str:
    rows = list(figures)
    axial = any("rmse_axial_nm" in row for row in rows)
    head = ["molecules per um²", "photons", "background", "Jaccard", "RMSE lateral"]
    head += ["RMSE axial"] if axial else []
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{row['density_per_um2']:.2f}", f"{row['flux_photons']:.0f}"]
        cells += [f"{row['background_photons']:.0f}", f"{row['jaccard']:.2f}"]
        cells += [f"{row['rmse_lateral_nm']:.1f} nm"]
        cells += [f"{row['rmse_axial_nm']:.1f} nm"] if axial else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _picture(name: str) -> str:
    return f"{name}-calibration.png"


def _calibration(name: str, model: Localizer) -> str:
    record = model.record
    last = record.validation[-1]
    said = [
        f"Isolated molecules of its last validation: errors are "
        f"{last['isolated_error_over_bound']:.2f} times the Cramér-Rao bound, and "
        f"{last['isolated_error_over_sigma']:.2f} times the stated sigma (1 is right; smaller, and "
        "the model states more than it errs)."
    ]
    if record.calibration is None:
        said.append(
            "No corrections were fitted to these weights; `decode calibrate model` fits and "
            "measures them.  `decode evaluate` says for a movie with known truth how often the "
            "stated intervals hold it."
        )
    else:
        lines = CalibrationRecord.of_model(record).lines()
        said.append(
            "On fresh movies of its recipe, what the network states (`--no-polish`, `--samples`; "
            "how that is corrected: [](../training.md#calibration)):"
        )
        said.append("```text\n" + "\n".join(lines) + "\n```")
        said.append(
            f"![ranks, intervals, probabilities and joint coverage]({_picture(name)})\n\n"
            "Ranks of the truth among draws, with the band of 99 % of even ones; intervals of "
            "draws; probabilities of what is listed; coverage of all quantities jointly (TARP)."
        )
    return "\n\n".join(said)


if __name__ == "__main__":
    write_pages()

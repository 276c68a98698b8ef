"""The application: commands whose errors are one line and an exit code."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, final

import typer
from typer.core import TyperGroup

from decode.commands import COMMANDS, running

__all__ = [
    "app",
    "examples",
    "say",
]


@final
class _Commands(TyperGroup):
    """Commands whose errors are one line on stderr and an exit code.

    2 is bad input, 1 a run that failed, 3 data that do not allow an answer or a check that failed
    (`--strict`), 130 Ctrl-C and 143 SIGTERM.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[COMMANDS] = shlex.join(["decode", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with running(ctx.meta[COMMANDS]):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("decode: stopped", err=True)
            raise typer.Exit(130) from None
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            raise typer.Exit(say(error, ctx)) from None


def say(error: Exception, ctx: Any, *, about: str = "") -> int:
    """Print an error as one line on stderr; its exit code.  What no user can cause is raised
    again, for a traceback."""
    from decode.errors import in_plain_words

    code = _exit_code(error)
    if code is None or ctx.find_root().params["debug"]:
        raise error
    typer.echo(f"decode: {about}{in_plain_words(error)}", err=True)
    return code


def _exit_code(error: Exception) -> int | None:
    """None for an error that no user can cause."""
    from decode.errors import Undetermined, is_out_of_memory
    from decode.training.course import TrainingError

    if isinstance(error, Undetermined):
        return 3
    if isinstance(
        error,
        ValueError | FileNotFoundError | IsADirectoryError | NotADirectoryError | PermissionError,
    ):
        return 2
    return 1 if isinstance(error, OSError | TrainingError) or is_out_of_memory(error) else None


app = typer.Typer(
    cls=_Commands,
    help="Raw single-molecule blinking movies to tables of molecules with uncertainties.",
    epilog="Exit codes: 0 done, 1 failed while running, 2 bad input, 3 the data do not allow it "
    "or a check failed (--strict), "
    "130 stopped by Ctrl-C, 143 by SIGTERM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def examples(*commands: str) -> str:
    """Commands that the help shows at its end, line by line."""
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


def _show_version(show: bool) -> None:
    if show:
        from decode import __version__

        typer.echo(f"decode {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass

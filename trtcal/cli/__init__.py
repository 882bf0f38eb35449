"""The command line: one function per command that parses, calls one library function and prints.

Everything heavy is imported inside the command that needs it, so that ``trtcal --help`` answers at once.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trtcal import __version__
from trtcal.cli import build, cache, calibrate, examine, judge, quantize, refine, report, sweep, zoo
from trtcal.cli.common import Output
from trtcal.files import terminal


class _Commands(TyperGroup):
    """Turns what the user can mend into one line and exit code 2, and Ctrl-C into 130."""

    def invoke(self, ctx: Any) -> Any:
        from trtcal.errors import TrtcalError

        try:
            return super().invoke(ctx)
        except (TrtcalError, ValueError) as error:
            if not isinstance(error, TrtcalError) and logging.getLogger().isEnabledFor(logging.DEBUG):
                raise
            print(terminal.line(f"trtcal: error: {error}"), file=sys.stderr)
            raise typer.Exit(2) from None
        except OSError as error:  # of files that no reader of ours had in hand, a name too long, say
            print(terminal.line(f"trtcal: error: {error}"), file=sys.stderr)
            raise typer.Exit(2) from None
        except MemoryError:
            print("trtcal: error: out of memory; smaller batches or fewer workers need less", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("trtcal: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


class _Once:
    """Lets each warning and error through once: a model that is opened for two purposes need not be warned of twice."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """A record -> is it to be shown?"""
        text = record.getMessage()
        new = record.levelno < logging.WARNING or text not in self._said
        self._said.add(text)
        return new


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"trtcal {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    help="Calibrate ONNX models for TensorRT INT8, on any CPU. Start with: trtcal demo",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for module in (calibrate, build, sweep, report, quantize, refine, judge, examine, zoo):
    module.register(app)
app.add_typer(cache.app, name="cache")


@app.callback()
def options(
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for debugging.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Set up what all commands share."""
    level = logging.ERROR if quiet else {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    handler = logging.StreamHandler()
    handler.addFilter(_Once())
    handler.setFormatter(terminal.LineFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("numba").setLevel(logging.WARNING)
    logging.getLogger("PIL").setLevel(logging.WARNING)
    Output.quiet = quiet


def main() -> None:
    """Run the command line."""
    app()

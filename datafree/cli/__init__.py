"""The command line: one module a command; the only code that talks to a terminal."""

from __future__ import annotations

import os
import re
import sys
import threading
from importlib import import_module
from typing import NoReturn

import click

from datafree import __version__

COMMANDS = {
    "train": ("datafree.cli.train:train", "Distil a teacher into a smaller student, without its data."),
    "condense": ("datafree.cli.condense:condense", "Condense a real data set into a few synthetic images."),
    "experts": ("datafree.cli.experts:experts", "Record experts: trajectories of networks on real data."),
    "pretrain": ("datafree.cli.pretrain:pretrain", "Train a network on real data: a teacher, or the baseline."),
    "evaluate": ("datafree.cli.evaluate:evaluate", "Test a student, or networks trained on a condensed set."),
    "sample": ("datafree.cli.sample:sample", "Write images of a run's generator, with the teacher's soft labels."),
    "report": ("datafree.cli.report:report", "Compare runs on one page: curves, costs, classes, options."),
    "reproduce": ("datafree.cli.reproduce:reproduce", "Run the missing cells of a table of results, and render it."),
    "list": ("datafree.cli.listing:listing", "List methods, condensers, models, data or generators."),
}


class Lazy(click.Group):
    """Loads a command's module when it is run or asked for help, so that the rest answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=Lazy,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="datafree")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Data-free distillation, a student from a teacher alone; and condensation, few images from many.

    \b
    datafree train                          the embedded job, on real digits, in about two minutes
    datafree train --teacher resnet34.pt    your own checkpoint
    datafree condense --data fashion-mnist  ten synthetic images a class
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Runs the command line and ends the process.

    Exit status: 0; 2 and one line on stderr for what a person can mend; 3 where a term became NaN or infinite; 130
    after Ctrl-C, and after SIGTERM where a run could still be saved (elsewhere SIGTERM ends the process as usual, 143).
    Anything else is a fault of the program and keeps its traceback.
    """
    threading.excepthook = _thread_failed
    try:
        group.main(prog_name="datafree", standalone_mode=False)
        if "datafree.parallel" in sys.modules:  # a group that is not left may abort the process at its end
            sys.modules["datafree.parallel"].finish()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "datafree"
        _fail(error.format_message(), 2, hint=f"see: {path} --help")
    except click.Abort as error:  # click's own word for Ctrl-C; what was interrupted is its cause
        click.echo(str(error.__cause__ or "") or "interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of stdout has gone, as in `datafree list models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        _fail(str(error), 2)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search(r"out of memory|can't allocate memory", str(error)):
            raise
        _fail("there is not enough memory: give a smaller --batch-size or a smaller network", 2)
    except ArithmeticError as error:
        if type(error).__name__ != "TermError":  # the class itself would load torch
            raise
        _fail(str(error), 3)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's writing thread hands its error to the main thread as well, which tells it in one line."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _fail(message: str, status: int, hint: str | None = None) -> NoReturn:
    """Prints one line (and a second, the hint) and ends the process."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    if hint is not None:
        click.echo(hint, err=True)
    sys.exit(status)

"""The command line: one module a command; the only code that talks to a terminal."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from datafree import __version__

COMMANDS = {
    "train": ("datafree.cli.train:train", "Distil a teacher into a smaller student, without its data."),
    "pretrain": ("datafree.cli.pretrain:pretrain", "Train a network on real data: a teacher, or the baseline."),
    "evaluate": ("datafree.cli.evaluate:evaluate", "Test a student: accuracy, agreement with its teacher."),
    "sample": ("datafree.cli.sample:sample", "Write images of a run's generator, with the teacher's soft labels."),
    "list": ("datafree.cli.listing:listing", "List methods, models, data or generators."),
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


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="datafree")
def group() -> None:
    """Data-free distillation: a student from a teacher alone.

    \b
    datafree train                          the embedded job, on real digits, in about two minutes
    datafree train --teacher resnet34.pt    your own checkpoint
    """


def main() -> None:
    """Runs the command line. What a person can mend is one line on stderr and exit status 2."""
    try:
        group.main(prog_name="datafree", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "datafree"
        click.echo(f"error: {error.format_message()}\nsee: {path} --help", err=True)
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
    except (ValueError, FileNotFoundError) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        click.echo(str(interruption) or "interrupted", err=True)
        sys.exit(130)
    except ArithmeticError as error:
        click.echo(f"error: {error}; the last good checkpoint is kept", err=True)
        sys.exit(3)

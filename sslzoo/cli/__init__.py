"""What can be typed? Commands, each in a module of its own that is imported only when it is called."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from importlib import import_module
from traceback import walk_tb
from typing import Any, NoReturn

import click

COMMANDS = {
    "plugins": "Who is installed, and what each offers.",
    "list": "Parts of one family, recipes, studies or clusters.",
    "show": "A part's or section's keys, or a recipe with every default.",
    "check": "Validate a recipe; shapes and counts of one step.",
    "new": "Begin a plugin: a working package or file.",
    "verify": "Does a part keep its contract? Checks for authors.",
    "draw": "Pictures of masks: samples, coverage, context share.",
    "train": "Train a recipe; the same command resumes.",
    "submit": "Train a recipe on a SLURM cluster.",
    "drill": "Rehearse a preemption: does this run survive here?",
    "status": "How far runs are, and why they ended.",
    "logs": "What a run printed.",
    "cancel": "End a run; what it saved stays.",
    "resume": "Go on with a run, the way it was started.",
    "compare": "Run a study, or compare runs: a table that may be trusted.",
    "report": "The page of a run, of a study, or of several runs.",
    "doctor": "Is a run healthy? A verdict, evidence, remedies.",
    "eval": "Probe the frozen encoder of a run.",
    "import": "Begin a run with an encoder that others trained.",
    "bench": "How fast is a step here, and where does its time go?",
}


# Names that are too long, no permission, a full or read-only disk, a file where a folder should be, links in a ring.
THEIRS = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR)
THEIRS += (errno.EISDIR, errno.ELOOP)
OUTPUT = (errno.ENOSPC, errno.EBADF, errno.EIO, errno.EPIPE, errno.EFBIG, errno.EDQUOT)  # writing to a stream


class Lazy(click.Group):
    """A group that imports a command when it is called, and asks plugins only for commands it does not know."""

    def invoke(self, ctx: click.Context) -> Any:
        """As click; a file or folder that cannot be used is a person's to mend, not the engine's."""
        from sslzoo.errors import UserError, printable

        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = printable(error.message)  # pyright: ignore - final in its stubs, not in truth
            raise
        except OSError as error:
            if error.filename is None or error.errno not in THEIRS:
                raise
            raise UserError(f"{str(error.filename)[:300]}: {error.strerror}") from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The shipped commands, in the order of a person's work."""
        return [*COMMANDS, *(name for name in super().list_commands(ctx) if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by name."""
        if cmd_name in COMMANDS:
            return import_module(f"sslzoo.cli.{cmd_name}_").command
        if cmd_name not in self.commands:
            add_plugin_commands(self)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line a command, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        formatter.write_paragraph()
        formatter.write_text(
            "Plugins add commands of their own, such as `sslzoo index` and `sslzoo data pack`; see `sslzoo plugins`."
        )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, with the nearest name for one that is not known."""
        from sslzoo.errors import did_you_mean

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            known = [*COMMANDS, *self.commands]
            raise click.UsageError(f"no command {args[0]!r}{did_you_mean(args[0], known)}", ctx) from None


def add_plugin_commands(group: click.Group) -> None:
    """Loads every plugin and lets it add commands."""
    from sslzoo.plugins import load

    load().hook.sslzoo_commands(cli=group)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="sslzoo")
def cli() -> None:
    """Self-supervised learning from images, as recipes of named parts.

    \b
    Start here:        sslzoo train tiny/ijepa
    Shell completion:  eval "$(_SSLZOO_COMPLETE=bash_source sslzoo)"   (or zsh_source, fish_source)
    """
    for name in ("COLUMNS", "LINES"):  # rich takes superscripts for numbers, and dies of them
        if not os.environ.get(name, "0").isdecimal():
            del os.environ[name]


def main(args: list[str] | None = None) -> Any:
    """Runs the command line: a person's mistakes end with a message and exit code, without a traceback."""
    from sslzoo.errors import UserError
    from sslzoo.run.stop import Stopped

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an old locale must not end a command at a letter
    try:
        return cli.main(args, prog_name="sslzoo")
    except (UserError, Stopped) as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if _in_import_of("torch", error):
            click.echo(f"PyTorch cannot be imported: {type(error).__name__}: {error}", err=True)
            sys.exit(2)
        if isinstance(error, OSError) and error.filename is None and error.errno in OUTPUT:
            _refuse_output(error)
        raise


def _in_import_of(package: str, error: Exception) -> bool:
    """Whether an error arose while a package was imported, which may read the environment, such as TORCH_LOGS."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == package for frame in frames)


def _refuse_output(error: OSError) -> NoReturn:
    """Standard output is full or gone, or a disk is; what is held back must not fail again when the process ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with suppress(OSError, ValueError):
        click.echo(f"standard output, or a file, cannot be written: {error.strerror}", err=True)
    sys.exit(2)


def echo_folded(text: str, further: int = 2) -> None:
    """Prints text whose long lines go on below, so much further in: no terminal cuts a word then."""
    from shutil import get_terminal_size
    from textwrap import fill

    width = get_terminal_size().columns
    for line in text.splitlines() or [""]:
        indent = " " * (len(line) - len(line.lstrip()) + further)
        long = len(line) > width
        click.echo(
            fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
            if long
            else line
        )


def echo_json(value: Any) -> None:
    """Prints a value for a script."""
    import json

    click.echo(json.dumps(value, indent=2, default=str))

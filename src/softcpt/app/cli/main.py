"""The command ``softcpt``: finds the subcommand, and turns every error into a message and an exit code.

Imports nothing heavy: ``softcpt --help`` has to answer at once. Commands import the rooms they need when
they run.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from softcpt._version import __version__
from softcpt.app.cli.show import say, show_faults, show_warnings
from softcpt.core.errors import ConfigError, Fault, SoftCPTError, nearest

COMMANDS = (
    "check",
    "train",
    "evaluate",
    "predict",
    "compare",
    "methods",
    "backbones",
    "cache",
    "data",
    "demo",
)
"""Each is the function of the same name in the module of the same name beside this file."""

_BUG = 70  # EX_SOFTWARE of sysexits.h
_MACHINE = 74  # EX_IOERR, likewise
_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class LazyGroup(click.Group):
    """Subcommands by name; a module is imported when its command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of a first use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand, or None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"softcpt.app.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with our fault for a command that does not exist."""
        if args[0] not in COMMANDS:
            known = nearest(args[0], COMMANDS)
            raise _usage_error(Fault("command", f"there is no command {args[0]!r}", known))
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=(
        "First steps: softcpt demo. Exit codes: 0 done, 2 options, 3 data, 4 weights, 5 run folder, "
        "70 a bug, 74 disk or memory, 130 stopped."
    ),
)
@click.version_option(__version__, prog_name="softcpt", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show Python's traceback with every error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Tune CLIP's prompts for several related few-shot image classification tasks at once (SoftCPT)."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and leave the process with its exit code."""
    sys.exit(main(sys.argv[1:] if arguments is None else arguments))


def main(arguments: Sequence[str]) -> int:
    """The exit code of a command line, after it has run."""
    debug = _wants_debug(arguments)
    try:
        with show_warnings():
            code = cli.main(args=list(arguments), prog_name="softcpt", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SoftCPTError as error:
        _show_traceback(debug)
        show_faults(error.headline, error.faults)
        return error.exit_code
    except click.ClickException as error:
        _show_traceback(debug)
        usage = _usage_error(_fault_of(error))
        show_faults(usage.headline, usage.faults)
        return usage.exit_code
    except (KeyboardInterrupt, click.Abort):
        _show_traceback(debug)
        say("stopped")
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; what is left in the buffer goes nowhere, without a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        _show_traceback(debug)
        fault = _fault_of_machine(error)
        if fault is not None:
            show_faults("1 fault of this machine", [fault])
            return _MACHINE
        _show_bug(error, debug=debug)
        return _BUG


def _wants_debug(arguments: Sequence[str]) -> bool:
    # Only an option of the group itself, which stands before the command's name.
    for argument in arguments:
        if argument == "--debug":
            return True
        if not argument.startswith("-"):
            return False
    return False


def _show_traceback(debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()


def _fault_of_machine(error: Exception) -> Fault | None:
    """What disk, permissions or memory refused, or None where the error is none of theirs."""
    if isinstance(error, OSError) and error.errno is not None:
        place = str(error.filename) if error.filename else "disk"
        return Fault(place, error.strerror or str(error), "check permissions and free space")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Fault(
            "memory", "not enough of it", "lower batch_size, or use class_sampling where there is one"
        )
    return None


def _show_bug(error: Exception, *, debug: bool) -> None:
    import platform

    what = f"{type(error).__name__}: {error}".splitlines()[0]
    say(f"this is a bug in softcpt, not a fault of yours: {what}", style="bold red")
    again = "the traceback above" if debug else "what `softcpt --debug ...` with the same command prints"
    say(
        f"Please report it with {again}, the command, and this line: softcpt {__version__}, "
        f"Python {platform.python_version()}, {platform.platform()}"
    )


def _usage_error(fault: Fault) -> SoftCPTError:
    return ConfigError(fault, about="the command line")


def _fault_of(error: click.ClickException) -> Fault:
    """A fault of the command line as click found it, in our words."""
    context = getattr(error, "ctx", None)
    fix = f"see {context.command_path} --help" if context else "see softcpt --help"
    if isinstance(error, click.NoSuchOption):
        if error.option_name == "--debug":
            return Fault("--debug", "stands before the command", "softcpt --debug train ...")
        near = error.possibilities
        return Fault(
            error.option_name,
            "there is no such option",
            "did you mean " + " or ".join(near) + "?" if near else fix,
        )
    if isinstance(error, click.BadParameter):
        place = error.param.human_readable_name if error.param else (error.param_hint or "argument")
        return Fault(str(place), error.format_message(), fix)
    return Fault("arguments", error.format_message(), fix)

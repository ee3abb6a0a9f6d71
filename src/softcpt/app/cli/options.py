"""Options that several commands share, and a command that reports every fault of its line at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from click.core import iter_params_for_processing

from softcpt.core.errors import ConfigError, Fault, nearest

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

BACKBONE_FORMS = (
    '"mini" (small, comes with the package), '
    'a model of open_clip as name/pretrained-tag ("ViT-B-16/openai"; softcpt backbones lists them), '
    '"hf-hub:org/model", a folder with open_clip_config.json and weights, '
    "or a file of weights in OpenAI's names"
)


class Command(click.Command):
    """A command whose missing and impossible arguments are all named in one go, not one a run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, but where that stops at the first fault, this goes on to the others."""
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption:
            raise
        except click.UsageError as error:
            faults = self._faults(ctx, words)
            if not faults:
                raise
            raise ConfigError(faults, about="the command line") from error

    def _faults(self, ctx: click.Context, words: list[str]) -> list[Fault]:
        given, rest, order = self.make_parser(ctx).parse_args(args=words)
        see = f"see {ctx.command_path} --help"
        faults: list[Fault] = []
        for param in iter_params_for_processing(order, self.get_params(ctx)):
            try:
                _, rest = param.handle_parse_result(ctx, given, rest)
            except click.MissingParameter:  # noqa: PERF203  only on the way to an error
                faults.append(Fault(place_of(param), "is missing", _what_it_is(param) or see))
            except click.BadParameter as error:
                faults.append(Fault(place_of(param), error.message, see))
        return faults + [Fault(repr(word), "was not expected here", see) for word in rest]


class Group(click.Group):
    """Commands below a command, with our fault for one that does not exist."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with our fault for what cannot be done."""
        if args[0] not in self.commands:
            fault = Fault("command", f"there is no {args[0]!r}", nearest(args[0], self.commands))
            raise ConfigError(fault, about="the command line")
        return super().resolve_command(ctx, args)


def place_of(param: click.Parameter) -> str:
    """What the user typed, or should have: ``--shots``, ``SUITE``."""
    return param.opts[0] if param.param_type_name == "option" else param.human_readable_name


def _what_it_is(param: click.Parameter) -> str:
    if param.name == "backbone":
        return BACKBONE_FORMS
    return getattr(param, "help", None) or _ARGUMENTS.get(param.name or "", "")


_ARGUMENTS = {
    "suite": "a folder <task>/<class>/<image>, or a CSV manifest",
    "run": "the folder that softcpt train wrote (its --output)",
    "builtin": "which suite to make",
    "folder": "where it goes; a new folder, or an empty one",
    "images": "an image, a folder of images, or - for standard input",
}


def suite_argument(*, required: bool = True) -> Callable[[Decorated], Decorated]:
    """``SUITE``."""
    return click.argument("suite", type=click.Path(path_type=Path), required=required)


def run_argument() -> Callable[[Decorated], Decorated]:
    """``RUN``."""
    return click.argument("run", type=click.Path(path_type=Path))


def pairs_argument() -> Callable[[Decorated], Decorated]:
    """``[KEY=VALUE]...``."""
    return click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")


DEFAULTS = {"method": "softcpt-nata", "recipe": "paper", "shots": "16", "seed": "1", "device": "auto"}
"""What the help says; the settings' own defaults, which a test holds these to, are what counts."""


def settings_options(command: Decorated) -> Decorated:
    """``--method --recipe --shots --seed --device --config``, None where not given.

    Values stay text: the settings check them, together with all others, so that every fault is told at once.
    """
    said = {
        "method": ("KEY", "What to train; softcpt methods lists them."),
        "recipe": ("paper|published", "The method as described, or the published code's exact computation."),
        "shots": ("N|all", "Training images per class."),
        "seed": ("N", "Draws shots, starting values, order and views."),
        "device": ("auto|cpu|cuda|mps", "What to compute on; auto takes the best there is."),
    }
    command = click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Settings from a YAML file, or from a run's config.json to repeat it.",
    )(command)
    for name, (form, about) in reversed(said.items()):
        command = click.option(f"--{name}", metavar=form, help=f"{about}  [default: {DEFAULTS[name]}]")(
            command
        )
    return command


def overrides_of(settings: Mapping[str, str | None], pairs: Sequence[str]) -> dict[str, str]:
    """What a command line asks for, options and ``key=value`` words together.

    Raises:
        ConfigError: words that are no pairs, and keys that were given as an option too.
    """
    from softcpt.engine.config import parse_pairs

    given = {key: value for key, value in settings.items() if value is not None}
    named = parse_pairs(pairs)
    twice = [Fault(key, f"given as --{key} too", "leave one out") for key in named if key in given]
    if twice:
        raise ConfigError(twice, about="the options")
    return given | named


def backbone_option(command: Decorated) -> Decorated:
    """``--backbone``, needed unless a configuration file may name it."""

    def need(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        # What was given comes before what was not, so that --config is known by now.
        if value is None and not isinstance(ctx.params.get("config"), Path):
            raise click.MissingParameter(ctx=ctx, param=param)
        return value

    said = f"The frozen CLIP: {BACKBONE_FORMS}. Needed, unless --config names it."
    return click.option("--backbone", metavar="B", callback=need, help=said)(command)


def needed_backbone_option(command: Decorated) -> Decorated:
    """``--backbone``, where nothing else can name it."""
    return click.option("--backbone", metavar="B", required=True, help=f"The frozen CLIP: {BACKBONE_FORMS}.")(
        command
    )


def optional_backbone_option(command: Decorated) -> Decorated:
    """``--backbone``, where a part of the work can be done without."""
    said = f"The frozen CLIP: {BACKBONE_FORMS}. Without it, an untrained ViT-B-16 stands in."
    return click.option("--backbone", metavar="B", help=said)(command)


def moved_backbone_option(command: Decorated) -> Decorated:
    """``--backbone`` for finished runs, which know theirs."""
    return click.option("--backbone", metavar="B", help="Where the run's backbone is now, if it has moved.")(
        command
    )


def device_option() -> Callable[[Decorated], Decorated]:
    """``--device``, for commands that have no other settings."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        default="auto",
        show_default=True,
        help="What to compute on; auto takes the best there is.",
    )


def skip_option() -> Callable[[Decorated], Decorated]:
    """``--skip-bad-images``."""
    return click.option(
        "--skip-bad-images",
        is_flag=True,
        help="Leave out images that cannot be read, and say so, instead of stopping.",
    )


def cache_options(command: Decorated) -> Decorated:
    """``--cache DIR`` and ``--no-cache``; :func:`cache_choice` reads them."""
    command = click.option(
        "--no-cache", is_flag=True, help="Keep no image features on disk, and use none that are there."
    )(command)
    return cache_folder_option()(command)


def cache_folder_option() -> Callable[[Decorated], Decorated]:
    """``--cache DIR``."""
    return click.option(
        "--cache",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where image features are kept for later runs.  "
        "[default: SOFTCPT_CACHE, or the user's cache folder]",
    )


def cache_choice(cache: Path | None, no_cache: bool) -> Path | Literal[False] | None:
    """What the engine is told of the cache.

    Raises:
        ConfigError: both were given.
    """
    if cache is not None and no_cache:
        fault = Fault("--no-cache", "given beside --cache", "leave one out")
        raise ConfigError(fault, about="the command line")
    return False if no_cache else cache


def json_option(said: str) -> Callable[[Decorated], Decorated]:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help=said)

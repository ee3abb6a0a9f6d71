"""``softcpt backbones``: the names that ``--backbone`` takes."""

from __future__ import annotations

import click

from softcpt.app.cli.options import BACKBONE_FORMS, Command
from softcpt.core.errors import ConfigError, Fault


@click.command(cls=Command, short_help="List the models that --backbone takes.")
@click.argument("pattern", default="*")
def backbones(pattern: str) -> None:
    """List "mini", which comes with the package, and open_clip's models as name/pretrained-tag.

    With PATTERN only those that match, such as "ViT-B*".

    Not listed, as they are without number: "hf-hub:org/model", and folders of your own with
    open_clip_config.json and weights.
    """
    from softcpt.clip.backbone import list_backbones

    names = list_backbones(pattern)
    if not names:
        raise ConfigError(
            Fault("PATTERN", f"no model matches {pattern!r}", f"--backbone takes {BACKBONE_FORMS}"),
            about="the command line",
        )
    click.echo("\n".join(names))

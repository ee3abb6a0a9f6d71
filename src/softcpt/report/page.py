"""A page as one HTML file: styles, figures and images inside, nothing fetched, no scripts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from softcpt._version import __version__
from softcpt.core.files import write_whole
from softcpt.report.blocks import Page


def render_page(page: Page) -> str:
    """The HTML. Every text of the page is escaped; only figures' own markup is not."""
    return _template().render(page=page, version=__version__)


def write_page(page: Page, file: Path) -> None:
    """Write the HTML, whole or not at all."""
    write_whole(file, render_page(page))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("softcpt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")

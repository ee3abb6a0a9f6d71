import click
from softcpt.app.cli.options import Command
@click.command(cls=Command)
def check(): "stub"

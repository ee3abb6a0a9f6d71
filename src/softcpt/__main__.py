"""``python -m softcpt``: the command line."""

from softcpt.app.cli.main import run

if __name__ == "__main__":
    run()

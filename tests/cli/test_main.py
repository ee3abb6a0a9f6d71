"""The door: help, versions, exit codes, and what a person reads when something is wrong."""

import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from softcpt import __version__
from softcpt.app.cli import main as door
from softcpt.app.cli.show import MOST_NOTES, show_notes
from softcpt.core.errors import AdapterError, ConfigError, Fault, RunError, SuiteError


def softcpt(*arguments, **options):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "softcpt", *arguments], capture_output=True, text=True, timeout=120, **options
    )


@pytest.fixture
def raising(monkeypatch):
    """Makes ``softcpt methods`` end with an error of choice."""

    def install(error):
        def fail():
            raise error

        monkeypatch.setattr("softcpt.methods.registry.list_methods", fail)

    return install


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from softcpt.app.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'PIL', 'open_clip', 'torchvision', 'ruamel.yaml'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in door.COMMANDS)


@pytest.mark.parametrize("command", door.COMMANDS)
def test_help_of_every_command_imports_no_torch(command):
    code = (
        "import sys\n"
        "from softcpt.app.cli.main import main\n"
        f"assert main(['{command}', '--help']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"softcpt {command}" in done.stdout


def test_version_is_the_package_s():
    assert softcpt("--version").stdout.strip() == f"softcpt {__version__}"


def test_no_command_shows_the_help(capsys):
    assert door.main([]) == 0
    assert "Usage: softcpt [OPTIONS]" in capsys.readouterr().out


def test_unknown_command_names_the_nearest(capsys):
    assert door.main(["trian", "x"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert 'did you mean "train"' in said.err


def test_unknown_option_names_the_nearest(capsys):
    assert door.main(["train", "--ouput", "x"]) == 2
    assert "--output" in capsys.readouterr().err


def test_debug_behind_the_command_is_told_its_place(capsys):
    assert door.main(["train", "--debug"]) == 2
    assert "before the command" in capsys.readouterr().err


def test_all_missing_arguments_are_named_at_once(capsys):
    assert door.main(["train"]) == 2
    said = capsys.readouterr().err
    for place in ("SUITE", "--backbone", "--output"):
        assert re.search(rf"^ *{place} +is missing", said, re.MULTILINE), said
    assert "ViT-B-16/openai" in said  # what a backbone can be


@pytest.mark.parametrize(
    ("kind", "code"), [(ConfigError, 2), (SuiteError, 3), (AdapterError, 4), (RunError, 5)]
)
def test_exit_code_is_that_of_the_error(raising, capsys, kind, code):
    raising(kind(Fault("here", "broken"), about="something"))
    assert door.main(["methods"]) == code
    assert capsys.readouterr().out == ""


def test_faults_stand_in_a_table_each_with_place_and_remedy(raising, capsys):
    raising(
        SuiteError(
            [
                Fault("short", "one [bold]thing[/]", "mend it"),
                Fault("a longer place", "another", "mend that"),
            ],
            about="suite.yaml",
        )
    )
    door.main(["methods"])
    headline, first, second = capsys.readouterr().err.splitlines()
    assert headline == "error: 2 faults in suite.yaml"
    assert first.split() == ["short", "one", "[bold]thing[/]", "mend", "it"]
    assert first.index("one") == second.index("another")
    assert first.index("mend it") == second.index("mend that")


def test_a_long_message_is_not_cut_where_no_terminal_limits_it(raising, capsys):
    raising(SuiteError(Fault("place", "word " * 60 + "end", "fix"), about="it"))
    door.main(["methods"])
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_traceback_is_shown_with_debug_only(raising, capsys):
    raising(SuiteError(Fault("here", "broken"), about="something"))
    door.main(["methods"])
    assert "Traceback" not in capsys.readouterr().err
    assert door.main(["--debug", "methods"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_any_other_error_is_called_a_bug_and_says_how_to_report_it(raising, capsys):
    raising(ZeroDivisionError("oh"))
    assert door.main(["methods"]) == 70
    said = capsys.readouterr().err
    assert "this is a bug in softcpt" in said
    assert "ZeroDivisionError: oh" in said
    assert "--debug" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "Permission denied", "/somewhere/run"), OSError(28, "No space left"), MemoryError()],
)
def test_what_the_machine_refuses_is_no_bug(raising, capsys, error):
    raising(error)
    assert door.main(["methods"]) == 74
    said = capsys.readouterr().err
    assert "bug" not in said
    assert str(error.filename if getattr(error, "filename", None) else "") in said


def test_interrupt_exits_130(raising, capsys):
    raising(KeyboardInterrupt())
    assert door.main(["methods"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    code = (
        "import os, sys\n"
        "from softcpt.app.cli.main import run\n"
        "reader, writer = os.pipe()\n"
        "os.close(reader)\n"
        "os.dup2(writer, 1)\n"
        "run(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 1


def test_installed_script_is_this_door():
    [script] = entry_points(group="console_scripts", name="softcpt")
    assert script.load() is door.run


def test_of_many_notes_the_first_are_shown_and_the_rest_counted(capsys):
    show_notes([f"class {i}" for i in range(MOST_NOTES + 5)], all_in="log.txt")
    said = capsys.readouterr().err
    assert said.count("note: ") == MOST_NOTES
    assert "5 more notes, all of them in log.txt" in said

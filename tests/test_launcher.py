"""The console script: Ctrl-C ends it with one line and code 130, wherever it strikes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import castling_launcher
from castling import cli
from castling.train import TrainingInterrupted

STUBBORN_IMPORT = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**7):
        pass
except KeyboardInterrupt:
    raise RuntimeError("half imported")
"""


def test_interrupt_within_an_import_is_not_turned_into_an_error(tmp_path):
    package = tmp_path / "castling"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "cli.py").write_text(STUBBORN_IMPORT)
    source = str(Path(castling_launcher.__file__).parent)
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import castling_launcher; sys.exit(castling_launcher.main(['models']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), source])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (130, "castling: interrupted\n")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (TrainingInterrupted("stopped, saved"), "stopped, saved"),
    ],
)
def test_interrupted_verb_ends_with_130_and_one_line(monkeypatch, capsys, event, line):
    def verb(arguments):
        raise event

    monkeypatch.setitem(cli.FUNCTIONS, "train", verb)
    before = signal.getsignal(signal.SIGINT)
    assert castling_launcher.main(["train"]) == 130
    assert capsys.readouterr().err == f"castling train: {line}\n"
    assert signal.getsignal(signal.SIGINT) is before

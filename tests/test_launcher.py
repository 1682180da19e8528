"""The console script: Ctrl-C ends it with one line and code 130, wherever it strikes."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
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


def test_something_is_on_the_terminal_within_a_second(tmp_path):
    """A terminal hears at once that the package is loading; a log and ``--quiet`` do not."""
    package = tmp_path / "castling"
    package.mkdir()
    (package / "__init__.py").write_text("import time; time.sleep(3)")
    (package / "cli.py").write_text("def run(verb, arguments): return 0")
    source = str(Path(castling_launcher.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), source])}

    def start(*arguments):
        leader, follower = pty.openpty()
        program = f"import sys, castling_launcher; sys.exit(castling_launcher.main({arguments}))"
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", program], env=environment, stderr=follower
        )
        os.close(follower)
        ready, _, _ = select.select([leader], [], [], 10)
        seconds = time.perf_counter() - started
        text = b""
        with contextlib.suppress(OSError):  # the other end is closed
            text = os.read(leader, 1000) if ready else b""
        process.kill()
        process.wait()
        os.close(leader)
        return text.decode(), seconds

    text, seconds = start("models")
    assert text.startswith("castling models: loading")
    assert seconds < 2.5  # before the package is there; 0.1 s on an idle machine
    assert start("models", "--quiet")[0] == ""


def test_exit_codes_are_in_the_help_and_used():
    text = castling_launcher.usage()
    for code, meaning in castling_launcher.EXIT_CODES.items():
        assert f"  {code}" in text
        assert meaning in text
    assert castling_launcher.INTERRUPTED == 128 + signal.SIGINT
    assert castling_launcher.TERMINATED == 128 + signal.SIGTERM
    assert TrainingInterrupted("").exit_code == castling_launcher.INTERRUPTED
    assert TrainingInterrupted("", signal.SIGTERM).exit_code == castling_launcher.TERMINATED


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("trian", "castling: no verb 'trian'; did you mean train?\n"),
        ("exprot", "castling: no verb 'exprot'; did you mean export?\n"),
        ("zzz", f"castling: no verb 'zzz'; one of: {', '.join(castling_launcher.VERBS)}\n"),
    ],
)
def test_a_misspelt_verb_is_answered_with_the_nearest(verb, said, capsys):
    assert castling_launcher.main([verb]) == 2
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("argument", ["--help", "--version"])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_output_that_nobody_takes(argument):
    command = [sys.executable, "-m", "castling_launcher", argument]
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        refused = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_every_option_has_a_text(verb, capsys):
    with pytest.raises(SystemExit):
        castling_launcher.main([verb, "--help"])
    text = capsys.readouterr().out
    assert "(default: " in text
    for block in re.split(r"\n(?=  -)", text)[1:]:
        words = " ".join(block.split("\n\n")[0].split())
        flags = r"^(-\w, )?--[\w.]+( (\{.*?\}|[A-Z_.]+|CONFIG\[.*?\]))?(, --[\w.]+)*"
        explained = re.sub(flags, "", re.sub(r"\(default: .*\)", "", words))
        assert explained.strip(), words

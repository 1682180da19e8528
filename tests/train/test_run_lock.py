"""One training per folder; what a process that is gone left behind does not stand in the way."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from castling.train import RunLockedError, recipe_from_dict, run_lock, train
from castling.train.run_lock import LOCK, check_unlocked, locked, read_holder

HOLD = (
    "import sys, time; from pathlib import Path; from castling.train.run_lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.readline()\n"
)
#: The same, and a forked child lives on when the process is killed.
HOLD_WITH_CHILD = HOLD.replace(
    "    print",
    "    import os\n    if os.fork() == 0:\n        time.sleep(60); os._exit(0)\n    print",
)


@pytest.fixture
def holder(tmp_path, request):
    """Another process that holds the lock of ``tmp_path / "run"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", getattr(request, "param", HOLD), str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_training_is_refused_with_its_holder(holder, tmp_path):
    run = tmp_path / "run"
    said = rf"is being trained already by process {holder.pid} on {socket.gethostname()}, since 20"
    with pytest.raises(RunLockedError, match=said), locked(run):
        pass
    with pytest.raises(RunLockedError, match=said):
        check_unlocked(run)
    with pytest.raises(RunLockedError, match=said):
        train(recipe_from_dict({"data": {"source": "digits"}}), run, progress=False)
    holder.communicate("\n")  # it ends, and removes the file and the folder it made
    assert not run.exists()
    with locked(run):
        assert read_holder(run / LOCK).pid == os.getpid()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("holder", [HOLD, HOLD_WITH_CHILD], indirect=True, ids=["", "workers"])
def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path, caplog):
    holder.kill()
    holder.wait()
    run = tmp_path / "run"
    assert (run / LOCK).is_file()
    check_unlocked(run)
    with caplog.at_level(logging.WARNING), locked(run):
        assert f"left by process {holder.pid} on" in caplog.text
        assert "which is gone" in caplog.text
    assert list(run.iterdir()) == []


def test_threads_of_one_process_exclude_each_other(tmp_path):
    found = []

    def second():
        try:
            with locked(tmp_path):
                found.append("held twice")
        except RunLockedError as error:
            found.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in found[0]


def written(tmp_path, **changes):
    """A lock file of this process, changed."""
    holder = replace(run_lock._this_process(), **changes)
    (tmp_path / LOCK).write_text(json.dumps(asdict(holder)))
    return holder


def test_the_lock_of_another_machine_names_the_remedy(tmp_path):
    written(tmp_path, host="elsewhere", boot="another")
    with (
        pytest.raises(RunLockedError, match=r"on elsewhere.*delete .*train\.lock"),
        locked(tmp_path),
    ):
        pass
    assert (tmp_path / LOCK).is_file()
    with pytest.raises(RunLockedError, match="elsewhere"):
        check_unlocked(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"boot": "an earlier one"},  # the machine was started anew
        {"process_start": 1},  # the process id was given to another process since
        {"host": "a container of this machine", "process_start": 1},
    ],
    ids=["reboot", "reused pid", "container"],
)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("guarded", [True, False])
def test_stale_locks_are_recognised(tmp_path, monkeypatch, changes, guarded):
    if not guarded:  # a file system without locks
        monkeypatch.setattr(run_lock, "fcntl", None)
    written(tmp_path, **changes)
    with locked(tmp_path):
        pass


def test_without_system_locks_a_living_process_is_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "fcntl", None)
    written(tmp_path)
    with pytest.raises(RunLockedError, match="already"), locked(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b'{"pid": 1', b"[]", b'{"pid": "x"}', b"\xff\xfe"])
def test_a_damaged_lock_file_does_not_stand_in_the_way(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with locked(tmp_path):
        assert read_holder(tmp_path / LOCK).pid == os.getpid()


def test_folders_made_in_vain_are_removed(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []

"""The lock of a run's folder: two trainings in one folder would overwrite each other.

``train.lock`` says who trains here. The guard is an advisory lock of the system on that file, which
ends with its process however that ends; the content makes the message, and decides alone on file
systems and systems without such locks.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from castling.utils.checks import config_from_dict
from castling.utils.files import naming, parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "train.lock"
_log = logging.getLogger(__name__)
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_open_locks: set[int] = set()  # file descriptors


class RunLockedError(RuntimeError):
    """Another process trains in the folder."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that trains in a folder, as ``train.lock`` names it.

    Attributes:
        pid: its process id.
        host: name of its machine.
        boot: the machine's boot id; the same in all containers of a machine. Empty if unknown.
        process_start: when the process started, in clock ticks since boot, to tell it from a later
            one of the same id; 0 if unknown.
        since: when training started, local time.
    """

    pid: int
    host: str
    boot: str = ""
    process_start: int = 0
    since: str = ""

    def __str__(self) -> str:
        """Process, machine and time."""
        return f"process {self.pid} on {self.host}, since {self.since or 'an unknown time'}"


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Within the context, no other process trains in ``run_dir``, which is made if missing.

    A lock left by a process that is gone is taken over. When the body leaves nothing in a folder
    that was made here, the folder is removed again.

    Raises:
        RunLockedError: another process holds it, or may hold it; the message says what to do.
        OSError: the folder may not be written.
    """
    made = _make(run_dir)
    try:
        path = run_dir / LOCK
        descriptor = _acquire(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            _open_locks.discard(descriptor)
            os.close(descriptor)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def check_unlocked(run_dir: Path) -> None:
    """Raise RunLockedError where :func:`locked` would; leaves everything as it is."""
    path = run_dir / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        _check_holder(read_holder(path), path, _guard(descriptor, path))
    finally:
        os.close(descriptor)


def _make(run_dir: Path) -> list[Path]:
    """Make the folder; returns those that were missing, the innermost first."""
    missing = [run_dir] if not run_dir.exists() else []
    missing += [folder for folder in run_dir.parents if not folder.exists()]
    run_dir.mkdir(parents=True, exist_ok=True)
    return missing


def _acquire(path: Path) -> int:
    """The open, locked file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            guarded = _guard(descriptor, path)
            if not _is_at(descriptor, path):  # its holder has just ended and removed it
                os.close(descriptor)
                continue
            _check_holder(read_holder(path), path, guarded)
            _write(descriptor, _this_process(), path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        _open_locks.add(descriptor)
        return descriptor


def _write(descriptor: int, holder: Holder, path: Path) -> None:
    # In place: the system's lock is on this very file. A reader of half of it takes it for damaged.
    content = json.dumps(asdict(holder), indent=2) + "\n"
    with naming(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content.encode(), 0)


def _guard(descriptor: int, path: Path) -> bool:
    """Lock an open file; False where the file system cannot.

    Raises:
        RunLockedError: another process has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunLockedError(_refusal(path, read_holder(path))) from None
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), found)


def _check_holder(holder: Holder | None, path: Path, guarded: bool) -> None:
    """Refuse a lock whose holder may still be at work.

    Args:
        holder: read from the file; None for a new or damaged one.
        path: the file.
        guarded: whether the system's lock was free: then no process of this machine holds it.
    """
    if holder is None:
        return
    here = _this_process()
    booted_anew = bool(holder.boot and here.boot) and holder.boot != here.boot
    same_boot = bool(holder.boot) and holder.boot == here.boot
    if holder.host != here.host and not same_boot:
        raise RunLockedError(
            f"{path.parent} is being trained by {holder}. That is another machine, so whether it "
            f"still runs cannot be seen from here: if it does not, delete {path} and run the same "
            "command again, or choose another --run"
        )
    if not guarded and not booted_anew and _alive(holder):
        raise RunLockedError(_refusal(path, holder))
    _log.warning("%s was left by %s, which is gone: going on", path, holder)


def _refusal(path: Path, holder: Holder | None) -> str:
    who = f" by {holder}" if holder else ""
    return (
        f"{path.parent} is being trained already{who}: wait until it has ended, stop it, or "
        "choose another --run"
    )


def read_holder(path: Path) -> Holder | None:
    """Who holds a lock; None for a file that is missing, empty or damaged."""
    if not path.is_file():  # reading a pipe would wait for ever
        return None
    try:
        values: Any = parse_json(path.read_text(encoding="utf-8"))
        return config_from_dict(Holder, values)
    except (OSError, ValueError):
        return None


def _this_process() -> Holder:
    return Holder(
        pid=os.getpid(),
        host=socket.gethostname(),
        boot=_boot(),
        process_start=_start_of(os.getpid()),
        since=datetime.now().isoformat(sep=" ", timespec="seconds"),
    )


def _boot() -> str:
    """The kernel's id of this boot (Linux); empty elsewhere."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot (Linux: proc(5), field 22); else 0."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _alive(holder: Holder) -> bool:
    """Whether the holder runs on this machine, a later process of the same id told apart."""
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    now = _start_of(holder.pid)
    return not (now and holder.process_start) or now == holder.process_start


def _close_in_child() -> None:
    """A forked process, such as a data loader's, must not keep its parent's locks."""
    for descriptor in _open_locks:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _open_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)

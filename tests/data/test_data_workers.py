"""Loader processes end with the program that started them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, signal, sys, time
import torch
from torch.utils.data import DataLoader, Dataset
from castling.data.workers import outliving_signals

class Numbers(Dataset):
    def __len__(self): return 4
    def __getitem__(self, index): return index

if __name__ == "__main__":
    loader = DataLoader(Numbers(), num_workers=1, persistent_workers=True,
                        multiprocessing_context=sys.argv[1], worker_init_fn=outliving_signals())
    batches = iter(loader)
    print(next(batches).item(), flush=True)
    (worker,) = batches._workers
    if sys.argv[2] == "signal":
        os.kill(worker.pid, signal.SIGTERM)
        time.sleep(0.2)
        print([batch.item() for batch in batches], worker.is_alive(), flush=True)
    sys.loader = batches  # alive until the end of the interpreter, where PyTorch stops nothing
"""


def run(folder: Path, *arguments: str) -> str:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_a_loader_that_is_open_at_exit_does_not_hang(tmp_path: Path) -> None:
    assert run(tmp_path, "fork", "exit") == "0\n"
    assert run(tmp_path, "spawn", "exit") == "0\n"


def test_one_sigterm_of_the_group_does_not_stop_the_batches(tmp_path: Path) -> None:
    assert run(tmp_path, "fork", "signal") == "0\n[1, 2, 3] True\n"

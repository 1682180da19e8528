"""Training that is cut off, and whether a run that went on is the one that was not."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import safetensors.torch
import torch
from lightning.pytorch import Callback

import castling
from castling.train import recipe_to_yaml

_SLOW = """
import sys, time, castling
from lightning.pytorch import Callback
from castling.train import load_recipe, train
class Slow(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        time.sleep(0.3)
train(load_recipe(sys.argv[1]), sys.argv[2], progress=False, callbacks=[Slow()])
"""


class InterruptAt(Callback):
    """Presses Ctrl-C while a step is computed, counted from 1."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def train_until_killed(recipe, run, seconds=240):
    """Train in a process of its own, which gets SIGKILL once there is a checkpoint."""
    recipe_file = run.parent / "recipe.yaml"
    recipe_file.write_text(recipe_to_yaml(recipe))
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(recipe_file), str(run)], env=environment()
    )
    deadline = time.time() + seconds
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, "the training process ended by itself"
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "result.json").exists()


def environment():
    """Of a process that imports the same castling and computes with as many threads."""
    source = str(Path(castling.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def rows(path):
    """The rows of a CSV file, without how long they took."""
    with Path(path).open() as file:
        return [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in csv.DictReader(file)
        ]


def assert_same_run(one, other):
    """Every table and every weight of two runs is the same, to the last bit."""
    names = sorted(path.name for path in one.glob("*.csv"))
    assert "metrics.csv" in names
    assert names == sorted(path.name for path in other.glob("*.csv"))
    for name in names:
        assert rows(one / name) == rows(other / name)
    a, b = (safetensors.torch.load_file(each / "model.safetensors") for each in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)

"""SIGTERM: the step is finished, the run saved, the exit code 143; the same command goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback

import castling
from castling.train import TrainingInterrupted, recipe_from_dict, train
from castling.train import stopping as stopping_module

TINY = {
    "model": {"name": "castling_deit_pico", "kwargs": {"depth": 1}},
    "data": {
        "source": "digits",
        "split": {"subset": 96},
        "transform": {"image_size": 16},
        "loader": {"batch_size": 32},
    },
    "epochs": 2,
    "hardware": {"accelerator": "cpu"},
}


class SignalAt(Callback):
    """Sends signals to this process at a hook, the first time that ``step`` is reached."""

    def __init__(self, hook, step=0, signals=(signal.SIGTERM,)):
        self.sent = False

        def send(trainer, module, *_):
            if trainer.global_step >= step and not self.sent:
                self.sent = True
                for signum in signals:
                    os.kill(os.getpid(), signum)

        setattr(self, hook, send)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train(recipe_from_dict(TINY), folder, progress=False)


@pytest.mark.parametrize(
    ("hook", "step", "said"),
    [
        ("on_train_batch_start", 1, "in epoch 1 after step 2; saved to"),
        ("on_validation_batch_end", 3, "in epoch 1 after step 3; saved to"),
        ("on_train_end", 6, "after the last step; saved to"),
        ("on_fit_start", 0, "at once without saving"),
        ("on_fit_end", 6, "at once without saving|after the last step"),
    ],
)
def test_sigterm_leaves_a_run_that_goes_on(whole, tmp_path, hook, step, said):
    before = signal.getsignal(signal.SIGTERM)
    recipe = recipe_from_dict(TINY)
    with pytest.raises(TrainingInterrupted, match=said) as stopped:
        train(recipe, tmp_path, progress=False, callbacks=[SignalAt(hook, step)])
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "train.lock").exists()
    assert not (tmp_path / "result.json").exists()
    assert train(recipe, tmp_path, progress=False).metrics == whole.metrics


def test_a_second_sigterm_ends_at_once_and_one_of_the_group_is_the_same_request(
    tmp_path, monkeypatch
):
    recipe = recipe_from_dict(TINY)
    twice = SignalAt("on_train_batch_start", 1, (signal.SIGTERM, signal.SIGTERM))
    with pytest.raises(TrainingInterrupted, match="after step 2; saved"):
        train(recipe, tmp_path / "one", progress=False, callbacks=[twice])
    monkeypatch.setattr(stopping_module, "SAME_REQUEST_SECONDS", 0.0)
    twice = SignalAt("on_train_batch_start", 1, (signal.SIGTERM, signal.SIGTERM))
    with pytest.raises(TrainingInterrupted, match="at once without saving") as stopped:
        train(recipe, tmp_path / "two", progress=False, callbacks=[twice])
    assert stopped.value.exit_code == 143


def test_ctrl_c_keeps_its_code_and_a_handler_of_the_caller_stays(tmp_path):
    recipe = recipe_from_dict(TINY)
    pressed = SignalAt("on_train_batch_start", 1, (signal.SIGINT,))
    with pytest.raises(TrainingInterrupted, match="after step 2") as stopped:
        train(recipe, tmp_path / "one", progress=False, callbacks=[pressed])
    assert stopped.value.exit_code == 130
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("caller's"))
    try:
        at_step = SignalAt("on_train_batch_start", 1)
        with pytest.raises(TrainingInterrupted) as stopped:
            train(recipe, tmp_path / "two", progress=False, callbacks=[at_step])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["caller's"]
    assert stopped.value.exit_code == 143


def test_sigterm_while_the_finished_training_is_evaluated(whole, tmp_path, monkeypatch):
    from castling.train import finish

    def save(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)

    recipe = recipe_from_dict(TINY)
    with monkeypatch.context() as patched:
        patched.setattr(finish, "save_model", save)
        with pytest.raises(TrainingInterrupted, match="the same command goes on") as stopped:
            train(recipe, tmp_path, progress=False)
    assert stopped.value.exit_code == 143
    assert train(recipe, tmp_path, progress=False).metrics == whole.metrics


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    found = []
    recipe = recipe_from_dict(TINY | {"max_steps": 1})

    def work():
        found.append(train(recipe, tmp_path, progress=False))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].steps == 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def command(run, *more):
    flags = (
        *("--model.kwargs", '{"depth": 1}', "--data.transform.image_size", "16"),
        *("--data.split.subset", "32", "--data.loader.batch_size", "16"),
        *("--hardware.accelerator", "cpu", *more),
    )
    return subprocess.Popen(
        [sys.executable, "-m", "castling_launcher", "train", "--run", str(run), *flags],
        env=os.environ
        | {"PYTHONPATH": str(Path(castling.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path, process):
    deadline = time.time() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.05)


def test_the_command_line_ends_with_143_and_refuses_a_second_training(tmp_path):
    run = tmp_path / "run"
    # With loader processes: timeout, terminals and schedulers signal the whole group.
    workers = ("--data.loader.workers", "1", "--data.loader.cache", "none")
    first = command(run, "--epochs", "100000", *workers)
    wait_for(run / "checkpoints" / "last.ckpt", first)
    second = command(run, "--epochs", "100000", *workers)
    _, refused = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"is being trained already by process {first.pid}" in refused
    os.killpg(first.pid, signal.SIGTERM)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 143, said
    assert "Run the same command again to go on" in said
    assert not (run / "train.lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_stop_at_the_same_step(tmp_path, strategy):
    run = tmp_path / "run"
    more = ("--hardware.devices", "2", "--hardware.strategy", strategy, "--epochs", "100000")
    process = command(run, *more)
    wait_for(run / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert said.count("Run the same command again to go on") == 1
    assert not (run / "train.lock").exists()

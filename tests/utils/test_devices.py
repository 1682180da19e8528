"""The words for devices, and what is said where one is missing."""

import pytest
import torch

from castling.utils.devices import read_device


@pytest.fixture
def machine(monkeypatch):
    """Pretends a number of GPUs."""

    def pretend(gpus, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


def test_words_mean_devices(machine):
    machine(2)
    found = {word: str(read_device(word)) for word in ("auto", "cpu", "cuda", "cuda:1")}
    assert found == {"auto": "cuda", "cpu": "cpu", "cuda": "cuda", "cuda:1": "cuda:1"}
    assert read_device(torch.device("cuda", 1)) == torch.device("cuda:1")
    assert read_device(torch.device("meta")).type == "meta"
    machine(0, mps=True)
    assert str(read_device("auto")) == "cpu"
    assert str(read_device("mps")) == "mps"


@pytest.mark.parametrize(
    ("gpus", "mps", "word", "said"),
    [
        (0, False, "cuda", r"--device is cuda, but PyTorch finds only cpu"),
        (1, False, "cuda:1", r"cuda:1, but PyTorch finds cpu and cuda:0 on this machine"),
        (2, False, "mps", r"mps, but PyTorch finds cpu, cuda:0 and cuda:1"),
        (0, True, "cuda", r"finds cpu and mps"),
    ],
)
def test_a_missing_device_is_said_with_what_there_is(machine, gpus, mps, word, said):
    machine(gpus, mps)
    with pytest.raises(ValueError, match=said):
        read_device(word, "--device")


@pytest.mark.parametrize("word", ["gpu", "CUDA", "cuda:x", "cuda:-1", "tpu", "", "0"])
def test_other_words_are_refused_with_those_there_are(word):
    with pytest.raises(ValueError, match="must be auto, cpu, cuda, cuda:1"):
        read_device(word)

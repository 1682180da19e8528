"""Files of a run that are empty, half or something else: named, with the remedy, by every verb."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import safetensors.torch
from lightning.pytorch import Callback

import castling_launcher
from castling.profiling.run_report import write_run_report
from castling.tasks.result import read_result
from castling.train import recipe_from_dict, recipe_to_yaml, train

RECIPE = recipe_from_dict(
    {
        "model": {"name": "castling_deit_pico", "kwargs": {"depth": 1, "patch_size": 8}},
        "data": {
            "source": "digits",
            "split": {"subset": 64},
            "transform": {"image_size": 16},
            "loader": {"batch_size": 32},
        },
        "epochs": 1,
        "hardware": {"accelerator": "cpu"},
    }
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    train(RECIPE, folder, progress=False)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": half,
    "list": lambda path: path.write_text("[1, 2]"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe{}"),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize(
    "name", ["result.json", "model.json", "model.safetensors", "switched/model.safetensors"]
)
def test_a_finished_run_writes_a_damaged_file_again(finished, run, caplog, name, damage):
    damage(run / name)
    result = train(RECIPE, run, progress=False)
    assert not result.already_finished
    if damage is not DAMAGES["missing"] or name != "result.json":  # that is an unfinished run
        assert caplog.text.count(f"{run} was finished, but") == 1
    whole = read_result(finished)
    assert result.metrics == whole.metrics
    assert result.switched_metrics == whole.switched_metrics
    for weights in ("model.safetensors", "switched/model.safetensors"):
        assert (run / weights).read_bytes() == (finished / weights).read_bytes()
    assert train(RECIPE, run, progress=False).already_finished


@pytest.mark.parametrize("name", ["result.json", "model.json", "model.safetensors"])
def test_without_a_checkpoint_the_file_and_the_remedy_are_named(run, name):
    half(run / name)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match=rf"{name}(.|\n)*delete the folder to train anew"):
        train(RECIPE, run, progress=False)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_recipe_is_named(run, damage):
    damage(run / "recipe.yaml")
    with pytest.raises(ValueError, match=r"recipe\.yaml is (missing or )?damaged.*another --run"):
        train(RECIPE, run, progress=False)


VERBS = {
    "evaluate": ("evaluate", "{run}"),
    "predict": ("predict", "{run}", "{run}/none.png"),
    "switch": ("switch", "{run}", "--overwrite"),
    "export": ("export", "{run}", "{run}/m.pt2"),
}


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d != "missing"])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "recipe.yaml"])
def test_every_verb_names_the_file(run, capsys, verb, name, damage):
    if name == "recipe.yaml" and verb in ("predict", "export"):
        pytest.skip("the verb does not read it")
    target = run / name
    if name != "recipe.yaml" and verb != "switch":
        target = run / "switched" / name
    DAMAGES[damage](target)
    words = [word.format(run=run) for word in VERBS[verb]]
    assert castling_launcher.main(words) == 2
    said = capsys.readouterr().err
    assert str(target) in said
    assert len(said.splitlines()) == 1
    assert "unexpected" not in said


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d not in ("missing", "list")])
@pytest.mark.parametrize("name", ["metrics.csv", "auxiliary.csv"])
def test_the_report_names_a_damaged_table_and_the_remedy_works(finished, run, name, damage):
    DAMAGES[damage](run / name)
    with pytest.raises(ValueError, match=rf"{name} is .*Delete .*result\.json and run the"):
        write_run_report(run)
    (run / "result.json").unlink()
    train(RECIPE, run, progress=False)
    assert (run / name).read_bytes() == (finished / name).read_bytes()
    write_run_report(run)


def test_a_result_of_an_earlier_version_is_read(run):
    values = json.loads((run / "result.json").read_text())
    for name in ("use", "best", "other_dir", "stopped_early", "percentages"):
        del values[name]
    (run / "result.json").write_text(json.dumps(values))
    assert read_result(run).use == "last"
    assert train(RECIPE, run, progress=False).already_finished


class FullDisk:
    """Lets every write of a name fail once it has written half, as a full disk does."""

    def __init__(self, monkeypatch, name, number=errno.ENOSPC):
        self.failed = False
        real_write = Path.write_bytes

        def write_bytes(path, content):
            if name in path.name:
                self.failed = True
                real_write(path, content[: len(content) // 2])
                raise OSError(number, os.strerror(number))
            return real_write(path, content)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize(
    "name", ["recipe.yaml", "metrics.csv", "model.safetensors", "model.json", "result.json"]
)
def test_a_full_disk_names_the_file_and_leaves_nothing_half(tmp_path, monkeypatch, name, number):
    with monkeypatch.context() as patched:
        disk = FullDisk(patched, name, number)
        with pytest.raises(OSError, match=os.strerror(number)) as full:
            train(RECIPE, tmp_path / "run", progress=False)
        assert disk.failed
    assert full.value.errno == number
    assert str(full.value.filename).endswith(name)
    assert not (tmp_path / "run" / name).exists()
    assert not list((tmp_path / "run").rglob("*.part"))
    train(RECIPE, tmp_path / "run", progress=False)  # once there is room again


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_named(tmp_path):
    """A limit on the size of files is what a full disk looks like to whoever writes them."""
    resource = pytest.importorskip("resource")

    class Limit(Callback):
        def on_train_start(self, trainer, module):
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="File too large") as full:
            train(RECIPE, tmp_path / "run", progress=False, callbacks=[Limit()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert str(full.value.filename).endswith(("last.ckpt", ".safetensors"))
    assert not list((tmp_path / "run").rglob("*.part"))
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert train(RECIPE, tmp_path / "run", progress=False).steps == 2


def test_the_recipe_file_says_everything(finished):
    assert (finished / "recipe.yaml").read_text() == recipe_to_yaml(RECIPE)
    assert safetensors.torch.load_file(finished / "model.safetensors")

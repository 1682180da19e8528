"""The command line: what it prints, its exit codes, and that help comes at once."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image

import castling
import castling_launcher
from castling import cli, demo
from castling.attention import auxiliaries, set_progress
from castling.models.saved import open_model, save_model
from castling.profiling.model_results import ModelMeasurement, ModelsResult
from castling.profiling.planning import WITHIN
from castling.tasks import TrainResult


def run(*arguments):
    return castling_launcher.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, trained for two steps through the command line."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    code = run(
        *("train", "--run", folder, "--model.name", "castling_deit_pico"),
        *("--model.kwargs", '{"depth": 1, "patch_size": 8}'),
        *("--data.split.subset", 40, "--data.loader.batch_size", 20, "--epochs", 1),
    )
    assert code == 0
    return folder


def test_verbs_of_the_launcher_are_those_of_the_command_line(capsys):
    assert list(castling_launcher.VERBS) == list(cli.FUNCTIONS)
    for verb in castling_launcher.VERBS:
        with pytest.raises(SystemExit) as stopped:
            run(verb, "--help")
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert f"castling {verb}" in text
        assert "--json" in text


def test_help_and_version_import_nothing_slow():
    program = (
        "import sys, castling_launcher as c; codes = c.main([]), c.main(['--help']), c.main(['x']);"
        "assert codes == (0, 0, 2), codes; assert 'castling' not in sys.modules;"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bench" in done.stdout
    assert "no verb 'x'" in done.stderr


def test_train_writes_a_run_with_a_report(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"recipe.yaml", "model.safetensors", "switched", "report.html"} <= names
    page = (trained / "report.html").read_text()
    assert "Switch certificate" in page
    assert "Mask trajectories" in page


def test_evaluate_takes_the_switched_model_unless_told(trained, capsys):
    assert run("evaluate", trained, "--json") == 0
    switched = json.loads(capsys.readouterr().out)
    assert switched["model"].endswith("switched")
    assert switched["split"] == "test"
    assert switched["images"] > 300
    assert run("evaluate", trained, "--unswitched", "--json") == 0
    unswitched = json.loads(capsys.readouterr().out)
    assert unswitched["metrics"]["top1"] == pytest.approx(switched["metrics"]["top1"])
    assert len(switched["per_class"]) == 10


def test_evaluate_says_which_images_and_prints_the_classes(trained, capsys):
    assert run("evaluate", trained) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.endswith("test images of digits; held out from training")
    assert last.split()[0] == "9"
    assert run("evaluate", trained, "--split", "train") == 0
    out = capsys.readouterr().out
    assert "40 training images of digits; the model was trained on them" in out
    assert run("evaluate", trained, "--split", "val", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["data"], found["trained_on"], found["split"]) == ("digits", 0, "val")
    figures = found["class_figures"]
    assert sum(one["images"] for one in figures.values()) == found["images"]
    assert list(figures["0"]) == ["precision", "recall", "f1", "images"]
    for name, recall in found["per_class"].items():
        assert figures[name]["recall"] == recall


def test_evaluate_does_not_know_what_other_images_were_used_for(trained, tmp_path, capsys):
    for name in range(10):
        for index in range(4):
            path = tmp_path / "others" / str(name) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (20 * name, 60 * index, 0)).save(path)
    options = ("--data", tmp_path / "others", "--split", "train")
    assert run("evaluate", trained, *options) == 0
    assert "whether the model was trained on them is not known" in capsys.readouterr().out
    assert run("evaluate", trained, *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["trained_on"] is None


def test_quiet_prints_the_result_only(tmp_path, capsys):
    tiny = ("--model.kwargs", '{"depth": 1, "patch_size": 8}', "--data.split.subset", 40)
    tiny += ("--data.loader.batch_size", 20, "--epochs", 1, "--run", tmp_path / "run")
    assert run("train", *tiny, "--quiet") == 0
    out = capsys.readouterr()
    assert out.err == ""
    assert out.out.startswith("trained, val: top-1")
    assert out.out.splitlines()[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    bench = ("bench", "ops", "--kernels", "relu_linear", "--tokens", 16, "--dims", 8)
    bench += ("--backends", "naive", "--rounds", 1, "--seconds", 0)
    assert run(*bench, "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert run(*bench) == 0
    assert ": done" in capsys.readouterr().err


def test_switch_refuses_then_is_forced(trained, tmp_path, capsys):
    model, card = open_model(trained)
    set_progress(model, 0.0)
    save_model(model, tmp_path / "early", card)
    early = ("switch", tmp_path / "early", "--tolerance", 0, "--images", 20, "--data", "digits")
    assert run(*early) == 2
    said = capsys.readouterr().err
    assert "tolerance" in said
    assert "--force" in said
    assert "force=True" not in said
    assert run(*early[:-6], "--tolerance=-1") == 2
    assert "negative" in capsys.readouterr().err
    assert not (tmp_path / "early" / "switched").exists()
    assert run(*early, "--force", "--json") == 0
    certificate = json.loads(capsys.readouterr().out)
    assert certificate["forced"]
    assert certificate["images"] == 20
    assert not auxiliaries(open_model(tmp_path / "early" / "switched")[0])
    assert run("switch", tmp_path / "early" / "switched") == 2
    assert "is switched already" in capsys.readouterr().err


def test_switch_and_export_replace_only_if_told(trained, tmp_path, capsys):
    model, card = open_model(trained)
    save_model(model, tmp_path / "one", card)
    again = ("switch", tmp_path / "one", "--images", 20, "--data", "digits")
    assert run(*again) == 0
    written = (tmp_path / "one" / "switched" / "certificate.json").read_text()
    capsys.readouterr()
    assert run(*again) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "one" / "switched" / "certificate.json").read_text() == written
    assert run(*again, "--overwrite") == 0
    exported = ("export", tmp_path / "one", tmp_path / "one.pt2", "--dynamic", "none")
    assert run(*exported) == 0
    capsys.readouterr()
    assert run(*exported) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*exported, "--overwrite") == 0


def test_switch_asks_for_images_that_it_cannot_know(trained, tmp_path, capsys):
    model, card = open_model(trained)
    save_model(model, tmp_path / "alone", card)
    assert run("switch", tmp_path / "alone") == 2
    assert "--data" in capsys.readouterr().err


def test_export_then_predict(trained, tmp_path, capsys):
    file = tmp_path / "model.onnx"
    assert run("export", trained, "--size", 32, "--json", file) == 0  # the file comes last
    report = json.loads(capsys.readouterr().out)
    assert len(report["checks"]) == 3
    assert report["multiple"] == 8
    for index in range(2):
        Image.new("L", (8, 8), 100 * index).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    assert run("predict", file, tmp_path, "--top", 2, "--json") == 1
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert [len(one["classes"]) for one in found] == [2, 2, 0]
    assert "broken.png" in out.err
    assert "0.png" not in out.err
    assert run("predict", file, tmp_path / "broken.png", tmp_path / "absent.png") == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert len(out.err.splitlines()) == 2
    assert run("predict", trained, tmp_path / "1.png", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["classes"][:2] == found[1]["classes"]


def test_export_refuses_an_unswitched_model(trained, tmp_path, capsys):
    model, card = open_model(trained)
    save_model(model, tmp_path / "alone", card)
    assert run("export", tmp_path / "alone") == 2
    assert "castling switch" in capsys.readouterr().err


def test_models_and_attentions(capsys):
    assert run("models", "castling_deit_p*", "--macs", "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["name"] == "castling_deit_pico"
    assert 1e6 < entry["macs"] < 1e8
    assert run("models", "d_fine_p*", "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["name"], entry["task"]) == ("d_fine_pico", "detection")
    assert entry["options"]["queries"] == 40
    assert run("models", "*_pico") == 0
    text = capsys.readouterr().out
    assert "castling_deit_pico " in text
    assert "d_fine_pico/BACKBONE " in text
    assert run("attentions") == 0
    text = capsys.readouterr().out
    assert "linear_angular" in text
    assert "castling.QuadraticTaylor(" in text


def test_bench_ops(tmp_path, capsys):
    code = run(
        *("bench", "ops", "--kernels", "relu_linear", "linear_angular:local=token1d"),
        *("--tokens", 16, 25, "--dims", 8, "--heads", 2, "--backends", "naive", "--json"),
        *("--rounds", 3, "--seconds", 0, "--plot", tmp_path / "ops.png"),
        *("--csv", tmp_path / "ops.csv", "--output", tmp_path / "ops.json"),
    )
    assert code == 0
    result = json.loads(capsys.readouterr().out)
    assert [m["tokens"] for m in result["measurements"]] == [16] * 5 + [25] * 5
    assert result == json.loads((tmp_path / "ops.json").read_text())
    with (tmp_path / "ops.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 10
    assert (tmp_path / "ops.png").read_bytes().startswith(b"\x89PNG")


def test_bench_models(tmp_path, capsys):
    code = run(
        *("bench", "models", "deit_pico", "--attentions", "relu_linear", "--sizes", "32"),
        *("--batches", 1, 2, "--rounds", 3, "--seconds", 0, "--plot", tmp_path / "models.png"),
    )
    assert code == 0
    out = capsys.readouterr()
    assert "deit_pico + relu_linear" in out.out
    assert "deit_pico without attention (eager), 32×32, batch 2: done" in out.err
    assert (tmp_path / "models.png").exists()


def test_bench_models_folded(capsys):
    code = run(
        *("bench", "models", "cas_vit_pico", "--sizes", "32", "--runtimes", "eager", "folded"),
        *("--rounds", 3, "--seconds", 0, "--json"),
    )
    assert code == 0
    rows = json.loads(capsys.readouterr().out)["measurements"]
    times = {(row["model"], row["variant"]): row["milliseconds"] for row in rows}
    for row in rows:
        eager = None if row["variant"] == "eager" else times[row["model"], "eager"]
        assert row["against_eager"] == (eager and pytest.approx(eager / row["milliseconds"]))


def test_bench_says_a_failure_once(capsys):
    assert run("bench", "models", "deit_pico", "--sizes", "30", "--rounds", 1) == 1
    out = capsys.readouterr()
    assert (out.out + out.err).count("30×30, batch 1: Input") == 1
    assert "deit_pico (eager), 30×30, batch 1: failed" in out.err


@pytest.mark.parametrize("part", ["ops", "models"])
def test_help_of_each_bench(part, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("bench", part, "--help")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"castling bench {part}" in text
    for option in text.split(" --"):
        assert option.count("default:") <= 1, option


def test_plan(tmp_path, capsys):
    path = tmp_path / "plan.json"
    arguments = ["plan", "deit_pico", "--image_size", 32, "--rounds", 1, "--output", path]
    assert run(*arguments, "--attention", "relu_linear", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())
    plan = castling.load_plan(path)
    model = castling.create_model("deit_pico")
    assert castling.linearize_(model, castling.ReLULinear(), where=path) == list(plan.linear)


def test_plan_is_strict_about_its_prediction_where_asked(tmp_path, capsys):
    path = tmp_path / "plan.json"
    arguments = ["plan", "deit_pico", "--image_size", 32, "--rounds", 1, "--output", path]
    for strict in ([], ["--strict"]):
        code = run(*arguments, *strict)
        off = abs(castling.load_plan(path).error) > WITHIN
        assert ("more than 10 %" in capsys.readouterr().out) == off
        assert code == int(off and bool(strict))


def test_plan_of_a_run(trained, tmp_path, capsys):
    output = tmp_path / "plan.json"
    arguments = ["--image_size", 32, "--rounds", 1, "--output", output, "--checkpoint", trained]
    assert run("plan", "castling_deit_pico", *arguments) == 0
    assert [layer.name for layer in castling.load_plan(output).layers] == ["blocks.0.attn"]
    assert run("plan", "deit_pico", *arguments) == 2
    assert "holds a castling_deit_pico, not a deit_pico" in capsys.readouterr().err


def test_plan_of_a_file_of_weights(tmp_path, capsys):
    weights, output = tmp_path / "weights.pth", tmp_path / "plan.json"
    torch.save({"model": timm.create_model("deit_pico", img_size=48).state_dict()}, weights)
    arguments = ["--image_size", 32, "--rounds", 1, "--output", output, "--checkpoint", weights]
    assert run("plan", "deit_pico", *arguments) == 0
    said = capsys.readouterr().err
    assert f"weights: 56 entries of {weights}, model" in said
    assert "pos_embed resized from 12×12 to 8×8" in said
    assert run("plan", "levit_128s", *arguments) == 2
    assert "the file holds a ViT of width 64, depth 4, patch 4" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [verb for verb in castling_launcher.VERBS if verb != "train"])
def test_help_says_each_default_once(verb, capsys):
    with pytest.raises(SystemExit):
        run(verb, "--help")
    text = " ".join(capsys.readouterr().out.split())
    for option in text.split(" --"):
        assert option.count("default:") <= 1, option
    assert "default: null" not in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "absent"], "absent"),
        (["predict", "absent.onnx", "x.png"], "absent.onnx"),
        (["predict", "absent"], "images"),
        (["train", "--epochs", "many"], "epochs"),
        (["train", "--config", "absent.yaml"], "absent.yaml"),
        (["train", "--optim.speed", "1"], "speed"),
        (["train", "--data.image_size", "32"], "--data.transform.image_size"),
        (["train", "--task", "no_such"], "no_such"),
        (["models", "no_such_*"], "no_such_"),
        (["bench"], "what"),
        (["bench", "ops", "--kernels", "magic"], "magic"),
        (["bench", "ops", "--dtypes", "float8"], "there are: float32"),
        (["bench", "ops", "--backends", "nativ"], "did you mean native"),
        (["bench", "models", "deit_pico", "--runtimes", "egaer"], "did you mean eager"),
        (["models", "castling_diet_pico"], "did you mean castling_deit_pico"),
        (["train", "--model.name", "deit_pic", "--dry_run"], "did you mean deit_pico"),
        (["train", "--model.attention", "relu", "--dry_run"], "did you mean relu_linear"),
        (["train", "--data.source.name", "digit"], "did you mean digits"),
        (["train", "--task", "clasification"], "did you mean classification"),
        (["train", "--optim.name", "adamww", "--dry_run"], "did you mean adamw"),
        (["train", "--lr", "1"], "did you mean --optim.lr"),
        (["train", "--epoch", "1"], "did you mean --epochs"),
        (["evaluate", "absent", "--split", "tset"], "did you mean test"),
        (["export", "absent", "--sise", "33"], "did you mean --size"),
        (["bench", "ops", "--paths", "fast"], "there are: naive"),
        (["bench", "models", "deit_pico", "--sizes", "big"], "big"),
        (["bench", "models", "deit_pico", "--runtimes", "java"], "java"),
        (["plan", "cas_vit_pico"], "no attention that can be replaced"),
        (["export", "absent", "--size", "0x4"], "is not a size"),
    ],
)
def test_errors_are_said_without_a_traceback(arguments, says, capsys):
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"castling {arguments[0]}: ")
    assert says in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["train", "--epochs", "many"],
            "--epochs: must be a whole number of at least 1, got many",
        ),
        (["train", "--optim.lr", "-1"], "--optim.lr: must be a number above 0, got -1"),
        (["train", "--optim.lr=x"], "--optim.lr: must be a number above 0"),
        (["train", "--model.drop_path", "1.5"], "--model.drop_path: must be a number in [0, 1)"),
        (["train", "--config", "absent.yaml"], "no such recipe file: absent.yaml"),
        (["train", "--model.drop_path", "x"], "--model.drop_path: "),
        (["export", "absent", "--opset", "x"], "--opset: expected int"),
    ],
)
def test_wrong_arguments_take_one_line(arguments, says, capsys):
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"castling {arguments[0]}: {says}")


def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setenv("CASTLING_DEBUG", "1")
    assert run("evaluate", "absent") == 2
    assert "Traceback" in capsys.readouterr().err


def test_demo(tmp_path):
    """One epoch each of two models, measured at the smallest size."""
    said = []
    result = demo.run_demo(
        tmp_path,
        said.append,
        epochs=1,
        detector_epochs=1,
        progress=False,
        seconds_per_size=0,
        models=("softmax", "castling"),
        tokens=(4,),
        sides=(32,),
    )
    page = (tmp_path / "report.html").read_text()
    for heading in (
        *("Accuracy", "Training", "Mask trajectories", "Switch certificate"),
        *("Speed against resolution", "ONNX export, verified", "Example predictions"),
        "Objects found",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "src=" not in page.replace('src="data:', "")
    assert result.export.max_difference < 1e-4
    assert result.results["Castling-ViT"].switch["exact"]
    assert any("after the switch" in line for line in said)


def test_the_headline_of_the_demo():
    def result(top1, switched=None):
        after = {} if switched is None else {"test_top1": switched}
        return TrainResult(run_dir="", metrics={"test_top1": top1}, switched_metrics=after)

    def row(model, side, milliseconds):
        return ModelMeasurement(model, "eager", side, side, 1, milliseconds=milliseconds)

    rows = (
        *(row("deit_pico", 64, 1.0), row("deit_pico", 512, 720.0)),
        *(row("castling_deit_pico", 64, 2.0), row("castling_deit_pico", 512, 100.0)),
    )
    measured = ModelsResult(rows, {}, {})
    results = {"softmax ViT": result(73.04), "Castling-ViT": result(95.0, 95.46)}
    said = demo.headline(results, measured)
    assert said.startswith("At 512 px Castling-ViT is 7.2 times as fast as the same ViT")
    assert "(100 against 720 ms per image on one CPU thread)" in said
    assert "95.5 % of the test images right against 73.0 % of the softmax ViT." in said
    # the fairer comparison, where there is one
    results["softmax ViT + convolution"] = result(93.3)
    assert "against 93.3 % of the softmax ViT + convolution." in demo.headline(results, measured)
    slower = ModelsResult(rows[::2], {}, {})
    assert "is 0.5 times the speed of" in demo.headline(results, slower)
    assert demo.headline(results, ModelsResult((), {}, {})) == ""


def test_export_names_the_model_of_an_unknown_task(trained, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(trained / "switched", folder)
    card = json.loads((folder / "model.json").read_text())
    card["task"]["name"] = "clasification"
    (folder / "model.json").write_text(json.dumps(card))
    assert run("export", folder, tmp_path / "m.onnx") == 2
    assert f"{folder}: no task 'clasification'" in capsys.readouterr().err

"""The parser of all verbs: positional arguments anywhere, the nearest flag."""

import pytest
from jsonargparse import ArgumentError

from castling.train import parse_flags
from castling.utils.parser import Parser, near_flags

FLAGS = [
    *("--epochs", "--optim.lr", "--optim.lr_batch", "--optim.name", "--model.name", "--run"),
    *("--data.loader.batch_size", "--data.transform.image_size", "--switch.force", "--data.source"),
]


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("--lr", ["--optim.lr"]),
        ("--lrr", ["--optim.lr"]),
        ("--epoch", ["--epochs"]),
        ("--batch-size", ["--data.loader.batch_size"]),
        ("--image_size", ["--data.transform.image_size"]),
        ("--name", ["--optim.name", "--model.name"]),
        ("--source", ["--data.source"]),
        ("--zzzzzz", []),
    ],
)
def test_nearest_flags(flag, near):
    assert near_flags(flag, FLAGS) == near


def test_nearest_of_a_dotted_flag_begins_with_the_closest():
    assert near_flags("--optim.lrr", FLAGS)[0] == "--optim.lr"


def parser():
    made = Parser(exit_on_error=False, allow_abbrev=False)
    made.add_argument("model")
    made.add_argument("output", nargs="?")
    made.add_argument("--size")
    made.add_argument("--verify", nargs="+", default=[])
    made.add_argument("--tolerance", type=float, default=0.0)
    made.add_argument("--json", action="store_true")
    made.add_argument("--dynamic", choices=["auto", "all"], default="auto")
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        "m out --size 33 --json --tolerance -1",
        "m --size 33 out --json --tolerance -1",
        "--size 33 m --json out --tolerance -1",
        "--size=33 --tolerance=-1 --json m out",
        "--tolerance -1 --json --size 33 m -- out",
    ],
)
def test_positional_arguments_may_stand_anywhere(arguments):
    found = parser().parse_args(arguments.split())
    assert (found.model, found.output, found.size) == ("m", "out", "33")
    assert found.json
    assert found.tolerance == -1


def test_values_of_a_list_stay_with_it():
    found = parser().parse_args(["m", "--verify", "32", "64x32", "--json"])
    assert (found.output, found.verify) == (None, ["32", "64x32"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("m --sise 33", "there is no option --sise; did you mean --size?"),
        ("m --sise=33", "there is no option --sise; did you mean --size?"),
        ("m out third", "cannot use third: too many arguments"),
        ("m --dynamic al", "--dynamic: there is no 'al'; one of auto, all; did you mean all?"),
    ],
)
def test_errors_name_the_nearest(arguments, said):
    with pytest.raises(ArgumentError) as error:
        parser().parse_args(arguments.split())
    assert said in str(error.value)


def test_recipes_name_the_nearest_flag_and_choice():
    for arguments, said in (
        (["--lr", "1"], "did you mean --optim.lr?"),
        (["--source", "x"], "did you mean --data.source?"),
        (
            ["--schedule.kind", "cosin"],
            "one of cosine, poly, steps, constant; did you mean cosine?",
        ),
    ):
        with pytest.raises(ArgumentError) as error:
            parse_flags(arguments, exit_on_error=False)
        assert said in str(error.value)

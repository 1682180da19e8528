"""Recipes that would fill the memory or the stack are refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from castling.utils.yaml_files import MAX_BYTES, read_yaml


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


def test_aliases_are_counted_as_what_they_stand_for(tmp_path: Path) -> None:
    assert len(read_yaml(_write(tmp_path, _bomb(3)))["a2"][0]) == 10
    with pytest.raises(ValueError, match=r"r\.yaml.*aliases stand for more than 100,000 values"):
        read_yaml(_write(tmp_path, _bomb(9)))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: &a [*a]", "holds it"),
        ("a: &a {b: {c: *a}}", "holds it"),
        ("[" * 3000, "nested too deeply"),
        ("a: {b: 1, b: 2}", "'b' is given twice"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("#" * (MAX_BYTES + 1), "larger than 1,000,000 bytes"),
    ],
)
def test_what_is_no_sound_yaml_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"r\.yaml.*{complaint}|r\.yaml(?s:.*){complaint}"):
        read_yaml(_write(tmp_path, text))


def test_plain_files(tmp_path: Path) -> None:
    assert read_yaml(_write(tmp_path, "")) is None
    assert read_yaml(_write(tmp_path, "a: &x {b: 1}\nc: {<<: *x, d: 2}")) == {
        "a": {"b": 1},
        "c": {"b": 1, "d": 2},
    }
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"a: \xe9")
    with pytest.raises(ValueError, match=r"bytes\.yaml"):
        read_yaml(path)

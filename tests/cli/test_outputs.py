"""Files that verbs write: what cannot be written is said before the work."""

import pytest

import castling_launcher


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "deit_pico", "--output"),
        ("bench", "models", "deit_pico", "--output"),
        ("bench", "models", "deit_pico", "--csv"),
        ("bench", "ops", "--plot"),
        ("compare", "runs/a", "runs/b", "--output"),
    ],
    ids=" ".join,
)
def test_a_folder_in_the_place_of_a_file_is_refused_at_once(tmp_path, capsys, words):
    assert castling_launcher.main([*words, str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{words[-1]} {tmp_path} is a folder: name a file" in said
    assert not list(tmp_path.iterdir())

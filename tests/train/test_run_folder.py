"""Which folders a run may be trained in."""

import pytest
from PIL import Image

from castling.train import Recipe, recipe_from_dict, train
from castling.train.run_folder import find_run


@pytest.mark.parametrize("name", ["README.md", "examples", "model.safetensors", "best"])
def test_files_that_no_run_has_written_are_not_replaced(tmp_path, name):
    (tmp_path / "log.txt").write_text("of a scheduler, which opens it first")
    assert find_run(Recipe(), tmp_path, "auto") == (None, None)
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.png").write_text("")
    for resume in ("auto", "never"):
        with pytest.raises(FileExistsError, match=rf"not the folder of a run.*{name}"):
            train(Recipe(), tmp_path, resume, progress=False)
    assert (tmp_path / name / "mine.png").is_file()
    (tmp_path / "recipe.yaml").write_text("")  # of a run that was killed before its checkpoint
    assert find_run(Recipe(), tmp_path, "auto") == (None, None)


def images(folder):
    folder.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")


def test_a_run_is_not_put_among_the_classes_of_its_images(tmp_path):
    photos = tmp_path / "photos"
    for name in ("cat", "dog"):
        images(photos / name)
    recipe = recipe_from_dict({"data": {"source": str(photos)}})
    before = sorted(photos.rglob("*"))
    (tmp_path / "link").symlink_to(photos)
    for run in (photos, photos / "runs" / "a", photos / "cat", tmp_path / "link" / "a"):
        with pytest.raises(ValueError, match="lies within the images"):
            train(recipe, run, progress=False)
    assert sorted(photos.rglob("*")) == before
    assert find_run(recipe, tmp_path / "photos-run", "auto") == (None, None)


def test_a_run_beside_folders_of_splits_is_no_class(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            images(tmp_path / split / name)
    recipe = recipe_from_dict({"data": {"source": str(tmp_path)}})
    assert find_run(recipe, tmp_path / "runs" / "a", "auto") == (None, None)
    with pytest.raises(ValueError, match="lies within the images"):
        find_run(recipe, tmp_path / "train" / "a", "auto")


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_that_pytorch_does_not_take_is_refused_before_a_folder_is_made(seed):
    with pytest.raises(ValueError, match=r"seed is .* between"):
        Recipe(seed=seed)
    assert Recipe(seed=2**64 - 1).seed == 2**64 - 1

"""Folders and .npz files of images: classes and their numbers, the part that is read, and what is left out."""

import io
import logging
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from thoroughness import examples

import opq
from opq.zoo.image_data import open_images, sample_images, validation_images
from opq.zoo.image_files import SUFFIXES
from opq.zoo.preprocessing import plain

image = pytest.importorskip("PIL.Image")

NAMES = st.sets(st.sampled_from(["a", "B", "c1", "c10", "c2", "n01", "z z", "é"]), min_size=1)


def touch(folder, *names):
    """Make empty files: folders are listed without reading images."""
    for name in names:
        (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).touch()


def grey(path, value, size=8):
    """A grey image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new("RGB", (size, size), (value,) * 3).save(path)


@given(training=NAMES, data=st.data(), part=st.sampled_from(["val", "test", "validation"]))
@examples(25)
def test_test_images_have_the_numbers_of_the_training_classes(training, data, part):
    """A class has the same number in both parts: its place in the sorted names of the training classes."""
    testing = data.draw(st.sets(st.sampled_from(sorted(training)), min_size=1))
    with tempfile.TemporaryDirectory() as folder:
        touch(folder, *(f"train/{name}/{k}.png" for name in training for k in range(2)))
        touch(folder, *(f"{part}/{name}/x/{k}.png" for name in testing for k in range(3)))
        loader = {kind: open_images(folder, plain(), training=kind).dataset.labels for kind in (True, False)}
    numbers = {name: number for number, name in enumerate(sorted(training))}
    assert loader[True] == [number for number in range(len(training)) for _ in range(2)]
    assert loader[False] == sorted(number for name, number in numbers.items() if name in testing for _ in range(3))


def test_a_class_without_training_images_is_an_error(tmp_path):
    """A folder of test images that is no class of the training images is named; without training images it is a class."""
    touch(tmp_path, "train/cat/0.png", "val/cat/0.png", "val/dog/0.png")
    with pytest.raises(opq.SourceError, match=r"val: its class 'dog' is not a class of .*train"):
        open_images(tmp_path, plain(), training=False)
    assert open_images(tmp_path / "val", plain(), training=False).dataset.labels == [0, 1]
    (tmp_path / "train" / "cat" / "0.png").rename(tmp_path / "train" / "0.png")
    (tmp_path / "train" / "cat").rmdir()
    assert open_images(tmp_path, plain(), training=False).dataset.labels == [0, 1]


def test_images_without_augmentation_are_those_of_evaluation(tmp_path):
    """Training images change at random only if asked; then they are in any order, but each is as evaluation has it."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=np.arange(6))
    expected = torch.stack([plain().evaluation(image) for image in pixels])
    for augment in (False, True):
        ((inputs, labels),) = open_images(tmp_path / "a.npz", plain(), training=True, augment=augment)
        assert torch.equal(inputs, expected[labels]) is not augment


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"x_train": 0, "y_train": 0, "x_test": 50, "y_test": 0}, 50),
        ({"x_train": 0, "y_train": 0}, 0),
        ({"x_train": 0, "y_train": 0, "x_test": 50}, 0),
        ({"x_train": 0}, 0),
    ],
    ids=["both", "training only", "test without labels", "no labels"],
)
@pytest.mark.parametrize("count", [3, 100])
def test_a_training_is_measured_on_test_images_if_they_serve(tmp_path, parts, expected, count):
    """Test images, or training images if there are no labelled test images; at most `count`, the same each time, in batches."""
    values = np.arange(9, dtype=np.uint8)
    arrays = {name: values[:, None, None] + np.uint8(add) if name[0] == "x" else values for name, add in parts.items()}
    np.savez(tmp_path / "a.npz", **arrays)
    seen = []
    for _ in range(2):
        loader = validation_images(tmp_path / "a.npz", plain(mean=(0.0,), std=(1 / 255,)), count, batch=2)
        seen.append(torch.cat([batch[0] if "y_train" in parts else batch for batch in loader]).flatten().round().tolist())
        assert len(loader) == math.ceil(min(count, 9) / 2)
    assert seen[0] == seen[1] == sorted(set(seen[0]))
    assert len(seen[0]) == min(count, 9)
    assert set(seen[0]) <= {float(value + expected) for value in values}


def test_the_digest_of_images_follows_their_content(tmp_path):
    """Moved images keep it; another label, name or size of a file, or another pixel of an array, changes it."""

    def digest(name="a"):
        return open_images(tmp_path / name, plain(), training=True).dataset.digest()

    touch(tmp_path, "a/cat/0.png", "a/dog/1.png")
    found = [digest()]
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest("b") == found[0]
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "a" / "dog" / "1.png").write_bytes(b"x")
    found.append(digest())
    (tmp_path / "a" / "dog" / "1.png").rename(tmp_path / "a" / "dog" / "2.png")
    found.append(digest())
    (tmp_path / "a" / "cow").mkdir()
    found.append(digest())
    for pixel, label in ((0, 0), (1, 0), (1, 1)):
        np.savez(tmp_path / "a.npz", x_train=np.full((1, 4, 4), pixel, np.uint8), y_train=np.array([label]))
        found.append(digest("a.npz"))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(("here", "training"), [("train", False), ("val", True), ("test", True), ("validation", True)])
def test_a_missing_part_is_an_error(tmp_path, here, training):
    """The training images are never taken for the test images, nor their folder for a class."""
    touch(tmp_path, f"{here}/cat/0.png", "other/0.png")
    with pytest.raises(opq.SourceError, match=f"it has a folder '{here}', but no folder '"):
        open_images(tmp_path, plain(), training=training)


def test_an_empty_class_keeps_its_number(tmp_path):
    """As each folder is a class, one without images changes no other number."""
    touch(tmp_path, "a/0.png", "c/0.png")
    (tmp_path / "b").mkdir()
    assert open_images(tmp_path, plain(), training=False).dataset.labels == [0, 2]


@given(st.lists(st.sampled_from(["a/x.gif", "a/b/notes.txt", "stray.png", "a/png", "a/x.png.tmp"]), unique=True))
def test_files_that_are_left_out_are_told(extra):
    """Files of other suffixes, and images beside the folders of classes, are counted in one warning, hidden ones are not."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    with tempfile.TemporaryDirectory() as folder:
        touch(folder, *(f"a/{k}{suffix.upper()}" for k, suffix in enumerate(SUFFIXES)), "a/.hidden", ".b/0.png", *extra)
        logging.getLogger("opq").addHandler(handler)
        try:
            found = open_images(folder, plain(), training=False).dataset
        finally:
            logging.getLogger("opq").removeHandler(handler)
    assert found.labels == [0] * len(SUFFIXES)
    messages = [record.getMessage() for record in records]
    assert len(messages) == bool(extra)
    assert all(f"left out {len(extra)} files" in message for message in messages)


def test_calibration_images_are_training_images(tmp_path):
    """They are those of the folder "train" or of x_train, else those that are there, as for evaluation and without labels."""
    for number in range(3):
        grey(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", 10 * number)
        grey(tmp_path / "val" / "a" / f"{number}.png", 100 + number)
    want = plain(None, (0.0,) * 3, (1 / 255,) * 3)
    values = {"train": [0, 10, 20], "val": [100, 101, 102]}
    arrays = {name: np.array(greys, np.uint8)[:, None, None, None].repeat(3, 3) for name, greys in values.items()}
    np.savez(tmp_path / "both.npz", x_train=arrays["train"], x_test=arrays["val"], y_test=np.arange(3))
    np.savez(tmp_path / "one.npz", x_test=arrays["val"])
    for path, part in (("", "train"), ("train", "train"), ("val", "val"), ("both.npz", "train"), ("one.npz", "val")):
        found = sample_images(tmp_path / path, want, 9)
        assert sorted(found[:, 0, 0, 0].round().tolist()) == values[part]
        assert torch.equal(sample_images(tmp_path / path, want, 2), found[:2])


def test_calibration_images_of_different_sizes_are_an_error(tmp_path):
    """The error says to give an input size."""
    for size in (8, 9):
        grey(tmp_path / f"{size}.png", 0, size)
    with pytest.raises(opq.SourceError, match="give --input-size"):
        sample_images(tmp_path, plain(), 9)


@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_a_damaged_npz_file_is_one_error(place, value, cut):
    """Whatever byte is changed, and wherever the file is cut, it is read or a SourceError of one line that names it."""
    content = io.BytesIO()
    np.savez_compressed(content, x_test=np.random.default_rng(0).integers(0, 9, (2, 8, 8, 3), np.uint8), y_test=np.arange(2))
    damaged = bytearray(content.getvalue())
    place %= len(damaged)
    if cut:
        del damaged[place:]
    else:
        damaged[place] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        path.write_bytes(damaged)
        for read in (lambda: open_images(path, plain(), training=False), lambda: sample_images(path, plain(), 2)):
            message = None
            try:
                read()
            except opq.SourceError as error:
                message = str(error)
            assert message is None or (message.startswith(f"cannot read {path}: ") and "\n" not in message)

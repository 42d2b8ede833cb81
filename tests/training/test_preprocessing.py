"""Preprocessing equals the published transforms; folders are read as by torchvision's ImageFolder."""

import pickle
import random
import struct
import sys
import zlib

import numpy as np
import pytest
import torch

import opq
from opq.cli.main import main
from opq.zoo.image_data import open_images
from opq.zoo.image_files import SUFFIXES, read_image
from opq.zoo.models import open_model
from opq.zoo.preprocessing import load_library, of_timm, of_torchvision, plain

image = pytest.importorskip("PIL.Image")

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
"""
EVALUATE = ["evaluate", "network.py:make", "--data", "images"]


def picture(width=300, height=200, seed=0):
    """An image of noise: on a smooth one all interpolations would agree."""
    return image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The working directory of commands, with the code of a network and four classes of two images each."""
    (tmp_path / "network.py").write_text(NETWORK)
    for number, name in enumerate("abcd"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for which in range(2):
            picture(32, 32, 2 * number + which).save(tmp_path / "images" / name / f"{which}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenet_v3_small"])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (90, 70)])
def test_torchvision_networks_get_their_published_transform(torchvision, name, size):
    """Bilinear or bicubic, the pixels are those of `weights.transforms()`."""
    transforms = torchvision.models.get_model_weights(name)["DEFAULT"].transforms
    assert torch.equal(of_torchvision(transforms).evaluation(picture(*size)), transforms()(picture(*size)))


def test_a_torchvision_network_by_name_has_its_transform(torchvision):
    """The published transform, or the user's size, mean and standard deviation in it."""
    transforms = torchvision.models.ResNet18_Weights.DEFAULT.transforms
    assert torch.equal(open_model("torchvision:resnet18").preprocessing.evaluation(picture()), transforms()(picture()))
    named = open_model("torchvision:resnet18", input_size=64, mean=(0.5,), std=(0.25, 0.5, 1.0))
    expected = transforms(crop_size=64, resize_size=64, mean=(0.5,) * 3, std=(0.25, 0.5, 1.0))
    assert torch.equal(named.preprocessing.evaluation(picture()), expected(picture()))
    assert named.preprocessing.shape == (3, 64, 64)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"interpolation": "bilinear", "crop_pct": 0.95},
        {"interpolation": "bicubic", "crop_pct": 0.9},
        {"crop_mode": "squash", "crop_pct": 1.0},
        {"crop_mode": "border", "crop_pct": 1.0},
        {"input_size": (3, 96, 64)},
    ],
)
@pytest.mark.parametrize("size", [(300, 200), (90, 170)])
def test_timm_networks_get_their_published_transform(timm, changed, size):
    """Interpolation, crop mode and crop share, and inputs that are not square, in evaluation and in training."""
    network = timm.create_model("test_resnet")
    config = timm.data.resolve_model_data_config(network) | changed
    got = of_timm(config)
    assert got.shape == config["input_size"]
    assert torch.equal(got.evaluation(picture(*size)), timm.data.create_transform(**config)(picture(*size)))
    made = []
    for transform in (got.training, timm.data.create_transform(**config, is_training=True)):
        random.seed(1)
        torch.manual_seed(1)
        made.append(transform(picture(*size)))
    assert torch.equal(*made)


def test_a_timm_network_by_name_has_its_transform(timm):
    """The published transform, or the user's size and mean in it."""
    named = open_model("timm:test_resnet")
    config = timm.data.resolve_model_data_config(named.network)
    assert torch.equal(named.preprocessing.evaluation(picture()), timm.data.create_transform(**config)(picture()))
    changed = config | {"input_size": (3, 64, 64), "crop_pct": 1.0, "mean": (0.5,) * 3}
    named = open_model("timm:test_resnet", input_size=64, mean=(0.5,))
    assert torch.equal(named.preprocessing.evaluation(picture()), timm.data.create_transform(**changed)(picture()))


def test_grey_images_are_converted_for_the_network(torchvision, timm):
    """RGB for a network of three channels, grey for a network of one channel; unchanged for a user's own network."""
    grey = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    transforms = torchvision.models.ResNet18_Weights.DEFAULT.transforms
    assert torch.equal(of_torchvision(transforms).evaluation(grey), transforms()(image.fromarray(grey).convert("RGB")))
    config = timm.data.resolve_model_data_config(timm.create_model("test_resnet"))
    one = config | {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)}
    assert of_timm(one).evaluation(grey[..., None]).shape == (1, 28, 28)
    for given in (grey, grey[..., None], image.fromarray(grey)):
        for size in (None, 28):
            tensor = plain(size, (0.5,), (0.25,)).evaluation(given)
            assert torch.allclose(tensor, (torch.from_numpy(grey / 255.0).float() - 0.5) / 0.25)


def test_other_networks_get_the_centre_crop(torchvision):
    """The transform is that of torchvision's preset for classifiers."""
    got = plain(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms
    expected = preset(crop_size=64, resize_size=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    assert torch.allclose(got.evaluation(picture()), expected(picture()), atol=1e-6)
    assert got.shape == (3, 64, 64)
    assert plain().shape is None


@pytest.mark.parametrize("kind", ["plain", "torchvision", "timm"])
@pytest.mark.parametrize("size", [(300, 200), (32, 32), (40, 24)])
def test_training_images_have_the_size_and_follow_the_seed(torchvision, timm, kind, size):
    """Equal seeds give equal images. All transforms can be pickled, for worker processes that are not forked."""
    transforms = torchvision.models.ResNet18_Weights.DEFAULT.transforms
    config = timm.data.resolve_model_data_config(timm.create_model("test_resnet"))
    makers = {
        "plain": plain,
        "torchvision": lambda side: of_torchvision(transforms, side),
        "timm": lambda side: of_timm(config, side),
    }
    preprocessing = makers[kind](48)

    def transformed(seed, transform=None):
        random.seed(seed)
        torch.manual_seed(seed)
        return (transform or preprocessing.training)(picture(*size))

    assert transformed(0).shape == (3, 48, 48)
    assert torch.equal(transformed(0), transformed(0, pickle.loads(pickle.dumps(preprocessing.training))))
    assert len({transformed(seed).sum().item() for seed in range(8)}) > 4


def test_small_images_are_shifted_and_flipped():
    """They are shifted by at most 1/8 of their size and padded with zeros. Without an input size, so are larger images."""
    pixels = np.arange(1, 1 + 16 * 8, dtype=np.uint8).reshape(16, 8, 1)
    shifts = {(top, left) for top in range(5) for left in range(3)}
    padded = np.pad(pixels[..., 0], ((2, 2), (1, 1)))
    expected = {(top, left): padded[top : top + 16, left : left + 8] for top, left in shifts}
    known = {cut[:, ::step].tobytes() for cut in expected.values() for step in (1, -1)}
    torch.manual_seed(0)
    transform = plain(None, (0.0,), (1 / 255,)).training
    seen = {transform(pixels).round().to(torch.uint8)[0].numpy().tobytes() for _ in range(400)}
    assert seen == known
    assert plain().training(picture()).shape == (3, 200, 300)


def test_folders_are_read_as_torchvision_reads_them(torchvision, work):
    """The same files in the same classes, in deeper folders too and with all suffixes."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(SUFFIXES) == set(IMG_EXTENSIONS)
    (work / "images" / "b" / "more" / "deeper").mkdir(parents=True)
    for number, place in enumerate(("b/more/x.tif", "b/more/deeper/y.PPM", "d/z.bmp", "a/w.webp", "a/v.jpeg")):
        picture(32, 32, number).save(work / "images" / place)
    (work / "images" / "c" / "notes.txt").write_text("not an image")
    ours = open_images("images", plain(), training=False).dataset
    theirs = ImageFolder("images", transform=plain().evaluation)
    assert len(ours) == len(theirs) == 13
    assert ours.labels == sorted(theirs.targets)
    rows = [sorted((label, inputs.sum().item()) for inputs, label in images) for images in (ours, theirs)]
    assert rows[0] == rows[1]


def test_sixteen_bit_images_are_scaled(tmp_path):
    """Grey images of 16 bits are scaled to 8 bits, not clipped to 255."""
    ramp = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)
    image.fromarray(ramp).save(tmp_path / "ramp.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "ramp.png"))[..., 0], ramp // 257)


def broken_png():
    """A file four pixels wide with damaged pixels."""
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)) + b"\0\0\0\5\x8d\x03\x98\xa6damag"
    )


def huge_png():
    """A file whose header declares 400 million pixels."""
    start = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0))
    return start + _chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + _chunk(b"IEND", b"")


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("name", "content", "workers"),
    [
        ("0.png", b"nothing", 0),
        ("0.png", b"nothing", 1),
        ("0.png", broken_png(), 0),
        ("0.png", huge_png(), 0),
        ("0.ppm", b"P3\n4 4\n255\n1 2 3 x y z", 0),
    ],
    ids=["nothing", "in a worker", "broken", "huge", "text"],
)
def test_invalid_images_are_an_error(work, capsys, name, content, workers):
    """The message has one line and names the file, whichever process reads it."""
    (work / "images" / "a" / name).write_bytes(content)
    assert main([*EVALUATE, "--workers", str(workers)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("opq: error: cannot read images/a/0.")
    assert ": it is not a valid image: " in error
    assert error.count("\n") == 1


def test_images_of_different_sizes_are_an_error(work, capsys):
    """Images of different sizes are the same error in evaluate and in calibrate."""
    picture(32, 40).save(work / "images" / "a" / "0.png")
    assert main(EVALUATE) == 1
    error = capsys.readouterr().err
    assert error == (
        "opq: error: cannot read images: images have different sizes, and the network has no input size of its own; "
        "give --input-size\n"
    )
    assert main(["calibrate", "network.py:make", "--images", "images", "--ratio", "3", "-o", "a.opq"]) == 1
    assert capsys.readouterr().err == error


@pytest.mark.slow
def test_an_npz_file_needs_neither_torchvision_nor_pillow(work, monkeypatch, capsys):
    """With a user's network, evaluate, finetune and calibrate run; image files need the extra opq[models]."""
    arrays = {f"x_{part}": np.zeros((8, 16, 16, 3), np.uint8) for part in ("train", "test")}
    np.savez("images.npz", **arrays, y_train=np.zeros(8, int), y_test=np.zeros(8, int))
    _hide(monkeypatch, "torchvision", "PIL", "timm")
    assert main(["evaluate", "network.py:make", "--data", "images.npz"]) == 0
    command = "finetune network.py:make --data images.npz --batch 4 --epochs 1 --ratio 3 -o a.opq"
    assert main(command.split()) == 0
    command = "calibrate network.py:make --images synthetic --input-size 16 --ratio 3 -o b.opq"
    assert main(command.split()) == 0
    capsys.readouterr()
    for data in ("images", "images.npz --input-size 16"):
        assert main(f"evaluate network.py:make --data {data}".split()) == 1
        assert "pip install 'opq[models]'" in capsys.readouterr().err
    for model in ("torchvision:resnet18", "timm:test_resnet"):
        assert main(f"evaluate {model} --data images.npz".split()) == 1
        assert "pip install 'opq[models]'" in capsys.readouterr().err


def test_a_torchvision_of_another_build_is_an_error(work, monkeypatch, capsys):
    """The message has one line and names the package to install."""
    _hide(monkeypatch, "torchvision", "timm")
    for name in ("torchvision", "timm"):
        monkeypatch.delitem(sys.modules, name)
        (work / f"{name}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(work)
    for model in ("torchvision:resnet18", "timm:test_resnet", "network.py:make --input-size 16"):
        assert main(f"evaluate {model} --data images".split()) == 1
        error = capsys.readouterr().err
        assert "cannot be imported (operator torchvision::nms does not exist)" in error
        assert "torchvision was built for another build of PyTorch; reinstall" in error
        assert error.count("\n") == 1
    with pytest.raises(opq.OpqError, match="another build"):
        load_library("torchvision", "images")


def _hide(monkeypatch, *names):
    """Make importing these modules fail, as if they were not installed."""
    for loaded in list(sys.modules):
        if loaded.partition(".")[0] in names:
            monkeypatch.delitem(sys.modules, loaded)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)

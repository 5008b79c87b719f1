import pytest
from PIL import Image

from train import curves

METRICS = ("loss", "accuracy", "balanced_accuracy")


def records(epochs):
    names = [f"{part}_{metric}" for part in ("train", "validation") for metric in METRICS]
    return [{"epoch": epoch, **dict.fromkeys(names, 1 / epoch)} for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize("epochs", [1, 5])
def test_curves_are_drawn(tmp_path, epochs):
    path = tmp_path / "curves.png"
    curves.save_curves({"transferred": records(epochs), "he": records(epochs)}, path)
    with Image.open(path) as image:
        assert image.size == (1800, 540)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_matplotlib_is_found():
    assert curves.available()


def test_a_record_without_its_metrics_is_refused(tmp_path):
    with pytest.raises(KeyError, match="train_loss"):
        curves.save_curves({"he": [{"epoch": 1}]}, tmp_path / "curves.png")

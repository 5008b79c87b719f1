"""Rankings of small sources on a folder of pictures: order, controls, failures, and downloads."""

import csv
import dataclasses
import http.server
import io
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_inputs
import small_network
from rich.console import Console

import importers
import tlv_jax
from importers.weights import WEIGHTS
from train.config import Config
from train.datasets import load_dataset
from train.errors import ConfigError, DataError
from train.modules import target_of
from train.rank import Settings, rank
from train.rank.__main__ import main
from train.resolve import resolve

ROOT = Path(__file__).parent.parent


def run(settings, **changes):
    output = io.StringIO()
    changed = dataclasses.replace(settings, **changes)
    return rank(changed, console=Console(file=output, width=120)), output.getvalue()


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Pictures that are hard to tell apart, two files of sources, and one that is not there."""
    folder = tmp_path_factory.mktemp("inputs")
    small_inputs.save_photographs(folder / "pictures", contrast=2)
    files = [small_inputs.save_source(folder / f"{seed}.safetensors", seed) for seed in range(2)]
    return Settings(
        data_dir=folder / "pictures",
        image_size=32,
        source_weights=(
            "squeezenet1_1=missing.safetensors",
            *(f"squeezenet1_1={file}" for file in files),
        ),
        target="small_network:Net",
        out=folder / "runs",
    )


@pytest.fixture(scope="module")
def ranked(settings):
    return run(settings)


def names(ranking, kind):
    return {row.name for row in ranking.rows if row.kind == kind}


def test_sources_and_controls_are_ranked_and_failures_come_last(ranked):
    ranking, output = ranked
    *scored, failed = ranking.rows
    scores = [row.balanced_accuracy for row in scored]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1
    assert names(ranking, "control") == {"raw pixels", "squeezenet1_1, random weights"}
    assert {row.name for row in scored} - names(ranking, "control") == {
        "squeezenet1_1 (0.safetensors)",
        "squeezenet1_1 (1.safetensors)",
    }
    assert failed.name == "squeezenet1_1 (missing.safetensors)"
    assert "missing.safetensors" in failed.note
    assert failed.balanced_accuracy is None
    assert ranking.best == next(row for row in scored if row.kind == "source")
    assert "3 sources: fitted to 28 training images, scored on 6 validation images" in output
    assert f"\n{ranking}\n" in output
    assert "control: raw pixels" in str(ranking)
    assert str(ranking).splitlines()[-1] == f"{failed.name}: {failed.note}"


def test_a_row_is_the_probe_of_the_training_images_tested_on_the_validation_images(
    ranked, settings
):
    splits = load_dataset(
        resolve(Config(dataset="folder", data_dir=settings.data_dir, image_size=32))
    )
    source = importers.load("squeezenet1_1", settings.source_weights[1].partition("=")[2])
    mean, std = (np.float32(values) for values in (source.preprocess.mean, source.preprocess.std))
    train, validation = (
        (np.float32(part.images) / 255 - mean[None, None, None]) / std[None, None, None]
        for part in (splits.train, splits.validation)
    )
    labels, held_out = splits.train.labels, (validation, splits.validation.labels)
    result = tlv_jax.probe(source.network, train, labels, held_out)
    (row,) = (row for row in ranked[0].rows if row.name == "squeezenet1_1 (0.safetensors)")
    assert row.balanced_accuracy == result.balanced_accuracy
    assert row.accuracy == result.accuracy
    assert (row.features, row.penalty) == (512, result.penalty)


def test_similarity_to_the_target_stands_beside_the_scores(ranked, settings):
    source = importers.load("squeezenet1_1", settings.source_weights[1].partition("=")[2])
    images = jnp.zeros((1, 32, 32, 3))
    target = target_of("net", small_network.Net(), jax.random.key(0), images).network
    for row in ranked[0].rows:
        networks = row.name != "raw pixels" and not row.note
        assert row.similarity == (tlv_jax.similarity(source.network, target) if networks else None)


def test_a_file_keeps_the_rows_and_how_they_came_about(ranked, settings):
    with (ranked[0].folder / "rank.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [row.name for row in ranked[0].rows]
    assert float(lines[0]["balanced_accuracy"]) == ranked[0].rows[0].balanced_accuracy
    assert lines[-1]["balanced_accuracy"] == ""
    assert all(line["settings.limit"] == "2000" and line["jax"] for line in lines)
    assert ranked[0].folder == settings.out / "rank-folder"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server in torchvision's place that has nothing; what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    known = {"squeezenet1_1": WEIGHTS["squeezenet1_1"]}
    monkeypatch.setattr("importers.loading.WEIGHTS", known)
    monkeypatch.setenv("TLV_JAX_CACHE", str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr("importers.weights._TORCHVISION", url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield asked
        server.shutdown()
        thread.join()


def test_nothing_is_downloaded_unless_asked_for(settings, server):
    plain = dataclasses.replace(settings, source_weights=(), target=None)
    with pytest.raises(ConfigError, match=r"found none\. Install some .*--sources .*=FILE"):
        run(plain)
    assert not server
    for asking in ({"download": True}, {"sources": ("squeezenet1_1",)}):
        ranking, _ = run(plain, **asking)
        assert [path.partition("-")[0] for path in server] == ["/squeezenet1_1"]
        assert "Could not download http://127.0.0.1" in ranking.rows[-1].note
        assert ranking.best is None
        assert names(ranking, "control") == {"raw pixels"}
        server.clear()


def test_images_too_small_for_a_source_are_a_row_and_do_not_stop_the_others(settings):
    ranking, _ = run(settings, image_size=8, limit=10, target=None, name="small")
    pixels, _, *sources = ranking.rows
    assert pixels.name == "raw pixels"
    assert [row.note[:30] for row in sources] == ["Images have shape (1, 8, 8, 3)"] * 2
    assert ranking.folder.name == "small"


def test_a_limit_draws_training_images_also_of_streamed_ones(settings):
    few = {"limit": 9, "image_size": 8, "source_weights": settings.source_weights[:1]}
    ranking, output = run(settings, **few, target=None, name="few")
    assert "fitted to 9 training images, scored on 6 validation images" in output
    streamed, output = run(settings, **few, target=None, name="few", stream=True)
    assert "fitted to 9 training images, scored on 6 validation images" in output
    assert streamed.rows[0].balanced_accuracy == ranking.rows[0].balanced_accuracy
    # What is there is left alone.
    assert (ranking.folder.name, streamed.folder.name) == ("few", "few-2")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source_weights": ("resnet18.pth",)}, ConfigError, "expected ARCHITECTURE=FILE"),
        ({"source_weights": ("resnet19=a.pth",)}, tlv_jax.OptionError, "Did you mean resnet1"),
        ({"sources": ("vgg11", "vgg11")}, ConfigError, "one of vgg11, vgg11, .* is there twice"),
        ({"target": None, "target_args": ("a=1",)}, ConfigError, "does nothing without target"),
        ({"limit": 0}, ConfigError, "limit=0, expected at least 1"),
        ({"limit": 3}, DataError, "fewer than two training images of"),
        ({"out": Path(__file__)}, ConfigError, r"cannot be made: .* --out"),
        ({"data_dir": Path("nowhere")}, DataError, "Give a folder that exists"),
    ],
)
def test_what_cannot_be_ranked_is_refused(settings, changes, error, message):
    with pytest.raises(error, match=message):
        run(settings, **changes)


def test_help_does_not_wait_for_jax():
    code = (
        "import sys\n"
        "from train.rank.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit({'jax', 'flax', 'PIL'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "--source-weights" in done.stdout
    assert done.stderr.strip() == "set()"


def test_a_command_ranks(settings, capsys):
    arguments = ["--data-dir", str(settings.data_dir), "--image-size", "8"]
    arguments += ["--out", str(settings.out), "--name", "command"]
    assert main([*arguments, "--source-weights", "squeezenet1_1=missing.pth"]) == 1
    assert "control: raw pixels" in capsys.readouterr().out
    assert main([*arguments, "--sources", "resnet19"]) == 1
    assert capsys.readouterr().err.startswith("error: No architecture is called 'resnet19'")

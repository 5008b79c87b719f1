"""`python -m train.show`, and trainings that diverge, on a run of one small network."""

import dataclasses
import io
import re
import shutil

import interrupted
import jax
import numpy as np
import pytest
import small_inputs
from pages import Page
from rich.console import Console

import tlv_jax
import train
from train.commands.__main__ import main as commands
from train.datasets import load_dataset
from train.errors import ConfigError, DivergedError
from train.resolve import resolve
from train.results import read_transfer, write_transfer
from train.run_folder import open_run_folder
from train.run_page import run_page
from train.show import main, show

pytestmark = pytest.mark.filterwarnings("ignore::tlv_jax.SimilarityWarning")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    interrupted.make_inputs(folder)
    return train.Config(
        **small_inputs.settings_of(folder / "photographs", folder / "source.safetensors"),
        epochs=2,
        batch_size=8,
        crossover_rate=0.0,
        baseline=False,
        out=folder / "runs",
    )


def run(config):
    return train.run(config, console=Console(quiet=True))


@pytest.fixture(scope="module")
def finished(config):
    return run(config).folder


def shown(folder):
    output = io.StringIO()
    show(folder, Console(file=output, width=120))
    return [line.replace("│", " ").split() for line in output.getvalue().splitlines()]


def test_a_finished_run_is_shown(finished):
    lines = shown(finished)
    assert lines[0] == [f"{finished}:", "finished"]
    assert ["target", "small_network:Net"] in lines
    assert ["light", "14", "3", "3"] in lines
    numbers = [line for line in lines if len(line) == 5 and line[0] in ("1", "2")]
    assert [line[0] for line in numbers] == ["1", "2"]
    assert any(line[0] == "transferred" and len(line) == 6 for line in lines if line)


def test_a_run_that_goes_on_or_was_stopped_is_shown(finished, config, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "results.json").unlink()
    assert shown(folder)[0] == [f"{folder}:", "stopped;", "--resume", "it"]
    settings = dataclasses.replace(config, epochs=2, out=tmp_path, name="run", resume=True)
    with open_run_folder(resolve(settings), load_dataset(settings)):
        lines = shown(folder)
    assert lines[0] == [f"{folder}:", "running"]
    assert ["light", "14", "3", "3"] in lines
    shutil.rmtree(folder / "transferred")  # before the end of the first epoch
    assert ["light", "14", "3", "3"] in shown(folder)


def test_the_command_shows_a_run(finished, capsys):
    assert main([str(finished)]) == 0
    assert "finished" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: There is no run in {tmp_path} (")


@pytest.mark.parametrize("name", ["config.json", "data.json", "transferred/metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_named(finished, tmp_path, name):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / name).write_text('{"epoch": ')
    with pytest.raises(ConfigError, match=f"{folder / name} (is damaged|cannot be read) "):
        shown(folder)


def test_the_page_of_a_run_has_all_that_is_shown(finished):
    page = Page(run_page(finished))
    assert page.texts["h1"] == ["squeezenet1_1 into small_network:Net"]
    headings = ["Test images", "Epochs", "Summary", "Plan", "Layers", "What stays as it is"]
    assert page.texts["h2"] == ["Run", *headings, "Images", "Settings", "Machines"]
    assert page.facts()["state"] == "finished"
    assert page.facts()["batch_size"] == "8"
    assert page.facts()["normalized by std"] == "(0.229, 0.224, 0.225)"
    results, epochs, layers, _, images = page.tables
    assert [row[0] for row in results[1:]] == ["transferred"]
    assert [row[:2] for row in epochs[1:]] == [["transferred", "1"], ["transferred", "2"]]
    assert [row[0] for row in layers[1:]] == ["params/conv"]
    assert ["light", "14", "3", "3"] in images
    assert page.tags.count("img") == 2  # curves and deviations: a run keeps no source to draw
    report, plan = read_transfer(finished)
    assert f"{report}\n" == (finished / "report.txt").read_text()
    assert f"{plan}\n" == (finished / "plan.txt").read_text()


def test_the_page_of_a_run_that_has_just_begun(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(folder / "transferred")
    for name in ("results.json", "plan.json", "report.json"):
        (folder / name).unlink()
    page = Page(run_page(folder))
    assert page.facts()["state"] == "stopped; --resume it"
    assert page.texts["h2"] == ["Run", "Images", "Settings", "Machines"]


def test_a_fit_on_the_page_of_a_run(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "plan.json").unlink()
    report = tlv_jax.FitReport((tlv_jax.FittedLayer("params/conv", "a", 0.5, 1.0, 0.5),))
    write_transfer(folder, None, report)
    page = Page(run_page(folder))
    assert page.facts()["fit"] == "1 of 1 convs fitted, mean R^2 0.50"
    assert "Plan" not in page.texts["h2"]


@pytest.mark.parametrize("main", [main, lambda arguments: commands(["show", *arguments])])
def test_the_command_writes_the_page_of_a_run(finished, tmp_path, capsys, main):
    html = tmp_path / "run.html"
    assert main([str(finished), "--html", str(html)]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"{html}: a page to open in a browser\n")
    assert html.read_text(encoding="utf-8") == run_page(finished)


@pytest.mark.parametrize("name", ["plan.json", "report.json"])
def test_a_damaged_transfer_of_a_run_is_named(finished, tmp_path, name):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / name).write_text('{"rows": [{}]}')
    with pytest.raises(ConfigError, match=f"{folder / name} cannot be read "):
        run_page(folder)


def test_a_training_that_diverges_keeps_the_last_good_checkpoint(config):
    wild = dataclasses.replace(config, learning_rate=1e30, name="wild", save_every_steps=1)
    with pytest.raises(DivergedError, match="'transferred'") as first:
        run(wild)
    (step,) = map(int, re.findall(r"step (\d+)", str(first.value)))
    saved = interrupted.checkpoints_of(config.out / "wild", ("transferred",))
    assert list(saved) == [("transferred", step - 1)]
    for leaf in jax.tree.leaves(saved["transferred", step - 1]["params"]):
        assert np.isfinite(leaf).all()
    # It goes on from there, into the same step.
    with pytest.raises(DivergedError, match=re.escape(str(first.value))):
        run(dataclasses.replace(wild, resume=True))


def test_a_step_that_destroys_the_parameters_is_not_saved(config):
    wild = dataclasses.replace(
        config, learning_rate=1e30, weight_decay=1e30, name="destroyed", save_every_steps=1
    )
    with pytest.raises(
        DivergedError, match="A parameter of 'transferred' is not finite after step 1"
    ):
        run(wild)
    assert not interrupted.checkpoints_of(config.out / "destroyed", ("transferred",))

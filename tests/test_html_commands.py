"""`--html` of `tlv-jax report`, `fit` and `show`, on a real file of weights and pictures."""

import json

import pytest
import small_inputs
from pages import Page

from train.commands.__main__ import main

pytestmark = pytest.mark.filterwarnings("default::tlv_jax.SimilarityWarning")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_inputs.save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def pair(inputs):
    """The arguments that name two networks."""
    source = ["--src", "squeezenet1_1", "--src-weights", str(inputs / "source.safetensors")]
    return [*source, "--dst", "small_network:Net", "--image-size", "32"]


@pytest.fixture(scope="module")
def report(pair):
    """The arguments of a report."""
    return ["report", *pair]


@pytest.fixture(scope="module")
def fit(pair, inputs):
    """The arguments of a fit."""
    return ["fit", *pair, "--images", str(inputs / "pictures"), "--count", "8"]


def test_a_report_is_written_as_a_page_too(report, capsys, tmp_path):
    html = tmp_path / "report.html"
    assert main([*report, "--seed", "3", "--json", "--html", str(html)]) == 0
    captured = capsys.readouterr()
    assert captured.err.endswith(f"\n{html}: a page to open in a browser\n")
    page = Page(html.read_text(encoding="utf-8"))
    assert page.texts["h1"] == ["squeezenet1_1 into small_network:Net"]
    assert page.facts()["seed"] == "3"
    rows = json.loads(captured.out)["rows"]
    assert [row[0] for row in page.tables[0][1:]] == [row["target"] for row in rows]
    assert page.tags.count("img") == 2


def test_a_fit_is_written_as_a_page_too(fit, capsys, tmp_path):
    html = tmp_path / "fit.html"
    assert main([*fit, "--json", "--html", str(html)]) == 0
    captured = capsys.readouterr()
    assert f"{html}: a page to open in a browser\n" in captured.err
    page = Page(html.read_text(encoding="utf-8"))
    assert page.texts["h1"] == ["small_network:Net fitted to squeezenet1_1"]
    facts = page.facts()
    assert facts["pictures"] == "8, of 32 pixels a side"
    assert facts["fit"].startswith("1 of 1 convs fitted")
    rows = json.loads(captured.out)["report"]["rows"]
    assert [row[0] for row in page.tables[0][1:]] == [row["target"] for row in rows]
    assert page.tags.count("img") == 1


@pytest.mark.parametrize("command", ["report", "fit"])
def test_a_page_that_cannot_be_written_is_one_error(command, request, capsys, tmp_path):
    arguments = request.getfixturevalue(command)
    for html, message in ((tmp_path, "is a folder"), (tmp_path / "none/x.html", "is no folder")):
        assert main([*arguments, "--html", str(html)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""  # found before the transfer is made
        assert message in captured.err


def test_an_architecture_has_no_page(capsys, tmp_path):
    html = tmp_path / "run.html"
    assert main(["show", "squeezenet1_1", "--html", str(html)]) == 2
    assert "There is no run in squeezenet1_1" in capsys.readouterr().err
    assert not html.exists()

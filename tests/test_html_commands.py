"""`tlv-jax report --html` and `tlv-jax show --html`, on a real file of weights."""

import json

import pytest
import small_inputs
from pages import Page

from train.commands.__main__ import main

pytestmark = pytest.mark.filterwarnings("default::tlv_jax.SimilarityWarning")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The arguments of a report."""
    weights = small_inputs.save_source(tmp_path_factory.mktemp("inputs") / "source.safetensors")
    source = ["--src", "squeezenet1_1", "--src-weights", str(weights)]
    return ["report", *source, "--dst", "small_network:Net", "--image-size", "32"]


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


def test_a_page_that_cannot_be_written_is_one_error(report, capsys, tmp_path):
    for html, message in ((tmp_path, "is a folder"), (tmp_path / "none/x.html", "is no folder")):
        assert main([*report, "--html", str(html)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""  # found before the transfer is made
        assert message in captured.err


def test_an_architecture_has_no_page(capsys, tmp_path):
    html = tmp_path / "run.html"
    assert main(["show", "squeezenet1_1", "--html", str(html)]) == 2
    assert "There is no run in squeezenet1_1" in capsys.readouterr().err
    assert not html.exists()

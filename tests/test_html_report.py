"""Pages of reports: what is on them, that names are text, and that they ask for nothing."""

import base64
import sys
import xml.etree.ElementTree as xml

import jax
import pytest
import trees
from pages import Page

import tlv_jax
from tlv_jax import methods
from tlv_jax.errors import OptionError, PlanMismatchError

HOSTILE = ("<script>alert(1)", '"><img src=x onerror=alert(1)>', r"&amp; $title \frac$")


def network(names, width, seed):
    """A chain of convs, as a traced function, and a dense layer."""
    params = {"fc": {"kernel": trees.normal(seed, width, 5)}}
    for number, name in enumerate(names):
        shape = (3, 3, width if number else 3, width)
        params[name] = {"kernel": trees.normal(seed + number, *shape)}

    def fn(params, x):
        for name in names:
            dimensions = ("NHWC", "HWIO", "NHWC")
            kernel = params[name]["kernel"]
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=dimensions
            )
            x = jax.nn.relu(x)
        return x.mean((1, 2)) @ params["fc"]["kernel"]

    return tlv_jax.trace(fn, params, jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"))


def transferred(source, target, method=methods.TLVFC):
    plan = tlv_jax.plan_transfer(source, target, method)
    new = tlv_jax.apply_transfer(plan, jax.random.key(0), source, target)
    return tlv_jax.report(plan, source, target, new), plan, source, target


@pytest.fixture(scope="module")
def made():
    return transferred(network(("a", "b"), 4, 0), network(("conv0", "conv1", "conv2"), 8, 9))


@pytest.fixture(scope="module")
def html(made):
    return tlv_jax.html_report(*made, title="a into b", about={"seed": "7"})


def pictures_of(page):
    """The roots of the pictures on a page, read as XML."""
    start = "data:image/svg+xml;base64,"
    data = [link.removeprefix(start) for link in page.links if link.startswith(start)]
    return [xml.fromstring(base64.b64decode(text)) for text in data]


def test_a_page_has_summary_plan_layers_and_pictures(made, html):
    report, plan, *_ = made
    page = Page(html)
    assert page.texts["title"] == page.texts["h1"] == ["a into b"]
    assert page.texts["h2"] == ["Summary", "Plan", "Layers"]
    assert page.facts()["seed"] == "7"
    assert page.facts()["layers with weights of the source"] == "3, from 2 of its layers"
    assert page.facts()["layers without a source, statistics"] == "1"
    assert page.facts()["rule"] == str(plan.rule)
    assert page.texts["pre"] == [str(plan)]
    ((_, *rows),) = page.tables
    assert [row[0] for row in rows] == [row.target for row in report.rows]
    assert rows[0][1:5] == ["3x3x3x8", report.rows[0].source, "3x3x3x4", "50%"]
    assert len(pictures_of(page)) == 2
    assert page.tags.count("input") == 1


def test_the_summary_counts_elements_and_not_layers(made):
    report, *_ = made
    kernels = [row for row in report.rows if row.source]
    assert [row.share for row in kernels] == [0.5, 0.25, 0.25]
    share = (0.5 * 216 + 0.25 * 2 * 576) / (216 + 2 * 576)
    page = Page(tlv_jax.html_report(report))
    name = "part of their elements that comes from the source"
    assert page.facts()[name] == f"{share:.0%}" == "29%"


def test_a_page_asks_for_nothing(html):
    page = Page(html)
    assert page.links
    assert all(link.startswith("data:") for link in page.links)
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html  # so browsers refuse what should slip in


def test_what_stays_is_listed_with_its_reason(made):
    report, plan, *networks = transferred(*made[2:], methods.BARE)
    page = Page(tlv_jax.html_report(report, plan, *networks))
    assert page.texts["h2"][-1] == "What stays as it is"
    (leaf,) = report.untouched
    assert page.tables[-1][1:] == [[leaf.path, leaf.reason]]


def test_names_of_layers_are_text():
    source, target = network(HOSTILE, 4, 0), network(HOSTILE, 8, 9)
    page = Page(tlv_jax.html_report(*transferred(source, target), title=HOSTILE[0]))
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == 2  # the pictures
    assert page.texts["h1"] == [HOSTILE[0]]
    assert [row[0] for row in page.tables[0][1:4]] == list(HOSTILE)


def test_a_page_of_a_report_alone_has_no_plan(made):
    page = Page(tlv_jax.html_report(made[0]))
    assert page.texts["h2"] == ["Summary", "Layers"]
    assert len(pictures_of(page)) == 1


def test_the_same_report_gives_the_same_page(made, html):
    assert tlv_jax.html_report(*made, title="a into b", about={"seed": "7"}) == html


FITTED = tlv_jax.FitReport(
    (
        tlv_jax.FittedLayer("conv0", "a", 0.75, 1.0, 0.5),
        tlv_jax.FittedLayer("conv1", None, None, 1.0, 0.5),
    )
)


def test_a_page_of_a_fit_has_its_rows():
    page = Page(tlv_jax.html_report(FITTED))
    assert page.facts()["fit"] == "1 of 2 convs fitted, mean R^2 0.75"
    assert page.tables[0][1:] == [
        ["conv0", "a", "0.75", "1", "0.5"],
        ["conv1", "(no goal)", "", "1", "0.5"],
    ]
    assert len(pictures_of(page)) == 1


def test_a_report_without_layers_has_a_page():
    for report in (tlv_jax.TransferReport((), ()), tlv_jax.FitReport(())):
        page = Page(tlv_jax.html_report(report))
        assert len(page.tables[0]) == 1
        assert not pictures_of(page)


def test_without_matplotlib_the_page_says_what_is_missing(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = Page(tlv_jax.html_report(*made))
    assert not pictures_of(page)
    notes = [text for text in page.texts["p"] if "matplotlib is not installed" in text]
    assert len(notes) == 2
    assert all("pip install 'tlv-jax[plots]'" in note for note in notes)
    assert len(page.tables[0]) == 5


def test_what_cannot_be_drawn_is_an_error(made):
    report, plan, source, target = made
    for missing in ({"src": source}, {"src": source, "dst": target}, {"plan": plan, "dst": target}):
        with pytest.raises(OptionError, match="html_report: expected plan, src and dst"):
            tlv_jax.html_report(report, **missing)
    with pytest.raises(PlanMismatchError, match="Pass the networks that the plan was made for"):
        tlv_jax.html_report(report, plan, source, network(("other",), 4, 0))


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: '{"rows": [{}]}'])
def test_reports_are_read_back_from_json(made, damage):
    for report in (made[0], FITTED):
        text = report.to_json()
        assert type(report).from_json(text) == report
        with pytest.raises(OptionError, match=f"that {type(report).__name__}.to_json wrote"):
            type(report).from_json(damage(text))

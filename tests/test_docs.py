"""Every example of the documentation runs, from the top of its page to the bottom."""

import dataclasses
import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import importers
import tlv_jax
import train.compare
import train.rank
from docs.pictures import EXAMPLE
from tlv_jax import methods, rules
from train.method import method_of

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {
    page: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    for page in sorted(DOCS.glob("*.md"))
}
SLOW = {"pictures"}  # it fits a network
TUTORIAL = DOCS / "tutorial.md"  # it trains, and has a test of its own


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=pytest.mark.slow if page.stem in SLOW else ())
        for page in PAGES
        if PAGES[page] and page != TUTORIAL
    ],
)
def test_the_examples_run(page):
    names = {}
    for block in PAGES[page]:
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.slow
def test_the_tutorial_prints_what_it_says(tmp_path):
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", TUTORIAL.read_text(), re.M | re.S)
    code = [block for language, block in blocks if language == "python"]
    (network,) = (block for block in code if block.startswith("# my_network.py"))
    code.remove(network)
    (tmp_path / "my_network.py").write_text(network)
    (tmp_path / "tutorial.py").write_text("\n".join(code))
    # In a process of its own: the tests' XLA compiles quickly, and trains slowly.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ran = subprocess.run(
        [sys.executable, "tutorial.py"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(DOCS.parent)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    printed = without_numbers(ran.stdout)
    shown = [line for language, block in blocks if not language for line in block.splitlines()]
    assert len(shown) > 20
    assert [line for line in shown if without_numbers(line)[0] not in printed] == []
    rows = re.findall(r"^\| (he|default) \| 0.001 \| \S+ ± \S+ \| (\S+) ", ran.stdout, re.M)
    scores = {start: float(score) for start, score in rows}
    assert scores["default"] > scores["he"]


def without_numbers(text):
    """The lines of a text. Numbers, and what is concluded from them, vary with the processor."""
    varying = r"-?\d[\d.]*(e[+-]\d+)?|[+±-](?= ?\d)|better|no difference shown"
    return [" ".join(re.sub(varying, "#", line).split()) for line in text.splitlines()]


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target, _, part in re.findall(r"\]\(([\w./-]*\.md)?(#([\w-]+))?\)", page.read_text()):
            other = page.parent / target if target else page
            assert other.exists(), f"{page.name}: {target}"
            assert not part or part in anchors(other), f"{page.name}: #{part}"


def test_each_picture_of_the_page_is_there_and_made_of_the_lines_above_it():
    page = DOCS / "pictures.md"
    shown = re.findall(r"!\[.*\]\((\S+)\)", page.read_text())
    assert [picture for _, picture in EXAMPLE.findall(page.read_text())] == shown
    assert len(PAGES[page]) == len(shown)
    for picture in shown:
        assert (DOCS / picture).read_bytes().startswith(b"\x89PNG")


def test_each_page_stands_once_in_the_navigation():
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.S)
    lines = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    entries = [re.sub(r".*<(.*)>", r"\1", line) for line in lines]
    pages = {page.stem for suffix in ("md", "rst") for page in DOCS.rglob(f"*.{suffix}")}
    assert sorted(entries) == sorted(pages - {"index"})


def test_each_number_on_speed_has_its_command_machine_and_day():
    page = (DOCS / "performance.md").read_text()
    rows = [row.split("|")[1:-1] for row in page.partition("\n\n## ")[0].splitlines() if "|" in row]
    assert len(rows) > 20
    for number, _, command, machine, day in rows[2:]:
        assert re.fullmatch(r" 20\d\d-\d\d-\d\d ", day), number
        assert machine.strip().startswith(("CPU", "H200")), number
        for module in re.findall(r"python -m (benchmarks\.\w+)", command):
            assert importlib.util.find_spec(module), number
    seconds = re.findall(
        r"\| (?:transferred|He).* \| (\d+) \|$", (DOCS.parent / "README.md").read_text(), re.M
    )
    assert f"{' and '.join(seconds)} s" in rows[2][0]


@pytest.mark.parametrize("package", [tlv_jax, importers, train, train.compare, train.rank])
def test_the_reference_has_each_public_name(package):
    page = DOCS / f"api_{package.__name__.partition('.')[0]}.rst"
    described = re.findall(r"^\.\. auto\w+:: (\S+)$", page.read_text(), re.M)
    assert {f"{package.__name__}.{name}" for name in package.__all__} <= set(described)


@pytest.mark.parametrize(
    ("section", "name"),
    [("Both", "tlvfc"), ("Both", "dpiat"), ("TLVFC", "tlvfc"), ("iatransfer", "dpiat")],
)
def test_published_names_have_counterparts_in_python_and_as_options(section, name):
    page = (DOCS / "published_code.md").read_text()
    text = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
    method = getattr(methods, name.upper())
    rows = [row.split("|")[1:] for row in re.findall(r"^\|(.*`.*)\|$", text, re.M)]
    assert rows
    for *ours, options in rows:
        parts = [part_of_a_method(code) for code in re.findall(r"`(.*?)`", "".join(ours))]
        expected = dataclasses.replace(method, **functools.reduce(dict.__or__, parts, {}))
        for option in re.findall(r"`(--.*?)`", options):
            arguments = ["--method", name, *shlex.split(option)]
            given = method_of(tyro.cli(train.Config, args=arguments).method)
            assert not ours or given == expected


def part_of_a_method(code):
    """What a cell of the table says of a method's fields: by name, or a rule alone."""
    names = {**vars(tlv_jax), "tlv_jax": tlv_jax}
    field, _, value = code.partition("=")
    if field in {field.name for field in dataclasses.fields(tlv_jax.Method)}:
        return {field: eval(value, names)}
    value = eval(code, names)
    return {"rule": value} if isinstance(value, rules.LIBRARY) else {}


def test_the_start_page_is_the_readme():
    assert (DOCS / "index.md").read_text().startswith("```{include} ../README.md\n```")


def anchors(page):
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}

"""What is written in several places of a release is the same everywhere."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
CHANGES = (ROOT / "CHANGELOG.md").read_text()
PAGES = [
    path
    for pattern in ("*.md", "*.toml", "*.cff", "docs/*.md", "notebooks/*", "docs/*.ipynb")
    for path in sorted(ROOT.glob(pattern))
    if path.is_file()
]


def test_the_citation_is_of_this_version():
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["repository-code"] == PROJECT["urls"]["Repository"]
    assert CITATION["license"] == PROJECT["license"]


def test_the_newest_changes_are_those_of_this_version():
    version, date = re.findall(r"^## (\S+) - (\S+)$", CHANGES, re.M)[0]
    assert version == PROJECT["version"]
    assert date == CITATION["date-released"].isoformat()


def test_the_papers_that_are_cited_are_named_in_the_notice():
    notice = " ".join((ROOT / "NOTICE").read_text().split())
    for paper in CITATION["references"]:
        numbers = [identifier["value"] for identifier in paper.get("identifiers", ())]
        assert paper["title"] in notice or numbers[0] in notice


def test_the_address_of_the_repository_is_that_of_the_project():
    owner = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    address = re.compile(r"github(?:\.com|usercontent\.com)?/([\w-]+/tlv_jax)\b")
    found = {page.name: set(address.findall(page.read_text())) for page in PAGES}
    assert found["pyproject.toml"] == {owner}
    assert {page: names for page, names in found.items() if names - {owner}} == {}


def test_the_workflow_runs_targets_that_there_are():
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    workflow = yaml.safe_load(text)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    targets = {step["run"].removeprefix("make ") for step in steps if "run" in step}
    rules = re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    assert targets == {"test", "site", "dist"}
    assert targets <= set(rules)
    assert workflow["permissions"] == {"contents": "read"}
    floor, _ = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={floor}"

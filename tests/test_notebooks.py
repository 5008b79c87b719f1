"""The notebooks are their texts, with what their cells put out."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
TEXTS = {
    path.stem: path.read_text()
    for path in sorted((ROOT / "notebooks").glob("*.py"))
    if path.stem != "execute"
}
CELLS = {
    name: json.loads((ROOT / f"notebooks/{name}.ipynb").read_text())["cells"] for name in TEXTS
}
each = pytest.mark.parametrize("name", TEXTS)


def cells_of_text(text):
    """Kind and source of each cell. In a text, what only Jupyter knows stands in comments."""
    for part in re.split(r"^# %%", text, flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        kind = "markdown" if "markdown" in head else "code"
        if kind == "code":
            yield kind, re.sub(r"^( *)# (?=%)", r"\1", body, flags=re.M).strip()
        else:
            yield kind, re.sub(r"^# ?", "", body, flags=re.M).strip()


def test_there_are_four():
    assert list(TEXTS) == [
        *("choosing_a_source", "devices_and_checkpoints"),
        *("quickstart", "your_own_network"),
    ]


@each
def test_a_notebook_has_the_cells_of_its_text(name):
    stored = [(cell["cell_type"], "".join(cell["source"])) for cell in CELLS[name]]
    assert stored == list(cells_of_text(TEXTS[name]))


@each
def test_every_cell_was_run_in_order_and_none_failed_or_warned(name):
    ran = [cell for cell in CELLS[name] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in ran] == list(range(1, len(ran) + 1))
    outputs = [output for cell in ran for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]


@each
def test_what_is_stored_names_no_folder_of_a_machine_and_has_no_progress_bars(name):
    texts = [
        "".join(output.get("text") or output["data"]["text/plain"])
        for cell in CELLS[name]
        for output in cell.get("outputs", ())
    ]
    assert not re.search(r"\r|/(tmp|home|root|usr|Users)/|site-packages", "\n".join(texts))


@each
def test_it_opens_in_colab_and_installs_from_the_repository(name):
    first, *cells = (source for _, source in cells_of_text(TEXTS[name]))
    install = next(source for source in cells if "%pip" in source)
    place = f"github/{REPOSITORY.removeprefix('https://github.com/')}/blob/main/notebooks"
    assert f"(https://colab.research.google.com/{place}/{name}.ipynb)" in first
    (extra,) = re.findall(rf'"tlv-jax\[(\w+)\] @ git\+{REPOSITORY}"', install)
    assert extra in PROJECT["optional-dependencies"]


@each
def test_it_does_not_install_jax_over_colabs(name):
    named = [
        re.match(r"[\w-]+", word.strip('"'))
        for line in re.findall(r"%pip install (.*)", TEXTS[name])
        for word in line.split()
    ]
    assert "tlv-jax" in [match[0] for match in named if match]
    assert not {match[0] for match in named if match} & {"jax", "jaxlib", "flax", "-U", "--upgrade"}


@each
def test_links_to_the_repository_lead_somewhere(name):
    links = re.findall(r"\]\((https://github.com/[^)]*)\)", TEXTS[name])
    assert links
    for link in links:
        assert (ROOT / link.removeprefix(f"{REPOSITORY}/blob/main/")).is_file(), link


def test_all_notebooks_together_are_small():
    size = sum((ROOT / f"notebooks/{name}.ipynb").stat().st_size for name in TEXTS)
    assert size < 1_500_000


def test_the_site_lists_each_notebook_once():
    page = (ROOT / "docs" / "notebooks.md").read_text()
    (tree,) = re.findall(r"```\{toctree\}\n(.*?)```", page, re.S)
    assert sorted(re.findall(r"^notebooks/(\w+)$", tree, re.M)) == list(TEXTS)
    assert sorted(re.findall(r"\]\(\.\./notebooks/(\w+)\.ipynb\)", page)) == list(TEXTS)

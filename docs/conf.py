"""The documentation site, built by `make site` from the pages of this folder."""

import importlib.metadata
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

project = "tlv_jax"
release = version = importlib.metadata.version("tlv-jax")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# Outputs of notebooks are shown as they are stored.
nb_execution_mode = "off"
exclude_patterns = ["**.ipynb_checkpoints"]
# Names of headings as on GitHub: `page.md#some-heading` leads to the same place on both.
myst_heading_anchors = 4

html_theme = "sphinx_book_theme"
html_title = "tlv_jax"
html_theme_options = {"show_navbar_depth": 1, "show_toc_level": 2, "navbar_persistent": []}
html_copy_source = False

# Docstrings are in Google style; what stands in `single backticks` there is code.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80


def links_of_the_start_page(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """The start page shows README.md, whose links start one folder higher."""
    for here, there in (("docs/", ""), ("examples/", "../examples/"), ("NOTICE", "../NOTICE")):
        content[0] = content[0].replace(f"]({here}", f"]({there}")


def links_to_the_start_page(app: Sphinx, page: str, content: list[str]) -> None:
    """A link to README.md leads to the page that shows it."""
    content[0] = content[0].replace("](../README.md", "](index.md")


def code_in_docstrings(
    app: Sphinx, what: str, name: str, described: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings set code off as Markdown does, by an empty line and deeper indentation."""
    for number in range(len(lines) - 1, 1, -1):
        before, empty, line = lines[number - 2 : number + 1]
        deeper = indentation(line) > indentation(before)
        if line.strip() and before.strip() and not empty.strip() and deeper:
            lines[number:number] = [" " * indentation(before) + "::", ""]


def indentation(line: str) -> int:
    """The number of spaces before the text."""
    return len(line) - len(line.lstrip())


def setup(app: Sphinx) -> None:
    """Connects what keeps the sources readable on GitHub and in the code."""
    # Before napoleon, which has the usual priority of 500.
    app.connect("autodoc-process-docstring", code_in_docstrings, priority=400)
    app.connect("include-read", links_of_the_start_page)
    app.connect("source-read", links_to_the_start_page)

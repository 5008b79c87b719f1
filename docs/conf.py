"""The documentation site, built by `make site` from the pages of this folder."""

import dataclasses
import importlib.metadata
import re
import shutil
import typing
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import train.config

project = "tlv_jax"
release = version = importlib.metadata.version("tlv-jax")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# Outputs of notebooks are shown as they are stored.
nb_execution_mode = "off"
exclude_patterns = ["**.ipynb_checkpoints"]
# Equations as on GitHub.
myst_enable_extensions = ["dollarmath"]
# Names of headings as on GitHub: `page.md#some-heading` leads to the same place on both.
myst_heading_anchors = 4

html_theme = "sphinx_book_theme"
html_title = "tlv_jax"
html_theme_options = {"show_navbar_depth": 1, "show_toc_level": 2, "navbar_persistent": []}
html_copy_source = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]

# Docstrings are in Google style; what stands in `single backticks` there is code.
default_role = "code"
smartquotes_action = "D"  # dashes; quotes stay as they are written
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80


def copy_notebooks() -> None:
    """Puts the notebooks, with their stored outputs, where Sphinx looks for pages."""
    docs = Path(__file__).parent
    pages = docs / "notebooks"
    shutil.rmtree(pages, ignore_errors=True)
    pages.mkdir()
    for notebook in (docs.parent / "notebooks").glob("*.ipynb"):
        shutil.copy2(notebook, pages)


def links_of_the_start_page(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """The start page shows README.md, whose links start one folder higher."""
    for here, there in (
        ("docs/", ""),
        ("examples/", "../examples/"),
        ("NOTICE", "../NOTICE"),
        ("CHANGELOG.md", "changes.md"),
    ):
        content[0] = content[0].replace(f"]({here}", f"]({there}")


def links_out_of_the_folder(app: Sphinx, page: str, content: list[str]) -> None:
    """Links to README.md and to notebooks lead to the pages that show them."""
    for here, there in (("../README.md", "index.md"), ("../notebooks/", "notebooks/")):
        content[0] = content[0].replace(f"]({here}", f"]({there}")


def docstring_as_rst(
    app: Sphinx, what: str, name: str, described: Any, options: Any, lines: list[str]
) -> None:
    """Turns what our docstrings have from Markdown into what Sphinx reads."""
    if what in ("attribute", "data", "property"):
        # The two hyphens of an option are no dash.
        lines[:] = [re.sub(r"(?<![`\w-])--[a-z][\w.-]*\b", r"``\g<0>``", line) for line in lines]
        # Napoleon takes what stands before a colon in the first line for a type: an empty comment.
        lines[:0] = ["..", ""]
    # Code is set off by an empty line and deeper indentation.
    for number in range(len(lines) - 1, 1, -1):
        before, empty, line = lines[number - 2 : number + 1]
        deeper = indentation(line) > indentation(before)
        if line.strip() and before.strip() and not empty.strip() and deeper:
            lines[number:number] = [" " * indentation(before) + "::", ""]


def defaults_in_signatures(
    app: Sphinx, what: str, name: str, described: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Sphinx links the types of a signature only if all of its defaults are Python."""
    if signature is None:
        return None
    return re.sub(r"<function (\w+)>", r"\1", signature).replace("<factory>", "..."), returns


def hide_the_command_line() -> None:
    """Takes what only the command line's parser reads out of the types of the settings."""
    for record in vars(train.config).values():
        if dataclasses.is_dataclass(record) and isinstance(record, type):
            record.__annotations__ = typing.get_type_hints(record)
            record.__init__.__annotations__ = typing.get_type_hints(record.__init__)


def indentation(line: str) -> int:
    """The number of spaces before the text."""
    return len(line) - len(line.lstrip())


def setup(app: Sphinx) -> None:
    """Connects what keeps the sources readable on GitHub and in the code."""
    # Before napoleon, which has the usual priority of 500.
    app.connect("autodoc-process-docstring", docstring_as_rst, priority=400)
    app.connect("autodoc-process-signature", defaults_in_signatures)
    copy_notebooks()
    hide_the_command_line()
    app.connect("include-read", links_of_the_start_page)
    app.connect("source-read", links_out_of_the_folder)

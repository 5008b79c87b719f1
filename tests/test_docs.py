"""Every example of the documentation runs, from the top of its page to the bottom."""

import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_run(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    assert bool(blocks) is (page.stem not in ("ablation", "parity"))
    names = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)

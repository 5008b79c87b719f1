"""Pages of reports in a real browser: they filter, fit narrow screens, and log no error."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest

import tlv_jax

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which is not installed"),
]
PHONE, DESK = 360, 1200
# The page lies in a frame, so that a script from outside can look at it and type.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><pre id="found"></pre>
<script>
function look(frame) {{
  const page = frame.contentDocument, view = frame.contentWindow;
  const find = part => [...page.querySelectorAll(part)];
  const type = words => {{
    const field = page.querySelector("input");
    field.value = words;
    field.dispatchEvent(new Event("input"));
  }};
  const shown = () => find("tbody tr").filter(row => row.offsetHeight > 0);
  const found = (() => {{ {script} }})();
  document.getElementById("found").textContent = JSON.stringify(found);
}}
</script>
<iframe style="width:{width}px;height:800px;border:0" onload="look(this)" srcdoc="{page}"></iframe>
"""
LONG = "params/" + "a_block_with_a_very_long_name" * 6


def chromium(path, *flags):
    """The page after its scripts ran, and what it logged."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    run = subprocess.run(
        [*command, *flags, "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return run.stdout, re.findall(r"CONSOLE.*", run.stderr)


@pytest.fixture(scope="module")
def html():
    rows = [
        tlv_jax.LayerReport(name, source, (3, 3, 4, 8), (3, 3, 4, 8), "Clip()", 1.0, 0.5, 0.25)
        for name, source in (
            ("params/conv0", "params/stem"),
            ("params/conv1", "params/middle"),
            ("<script>document.title = 'run'", "params/middle"),
            (LONG, LONG),
        )
    ]
    untouched = (tlv_jax.Untouched(LONG, "head='keep'"),)
    return tlv_jax.html_report(tlv_jax.TransferReport(tuple(rows), untouched), title=LONG)


@pytest.fixture
def look(html, tmp_path):
    """Runs a script on the page, which returns what it found."""

    def run(script, width=DESK, *flags):
        path = tmp_path / "frame.html"
        path.write_text(FRAME.format(script=script, width=width, page=escape(html)), "utf-8")
        dom, logged = chromium(path, "--window-size=1300,900", *flags)
        assert not logged
        return json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))

    return run


def test_the_page_runs_without_errors(html, tmp_path):
    path = Path(tmp_path / "page.html")
    path.write_text(html, "utf-8")
    dom, logged = chromium(path)
    assert not logged
    assert "<output>4 of 4</output>" in dom  # its script has run
    path.write_text(html.replace("</body>", "<script>nothing.at.all</script></body>"), "utf-8")
    assert "nothing is not defined" in chromium(path)[1][0]
    path.write_text(html.replace("<body>", '<body><img src="https://example.org/x.png">'), "utf-8")
    assert "Content Security Policy" in chromium(path)[1][0]


def test_the_table_filters_as_one_types(look):
    script = """
      const layers = () => shown().map(row => row.cells[0].textContent);
      const counts = [], names = [];
      for (const words of ["conv", "MIDDLE conv1", "<script>", "nothing", ""]) {
        type(words); names.push(layers().slice(0, -1)); counts.push(find("output")[0].value);
      }
      return [names, counts];
    """
    names, counts = look(script)  # without the last row, that of the other table
    hostile = "<script>document.title = 'run'"
    conv = ["params/conv0", "params/conv1"]
    assert names == [conv, ["params/conv1"], [hostile], [], [*conv, hostile, LONG]]
    assert counts == ["2 of 4", "1 of 4", "1 of 4", "0 of 4", "4 of 4"]


def test_a_name_of_a_layer_is_never_run(look):
    found = look("return [page.title, find('script').length, find('img').length];")
    assert found == [LONG, 1, 1]


@pytest.mark.parametrize("width", [PHONE, 700, 760, DESK])
def test_the_page_itself_never_scrolls_sideways(look, width):
    script = """
      const all = page.documentElement;
      const texts = [...shown(), ...find("h1"), ...find("dd")].map(part => part.scrollWidth);
      find("details").forEach(part => { part.open = true; });
      return [view.innerWidth, all.clientWidth, all.scrollWidth, Math.max(...texts)];
    """
    inner, client, scrolled, widest = look(script, width)
    assert inner == width
    assert scrolled <= client
    if width == PHONE:
        assert widest <= client


def test_pictures_are_drawn_and_scroll_by_themselves_on_a_phone(look):
    script = """
      const image = find("img")[0], box = image.parentElement;
      return [image.complete, image.naturalWidth, box.clientWidth, box.scrollWidth];
    """
    complete, natural, visible, whole = look(script, PHONE)
    assert complete
    assert visible < PHONE < natural
    assert whole >= natural


def test_the_page_is_dark_where_the_reader_wants_that(look):
    script = """
      const style = view.getComputedStyle(page.body);
      return [style.color, style.backgroundColor].map(
        text => text.match(/[0-9]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 765);
    """
    ink, paper = look(script)
    assert ink < 0.3 < 0.9 < paper
    ink, paper = look(script, DESK, "--blink-settings=preferredColorScheme=0")
    assert paper < 0.3 < 0.8 < ink


def test_the_page_prints(html, tmp_path):
    path, pdf = tmp_path / "page.html", tmp_path / "page.pdf"
    path.write_text(html, "utf-8")
    chromium(path, f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")

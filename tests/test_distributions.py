"""Wheel and source distribution: what is in them, and that both work where nothing else is."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import small_inputs
from helpers import import_torchvision
from pages import Page
from safetensors.torch import load_file

torchvision = import_torchvision()
pytestmark = pytest.mark.slow  # they install JAX three times
ROOT = Path(__file__).parent.parent
FLOORS = ("--constraint", str(ROOT / "constraints-floors.txt"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both distributions, by their kind. The wheel is made from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return small_inputs.save_source(tmp_path_factory.mktemp("weights") / "source.safetensors")


def run(command, cwd=None):
    """Runs a command that must succeed, without this checkout on its path; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tracked():
    """All files of the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    return set(run(["git", "ls-files"], ROOT).splitlines())


def test_the_source_distribution_holds_all_that_git_does(built, tracked):
    with tarfile.open(built["sdist"]) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    assert packed - {"PKG-INFO"} == tracked


def test_the_wheel_holds_all_of_the_packages(built, tracked):
    with zipfile.ZipFile(built["wheel"]) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
    packages = ("tlv_jax/", "importers/", "train/")
    assert packed == {name for name in tracked if name.startswith(packages)}


def test_links_of_the_page_on_pypi_have_an_address(built):
    with zipfile.ZipFile(built["wheel"]) as file:
        (name,) = [name for name in file.namelist() if name.endswith("/METADATA")]
        metadata = email.message_from_bytes(file.read(name))
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    repository = dict(url.split(", ") for url in metadata.get_all("Project-URL"))["Repository"]
    assert len(links) > 20
    for link in links:
        assert link.startswith("https://"), link
        kind, _, path = link.removeprefix(f"{repository}/").partition("/main/")
        if kind in ("blob", "raw"):
            assert (ROOT / path.partition("#")[0]).exists(), link
        assert (kind == "raw") == path.endswith(".png"), link


@pytest.mark.parametrize(
    ("kind", "options"),
    [("wheel", ()), ("sdist", ()), ("wheel", FLOORS)],
    ids=["wheel", "sdist", "wheel-floors"],
)
def test_an_installation_does_what_a_user_does_first(built, weights, tmp_path, kind, options):
    venv.create(tmp_path / "env", with_pip=True)
    programs, page = tmp_path / "env" / "bin", tmp_path / "report.html"
    install = [programs / "pip", "--disable-pip-version-check", "install", "--quiet"]
    run([*install, *options, built[kind]])
    shutil.copy(ROOT / "tests" / "smoke.py", tmp_path)
    out = run([programs / "python", "smoke.py", weights, page], tmp_path)
    assert "params/Conv_0" in out
    assert "2 convs fitted" in out
    assert Page(page.read_text(encoding="utf-8")).texts["h1"] == ["What the target received"]
    assert "IMAGENET1K_V1" in run([programs / "tlv-jax", "list"], tmp_path)
    source = ["--src", "squeezenet1_1", "--src-weights", weights]
    target = ["--dst", "squeezenet1_0", "--num-classes", "7", "--out", "x.safetensors"]
    run([programs / "tlv-jax", "transfer", *source, *target], tmp_path)
    network = torchvision.models.squeezenet1_0(num_classes=7)
    network.load_state_dict(load_file(tmp_path / "x.safetensors"), strict=True)

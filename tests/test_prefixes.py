"""Checkpoints as training loops save them: prefixes, wrapper modules, nests, several networks."""

import re

import foreign
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from parity import random_network, torchvision

import importers
from importers.wrappers import flatten, names_by_prefix, unwrapped


@pytest.fixture(scope="module")
def network():
    return random_network("resnet18", num_classes=7)


@pytest.fixture(scope="module")
def state_dict(network):
    return network.state_dict()


@pytest.fixture(scope="module")
def expected(state_dict):
    return importers.convert("resnet18", state_dict)


@pytest.fixture(scope="module")
def other():
    """Another training of the same network, which must not be taken for it."""
    return random_network("resnet18", num_classes=7, seed=1).state_dict()


def under(prefix, state_dict):
    return {prefix + key: tensor for key, tensor in state_dict.items()}


def within(word, state_dict):
    """The names that FSDP or checkpointing gives: a word behind each of the first modules."""
    return {re.sub(r"^(layer\d|conv1)\.", rf"\1.{word}.", k): t for k, t in state_dict.items()}


def weights(*names):
    return {name: torch.ones(3, 3) for name in names}


# Everything that the checkpoint holds is the network, or no weight.
ALONE = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1, "steps": [1, 2]}},
    "model_state_dict": lambda s: {"epoch": 3, "model_state_dict": s},
    "network": lambda s: {"network": s, "best": torch.tensor(0.7), "rng": torch.ones(3).byte()},
    "params": lambda s: {"params": s},
    "params_ema": lambda s: {"params_ema": s},
    "teacher": lambda s: {"teacher": s},
    "unknown": lambda s: {"weights of mine": s},
    "deep": lambda s: {"a": {"b": {"state_dict": under("model.", s)}}},
    "shared": lambda s: {"state_dict": s, "model": s},
    "scheduler": lambda s: {"model": s, "lr_scheduler": {"base_lrs": [0.1], "last_epoch": 3}},
    "optimizer": lambda s: {
        "model": s,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "n_averaged": lambda s: {"n_averaged": torch.tensor(5), **under("module.", s)},
    "nested averaged": lambda s: {"ema": {"n_averaged": torch.tensor(5), **under("module.", s)}},
    "twice": lambda s: under("module._orig_mod.", s),
    "thrice": lambda s: {"model": under("module.model._orig_mod.backbone.", s)},
    "sequential": lambda s: under("0.", s),
    "deep sequential": lambda s: under("module.0.1.", s),
    "in the middle and in front": lambda s: under("module.net.", within("_orig_mod", s)),
    "two in the middle": lambda s: within("_fsdp_wrapped_module._checkpoint_wrapped_module", s),
    "setting beside": lambda s: {**s, "epoch": 3, "arch": "resnet18"},
    **{
        prefix: lambda s, prefix=prefix: under(prefix, s)
        for prefix in ("module.", "model.", "net.", "backbone.", "encoder_q.", "_orig_mod.",
                       "_fsdp_wrapped_module.", "_forward_module.")
    },
    **{
        f"{word} in the middle": lambda s, word=word: within(word, s)
        for word in ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
    },
}  # fmt: skip

# Other weights stand beside the network: the prefix that is taken, and one of these names.
BESIDE = {
    "head": (lambda s: {**under("backbone.", s), **weights("head.fc.weight")}, "backbone", "head"),
    "normalizer": (
        lambda s: {**weights("normalizer.mean"), **under("model.", s)}, "model", "normalizer.mean"
    ),
    "detector": (
        lambda s: {
            **under("backbone.body.", s),
            **weights("backbone.fpn.0.weight", "rpn.head.conv.weight", "roi_heads.fc.weight"),
        },
        "backbone.body", "rpn.head.conv.weight",
    ),
    "contrast": (
        lambda s: {"state_dict": {**under("module.encoder_q.", s), **weights("module.queue")}},
        "state_dict.module.encoder_q", "state_dict.module.queue",
    ),
    "part of a copy": (
        lambda s: {
            **under("encoder_q.", s),
            **under("encoder_k.", {k: t for k, t in s.items() if not k.startswith("layer4.")}),
        },
        "encoder_q", "encoder_k.conv1.weight",
    ),
    "sequential": (lambda s: {**under("0.", s), **weights("1.weight")}, "0", "1.weight"),
    "lightning": (
        lambda s: {"state_dict": {**under("net.", s), **weights("loss.weight")}},
        "state_dict.net", "state_dict.loss.weight",
    ),
}  # fmt: skip

# The network is there more than once, the wanted one first.
SEVERAL = {
    "ema": (lambda s, o: {"model": s, "model_ema": o}, "model", "model_ema"),
    "ema wanted": (lambda s, o: {"model": o, "model_ema": s}, "model_ema", "model"),
    "averaged": (
        lambda s, o: {"model": o, "model_ema": {**under("module.", s), "n_averaged": 3}},
        "model_ema.module", "model",
    ),
    "timm": (lambda s, o: {"state_dict": s, "state_dict_ema": o}, "state_dict", "state_dict_ema"),
    "distilled": (lambda s, o: {"teacher": o, "student": s}, "student", "teacher"),
    "contrast": (
        lambda s, o: under("module.", {**under("encoder_q.", s), **under("encoder_k.", o)}),
        "module.encoder_q", "module.encoder_k",
    ),
    "bare": (lambda s, o: {**s, **under("momentum.", o)}, "", "momentum"),
}  # fmt: skip


def check(loaded, expected):
    np.testing.assert_equal((loaded.params, loaded.batch_stats), expected)


@pytest.mark.parametrize("wrap", ALONE)
def test_what_is_around_a_network_is_removed(state_dict, expected, wrap):
    check(importers.load("resnet18", ALONE[wrap](state_dict)), expected)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", ["bare", "network", "optimizer", "thrice", "n_averaged", "deep"])
def test_files_are_read_alike(tmp_path, state_dict, expected, wrap, zipped):
    checkpoint = ALONE[wrap](state_dict)
    torch.save(checkpoint, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    check(importers.load("resnet18", tmp_path / "c.pt"), expected)


@pytest.mark.parametrize("case", BESIDE)
def test_weights_beside_the_network_are_left_out_with_a_warning(state_dict, expected, case):
    wrap, prefix, left_out = BESIDE[case]
    with pytest.warns(importers.PrefixWarning) as warned:
        check(importers.load("resnet18", wrap(state_dict)), expected)
    (warning,) = warned
    assert warning.filename == __file__
    assert f"Only what is under {prefix!r} in" in str(warning.message)
    assert left_out in str(warning.message)


def test_conversions_warn_alike(state_dict, expected):
    wrap, *_ = BESIDE["head"]
    with pytest.warns(importers.PrefixWarning, match="under 'backbone' in") as warned:
        actual = importers.convert("resnet18", wrap(state_dict))
    assert [warning.filename for warning in warned] == [__file__]
    np.testing.assert_equal(actual, expected)


def test_a_warning_names_three_weights_and_counts_the_others(state_dict):
    beside = weights(*(f"head.{number}.weight" for number in range(14)))
    with pytest.warns(importers.PrefixWarning, match=r"head\.2\.weight and 11 others\.$"):
        importers.convert("resnet18", {**under("net.", state_dict), **beside})


@pytest.mark.parametrize("case", SEVERAL)
def test_a_prefix_chooses_among_several_networks(state_dict, other, expected, case):
    wrap, wanted, unwanted = SEVERAL[case]
    checkpoint = wrap(state_dict, other)
    with pytest.raises(importers.StateDictError) as error:
        importers.load("resnet18", checkpoint)
    first, second = sorted((wanted, unwanted))
    shown = f"{first!r}{'' if first else ' (no prefix)'}, {second!r}"
    assert f"2 times, under the prefixes {shown}. Choose one" in str(error.value)
    assert f"prefix={first!r} (for python -m importers by --prefix" in str(error.value)
    check(importers.load("resnet18", checkpoint, prefix=wanted), expected)


@pytest.mark.parametrize("prefix", ["encoder_q", "encoder_q.", "module.encoder_q"])
def test_a_prefix_may_leave_out_wrappers_and_its_last_dot(state_dict, other, expected, prefix):
    checkpoint, *_ = SEVERAL["contrast"]
    actual = importers.convert("resnet18", checkpoint(state_dict, other), prefix=prefix)
    np.testing.assert_equal(actual, expected)


def test_a_prefix_may_be_the_beginning_of_the_whole(state_dict, other, expected):
    checkpoint = {"student": under("module.backbone.", state_dict), "teacher": other}
    actual = importers.convert("resnet18", checkpoint, prefix="student")
    np.testing.assert_equal(actual, expected)
    checkpoint["student"] |= weights("module.head.weight")
    with pytest.warns(importers.PrefixWarning, match=r"Left out: student\.module\.head\.weight\."):
        importers.convert("resnet18", checkpoint, prefix="student")


@pytest.mark.parametrize("prefix", ["encoder", "ncoder_q", "conv2", "queue", ""])
def test_an_unknown_prefix_is_refused_with_those_that_there_are(state_dict, other, prefix):
    wrap, *_ = SEVERAL["contrast"]
    checkpoint = {**wrap(state_dict, other), **weights("queue.weight")}
    message = f"the prefix {prefix!r}, but under 'module.encoder_k', 'module.encoder_q' there is"
    with pytest.raises(importers.StateDictError, match=re.escape(message)):
        importers.convert("resnet18", checkpoint, prefix=prefix)


def test_a_prefix_of_what_does_not_fit_is_told_from_one_of_nothing(other):
    checkpoint = {"model": {k: t for k, t in other.items() if k != "bn1.bias"}}
    with pytest.raises(importers.StateDictError, match=r"under the prefix 'model' .*: 1 problem"):
        importers.convert("resnet18", checkpoint, prefix="model")
    with pytest.raises(importers.StateDictError, match="No name in the checkpoint has the prefix"):
        importers.convert("resnet18", checkpoint, prefix="mode")


def test_of_several_networks_the_one_that_fits_is_taken(state_dict, expected):
    with torch.device("meta"):
        tensors = torchvision.models.resnet50().state_dict()
    larger = {key: np.broadcast_to(np.float32(0), tensor.shape) for key, tensor in tensors.items()}
    assert larger.keys() > state_dict.keys()
    with pytest.warns(importers.PrefixWarning, match="under 'student'"):
        actual = importers.convert("resnet18", {"teacher": larger, "student": state_dict})
    np.testing.assert_equal(actual, expected)


def test_a_name_twice_is_refused(state_dict):
    twice = {**state_dict, "layer1.module.0.conv1.weight": state_dict["layer1.0.conv1.weight"]}
    with pytest.raises(importers.StateDictError, match="two names of the same array"):
        importers.convert("resnet18", twice)
    with pytest.raises(importers.CheckpointError, match=r"'model\.conv1\.weight' twice"):
        importers.convert(
            "resnet18", {"model": state_dict, "model.conv1.weight": state_dict["conv1.weight"]}
        )


class Task(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.net = network


def compiled(network):
    return torch.compile(network, backend="eager")  # the others take seconds to import


REAL = {
    "DataParallel": torch.nn.DataParallel,
    "compiled": compiled,
    "compiled in parallel": lambda network: torch.nn.DataParallel(compiled(network)),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "sequential": torch.nn.Sequential,
    "attribute": Task,
    "all of them": lambda network: torch.optim.swa_utils.AveragedModel(
        torch.nn.DataParallel(Task(compiled(torch.nn.Sequential(network))))
    ),
}


@pytest.mark.parametrize("wrap", REAL)
def test_torch_s_own_wrappers(tmp_path, network, expected, wrap):
    module = REAL[wrap](network)
    check(importers.load("resnet18", module), expected)
    torch.save({"model": module.state_dict(), "epoch": 3}, tmp_path / "c.pt")
    check(importers.load("resnet18", tmp_path / "c.pt"), expected)


def test_features_in_parallel_before_a_classifier_that_is_not():
    # torch's example for ImageNet trains AlexNet and VGG so.
    network = random_network("squeezenet1_1", num_classes=7)
    expected = importers.convert("squeezenet1_1", network.state_dict())
    network.features = torch.nn.DataParallel(network.features)
    assert "features.module.0.weight" in network.state_dict()
    np.testing.assert_equal(importers.convert("squeezenet1_1", network.state_dict()), expected)


def test_a_detectors_backbone():
    with torch.device("meta"):
        body = torchvision.models.resnet18().state_dict()
    names = [name for name in body if not name.startswith("fc.")]
    detector = under("backbone.body.", {name: np.zeros(body[name].shape, "f4") for name in names})
    detector["rpn.head.conv.0.0.weight"] = np.zeros((256, 256, 3, 3), "f4")
    with pytest.warns() as warned:
        loaded = importers.load("resnet18", detector, num_classes=7)
    assert {warning.category for warning in warned} == {
        importers.PrefixWarning,
        importers.FreshHeadWarning,
    }
    assert loaded.params["fc"]["kernel"].shape == (512, 7)


words = st.sampled_from(["module", "_orig_mod", "model", "0", "layer1", "net", "conv1"])


@hypothesis.given(st.lists(words, max_size=4), st.sampled_from(["module", "_orig_mod"]))
def test_any_prefix_and_any_wrapper_are_found(prefix, wrapper):
    keys = {"conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight"}
    start = "".join(f"{word}." for word in prefix)
    names = [start + key.replace("layer1.", f"layer1.{wrapper}.") for key in keys]
    found = names_by_prefix(names, keys, lambda key: key)
    assert [prefix for prefix in found if found[prefix].keys() == keys] == [start]


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("layer1.module.0.weight", "layer1.0.weight"),
        ("module._orig_mod.conv1.weight", "conv1.weight"),
        ("modules.conv1.my_module.weight", "modules.conv1.my_module.weight"),
        ("layer1.0.weight", "layer1.0.weight"),
    ],
)
def test_only_whole_words_are_wrappers(name, bare):
    assert unwrapped(name) == bare


def test_nests_without_end_are_left_in_no_time():
    wide = {"w": 1}
    for _ in range(40):  # written out, 2**40 entries
        wide = {"a": wide, "b": wide}
    deep = {"w": 1}
    for _ in range(100_000):
        deep = {"a": deep}
    endless = {"w": 1}
    endless["a"] = endless
    assert flatten(wide) == flatten(deep) == {}
    assert flatten(endless) == {"w": 1}
    assert flatten({"x" * 1000: {"w": 1}, "b": 2}) == {"b": 2}
    while deep is not None:  # else Python would free it by recursion
        deep = deep.get("a") if isinstance(deep, dict) else None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_unreadable_entries_beside_the_network_do_no_harm(tmp_path, state_dict, expected):
    beside = {
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "lazy": torch.nn.LazyLinear(2).state_dict()["weight"],
        "sparse": torch.eye(3).to_sparse(),
    }
    check(importers.load("resnet18", {"model": state_dict, "other": beside}), expected)
    checkpoint = {"model": state_dict, "other": {"sparse": beside["sparse"], "task": Task}}
    torch.save(checkpoint, tmp_path / "c.pt")
    check(importers.load("resnet18", tmp_path / "c.pt"), expected)
    torch.save({"model": {**state_dict, "conv1.weight": Task}}, tmp_path / "c.pt")
    with pytest.raises(importers.UnsafeFileError, match=r"Task' at 'conv1\.weight'"):
        importers.load("resnet18", tmp_path / "c.pt")
    torch.save({"model": {**state_dict, "conv1.weight": beside["sparse"]}}, tmp_path / "c.pt")
    with pytest.raises(importers.StateDictError, match=r"a sparse tensor at 'conv1\.weight'"):
        importers.load("resnet18", tmp_path / "c.pt")
    torch.save({"model": Task(torch.nn.Identity()), "epoch": 3}, tmp_path / "c.pt")
    with pytest.raises(importers.UnsafeFileError, match="Task"):
        importers.load("resnet18", tmp_path / "c.pt")


def test_another_projects_keys_behind_prefixes(tmp_path):
    record = foreign.recorded()["transformers resnet18"]
    weights = {key: torch.from_numpy(a) for key, a in foreign.weights_of(record["shapes"]).items()}
    with pytest.warns(importers.ForeignKeysWarning):
        expected = importers.convert("resnet18", weights)
    torch.save({"state_dict": under("module.net.", weights), "epoch": 3}, tmp_path / "c.pt")
    with pytest.warns(importers.ForeignKeysWarning):
        check(importers.load("resnet18", tmp_path / "c.pt"), expected)
    two = {"student": weights, "teacher": {key: -t for key, t in weights.items()}}
    with pytest.raises(importers.StateDictError, match="under the prefixes 'student', 'teacher'"):
        importers.load("resnet18", two)
    with pytest.warns(importers.ForeignKeysWarning):
        check(importers.load("resnet18", two, prefix="student"), expected)

"""Optimizers and schedules are torch's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.optim import lr_scheduler

from train.config import Config, RecipeOptions
from train.errors import ConfigError
from train.optimizer import crossover_rate, learning_rate, make_optimizer
from train.recipe import MODERN, PUBLISHED, Recipe, recipe_of
from train.resolve import resolve

SHAPES = {"kernel": (4, 3), "bias": (3,)}
COSINE = Recipe(schedule="cosine")


def arrays(seed):
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()
    }


def trained(optimizer, steps=6):
    """The parameters after some steps with given gradients."""
    params = jax.tree.map(jnp.asarray, arrays(0))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(arrays(1 + step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def trained_by_torch(make, steps=6, clip=None, no_decay=()):
    """The same with an optimizer of torch, and its scheduler."""
    params = {name: torch.nn.Parameter(torch.from_numpy(a)) for name, a in arrays(0).items()}
    groups = [
        {"params": [param], **({"weight_decay": 0.0} if name in no_decay else {})}
        for name, param in params.items()
    ]
    optimizer, scheduler = make(groups)
    for step in range(steps):
        for name, gradient in arrays(1 + step).items():
            params[name].grad = torch.from_numpy(gradient)
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        optimizer.step()
        scheduler.step()
    return {name: param.detach().numpy() for name, param in params.items()}


def multi_step(optimizer, steps):
    milestones = [int(0.6 * steps), int(0.8 * steps)]
    return lr_scheduler.MultiStepLR(optimizer, milestones=milestones)


def cosine(optimizer, steps):
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)


def assert_close(ours, theirs):
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 10, 57])
@pytest.mark.parametrize(("recipe", "theirs"), [(PUBLISHED, multi_step), (COSINE, cosine)])
def test_the_schedules_are_torch_s(recipe, theirs, steps):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = theirs(optimizer, steps)
    schedule = learning_rate(1e-3, steps, recipe)
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("recipe", "decay"), [(PUBLISHED, multi_step), (COSINE, cosine)])
def test_the_warm_up_is_torch_s_and_a_part_of_all_steps(recipe, decay):
    steps, warmup = 20, 4
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    if decay is cosine:
        scheduler = lr_scheduler.SequentialLR(
            optimizer, [rise, cosine(optimizer, steps - warmup)], milestones=[warmup]
        )
    else:
        scheduler = lr_scheduler.ChainedScheduler([rise, multi_step(optimizer, steps)])
    schedule = learning_rate(1e-3, steps, recipe, warmup=warmup)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        assert float(schedule(step)) == pytest.approx(rates[-1], rel=1e-5, abs=1e-9)
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(1e-3 / 5)
    assert max(rates) == pytest.approx(1e-3)


ADAMW = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=5e-2)
SGD = functools.partial(torch.optim.SGD, lr=1e-2, weight_decay=5e-2, momentum=0.9)


@pytest.mark.parametrize(
    ("recipe", "theirs", "options"),
    [
        (PUBLISHED, ADAMW, {}),
        (Recipe(decay_all=False), ADAMW, {"no_decay": ("bias",)}),
        (Recipe(clip_norm=0.5), ADAMW, {"clip": 0.5}),
        (Recipe(optimizer="sgd"), SGD, {}),
        (Recipe(optimizer="sgd", nesterov=True), functools.partial(SGD, nesterov=True), {}),
        (Recipe(optimizer="sgd", momentum=0.5), functools.partial(SGD, momentum=0.5), {}),
        (Recipe(optimizer="sgd", decay_all=False), SGD, {"no_decay": ("bias",)}),
        (Recipe(optimizer="sgd", clip_norm=0.5), SGD, {"clip": 0.5}),
    ],
    ids=str,
)
@pytest.mark.parametrize(("schedule", "decay"), [("step", multi_step), ("cosine", cosine)])
def test_the_optimizers_are_torch_s(recipe, theirs, options, schedule, decay):
    def make(groups):
        optimizer = theirs(groups)
        return optimizer, decay(optimizer, 6)

    recipe = dataclasses.replace(recipe, schedule=schedule)
    assert_close(trained(make_optimizer(1e-2, 5e-2, 6, recipe)), trained_by_torch(make, **options))


def test_the_published_optimizer_is_optax_s_own_adamw():
    expected = optax.adamw(learning_rate(1e-2, 6), weight_decay=5e-2)
    ours = make_optimizer(1e-2, 5e-2, 6)
    for one, other in zip(
        jax.tree.leaves(trained(ours)), jax.tree.leaves(trained(expected)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    params = arrays(0)
    assert jax.tree.structure(ours.init(params)) == jax.tree.structure(expected.init(params))


def test_the_crossover_rate_stays_or_goes_down_to_zero():
    assert crossover_rate(0.4, 8, PUBLISHED) == 0.4
    schedule = crossover_rate(0.4, 8, Recipe(crossover_schedule="linear"))
    rates = [float(schedule(step)) for step in range(9)]
    np.testing.assert_allclose(rates, np.linspace(0.4, 0, 9), atol=1e-7)


def chosen(**options):
    return recipe_of(resolve(Config(recipe=RecipeOptions(**options))))


def test_a_recipe_is_named_and_its_parts_are_changed_one_by_one():
    assert chosen() == PUBLISHED
    assert chosen(name="modern") == MODERN
    changed = chosen(name="modern", optimizer="sgd", nesterov=True, clip_norm=0.0)
    expected = dataclasses.replace(MODERN, optimizer="sgd", nesterov=True, clip_norm=0.0)
    assert changed == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": -1.0}, r"recipe\.clip_norm=-1\.0, expected at least 0\."),
        ({"clip_norm": float("nan")}, r"recipe\.clip_norm=nan"),
        ({"optimizer": "sgd", "momentum": 1.0}, r"recipe\.momentum=1\.0.* and below 1"),
        ({"crop_area": 0.5}, r"recipe\.crop_area=0\.5 does nothing for recipe\.crop=shift\. Set"),
        ({"crop": "resized", "crop_area": 0.0}, r"recipe\.crop_area=0\.0, expected above 0"),
        ({"flip": 1.5}, r"recipe\.flip=1\.5, expected a probability"),
        ({"mixup": -0.2}, r"recipe\.mixup=-0\.2, expected at least 0"),
        ({"mixup": 0.2, "accumulate": 128}, r"recipe\.mixup=0\.2 does nothing for batch_size=128"),
        ({"cutmix": float("nan")}, r"recipe\.cutmix=nan, expected at least 0"),
        ({"ema": 1.0}, r"recipe\.ema=1\.0.* and below 1"),
        ({"label_smoothing": -0.1}, r"recipe\.label_smoothing=-0\.1, expected at least 0"),
        ({"accumulate": 0}, r"recipe\.accumulate=0, expected at least 1"),
        ({"accumulate": 3}, r"recipe\.accumulate=3 cannot divide batch_size=128"),
        (
            {"momentum": 0.5},
            r"recipe\.momentum=0\.5 does nothing for recipe\.optimizer=adamw\. Set",
        ),
        ({"nesterov": True}, r"recipe\.nesterov=True does nothing for recipe\.optimizer=adamw"),
        ({"warmup_epochs": 4.0}, r"recipe\.warmup_epochs=4\.0, expected fewer than epochs=4"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        chosen(**options)


def test_choices_of_the_crossover_are_refused_where_there_is_none():
    options = RecipeOptions(crossover_mask="batch")
    with pytest.raises(ConfigError, match=r"crossover_mask=batch does nothing for crossover_rate"):
        recipe_of(resolve(Config(recipe=options, crossover_rate=0.0)))

"""What the commands on networks do. Each returns its exit status."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

import tlv_jax
from tlv_jax.fit import fit_and_report
from train.augment import normalize
from train.commands.exporting import export
from train.commands.pairs import check, load_source, load_target, shapes_of
from train.commands.reading import draw_pictures
from train.commands.settings import Export, Fit, Pair, Plan, Report, Similarity, Start, Transfer
from train.commands.writing import check_out, write
from train.errors import ConfigError
from train.fitting import check_source
from train.method import METHODS
from train.networks import keys_of
from train.run_page import check_page, write_page

__all__ = ["run"]


def run(settings: Pair | Export) -> int:
    """Runs the command that has these settings.

    Raises:
      TLVError: for bad settings, or networks that do not go together.
      OSError: if the result cannot be written.
    """
    if isinstance(settings, Export):
        return export(settings)
    check(settings)
    match settings:
        case Similarity():
            return _similarity(settings)
        case Fit():
            return _fit(settings)
        case Transfer():
            return _transfer(settings)
        case Report():
            return _report(settings)
        case Plan():
            return _plan(settings)
    raise AssertionError(settings)


def _similarity(settings: Similarity) -> int:
    score = tlv_jax.similarity(*shapes_of(settings))
    text = f"similarity of {settings.src} to {settings.dst}: {score:.3f}"
    print(json.dumps({"similarity": score}) if settings.json else text)
    return 0


def _plan(settings: Plan) -> int:
    plan = tlv_jax.plan_transfer(*shapes_of(settings), METHODS[settings.method])
    print(plan.to_json() if settings.json else plan)
    return 0


def _report(settings: Report) -> int:
    check_page(settings.html)
    made = _transferred(settings)
    report = made.report()
    print(report.to_json() if settings.json else report)
    if settings.html is not None:
        about = {"method": settings.method, "seed": str(settings.seed)}
        title = f"{settings.src} into {settings.dst}"
        networks = made.source, made.target
        page = tlv_jax.html_report(report, made.plan, *networks, title=title, about=about)
        write_page(settings.html, page)
    return 0


def _transfer(settings: Transfer) -> int:
    check_out(settings.out, settings.dst)
    made = _transferred(settings)
    if settings.json:
        plan, report = json.loads(made.plan.to_json()), json.loads(made.report().to_json())
        return _finish(settings, made.variables, {"plan": plan, "report": report})
    if settings.out is None:
        print(made.plan, made.report(), sep="\n\n")
    else:
        print(f"{len(made.plan.pairs)} layers of {settings.dst} get weights of {settings.src}")
    return _finish(settings, made.variables)


def _fit(settings: Fit) -> int:
    check_out(settings.out, settings.dst)
    check_page(settings.html)
    check_source(settings.src)
    if settings.count < 1:
        raise ConfigError(f"count={settings.count}, expected at least 1.")
    pixels = draw_pictures(settings.images, settings.count, settings.image_size, settings.seed)
    source, target = load_source(settings), _target(settings)
    expected = source.preprocess
    images = normalize(jnp.asarray(pixels), expected.mean, expected.std, jnp.dtype(jnp.float32))
    chosen = tlv_jax.Fit(method=METHODS[settings.method])
    key = keys_of(settings.seed).transfer
    variables, report = fit_and_report(source.network, target, images, chosen, key)
    made = {"report": json.loads(report.to_json())} if settings.json else None
    if made is None:
        print(report)
    status = _finish(settings, variables, made)
    if settings.html is not None:
        about = {"method": settings.method, "seed": str(settings.seed)}
        about["pictures"] = f"{len(images)}, of {settings.image_size} pixels a side"
        title = f"{settings.dst} fitted to {settings.src}"
        write_page(settings.html, tlv_jax.html_report(report, title=title, about=about))
    return status


class _Made(NamedTuple):
    """A transfer that was made."""

    plan: tlv_jax.TransferPlan
    source: tlv_jax.Network
    target: tlv_jax.Network
    variables: Any

    def report(self) -> tlv_jax.TransferReport:
        return tlv_jax.report(self.plan, self.source, self.target, self.variables)


def _transferred(settings: Start) -> _Made:
    source, target = load_source(settings).network, _target(settings)
    method, key = METHODS[settings.method], keys_of(settings.seed).transfer
    plan = tlv_jax.plan_transfer(source, target, method)
    # Plans once more, in milliseconds, and warns if the networks are unlike.
    variables = tlv_jax.transfer(source, target, key=key, method=method)
    return _Made(plan, source, target, variables)


def _target(settings: Start) -> tlv_jax.Network:
    """The target, initialized as `python -m train` does with the same seed."""
    return load_target(settings, keys_of(settings.seed).init)


def _finish(settings: Transfer, variables: Any, made: Mapping[str, Any] | None = None) -> int:
    """Writes the target, if a file is named; prints that, and what was made if it is for JSON."""
    ending = "nothing is written; name a file with --out"
    if settings.out is not None:
        count = write(settings.out, settings.dst, variables)
        ending = f"{settings.out}: {count} arrays of {settings.dst}"
    out = None if settings.out is None else str(settings.out)
    print(ending if made is None else json.dumps({**made, "out": out}))
    return 0

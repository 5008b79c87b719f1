"""The page of a transfer or a fit."""

import math
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from tlv_jax.errors import OptionError
from tlv_jax.fit import FitReport, fit_cells, fit_summary
from tlv_jax.network import Network
from tlv_jax.pages.elements import details, facts, filtered, page, picture, section, table
from tlv_jax.plan import TransferPlan, plan_facts
from tlv_jax.plots import deviations, fitted
from tlv_jax.plots import plan as draw_plan
from tlv_jax.report import TransferReport, report_cells
from tlv_jax.types import PyTree


def html_report(
    report: TransferReport | FitReport,
    plan: TransferPlan | None = None,
    src: Network | PyTree | None = None,
    dst: Network | PyTree | None = None,
    title: str = "What the target received",
    about: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Returns the report as an HTML page: summary, plan, pictures, and one row for each layer.

        >>> plan = tlv_jax.plan_transfer(src, dst)
        >>> report = tlv_jax.report(plan, src, dst, tlv_jax.transfer(src, dst))
        >>> page = tlv_jax.html_report(report, plan, src, dst)
        >>> page.splitlines()[0]  # to write as UTF-8
        '<!DOCTYPE html>'

    The page is one file and asks for no other. Without matplotlib it has no pictures and says so.

    Args:
      report: from `report` or `fit_report`.
      plan: the plan of that transfer, if it is to be on the page.
      src: as it was given to `plan_transfer`; with `dst`, the plan is drawn too.
      dst: likewise.
      title: of the page.
      about: more lines of the summary, such as `{"seed": "0"}`, by their names.

    Raises:
      OptionError: if only one of the networks is given, or both without the plan.
      PlanMismatchError: if the plan is not for these networks.
    """
    given = {"plan": plan is not None, "src": src is not None, "dst": dst is not None}
    if (src is not None or dst is not None) and not all(given.values()):
        missing = " and ".join(name for name, has in given.items() if not has)
        raise OptionError(
            f"html_report: expected plan, src and dst to draw the plan, got no {missing}. Pass "
            "all three, or no network."
        )
    return page(title, transfer_sections(report, plan, src, dst, about))


def transfer_sections(
    report: TransferReport | FitReport,
    plan: TransferPlan | None,
    src: Network | PyTree | None = None,
    dst: Network | PyTree | None = None,
    about: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """The sections of the page that `html_report` returns, with its arguments."""
    fit = isinstance(report, FitReport)
    summary = {"fit": fit_summary(report)} if fit else _summary(report)
    sections = [section("Summary", facts({**about, **summary}))]
    if plan is not None:
        sections.append(section("Plan", *_plan_parts(plan, src, dst)))
    sections.append(_fitted_layers(report) if fit else _layers(report))
    if not fit and report.untouched:
        rows = [(leaf.path, leaf.reason) for leaf in report.untouched]
        leaves = filtered(table(("leaf", "reason"), rows), "leaves")
        sections.append(section("What stays as it is", leaves))
    return sections


def _summary(report: TransferReport) -> dict[str, str]:
    taken = [row for row in report.rows if row.source is not None]
    entries = {
        "layers with weights of the source": f"{len(taken)}, from "
        f"{len({row.source for row in taken})} of its layers"
    }
    if size := sum(math.prod(row.target_shape) for row in taken):
        share = sum(row.share * math.prod(row.target_shape) for row in taken) / size
        entries["part of their elements that comes from the source"] = f"{share:.0%}"
    others = Counter(row.rule for row in report.rows if row.source is None)
    entries |= {f"layers without a source, {rule}": str(count) for rule, count in others.items()}
    return {**entries, "leaves that stay as they are": str(len(report.untouched))}


def _plan_parts(
    plan: TransferPlan, src: Network | PyTree | None, dst: Network | PyTree | None
) -> list[str]:
    parts = [facts(plan_facts(plan))]
    # A plan of norms alone has nothing to draw.
    if src is not None and any(pair.target.kind != "norm" for pair in plan.layer_pairs):
        caption = "Which layer of the source each layer of the target takes"
        parts.append(picture(lambda: draw_plan(plan, src, dst), caption))
    return [*parts, details("The whole plan as text", str(plan))]


def _layers(report: TransferReport) -> str:
    parts = []
    if any(len(row.target_shape) > 1 for row in report.rows):
        caption = "Standard deviation of each kernel before and after the transfer"
        parts.append(picture(lambda: deviations(report), caption))
    return section("Layers", *parts, filtered(table(*report_cells(report)), "layers"))


def _fitted_layers(report: FitReport) -> str:
    parts = []
    if report.rows:
        caption = "How well each conv computes what it was fitted to, 1 at best"
        parts.append(picture(lambda: fitted(report), caption))
    return section("Layers", *parts, filtered(table(*fit_cells(report)), "layers"))

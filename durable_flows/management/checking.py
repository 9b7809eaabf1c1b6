"""``flows check``: whether the unfinished runs can go on with the code at hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from durable_flows.engine import rehearse
from durable_flows.flows import labelled

WIDTH = 30  # characters of the bar


def check(flow_id: str | None, most: int | None, *, as_json: bool, out: Any, err: Any) -> bool:
    """Rehearse unfinished runs, and tell of those that do not fit.

    Args:
        flow_id: of which flow; None: of all.
        most: how many, the oldest first; None: all.
        as_json: whether to write one JSON object instead of text.
        out: where the findings go.
        err: where the progress is shown, if that is a terminal.

    Returns:
        Whether all fit.
    """
    total = rehearse.count(flow_id)
    total = total if most is None else min(total, most)
    checked, findings = 0, []
    for finding in rehearse.rehearse_all(flow_id, most):
        checked += 1
        _show(err, checked, total)
        if finding is not None:
            findings.append(finding)
    if as_json:
        found = [asdict(finding) for finding in findings]
        out.write(json.dumps({"checked": checked, "findings": found}, indent=2))
        return not findings
    for one in findings:
        flow = labelled(one.flow, one.version)
        out.write(f"run {one.run_id} of flow {flow}: {one.error}: {one.message}")
    out.write(f"{checked} unfinished run{'s'[: checked != 1]} checked, {len(findings)} do not fit")
    return not findings


def _show(err: Any, checked: int, total: int) -> None:
    if not err.isatty():
        return
    full = WIDTH * min(checked, total) // max(total, 1)
    end = "\n" if checked >= total else ""
    err.write(f"\r[{'#' * full:<{WIDTH}}] {checked}/{max(total, checked)}{end}", ending="")
    err.flush()

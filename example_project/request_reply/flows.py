"""Who asks, and who replies."""

from __future__ import annotations

from typing import Any

from durable_flows import Event, Step, flow
from example_project.request_reply.models import Report


@flow("get-report", on="report/requested")
def get_report(event: Event, step: Step) -> dict[str, Any]:
    """Ask, wait for the answer to this question, keep it."""
    report_id = event.data["report_id"]
    step.send_event("ask", Event("report/wanted", event.data))
    reply = step.wait_for_event(
        "reply", event="report/written", match="data.report_id", timeout="30m"
    )
    if reply is None:
        step.run("note-late", save, report_id, late=True, atomic=True)
        return {"status": "timeout", "report_id": report_id}
    step.run("save", save, report_id, text=reply.data["text"], atomic=True)
    return {"status": "written", "report_id": report_id}


def save(report_id: int, **values: Any) -> None:
    Report.objects.filter(pk=report_id).update(**values)


@flow("write-report", on="report/wanted")
def write_report(event: Event, step: Step) -> None:
    """Write it, which takes as long as it takes, and reply under the number that was given."""
    step.sleep("think", event.data["minutes"] * 60)
    text = step.run("write", write, event.data["subject"])
    reply = {"report_id": event.data["report_id"], "text": text}
    step.send_event("reply", Event("report/written", reply))


def write(subject: str) -> str:
    return f"There is much to be said about {subject}."

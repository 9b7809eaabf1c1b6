"""Approvals: waits that a person ends by a decision.

A decision is a command, keyed by the approval: of two that are made at once the first one stands. It ends
the wait as any event does; the approval's row says who may decide, and shares the wait's id.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django.forms import BaseForm, Form
from django.utils.module_loading import import_string

from durable_flows import conf, models
from durable_flows.engine import ingest, keeping, sql
from durable_flows.engine.history import Claim, Waiting
from durable_flows.errors import (
    ApprovalClosed,
    InvalidDecision,
    InvalidOption,
    NotAllowed,
    UnknownApproval,
)
from durable_flows.rules import clock, events, keys, payload
from durable_flows.rules.events import Event
from durable_flows.rules.states import WaitOutcome

PATHS = ("data.approval",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a flow asks people for.

    Attributes:
        question: what they are to decide.
        permission: that who decides must have; empty: none.
        assignees: names of the users of whom one decides; empty: anybody.
        form: the dotted path of a form that is to be filled in; empty: none.
    """

    question: str
    permission: str
    assignees: tuple[str, ...]
    form: str

    @classmethod
    def of(
        cls,
        what: str,
        question: str,
        permission: str | None,
        assignees: Sequence[str],
        form: type[Form] | str | None,
    ) -> Asked:
        """What `Step.wait_for_approval` was told. Raises `InvalidOption`."""
        if permission is not None and str(permission).count(".") != 1:
            raise InvalidOption(f"{what}: permission= is 'app_label.codename', not {permission!r}")
        if isinstance(assignees, str) or not all(isinstance(one, str) for one in assignees):
            raise InvalidOption(f"{what}: assignees= is a list of user names, not {assignees!r}")
        return cls(
            question=str(question),
            permission=permission or "",
            assignees=tuple(assignees),
            form=_path_of(what, form),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a person has decided.

    Attributes:
        approved: or rejected.
        by: the name of the user, or of whoever has decided in Python.
        at: when.
        comment: what they said.
        data: the form's cleaned data.
    """

    approved: bool
    by: str
    at: datetime
    comment: str
    data: dict[str, Any]

    @classmethod
    def of(cls, event: Event) -> Decision:
        """The decision that a command carries."""
        said = event.data
        return cls(
            approved=said["approved"],
            by=said["by"],
            at=datetime.fromisoformat(said["at"]),
            comment=said["comment"],
            data=said["data"],
        )

    def said(self) -> dict[str, Any]:
        """What such a command carries of it."""
        return {
            "approved": self.approved,
            "by": self.by,
            "at": self.at.isoformat(),
            "comment": self.comment,
            "data": self.data,
        }

    def told(self) -> Event:
        """The inverse of `of`."""
        return Event(events.DECIDED, self.said())


def _path_of(what: str, form: type[Form] | str | None) -> str:
    """The dotted path of a form, by which the dashboard finds it again."""
    if form is None:
        return ""
    path = form if isinstance(form, str) else f"{form.__module__}.{form.__qualname__}"
    try:
        found = import_string(path)
    except ImportError as error:
        raise InvalidOption(
            f"{what}: form= is a form of a module, which can be imported by its path; {path!r} "
            f"cannot: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, BaseForm)):
        raise InvalidOption(f"{what}: form= is a form of Django's, not {found!r}")
    return path


def request(claim: Claim, key: str, asked: Asked, patience: timedelta) -> Waiting:
    """The wait of a step for a decision, which names the approval."""
    id_, now = keys.wait_id(claim.run_id, key, claim.generation), clock.now()
    return Waiting(
        id=id_,
        key=key,
        event_name=events.DECIDED,
        paths=PATHS,
        criteria=asked.question[:200],
        expression="",
        match=keys.match_hash(events.DECIDED, PATHS, [str(id_)]),
        eligible_from=0,
        routed_since=None,
        received_since=None,
        created_at=now,
        expires_at=now + patience,
    )


def ask(claim: Claim, key: str, asked: Asked) -> None:
    """Let people see what is asked, as long as the wait of this step is pending."""
    sql.insert(
        models.Approval,
        {
            "id": [keys.wait_id(claim.run_id, key, claim.generation)],
            "run_id": [claim.run_id],
            "key": [key],
            "question": [asked.question],
            "permission": [asked.permission],
            "assignees": [json.dumps(asked.assignees)],
            "form": [asked.form],
            "created_at": [clock.now()],
        },
    )


def decide(
    approval_id: str | uuid.UUID,
    approved: bool,
    *,
    by: Any,
    data: dict[str, Any] | None = None,
    comment: str = "",
) -> None:
    """Approve or reject what a flow waits for; joins the caller's transaction.

    Args:
        approval_id: the id of the `Approval`.
        approved: whether.
        by: the user who decides; a text for whoever does so by right, in code.
        data: what the form is filled in with, if it has one.
        comment: for those who read it later.

    Raises:
        UnknownApproval: there is none of this id.
        NotAllowed: the user is not among the assignees, or lacks the permission.
        ApprovalClosed: it has been decided, its time is over, or its run has ended.
        InvalidDecision: the form is not filled in as it should be; its errors are an attribute.
        InvalidEvent: what the form yields cannot be stored.
    """
    found = _find(approval_id)
    _check_open(found)
    _check_right(found, by)
    decision = Decision(
        approved=bool(approved),
        by=by if isinstance(by, str) else by.get_username(),
        at=clock.now(),
        comment=comment,
        data=_cleaned(found, approved, data),
    )
    sealed = replace(decision, data=keeping.said(decision.data, events.DECIDED))
    said = {"approval": str(found.pk), **sealed.said()}
    if not ingest.decide(found.pk, said, run_id=found.run_id):
        raise ApprovalClosed(f"approval {found.pk} has been decided by somebody else")


def _find(approval_id: str | uuid.UUID) -> models.Approval:
    rows = models.Approval.objects.using(conf.settings().DATABASE)
    try:
        return rows.get(pk=uuid.UUID(str(approval_id)))
    except (ValueError, models.Approval.DoesNotExist):
        raise UnknownApproval(f"there is no approval {approval_id}; was its run purged?") from None


def _check_open(found: models.Approval) -> None:
    wait = models.Wait.objects.using(conf.settings().DATABASE).filter(pk=found.pk).first()
    if wait is None or wait.outcome == WaitOutcome.CLOSED:
        raise ApprovalClosed(f"approval {found.pk} is of no more interest: its run went on without")
    if wait.outcome == WaitOutcome.EVENT:
        raise ApprovalClosed(f"approval {found.pk} has been decided")
    if wait.outcome or wait.expires_at <= clock.now():
        raise ApprovalClosed(f"approval {found.pk} was to be decided by {wait.expires_at:%c}")


def _check_right(found: models.Approval, by: Any) -> None:
    if isinstance(by, str):
        return
    assignees = json.loads(found.assignees)
    if assignees and by.get_username() not in assignees:
        raise NotAllowed(f"{by.get_username()} is not among those who decide: {assignees}")
    if found.permission and not by.has_perm(found.permission):
        raise NotAllowed(f"{by.get_username()} needs the permission {found.permission!r} to decide")


def form_of(found: models.Approval) -> type[Form] | None:
    """The form that is to be filled in, if there is one.

    Raises:
        ImportError: it is gone from the code.
    """
    return import_string(found.form) if found.form else None


def _cleaned(found: models.Approval, approved: bool, data: dict[str, Any] | None) -> dict[str, Any]:
    """What the form makes of it; a rejection needs none."""
    kind = form_of(found)
    if kind is None:
        if data:
            raise InvalidDecision(f"approval {found.pk} has no form to fill in", {})
        return {}
    if not approved and data is None:
        return {}
    form = kind(data or {})
    if not form.is_valid():
        errors = {name: [str(one) for one in found_] for name, found_ in form.errors.items()}
        raise InvalidDecision(f"the form of approval {found.pk} is not filled in: {errors}", errors)
    cleaned: dict[str, Any] = payload.loads(json.dumps(form.cleaned_data, default=str))
    return cleaned

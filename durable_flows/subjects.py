"""Models whose rows have runs: `FlowSubject`, and what becomes of the runs when a row is deleted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from django.contrib.contenttypes.fields import GenericRelation
from django.db import models
from django.db.models.deletion import ProtectedError
from django.db.models.signals import pre_delete

from durable_flows.errors import InvalidOption, WrongDatabase

if TYPE_CHECKING:
    from durable_flows.models import Run
    from durable_flows.querysets import RunQuerySet

OnDelete = Literal["keep", "cancel", "protect"]

MOST_SHOWN = 100  # runs that an error about a protected row brings along


class FlowRuns(GenericRelation):
    """The runs that are about a row. They are never deleted with it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            "durable_flows.Run", object_id_field="subject_id", content_type_field="subject_type"
        )

    def contribute_to_class(
        self, cls: type[models.Model], name: str, private_only: bool = True, **kwargs: Any
    ) -> None:
        """Become a part of a model. Raises `InvalidOption` if it wants what is not known."""
        super().contribute_to_class(cls, name, **kwargs)
        policy = getattr(cls, "flow_runs_on_delete", "keep")
        if policy not in get_args(OnDelete):
            raise InvalidOption(
                f"{cls.__qualname__}.flow_runs_on_delete is 'keep', 'cancel' or 'protect', not {policy!r}"
            )
        if policy == "cancel" and not cls._meta.abstract:
            pre_delete.connect(_cancel_runs, sender=cls, dispatch_uid="durable_flows")

    def bulk_related_objects(self, objs: Iterable[Any], using: str = "default") -> Any:
        """What Django would delete together with these rows: nothing.

        Raises:
            ProtectedError: they are protected by runs that have not ended.
        """
        if getattr(self.model, "flow_runs_on_delete", "keep") == "protect":
            _protect(self.model, list(objs), using)
        return self._runs().none()

    @staticmethod
    def _runs() -> RunQuerySet:
        from durable_flows.models import Run

        return Run.objects.all()


class FlowSubject(models.Model):
    """A mixin for models: their rows have ``flow_runs``, the runs that are about them.

    Attributes:
        flow_runs: the runs that were sent or started with the row as their subject.
        flow_runs_on_delete: what becomes of unfinished runs when the row is deleted: they are kept, they
            are cancelled, or the row is protected by them.
    """

    flow_runs = FlowRuns()

    flow_runs_on_delete: ClassVar[OnDelete] = "keep"

    class Meta:
        abstract = True


def _cancel_runs(*, instance: models.Model, using: str, **_: Any) -> None:
    """Ask, in the transaction that deletes the row, for the runs to be cancelled that are about it."""
    from durable_flows.engine import ingest

    runs = _unfinished(type(instance), [instance], using).values_list("pk", flat=True)
    why = f"{instance._meta.label} {instance.pk} was deleted"
    ingest.cancel_all(dict.fromkeys(runs, why))


def _protect(model: type[models.Model], rows: list[models.Model], using: str) -> None:
    runs = _unfinished(model, rows, using).defer("result", "error").order_by("pk")
    found: list[Run] = list(runs[:MOST_SHOWN])
    if found:
        raise ProtectedError(
            f"{model._meta.label}: a row that runs are about, which have not ended, is protected from "
            f"being deleted; cancel them first, or wait for their end: run {found[0].pk} of flow "
            f"{found[0].flow!r}, for instance",
            set(found),
        )


def _unfinished(model: type[models.Model], rows: list[models.Model], using: str) -> RunQuerySet:
    """The unfinished runs about these rows, but for the one that deletes them, if one does.

    Raises:
        WrongDatabase: the rows are not beside the app's tables.
    """
    from django.contrib.contenttypes.models import ContentType

    from durable_flows import conf
    from durable_flows.engine import senders
    from durable_flows.models import Run

    own = conf.settings().DATABASE
    if using != own:
        raise WrongDatabase(
            f"a row of {model._meta.label} is to be deleted from database {using!r}, the tables of "
            f"durable_flows are on {own!r}: what becomes of its runs cannot be part of that; let "
            "flow_runs_on_delete be 'keep'"
        )
    kind = ContentType.objects.db_manager(own).get_for_model(model)
    runs = Run.objects.using(own).filter(
        subject_type=kind, subject_id__in=[str(row.pk) for row in rows]
    )
    deletes = senders.here()
    return (runs.exclude(pk=deletes.run_id) if deletes else runs).unfinished()

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models

from durable_flows import FlowSubject


class Author(FlowSubject):
    """Its runs are kept when it is deleted."""

    name = models.CharField(max_length=50, default="Ada")

    class Meta:
        app_label = "library"

    def __str__(self) -> str:
        return self.name


class Loan(FlowSubject):
    """Its runs are cancelled when it is deleted."""

    flow_runs_on_delete = "cancel"

    author = models.ForeignKey(Author, models.CASCADE, null=True)

    class Meta:
        app_label = "library"

    def __str__(self) -> str:
        return f"loan {self.pk}"


class LoanByPost(Loan):
    """A proxy."""

    class Meta:
        app_label = "library"
        proxy = True


class LongLoan(Loan):
    """A table of its own, with a parent."""

    until = models.DateField(null=True)

    class Meta:
        app_label = "library"


class Card(FlowSubject):
    """It is protected by its runs; its key is a UUID."""

    flow_runs_on_delete = "protect"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    author = models.ForeignKey(Author, models.CASCADE, null=True)

    class Meta:
        app_label = "library"

    def __str__(self) -> str:
        return f"card {self.pk}"


class Shelf(models.Model):
    """Its key is a text, which may be long, and it has no mixin."""

    code = models.CharField(max_length=400, primary_key=True)

    class Meta:
        app_label = "library"

    def __str__(self) -> str:
        return self.code


class Copy(models.Model):
    """Its key has two columns."""

    pk = models.CompositePrimaryKey("shelf", "number")
    shelf = models.CharField(max_length=50)
    number = models.IntegerField()

    class Meta:
        app_label = "library"

    def __str__(self) -> str:
        return f"{self.shelf} {self.number}"


class Book(models.Model):
    """A field of every kind that there is."""

    title = models.CharField(max_length=100, default="Notes")
    status = models.CharField(max_length=20, default="ordered")
    copies = models.IntegerField(default=0)
    price = models.DecimalField(max_digits=8, decimal_places=2, default="0")
    published = models.DateField(null=True)
    changed_at = models.DateTimeField(auto_now=True)
    opens = models.TimeField(null=True)
    lent_for = models.DurationField(null=True)
    isbn = models.UUIDField(null=True)
    cover = models.FileField(null=True)
    tags = models.JSONField(default=list)
    scan = models.BinaryField(null=True)
    author = models.ForeignKey(Author, models.CASCADE, null=True)
    shelves = models.ManyToManyField(Shelf)

    class Meta:
        app_label = "library"
        indexes: ClassVar = []

    def __str__(self) -> str:
        return self.title


class Bestseller(Book):
    """A proxy."""

    class Meta:
        app_label = "library"
        proxy = True


class Atlas(Book):
    """A table of its own, with a parent."""

    scale = models.IntegerField(default=1)

    class Meta:
        app_label = "library"

"""Stock the shelves."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from example_project.shop.catalogue import stock


def stock_shelves(apps: Any, schema_editor: Any) -> None:
    stock(apps.get_model("shop", "Product").objects)


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_shop")]

    operations = [migrations.RunPython(stock_shelves, migrations.RunPython.noop)]

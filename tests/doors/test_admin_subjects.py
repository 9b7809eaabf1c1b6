"""The admin: runs on the pages of the rows that they are about, and these rows on the pages of runs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from durable_flows import cancel, flow
from durable_flows.admin import FlowRunsMixin
from durable_flows.models import Run
from durable_flows.testing import drain, run_of, send
from example_project.orders.models import Order
from tests.library.models import Author

pytestmark = pytest.mark.django_db

PAGES = "admin:orders_order"


@pytest.fixture(autouse=True)
def naps() -> None:
    @flow("nap", on="nap/taken")
    def nap(step):
        step.sleep("doze", "24h")


@pytest.fixture
def staff(client: Client, admin_user: User) -> Client:
    client.force_login(admin_user)
    return client


@pytest.fixture
def order() -> Order:
    return Order.objects.create(email="ada@example.com", item="lamp", quantity=1, total=40)


def napping(about: Any) -> str:
    event_id = send("nap/taken", subject=about)
    drain()
    return run_of(event_id).id


def page(client: Client, row: Any, name: str = PAGES) -> str:
    response = client.get(reverse(f"{name}_change", args=[row.pk]))
    assert response.status_code == 200
    return str(response.content.decode())


def may(client: Client, *codenames: str) -> None:
    user = User.objects.create_user("grace", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)


# -- the page of a row -------------------------------------------------------------------------


def test_the_page_of_a_row_lists_the_runs_that_are_about_it(staff, order):
    run_id = napping(order)
    other = napping(Author.objects.create())
    text = page(staff, order)
    assert reverse("admin:durable_flows_run_change", args=[run_id]) in text
    assert "sleeping" in text
    assert other not in text


def test_a_row_without_runs_says_how_to_come_by_one(staff, order):
    assert "No runs yet" in page(staff, order)


def test_the_newest_are_listed_with_a_link_to_all(staff, order):
    ids = [napping(order) for _ in range(23)]
    text = page(staff, order)
    assert sum(run_id in text for run_id in ids) == 20
    assert "The newest 20" in text
    url = re.search(r'href="(/admin/durable_flows/run/\?[^"]+)"', text)
    assert url
    listed = staff.get(url[1].replace("&amp;", "&"))
    assert listed.status_code == 200
    assert listed.context["cl"].result_count == 23


def test_it_takes_the_same_statements_however_many_runs_there_are(staff, order):
    def statements() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            page(staff, order)
        return len(queries)

    napping(order)
    statements()
    few = statements()
    for _ in range(5):
        napping(order)
    assert statements() == few


def test_only_who_may_view_runs_sees_them(client, order):
    run_id = napping(order)
    may(client, "view_order", "change_order")
    text = page(client, order)
    assert run_id not in text
    assert "flow_runs_section" not in text


def test_who_may_view_orders_and_runs_sees_them_without_being_allowed_to_change(client, order):
    run_id = napping(order)
    may(client, "view_order", "view_run")
    assert run_id in page(client, order)


def test_a_new_row_has_no_such_section(staff):
    response = staff.get(reverse(f"{PAGES}_add"))
    assert response.status_code == 200
    assert "flow_runs_section" not in response.content.decode()


def test_the_row_is_still_saved(staff, order):
    napping(order)
    fields = {"email": "b@example.com", "item": "lamp", "quantity": 2, "total": 80, "address": ""}
    response = staff.post(reverse(f"{PAGES}_change", args=[order.pk]), fields)
    assert response.status_code == 302
    order.refresh_from_db()
    assert order.quantity == 2


def test_the_mixin_keeps_the_fieldsets_and_read_only_fields_of_the_model_admin(rf, admin_user):
    class Fieldsets(FlowRunsMixin, admin.ModelAdmin):
        readonly_fields = ("email",)
        fieldsets = ((None, {"fields": ("item",)}), ("More", {"fields": ("email",)}))

    request = rf.get("/")
    request.user = admin_user
    shown = Fieldsets(Order, admin.site)
    row = Order(pk=1)
    assert [title for title, _ in shown.get_fieldsets(request, row)] == [None, "More", "Runs"]
    assert shown.get_readonly_fields(request, row) == ["email", "flow_runs_section"]
    assert [title for title, _ in shown.get_fieldsets(request)] == [None, "More"]
    assert Fieldsets.fieldsets[0][1] == {"fields": ("item",)}
    assert "durable_flows/admin.css" in str(shown.media)


def test_on_a_site_without_the_pages_of_runs_there_is_no_section(rf, admin_user):
    request = rf.get("/")
    request.user = admin_user
    shown = FlowRunsMixin(Order, admin.AdminSite("other"))
    assert [title for title, _ in shown.get_fieldsets(request, Order(pk=1))] == [None]


def test_a_row_that_is_protected_says_by_which_runs(staff, order):
    run_id = napping(order)
    url = reverse(f"{PAGES}_delete", args=[order.pk])
    text = staff.get(url).content.decode()
    assert "protected" in text
    assert run_id in text
    assert "doesn’t have permission" not in text
    staff.post(url, {"post": "yes"})
    assert Order.objects.exists()
    cancel(run_id)
    drain()
    staff.post(url, {"post": "yes"})
    assert not Order.objects.exists()
    assert Run.objects.exists()


# -- the page of a run -------------------------------------------------------------------------


def page_of_run(client: Client, run_id: str) -> str:
    return str(
        client.get(reverse("admin:durable_flows_run_change", args=[run_id])).content.decode()
    )


def test_the_page_of_a_run_leads_to_the_row_that_it_is_about(staff, order):
    text = page_of_run(staff, napping(order))
    assert f'<a href="{reverse(f"{PAGES}_change", args=[order.pk])}">order {order.pk}</a>' in text


def test_a_row_whose_model_has_no_page_is_named(staff):
    author = Author.objects.create(name="<b>Ada</b>")
    text = page_of_run(staff, napping(author))
    assert f"author {author.pk}" in text
    assert "Ada" not in text


def test_a_row_that_is_gone_is_said_to_be(staff):
    author = Author.objects.create()
    run_id, key = napping(author), author.pk
    author.delete()
    assert f"author {key}, which is no longer there" in page_of_run(staff, run_id)


def test_a_row_of_a_model_that_is_gone_is_said_to_be(staff):
    author = Author.objects.create()
    run_id = napping(author)
    ContentType.objects.filter(app_label="library", model="author").update(model="gone")
    ContentType.objects.clear_cache()
    assert f"gone {author.pk}, of a model that is no longer there" in page_of_run(staff, run_id)
    ContentType.objects.clear_cache()


def test_a_run_about_nothing_says_nothing_of_a_subject(staff):
    assert "field-about" not in page_of_run(staff, napping(None))


def test_the_page_of_an_event_leads_to_the_row_that_it_is_about(staff, order):
    url = reverse("admin:durable_flows_event_change", args=[send("order/seen", subject=order)])
    text = staff.get(url).content.decode()
    assert f'<a href="{reverse(f"{PAGES}_change", args=[order.pk])}">order {order.pk}</a>' in text

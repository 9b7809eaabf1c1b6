"""The shop's pages: what each shows, refuses and sends."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from durable_flows.errors import InvalidEvent
from durable_flows.models import Event
from example_project.shop.models import Cart, CartItem, Order, Post, Product

pytestmark = pytest.mark.django_db

ADA = "ada@example.com"
PASSWORD = "a-slow-cupboard-of-my-own"


def url(page: str, *args: object) -> str:
    return reverse(f"shop:{page}", args=args)


def sent() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """What the pages have sent: name, data, user."""
    return [
        (event.name, json.loads(event.data), json.loads(event.user or "null"))
        for event in Event.objects.order_by("arrival")
    ]


def add(client: Client, slug: str = "stoneware-mug", email: str | None = ADA) -> Any:
    facts = {"email": email} if email is not None else {}
    return client.post(url("add-to-cart", slug), facts)


def text(response: Any) -> str:
    return str(response.content.decode())


@pytest.fixture
def ada() -> User:
    return User.objects.create_user(ADA, ADA, PASSWORD, first_name="Ada")


@pytest.fixture
def as_ada(ada: User) -> Client:
    client = Client()
    client.force_login(ada)
    return client


# -- catalogue -------------------------------------------------------------------------------


def test_the_catalogue_offers_every_product_with_its_price(client: Client) -> None:
    page = text(client.get(url("catalogue")))
    assert Product.objects.count() == 8
    for product in Product.objects.all():
        assert product.name in page
        assert f"€ {product.price}" in page
        assert url("add-to-cart", product.slug) in page


def test_empty_shelves_say_where_products_come_from(client: Client) -> None:
    Product.objects.all().delete()
    page = text(client.get(url("catalogue")))
    assert "The shelves are empty" in page
    assert "in the admin" in page


def test_a_picture_is_not_needed(client: Client) -> None:
    Product.objects.update(picture="")
    assert "<img class=" not in text(client.get(url("catalogue")))


# -- into the cart ---------------------------------------------------------------------------


def test_a_visitor_who_cannot_be_reached_is_asked_first_and_nothing_is_sent(
    client: Client,
) -> None:
    response = add(client, email=None)
    assert response.status_code == 200
    assert "Where can we reach you?" in text(response)
    assert "errorlist" not in text(response)  # nothing was filled in wrongly yet
    assert not Cart.objects.exists()
    assert sent() == []


@pytest.mark.parametrize("address", ["", "ada", "ada@", "a b@example.com", "a" * 250 + "@x.org"])
def test_an_address_that_is_none_is_refused_and_nothing_is_sent(
    client: Client, address: str
) -> None:
    response = add(client, email=address)
    assert response.status_code == 200
    assert "errorlist" in text(response)
    assert not Cart.objects.exists()
    assert sent() == []


def test_adding_a_product_sends_cart_product_and_address(client: Client) -> None:
    response = add(client)
    assert response.headers["Location"] == url("cart")
    cart, mug = Cart.objects.get(), Product.objects.get(slug="stoneware-mug")
    assert cart.email == ADA
    assert sent() == [
        (
            "cart/product.added",
            {"cart_id": str(cart.pk), "product_id": mug.pk, "product_name": "Stoneware mug"},
            {"email": ADA},
        )
    ]
    assert "Stoneware mug is in your cart." in text(client.get(url("cart")))


def test_the_address_is_asked_for_once_a_cart(client: Client) -> None:
    add(client)
    assert add(client, "oak-board", email=None).headers["Location"] == url("cart")
    (_, first, _), (_, second, user) = sent()
    assert first["cart_id"] == second["cart_id"]
    assert user == {"email": ADA}


def test_a_customer_is_never_asked(as_ada: Client) -> None:
    add(as_ada, email=None)
    assert [user for _, _, user in sent()] == [{"email": ADA}]


def test_the_same_product_twice_is_one_line_and_two_events(client: Client) -> None:
    add(client)
    Product.objects.update(price=Decimal("20.00"))
    add(client)
    item = CartItem.objects.get()
    assert (item.quantity, item.price) == (2, Decimal("20.00"))
    assert len(sent()) == 2


def test_a_product_that_is_not_there_is_not_found(client: Client) -> None:
    assert add(client, "unicorn").status_code == 404
    assert sent() == []


def test_looking_at_the_form_s_address_leads_back_to_the_shop(client: Client) -> None:
    response = client.get(url("add-to-cart", "stoneware-mug"))
    assert response.headers["Location"] == url("catalogue")
    assert sent() == []


# -- the cart --------------------------------------------------------------------------------


def test_an_empty_cart_leads_to_the_shop(client: Client) -> None:
    page = text(client.get(url("cart")))
    assert "Nothing in here yet" in page
    assert url("check-out") not in page


def test_a_cart_shows_lines_total_and_count(client: Client) -> None:
    add(client)
    add(client)
    add(client, "oak-board")
    page = text(client.get(url("cart")))
    assert "2 × € 18.00" in page
    assert "€ 36.00" in page
    assert "€ 68.00" in page
    assert '<span class="count">3</span>' in page
    assert f'value="{ADA}"' in page


def test_a_removed_product_is_gone_and_nothing_is_sent(client: Client) -> None:
    add(client)
    add(client, "oak-board")
    response = client.post(url("remove-from-cart", "stoneware-mug"))
    assert response.headers["Location"] == url("cart")
    assert [item.product.slug for item in CartItem.objects.all()] == ["oak-board"]
    assert len(sent()) == 2


def test_nobody_removes_from_somebody_else_s_cart(client: Client) -> None:
    add(client)
    Client().post(url("remove-from-cart", "stoneware-mug"))
    assert CartItem.objects.count() == 1


def test_removing_takes_a_button(client: Client) -> None:
    assert client.get(url("remove-from-cart", "stoneware-mug")).status_code == 405


def test_the_link_in_a_mail_picks_the_cart_up_on_another_device(client: Client) -> None:
    add(client)
    elsewhere = Client()
    response = elsewhere.get(url("pick-up-cart", Cart.objects.get().pk), follow=True)
    assert "Stoneware mug" in text(response)


def test_the_link_to_a_cart_that_was_bought_shows_the_order(client: Client) -> None:
    add(client)
    client.post(url("check-out"), {"email": ADA})
    response = Client().get(url("pick-up-cart", Cart.objects.get().pk))
    assert response.headers["Location"] == Order.objects.get().get_absolute_url()


def test_the_link_to_no_cart_is_not_found(client: Client) -> None:
    assert client.get(url("pick-up-cart", uuid4())).status_code == 404


# -- check-out -------------------------------------------------------------------------------


def test_buying_sends_cart_order_and_address(client: Client) -> None:
    add(client)
    response = client.post(url("check-out"), {"email": "ada@work.example"})
    order = Order.objects.get()
    assert response.headers["Location"] == order.get_absolute_url()
    assert sent()[1:] == [
        (
            "cart/purchased",
            {"cart_id": str(order.cart_id), "order_id": str(order.order_id)},
            {"email": "ada@work.example"},
        )
    ]
    assert order.total == Decimal("18.00")
    page = text(client.get(order.get_absolute_url()))
    assert "ada@work.example" in page
    assert "Stoneware mug" in page


def test_a_cart_is_bought_once(client: Client) -> None:
    add(client)
    client.post(url("check-out"), {"email": ADA})
    response = client.post(url("check-out"), {"email": ADA}, follow=True)
    assert "There is nothing in your cart to buy." in text(response)
    assert Order.objects.count() == 1
    assert [name for name, _, _ in sent()] == ["cart/product.added", "cart/purchased"]


def test_what_comes_after_an_order_goes_into_another_cart(client: Client) -> None:
    add(client)
    client.post(url("check-out"), {"email": ADA})
    add(client, "oak-board")
    carts = [data["cart_id"] for name, data, _ in sent() if name == "cart/product.added"]
    assert len(set(carts)) == 2


def test_an_emptied_cart_cannot_be_bought(client: Client) -> None:
    add(client)
    client.post(url("remove-from-cart", "stoneware-mug"))
    client.post(url("check-out"), {"email": ADA})
    assert not Order.objects.exists()
    assert len(sent()) == 1


def test_a_wrong_address_at_check_out_is_said_beside_the_cart(client: Client) -> None:
    add(client)
    page = text(client.post(url("check-out"), {"email": "nowhere"}))
    assert "Enter a valid email address." in page
    assert "Stoneware mug" in page
    assert not Order.objects.exists()


def test_a_customer_checks_out_without_typing(as_ada: Client) -> None:
    add(as_ada, email=None)
    as_ada.post(url("check-out"))
    assert Order.objects.get().email == ADA


def test_looking_at_check_out_leads_to_the_cart(client: Client) -> None:
    assert client.get(url("check-out")).headers["Location"] == url("cart")


def test_an_order_that_is_not_there_is_not_found(client: Client) -> None:
    assert client.get(url("order", uuid4())).status_code == 404


# -- accounts --------------------------------------------------------------------------------

NEW = {"name": "Ada", "email": "Ada@Example.com", "password": PASSWORD}


def test_signing_up_sends_the_user_s_id_and_address_and_logs_in(client: Client) -> None:
    response = client.post(url("sign-up"), NEW)
    assert response.headers["Location"] == url("posts")
    user = User.objects.get()
    assert sent() == [("app/user.created", {"user": {"id": user.pk}}, {"email": ADA})]
    assert client.session["_auth_user_id"] == str(user.pk)
    assert user.check_password(PASSWORD)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": ""}, "This field is required."),
        ({"email": "nowhere"}, "Enter a valid email address."),
        ({"password": "short"}, "This password is too short."),
    ],
)
def test_a_form_filled_in_wrongly_says_so_and_sends_nothing(
    client: Client, settings: Any, wrong: dict[str, str], said: str
) -> None:
    validator = "django.contrib.auth.password_validation.MinimumLengthValidator"
    settings.AUTH_PASSWORD_VALIDATORS = [{"NAME": validator}]
    assert said in text(client.post(url("sign-up"), NEW | wrong))
    assert not User.objects.exists()
    assert sent() == []


@pytest.mark.usefixtures("ada")
def test_an_address_has_one_account(client: Client) -> None:
    page = text(client.post(url("sign-up"), NEW))
    assert "There is an account with this e-mail address already." in page
    assert sent() == []


def test_a_customer_does_not_sign_up_again(as_ada: Client) -> None:
    assert as_ada.get(url("sign-up")).headers["Location"] == url("catalogue")


@pytest.mark.usefixtures("ada")
def test_logging_in_takes_the_address_in_any_case(client: Client) -> None:
    facts = {"username": "ADA@example.com", "password": PASSWORD}
    assert client.post(url("log-in"), facts).headers["Location"] == url("catalogue")
    assert ADA in text(client.get(url("catalogue")))


@pytest.mark.usefixtures("ada")
def test_a_wrong_password_is_said_without_saying_which_half_is_wrong(client: Client) -> None:
    page = text(client.post(url("log-in"), {"username": ADA, "password": "wrong"}))
    assert "do not belong together" in page


def test_logging_out_leads_to_the_shop(as_ada: Client) -> None:
    assert as_ada.post(url("log-out")).headers["Location"] == url("catalogue")
    assert ADA not in text(as_ada.get(url("catalogue")))


# -- posts -----------------------------------------------------------------------------------

NOTE = {"title": "The kettle that came back", "body": "It took an afternoon."}


def test_writing_a_post_sends_the_author_s_id_and_the_post_s(as_ada: Client, ada: User) -> None:
    response = as_ada.post(url("write-post"), NOTE)
    assert response.headers["Location"] == url("posts")
    post = Post.objects.get()
    assert sent() == [
        ("app/post.created", {"user": {"id": ada.pk}, "post_id": post.pk}, {"email": ADA})
    ]
    assert NOTE["title"] in text(as_ada.get(url("posts")))


@pytest.mark.parametrize("missing", ["title", "body"])
def test_half_a_post_is_refused_and_nothing_is_sent(as_ada: Client, missing: str) -> None:
    page = text(as_ada.post(url("write-post"), NOTE | {missing: ""}))
    assert "This field is required." in page
    assert not Post.objects.exists()
    assert sent() == []


def test_writing_takes_an_account(client: Client) -> None:
    response = client.post(url("write-post"), NOTE)
    assert response.headers["Location"] == f"{url('log-in')}?next={url('write-post')}"
    assert sent() == []


def test_nobody_has_written_yet(client: Client) -> None:
    page = text(client.get(url("posts")))
    assert "Nobody has written yet" in page
    assert url("write-post") in page


def test_old_posts_are_on_the_next_page(client: Client, ada: User) -> None:
    Post.objects.bulk_create(Post(author=ada, title=f"Note {n}", body="…") for n in range(21))
    assert "Note 0<" not in text(client.get(url("posts")))
    assert "Note 0<" in text(client.get(url("posts"), {"page": "2"}))


def test_what_people_write_is_shown_as_text(client: Client, ada: User) -> None:
    Post.objects.create(author=ada, title="<script>alert(1)</script>", body="<b>bold</b>")
    page = text(client.get(url("posts")))
    assert "<script>alert" not in page
    assert "<b>bold" not in page


# -- one transaction -------------------------------------------------------------------------

Act = Callable[[Client], Any]
ACTS: dict[str, tuple[Act, Callable[[], bool]]] = {
    "adding": (lambda client: add(client, "oak-board"), lambda: CartItem.objects.count() > 1),
    "buying": (
        lambda client: client.post(url("check-out"), {"email": ADA}),
        lambda: Order.objects.exists() or not Cart.objects.open().exists(),
    ),
    "signing up": (
        lambda client: client.post(url("sign-up"), NEW | {"email": "new@example.com"}),
        lambda: User.objects.filter(email="new@example.com").exists(),
    ),
}


@pytest.mark.parametrize("act", ACTS)
def test_without_its_event_nothing_is_written(client: Client, settings: Any, act: str) -> None:
    add(client)
    settings.DURABLE_FLOWS = {"RING": "off", "MAX_EVENT_BYTES": 1}
    do, was_done = ACTS[act]
    with pytest.raises(InvalidEvent):
        do(client)
    assert not was_done()
    assert len(sent()) == 1


def test_without_its_event_no_post_is_written(as_ada: Client, settings: Any) -> None:
    settings.DURABLE_FLOWS = {"RING": "off", "MAX_EVENT_BYTES": 1}
    with pytest.raises(InvalidEvent):
        as_ada.post(url("write-post"), NOTE)
    assert not Post.objects.exists()

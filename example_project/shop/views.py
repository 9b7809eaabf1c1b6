"""The shop's pages. Every event is sent in the transaction that writes the rows it talks about."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView
from django.core.paginator import Paginator
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST

from durable_flows import send
from example_project.shop import carts
from example_project.shop.forms import ALREADY_KNOWN, EmailForm, LogInForm, PostForm, SignUpForm
from example_project.shop.models import Cart, CartItem, Order, Post, Product

# -- catalogue, cart and order ---------------------------------------------------------------


def catalogue(request: HttpRequest) -> HttpResponse:
    """All there is to buy."""
    return render(request, "shop/catalogue.html", {"products": Product.objects.all()})


def add_to_cart(request: HttpRequest, slug: str) -> HttpResponse:
    """Put one more in the cart. A visitor who cannot be reached is asked for an address first."""
    if request.method != "POST":
        return redirect("shop:catalogue")
    product = get_object_or_404(Product, slug=slug)
    email = carts.known_email(request, carts.cart_of(request))
    if not email:
        form = EmailForm(request.POST if "email" in request.POST else None)
        if not form.is_valid():
            return render(request, "shop/ask_email.html", {"form": form, "product": product})
        email = form.cleaned_data["email"]
    with transaction.atomic():
        cart = carts.locked_cart_of(request) or Cart.objects.create(email=email)
        carts.put(product, cart)
        send(
            "cart/product.added",
            {
                "cart_id": str(cart.pk),
                "product_id": product.pk,
                "product_name": product.name,
            },
            user={"email": email},
        )
    carts.remember(request, cart)
    messages.success(request, f"{product.name} is in your cart.")
    return redirect("shop:cart")


@require_POST
def remove_from_cart(request: HttpRequest, slug: str) -> HttpResponse:
    """Take a product out of the cart again, however many there are."""
    with transaction.atomic():
        cart = carts.locked_cart_of(request)
        CartItem.objects.filter(cart=cart, product__slug=slug).delete()
    return redirect("shop:cart")


def cart(request: HttpRequest) -> HttpResponse:
    """What the visitor has picked so far."""
    cart = carts.cart_of(request)
    return _cart_page(request, cart, EmailForm(initial={"email": cart.email if cart else ""}))


def _cart_page(request: HttpRequest, cart: Cart | None, form: EmailForm) -> HttpResponse:
    items = cart.items.select_related("product") if cart else CartItem.objects.none()
    return render(request, "shop/cart.html", {"cart": cart, "items": items, "form": form})


def pick_up_cart(request: HttpRequest, cart_id: UUID) -> HttpResponse:
    """The link in a reminder: the cart, on whatever device the mail was opened."""
    cart = get_object_or_404(Cart.objects.select_related("order"), pk=cart_id)
    if cart.bought_at is not None:
        return redirect(cart.order)
    carts.remember(request, cart)
    return redirect("shop:cart")


def check_out(request: HttpRequest) -> HttpResponse:
    """Buy what is in the cart. Pressed twice, it buys once."""
    if request.method != "POST":
        return redirect("shop:cart")
    if request.user.is_authenticated and request.user.email:
        email = request.user.email
    else:
        form = EmailForm(request.POST)
        if not form.is_valid():
            return _cart_page(request, carts.cart_of(request), form)
        email = form.cleaned_data["email"]
    with transaction.atomic():
        cart = carts.locked_cart_of(request)
        order = _buy(cart, email) if cart and cart.count() else None
    if order is None:
        messages.warning(request, "There is nothing in your cart to buy.")
        return redirect("shop:cart")
    carts.forget(request)
    return redirect(order)


def _buy(cart: Cart, email: str) -> Order:
    cart.email, cart.bought_at = email, timezone.now()
    cart.save(update_fields=["email", "bought_at"])
    order = Order.objects.create(cart=cart, email=email, total=cart.total())
    send(
        "cart/purchased",
        {"cart_id": str(cart.pk), "order_id": str(order.order_id)},
        user={"email": email},
    )
    return order


def order(request: HttpRequest, order_id: UUID) -> HttpResponse:
    """The confirmation. Whoever knows the order's random id may see it."""
    order = get_object_or_404(Order.objects.select_related("cart"), order_id=order_id)
    items = order.cart.items.select_related("product")
    return render(request, "shop/order.html", {"order": order, "items": items})


# -- accounts --------------------------------------------------------------------------------


class LogIn(LoginView):
    """E-mail address and password."""

    form_class = LogInForm
    template_name = "shop/log_in.html"
    redirect_authenticated_user = True


def sign_up(request: HttpRequest) -> HttpResponse:
    """Open an account, and be logged in with it."""
    if request.user.is_authenticated:
        return redirect("shop:catalogue")
    form = SignUpForm(request.POST or None)
    if not form.is_valid() or (user := _new_customer(form)) is None:
        return render(request, "shop/sign_up.html", {"form": form})
    login(request, user)
    messages.success(request, f"Welcome, {user.first_name}!")
    return redirect("shop:posts")


def _new_customer(form: SignUpForm) -> User | None:
    user = form.user()
    user.set_password(form.cleaned_data["password"])  # slow: not while others wait to write
    try:
        with transaction.atomic():
            user.save()
            send("app/user.created", {"user": {"id": user.pk}}, user={"email": user.email})
    except IntegrityError:  # somebody else took the address since the form looked
        form.add_error("email", ALREADY_KNOWN)
        return None
    return user


# -- posts -----------------------------------------------------------------------------------


def posts(request: HttpRequest) -> HttpResponse:
    """What customers wrote, newest first."""
    page = Paginator(Post.objects.select_related("author"), 20).get_page(request.GET.get("page"))
    return render(request, "shop/posts.html", {"page": page})


@login_required
def write_post(request: HttpRequest) -> HttpResponse:
    """Write a note for the others."""
    assert isinstance(request.user, User)
    form = PostForm(request.POST or None)
    if not form.is_valid():
        return render(request, "shop/write_post.html", {"form": form})
    form.instance.author = request.user
    with transaction.atomic():
        post = form.save()
        send(
            "app/post.created",
            {"user": {"id": request.user.pk}, "post_id": post.pk},
            user={"email": request.user.email},
        )
    messages.success(request, "Your note is up. Thank you!")
    return redirect("shop:posts")

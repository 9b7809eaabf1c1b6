"""The shop's pages."""

from __future__ import annotations

from django.contrib.auth.views import LogoutView
from django.urls import path

from example_project.shop import views

app_name = "shop"

urlpatterns = [
    path("", views.catalogue, name="catalogue"),
    path("cart/", views.cart, name="cart"),
    path("cart/add/<slug:slug>/", views.add_to_cart, name="add-to-cart"),
    path("cart/remove/<slug:slug>/", views.remove_from_cart, name="remove-from-cart"),
    path("cart/pick-up/<uuid:cart_id>/", views.pick_up_cart, name="pick-up-cart"),
    path("check-out/", views.check_out, name="check-out"),
    path("orders/<uuid:order_id>/", views.order, name="order"),
    path("sign-up/", views.sign_up, name="sign-up"),
    path("log-in/", views.LogIn.as_view(), name="log-in"),
    path("log-out/", LogoutView.as_view(), name="log-out"),
    path("posts/", views.posts, name="posts"),
    path("posts/new/", views.write_post, name="write-post"),
]

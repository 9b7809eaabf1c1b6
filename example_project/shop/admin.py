"""The shop's shelves and books, for those who run it."""

from __future__ import annotations

from django.contrib import admin

from example_project.shop.models import Cart, CartItem, Order, Post, Product


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The shelves."""

    list_display = ["name", "price", "position"]
    list_editable = ["price", "position"]
    search_fields = ["name", "summary"]
    prepopulated_fields = {"slug": ["name"]}


class CartItemInline(admin.TabularInline):  # type: ignore[type-arg]
    """What is in a cart."""

    model = CartItem
    extra = 0


@admin.register(Cart)
class CartAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Carts, open and bought."""

    list_display = ["cart_id", "email", "created_at", "bought_at"]
    list_filter = [("bought_at", admin.EmptyFieldListFilter)]
    search_fields = ["cart_id", "email"]
    readonly_fields = ["cart_id", "created_at", "bought_at"]
    inlines = [CartItemInline]


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Orders, newest first."""

    list_display = ["__str__", "email", "total", "created_at"]
    search_fields = ["order_id", "email"]
    readonly_fields = ["order_id", "cart", "created_at"]


@admin.register(Post)
class PostAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """What customers wrote."""

    list_display = ["title", "author", "created_at"]
    list_select_related = ["author"]
    search_fields = ["title", "body"]
    raw_id_fields = ["author"]

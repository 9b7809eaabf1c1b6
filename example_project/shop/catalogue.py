"""What is on the shelves, as data. The migration stocks them, and so may a test."""

from __future__ import annotations

from typing import Any

SHELVES: list[dict[str, Any]] = [
    {
        "slug": "stoneware-mug",
        "name": "Stoneware mug",
        "price": "18.00",
        "summary": "Thrown by hand, glazed in sage. Holds exactly one good conversation.",
    },
    {
        "slug": "book-of-small-repairs",
        "name": "A Book of Small Repairs",
        "price": "24.00",
        "summary": "Darning, gluing, sharpening: ninety things worth keeping alive.",
    },
    {
        "slug": "enamel-kettle",
        "name": "Enamel kettle",
        "price": "46.00",
        "summary": "A litre and a half, a proper whistle, no app.",
    },
    {
        "slug": "beeswax-candle",
        "name": "Beeswax candle",
        "price": "12.50",
        "summary": "Forty hours of light that smells faintly of summer.",
    },
    {
        "slug": "wool-blanket",
        "name": "Wool blanket",
        "price": "89.00",
        "summary": "Woven in one piece from undyed wool, with a stripe to find the middle.",
    },
    {
        "slug": "oak-board",
        "name": "Oak board",
        "price": "32.00",
        "summary": "Bread side and cheese side. You decide which is which.",
    },
    {
        "slug": "field-notebook",
        "name": "Field notebook",
        "price": "9.50",
        "summary": "Ninety-six dotted pages that lie flat on a knee.",
    },
    {
        "slug": "linen-towel",
        "name": "Linen towel",
        "price": "16.00",
        "summary": "Dries glasses without lint and gets softer for years.",
    },
]


def stock(products: Any) -> None:
    """Put every product on the shelf, once; safe to repeat.

    Args:
        products: a manager of products, ``Product.objects`` or a migration's historical one.
    """
    for position, product in enumerate(SHELVES, start=1):
        facts = {key: value for key, value in product.items() if key != "slug"}
        picture = f"shop/products/{product['slug']}.svg"
        products.update_or_create(
            slug=product["slug"], defaults={**facts, "picture": picture, "position": position}
        )

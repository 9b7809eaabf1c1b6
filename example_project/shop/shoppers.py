"""A day of shoppers: who does what when, and what must have come of it.

`DAY` is the script, `EXPECTED` the outcome, both plain data; `Shopper` acts through the shop's
real pages. Playing the day is left to the caller, who owns the clock::

    shoppers = cast()
    for act in DAY:
        ...  # let the time go on to act.at
        perform(act, shoppers[act.who])
    ...  # let the time go on to DAY_ENDS
    for who, shopper in shoppers.items():
        problems = differences(who, ended_runs_of(shopper.email))
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from urllib.parse import urlsplit

from django.test import Client
from django.urls import reverse

from example_project.shop.mails import CART_WAITING, FIRST_POST, WELCOME

# -- the script ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Act:
    """One thing that one shopper does.

    Attributes:
        at: time since the day began.
        who: the shopper's name.
        does: the method of `Shopper` to call.
        what: the product's slug, or the title of the post; empty for the other verbs.
    """

    at: timedelta
    who: str
    does: Literal["add_to_cart", "check_out", "sign_up", "write_post"]
    what: str = ""


def _clock(text: str) -> timedelta:
    hours, minutes = text.split(":")
    return timedelta(hours=int(hours), minutes=int(minutes))


def _adds(who: str, at: str, slug: str) -> Act:
    return Act(at=_clock(at), who=who, does="add_to_cart", what=slug)


def _buys(who: str, at: str) -> Act:
    return Act(at=_clock(at), who=who, does="check_out")


def _signs_up(who: str, at: str) -> Act:
    return Act(at=_clock(at), who=who, does="sign_up")


def _posts(who: str, at: str, title: str) -> Act:
    return Act(at=_clock(at), who=who, does="write_post", what=title)


# No act is within three hours of a deadline, so that a slow machine playing an hour in a second
# still sees the same day.
DAY: tuple[Act, ...] = tuple(
    sorted(
        [
            # Ada changes her mind upwards, then buys.
            _adds("Ada", "0:05", "stoneware-mug"),
            _adds("Ada", "2:00", "book-of-small-repairs"),
            _buys("Ada", "5:00"),
            # Bob fills a cart and forgets it.
            _adds("Bob", "0:15", "enamel-kettle"),
            # Cleo opens an account and writes.
            _signs_up("Cleo", "0:25"),
            _posts("Cleo", "3:25", "The kettle that came back"),
            # Dan opens an account and never writes.
            _signs_up("Dan", "0:40"),
            # Eve adds twice and never buys: one reminder, not two.
            _adds("Eve", "0:55", "beeswax-candle"),
            _adds("Eve", "4:00", "linen-towel"),
            # Finn has an account, so that the cart knows his address; he buys, but never writes.
            _signs_up("Finn", "1:10"),
            _adds("Finn", "1:20", "oak-board"),
            _buys("Finn", "1:40"),
            # Gwen buys, and later forgets a second cart.
            _adds("Gwen", "1:30", "wool-blanket"),
            _buys("Gwen", "2:30"),
            _adds("Gwen", "6:00", "beeswax-candle"),
            # Hugo adds three things in a row and takes his time to buy.
            _adds("Hugo", "2:10", "field-notebook"),
            _adds("Hugo", "2:12", "field-notebook"),
            _adds("Hugo", "2:15", "stoneware-mug"),
            _buys("Hugo", "13:00"),
            # Iris writes twice; nobody waits for the second.
            _signs_up("Iris", "2:45"),
            _posts("Iris", "5:30", "A sourdough, at last"),
            _posts("Iris", "7:30", "Where to find linen thread"),
            # Jun buys after the reminder came.
            _adds("Jun", "3:10", "field-notebook"),
            _buys("Jun", "33:00"),
        ],
        key=lambda act: act.at,
    )
)
DAY_ENDS = _clock("34:00")
"""By now every run of the day has ended; the last deadline is at 30:00."""

# -- the outcome -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one run ended.

    Attributes:
        flow: the flow's id.
        state: ``completed`` or ``cancelled``.
        steps: ids of the steps and waits that were recorded as finished, in order. A wait that
            the run's cancellation closed is not among them.
    """

    flow: str
    state: str
    steps: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.flow} {self.state} ({', '.join(self.steps) or 'no steps'})"


BOUGHT = Ended(flow="cart-abandonment", state="completed", steps=("purchased",))
REMINDED = Ended(flow="cart-abandonment", state="completed", steps=("purchased", "send-reminder"))
REPLACED = Ended(flow="cart-abandonment", state="cancelled")
ACTIVE = Ended(
    flow="activation-email",
    state="completed",
    steps=("send-welcome-email", "wait-for-post-creation"),
)
INACTIVE = Ended(
    flow="activation-email",
    state="completed",
    steps=("send-welcome-email", "wait-for-post-creation", "send-reminder-email"),
)

EXPECTED: dict[str, tuple[Ended, ...]] = {
    "Ada": (REPLACED, BOUGHT),
    "Bob": (REMINDED,),
    "Cleo": (ACTIVE,),
    "Dan": (INACTIVE,),
    "Eve": (REPLACED, REMINDED),
    "Finn": (INACTIVE, BOUGHT),
    "Gwen": (BOUGHT, REMINDED),
    "Hugo": (REPLACED, REPLACED, BOUGHT),
    "Iris": (ACTIVE,),
    "Jun": (REMINDED,),
}
"""Every run of every shopper, in the order in which they start."""

MAILS_OF_STEPS = {
    "send-reminder": CART_WAITING,
    "send-welcome-email": WELCOME,
    "send-reminder-email": FIRST_POST,
}


def expected_mails(who: str) -> list[str]:
    """Subjects of the mails this shopper must have got, in the order of their runs and steps."""
    return [MAILS_OF_STEPS[s] for run in EXPECTED[who] for s in run.steps if s in MAILS_OF_STEPS]


def differences(who: str, ended: Iterable[Ended]) -> list[str]:
    """What did not come as expected, one sentence each; empty if all is well.

    Runs are compared as a bag: the order in which they are handed in says nothing.
    """
    return compare(f"{who}: run", EXPECTED[who], ended)


def mail_differences(who: str, subjects: Iterable[str]) -> list[str]:
    """The same for the mails that were sent to this shopper."""
    return compare(f"{who}: mail", expected_mails(who), subjects)


def compare(what: str, expected: Iterable[object], seen: Iterable[object]) -> list[str]:
    """What is missing and what is too much, one sentence each, in whatever order they come."""
    wanted, got = Counter(expected), Counter(seen)
    missing = [f"{what} missing: {one}" for one in (wanted - got).elements()]
    return missing + [f"{what} not expected: {one}" for one in (got - wanted).elements()]


# -- the shoppers ----------------------------------------------------------------------------


class PageRefused(Exception):
    """A page of the shop did not accept what a shopper did."""


class Shopper:
    """Somebody with a browser.

    Args:
        name: a first name.
        tag: keeps e-mail addresses apart when the day is played again on the same database.
    """

    def __init__(self, name: str, tag: str = "") -> None:
        self.name = name
        self.email = f"{name.lower()}{'+' if tag else ''}{tag.lower()}@example.com"
        self._browser = Client(enforce_csrf_checks=True)
        self._has_account = False

    def add_to_cart(self, slug: str) -> None:
        """Press "Add to cart", giving the address where there is no account."""
        to = reverse("shop:add-to-cart", args=[slug])
        self._submit("shop:catalogue", to, self._address(), lands_on=reverse("shop:cart"))

    def check_out(self) -> None:
        """Buy what is in the cart."""
        to = reverse("shop:check-out")
        self._submit("shop:cart", to, self._address(), lands_on="/orders/")

    def sign_up(self) -> None:
        """Open an account; the shopper is then logged in."""
        facts = {"name": self.name, "email": self.email, "password": "a-slow-cupboard-of-my-own"}
        to = reverse("shop:sign-up")
        self._submit("shop:sign-up", to, facts, lands_on=reverse("shop:posts"))
        self._has_account = True

    def write_post(self, title: str) -> None:
        """Write a note; takes an account."""
        facts = {"title": title, "body": "It took an afternoon, and I would do it again."}
        to = reverse("shop:write-post")
        self._submit("shop:write-post", to, facts, lands_on=reverse("shop:posts"))

    def _address(self) -> dict[str, str]:
        return {} if self._has_account else {"email": self.email}

    def _submit(self, page: str, to: str, facts: dict[str, str], *, lands_on: str) -> None:
        """Open a page, then send its form; success is a redirect to a path that begins so."""
        self._browser.get(reverse(page))
        token = self._browser.cookies.get("csrftoken")
        facts = {**facts, "csrfmiddlewaretoken": token.value if token else ""}
        response = self._browser.post(to, facts)
        landed = urlsplit(response.headers.get("Location", "")).path
        if response.status_code != 302 or not landed.startswith(lands_on):
            said = _complaint(response.content.decode()) or f"it went on to {landed}"
            raise PageRefused(f"{self.name}: POST {to} answered {response.status_code}: {said}")


def _complaint(page: str) -> str:
    """The errors of the form in this page, else the page's title, else nothing."""
    lists = re.findall(r'<ul class="errorlist.*?</ul>', page, re.DOTALL)
    errors = re.findall(r"<li>(.*?)</li>", "".join(lists), re.DOTALL)
    titles = re.findall(r"<title>(.*?)</title>", page, re.DOTALL)
    return html.unescape(" ".join(errors or titles[:1]))


def cast(tag: str = "") -> dict[str, Shopper]:
    """Everybody in the script, each with a fresh browser."""
    return {name: Shopper(name, tag) for name in EXPECTED}


def perform(act: Act, shopper: Shopper) -> None:
    """Do it.

    Raises:
        PageRefused: the page did not accept it.
    """
    match act.does:
        case "add_to_cart":
            shopper.add_to_cart(act.what)
        case "check_out":
            shopper.check_out()
        case "sign_up":
            shopper.sign_up()
        case "write_post":
            shopper.write_post(act.what)

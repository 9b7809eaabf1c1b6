import pytest
from durable_flows import flow, CancelOn
from durable_flows.registry import registry
from durable_flows.testing import *

@pytest.mark.django_db
def test_smoke():
    with registry.isolated():
        calls=[]
        @flow("cart", on="cart/product.added", cancel_on=[CancelOn("cart/product.added", match="data.cart_id", timeout="24h")])
        def cart(event, step):
            if step.wait_for_event("purchased", event="cart/purchased", match="data.cart_id", timeout="24h"):
                return "bought"
            step.run("remind", lambda: calls.append(1))
            return "reminded"
        a = send("cart/product.added", {"cart_id":"1"})
        drain()
        print(run_of(a))
        b = send("cart/product.added", {"cart_id":"1"})
        drain()
        print(run_of(a)); print(run_of(b))
        assert run_of(a).state=="cancelled"
        send("cart/purchased", {"cart_id":"1"})
        drain()
        assert run_of(b).result=="bought"
        c = send("cart/product.added", {"cart_id":"2"})
        advance("24h")
        assert run_of(c).result=="reminded"
        assert calls==[1]

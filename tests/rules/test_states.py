from itertools import product

import pytest

from durable_flows.errors import IllegalTransition
from durable_flows.rules.states import (
    ACTIONS,
    HELD,
    TERMINAL,
    DueState,
    RunState,
    StepKind,
    check_move,
)

LEGAL = {
    ("queued", "started"),
    ("queued", "completed"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("started", "completed"),
    ("started", "failed"),
    ("started", "cancelled"),
    ("failed", "queued"),  # a retry: the only way out of an end
}


@pytest.mark.parametrize(("state", "target"), list(product(RunState, RunState)))
def test_a_run_moves_only_as_the_table_says(state, target):
    if (state.value, target.value) in LEGAL:
        check_move(state, target)
    else:
        with pytest.raises(IllegalTransition) as caught:
            check_move(state, target)
        assert (caught.value.state, caught.value.target) == (state, target)
        assert f"{state} cannot become {target}" in str(caught.value)


def test_an_end_is_final_but_for_a_retry():
    leaving = {state for state, _ in LEGAL if state in TERMINAL}
    assert leaving == {RunState.FAILED}


def test_a_state_as_stored_is_a_state():
    check_move("queued", RunState.STARTED)
    with pytest.raises(ValueError, match="nonsense"):
        check_move("nonsense", RunState.STARTED)


def test_ends_and_leases_and_actions():
    assert {"completed", "failed", "cancelled"} == TERMINAL
    assert set(HELD) == {DueState.RUNNING, DueState.CANCELLING}
    assert {StepKind.RUN, StepKind.SEND, StepKind.INVOKE, StepKind.MAP} == ACTIONS

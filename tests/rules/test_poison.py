import pytest

from durable_flows.rules.poison import deaths


@pytest.mark.parametrize(
    ("unended", "lease", "recorded_under", "expected"),
    [
        (0, 1, 0, 0),  # nothing has happened
        (1, 2, 0, 0),  # others were claimed with it
        (2, 3, 0, 1),
        (4, 5, 0, 3),
        (2, 9, 6, 1),  # after slices that ended well
        (4, 5, 4, 0),  # the claim before this one recorded a step
        (4, 5, 3, 1),
        (1, 2, 1, 0),
        (4, 9, 5, 3),  # leases that were given back are no deaths
    ],
)
def test_only_deaths_alone_and_without_progress_count(
    unended: int, lease: int, recorded_under: int, expected: int
) -> None:
    assert deaths(unended=unended, lease=lease, recorded_under=recorded_under) == expected

from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.backoff import Backoff


@given(st.integers(1, 1_000), st.integers(0, 100_000), st.lists(st.booleans(), max_size=40))
def test_pauses_double_up_to_the_maximum_until_a_success(
    ms_min: int, more_ms: int, successes: list[bool]
) -> None:
    ms_max = ms_min + more_ms
    backoff = Backoff(ms_min, ms_max)
    failures = 0
    for is_success in successes:
        if is_success:
            backoff.reset()
            failures = 0
        else:
            assert backoff.pause_ms() == min(ms_min * 2**failures, ms_max)
            failures += 1

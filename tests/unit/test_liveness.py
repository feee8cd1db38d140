"""The rule that tells whether work is stalled."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.liveness import Liveness, observe, stalled_ms


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1_000), st.booleans()), min_size=1
    )
)
def test_a_stall_is_measured_from_the_last_check_with_progress_no_lag_or_an_excuse(
    checks: list[tuple[int, int, int, bool]],
) -> None:
    progress: Liveness | None = None
    now_ms = moved_at_ms = 0
    moves = 0
    for step, lag, ms, is_excused in checks:
        now_ms += ms
        moves += step
        if progress is None or step or lag == 0 or is_excused:
            moved_at_ms = now_ms
        progress = observe(progress, moves, lag, now_ms, is_excused=is_excused)
        assert progress.lag == lag
        assert stalled_ms(progress, now_ms) == (now_ms - moved_at_ms if lag else 0)


def test_a_cursor_that_moves_back_counts_as_progress() -> None:
    progress = observe(Liveness(10, 5, 1_000), 3, 12, 9_000)
    assert stalled_ms(progress, 9_000) == 0

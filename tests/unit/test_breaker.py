"""The circuit breaker as a state machine, against its documented rules."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.domain.breaker import (
    Breaker,
    BreakerRule,
    BreakerState,
    answered,
    failed,
    half_opened,
    succeeded,
    wait_ms,
)

RULE = BreakerRule(failure_threshold=3, recovery_timeout_ms=1_000)


class BreakerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 5_000
        self.breaker = Breaker()
        self.consecutive_failures = 0

    @rule(ms=st.integers(0, 1_500))
    def time_passes(self, ms: int) -> None:
        before = self.breaker
        self.now_ms += ms
        self.breaker = half_opened(before, RULE, self.now_ms)
        if before.state is BreakerState.OPEN:
            recovered = self.now_ms - before.opened_at_ms >= RULE.recovery_timeout_ms
            assert (self.breaker.state is BreakerState.HALF_OPEN) == recovered
        else:
            assert self.breaker == before

    @precondition(lambda self: self.breaker.state is BreakerState.CLOSED)
    @rule()
    def a_call_fails_while_closed(self) -> None:
        self.breaker = failed(self.breaker, RULE, self.now_ms)
        self.consecutive_failures += 1
        assert (self.breaker.state is BreakerState.OPEN) == (
            self.consecutive_failures >= RULE.failure_threshold
        )

    @precondition(lambda self: self.breaker.state is BreakerState.HALF_OPEN)
    @rule()
    def the_trial_chunk_fails(self) -> None:
        self.breaker = failed(self.breaker, RULE, self.now_ms)
        assert self.breaker.state is BreakerState.OPEN
        assert wait_ms(self.breaker, RULE, self.now_ms) == RULE.recovery_timeout_ms

    @precondition(lambda self: self.breaker.state is not BreakerState.OPEN)
    @rule()
    def a_chunk_succeeds(self) -> None:
        self.breaker = succeeded(self.breaker)
        self.consecutive_failures = 0
        assert self.breaker.state is BreakerState.CLOSED

    @rule()
    def a_probe_is_answered(self) -> None:
        before = self.breaker
        self.breaker = answered(before)
        if before.state is BreakerState.OPEN:
            assert self.breaker.state is BreakerState.HALF_OPEN
            assert wait_ms(self.breaker, RULE, self.now_ms) == 0
        else:
            assert self.breaker == before

    @precondition(lambda self: self.breaker.state is BreakerState.OPEN)
    @rule(is_success=st.booleans())
    def a_late_answer_changes_nothing_while_open(self, is_success: bool) -> None:
        before = self.breaker
        assert (succeeded(before) if is_success else failed(before, RULE, self.now_ms)) == before

    @invariant()
    def only_an_open_breaker_requires_a_wait(self) -> None:
        waiting = wait_ms(self.breaker, RULE, self.now_ms)
        assert 0 <= waiting <= RULE.recovery_timeout_ms
        assert waiting == 0 or self.breaker.state is BreakerState.OPEN


TestBreaker = BreakerMachine.TestCase

"""The limits on what clients may send: per user, per address, for this process. HTTP-free, no I/O.

Their arithmetic is `pipeline/domain/limiters.py`. Each limit is off unless its setting says otherwise, and a change of
the setting takes effect with the next request; one of another algorithm starts over.

At most `limited_clients_max` users, and as many addresses, are remembered; the least recently used one is forgotten,
and starts with a fresh allowance if it comes back. That is no cheap way around a limit: a request counts as use even if
it is refused, so a client that keeps asking is never forgotten, and for anybody else `limited_clients_max` other
clients have to send a request first. Whoever has so many addresses has as many allowances anyway. No limit per address
or user stops them; that is what the process limit and the admission are for. (Letting newcomers take over the state of
the forgotten would be stricter, but then these many clients could use up the allowance of every newcomer.)

Without tokens, a client can make up user ids, so the limit per user only stops those who do not.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import StrEnum

from pipeline.domain import limiters
from pipeline.domain.limiters import Algorithm, LimiterState, Rule
from pipeline.ingress.errors import LimitReached
from pipeline.settings import InForce, Settings

_UNUSED = (0, 0, 0)
"""`limiters.FRESH` as a plain tuple."""


class Scope(StrEnum):
    """What a limit counts together."""

    USER = "user"
    ADDRESS = "address"
    PROCESS = "process"


class ClientLimits:
    def __init__(self, in_force: InForce, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_force = in_force
        self._clock = clock
        self._users = _Limit(Scope.USER)
        self._addresses = _Limit(Scope.ADDRESS)
        self._process = _Limit(Scope.PROCESS)
        self._settings: Settings | None = None

    def check_address(self, network: str) -> None:
        """Count a request of this address or network. Raises LimitReached."""
        limit = self._current(self._addresses)
        if limit.rule is not None:
            limit.take(limit.rule, network, self._now_ms())

    def check_process(self) -> None:
        """Count a purchase. Raises LimitReached."""
        limit = self._current(self._process)
        if limit.rule is not None:
            limit.take(limit.rule, "", self._now_ms())

    def check_user(self, user_id: str) -> None:
        """Count a purchase of this user. Raises LimitReached."""
        limit = self._current(self._users)
        if limit.rule is not None:
            limit.take(limit.rule, user_id, self._now_ms())

    @property
    def limits_addresses(self) -> bool:
        """Whether there is a limit per address; without one, nobody needs to find out the address."""
        return self._current(self._addresses).rule is not None

    @property
    def refused(self) -> int:
        return self._users.refused + self._addresses.refused + self._process.refused

    def figures(self) -> Mapping[str, object]:
        """By limit that is on: its rule, how many clients are remembered, how many requests were refused.

        For the process also how many purchases would be admitted now.
        """
        found: dict[str, dict[str, object]] = {}
        for limit in (self._users, self._addresses, self._process):
            if (rule := self._current(limit).rule) is not None:
                found[limit.scope.value] = {
                    "algorithm": rule.algorithm.value,
                    "requests_per_second": rule.requests_per_second,
                    "burst": rule.burst,
                    "clients": len(limit),
                    "refused": limit.refused,
                }
                if limit is self._process:
                    found[limit.scope.value]["tokens"] = limit.allowed(rule, "", self._now_ms())
        return found

    def _current(self, limit: "_Limit") -> "_Limit":
        settings = self._in_force.settings
        if settings is not self._settings:
            self._settings = settings
            for each in (self._users, self._addresses, self._process):
                each.apply(settings)
        return limit

    def _now_ms(self) -> int:
        return int(self._clock() * 1_000)


class _Limit:
    """One limit and the states of its clients, the least recently used first."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.rule: Rule | None = None
        self.refused = 0
        self._clients_max = 1
        self._states: OrderedDict[str, tuple[int, int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def apply(self, settings: Settings) -> None:
        rule = _rule(settings, self.scope)
        if rule is None or self.rule is None or rule.algorithm is not self.rule.algorithm:
            self._states.clear()
        self.rule = rule
        self._clients_max = settings.limited_clients_max
        while len(self._states) > self._clients_max:
            self._states.popitem(last=False)

    def take(self, rule: Rule, client: str, now_ms: int) -> None:
        """Raises LimitReached."""
        states = self._states
        if (known := states.get(client)) is not None:
            states.move_to_end(client)
        elif len(states) >= self._clients_max:
            states.popitem(last=False)
        state = limiters.after_one(rule, known or _UNUSED, now_ms)
        if state is None:
            # Counted as use, although it changes nothing.
            states[client] = known or _UNUSED
            self.refused += 1
            full = limiters.admissible(rule, LimiterState(*(known or _UNUSED)), now_ms).state
            raise LimitReached(self.scope.value, rule, limiters.retry_after_ms(rule, full, now_ms))
        states[client] = state

    def allowed(self, rule: Rule, client: str, now_ms: int) -> int:
        state = LimiterState(*self._states.get(client, _UNUSED))
        return max(0, limiters.admissible(rule, state, now_ms).allowed)


def _rule(settings: Settings, scope: Scope) -> Rule | None:
    """The rule of a limit; None if it is off."""
    requests_per_second: int = getattr(settings, f"{scope}_limit_requests_per_second")
    burst: int = getattr(settings, f"{scope}_limit_burst")
    if requests_per_second == 0:
        return None
    algorithm = Algorithm(getattr(settings, f"{scope}_limit_algorithm"))
    return Rule(algorithm, requests_per_second, burst or requests_per_second)

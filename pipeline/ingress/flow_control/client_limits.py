"""The limits on what clients may send: per user, per address, for this process. HTTP-free, no I/O, no clock.

Their arithmetic is `pipeline/domain/limiters.py`. A limit is off unless its setting says otherwise. A change of a
setting takes effect with the next request; another algorithm or a smaller burst starts over.

At most `limited_clients_max` users, and as many addresses, are remembered. The least recently used one is forgotten,
and gets a fresh allowance if it returns. This does not weaken a limit: refused requests count as use, so a client that
keeps asking is never forgotten, and to be forgotten it must wait until `limited_clients_max` others have sent a
request. A client with that many addresses or user ids has as many allowances anyway; the process limit and admission
stop it, limits per address and user do not. (If newcomers inherited the state of the forgotten, such a client could use
up every newcomer's allowance.)

Without tokens, clients can make up user ids, so the limit per user stops only those that do not.
"""

from collections import OrderedDict
from collections.abc import Mapping
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
    """Each `now_s` is the time of one clock, which must not run backwards: that of the event loop."""

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force
        self._users = _Limit(Scope.USER)
        self._addresses = _Limit(Scope.ADDRESS)
        self._process = _Limit(Scope.PROCESS)
        self._applied: Settings | None = None

    def check_address(self, network: str, now_s: float) -> None:
        """Count a request of this address or network. Raises LimitReached."""
        if self._in_force.settings is not self._applied:
            self._apply_settings()
        if (rule := self._addresses.rule) is not None:
            self._addresses.take(rule, network, now_s)

    def check_process(self, now_s: float) -> None:
        """Count a purchase. Raises LimitReached."""
        if self._in_force.settings is not self._applied:
            self._apply_settings()
        if (rule := self._process.rule) is not None:
            self._process.take(rule, "", now_s)

    def check_user(self, user_id: str, now_s: float) -> None:
        """Count a purchase of this user that `check_process` has counted. Raises LimitReached.

        A refused one then no longer counts for the process, or a single user could use up the allowance of all.
        """
        if self._in_force.settings is not self._applied:
            self._apply_settings()
        if (rule := self._users.rule) is not None:
            try:
                self._users.take(rule, user_id, now_s)
            except LimitReached:
                self._process.give_back("")
                raise

    @property
    def limits_addresses(self) -> bool:
        """Whether there is a limit per address; without one, the address is not needed."""
        if self._in_force.settings is not self._applied:
            self._apply_settings()
        return self._addresses.rule is not None

    @property
    def refused(self) -> int:
        return self._users.refused + self._addresses.refused + self._process.refused

    def figures(self, now_s: float) -> Mapping[str, object]:
        """By limit that is on: its rule, how many clients are remembered, how many requests were refused.

        For the process also how many purchases would be admitted now.
        """
        if self._in_force.settings is not self._applied:
            self._apply_settings()
        found: dict[str, dict[str, object]] = {}
        for limit in (self._users, self._addresses, self._process):
            if (rule := limit.rule) is not None:
                found[limit.scope.value] = {
                    "algorithm": rule.algorithm.value,
                    "requests_per_second": rule.requests_per_second,
                    "burst": rule.burst,
                    "clients": len(limit),
                    "refused": limit.refused,
                }
                if limit is self._process:
                    found[limit.scope.value]["tokens"] = limit.allowed(rule, "", now_s)
        return found

    def _apply_settings(self) -> None:
        self._applied = self._in_force.settings
        for limit in (self._users, self._addresses, self._process):
            limit.apply(self._applied)


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
        before, rule = self.rule, _rule(settings, self.scope)
        # What passed under a larger burst could take days to drain at the new rate.
        is_similar = rule and before and rule.algorithm is before.algorithm and rule.burst >= before.burst
        if not is_similar:
            self._states.clear()
        self.rule = rule
        self._clients_max = settings.limited_clients_max
        while len(self._states) > self._clients_max:
            self._states.popitem(last=False)

    def take(self, rule: Rule, client: str, now_s: float) -> None:
        """Raises LimitReached."""
        now_ms = int(now_s * 1_000)
        states = self._states
        if (known := states.get(client)) is not None:
            states.move_to_end(client)
        elif len(states) >= self._clients_max:
            states.popitem(last=False)
        state = limiters.after_one(rule, known or _UNUSED, now_ms)
        if state is None:
            # Kept, because a refusal counts as use.
            states[client] = known or _UNUSED
            self.refused += 1
            full = limiters.admissible(rule, LimiterState(*(known or _UNUSED)), now_ms).state
            raise LimitReached(self.scope.value, rule, limiters.retry_after_ms(rule, full, now_ms))
        states[client] = state

    def give_back(self, client: str) -> None:
        """Undo a `take` of this client."""
        if self.rule is not None and (state := self._states.get(client)) is not None:
            self._states[client] = limiters.without_one(self.rule, state)

    def allowed(self, rule: Rule, client: str, now_s: float) -> int:
        state = LimiterState(*self._states.get(client, _UNUSED))
        return max(0, limiters.admissible(rule, state, int(now_s * 1_000)).allowed)


def _rule(settings: Settings, scope: Scope) -> Rule | None:
    """The rule of a limit; None if it is off."""
    requests_per_second: int = getattr(settings, f"{scope}_limit_requests_per_second")
    burst: int = getattr(settings, f"{scope}_limit_burst")
    if requests_per_second == 0:
        return None
    algorithm = Algorithm(getattr(settings, f"{scope}_limit_algorithm"))
    return Rule(algorithm, requests_per_second, burst or requests_per_second)

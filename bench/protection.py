"""What flow control and tokens add to a purchase, and what a refusal costs, in CPU time of the ingress.

The ingresses run side by side, and all but the one that is called are idle, so pairs are measured seconds apart.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import jwt
from cpu import Meter, pid_of
from stage import Stage
from web import ENOUGH, open_product
from wrk import WrkFailed, wrk

from pipeline.domain.limiters import REQUESTS_PER_SECOND_MAX
from pipeline.domain.product import WINS_PER_USER_MAX
from pipeline.local.listen import free_port
from pipeline.local.process import Process

SECRET = "a secret of the benchmark, of more than 32 bytes"  # noqa: S105 -- of this benchmark only
CONNECTIONS = 256
SECONDS = 3
WARM_UP_S = 3
EXPECTED_MIN = 0.95
"""The least fraction of answers with the status of the variant: a queue must fill before it refuses."""
TOKENS = 200_000
"""More than the purchases of a measurement: each buyer brings a token that the ingress has not seen."""
TOKEN_LIFETIME_S = 3_600

UNLIMITED: dict[str, object] = {
    **{
        f"{scope}_limit_{name}": REQUESTS_PER_SECOND_MAX
        for scope in ("user", "address", "process")
        for name in ("requests_per_second", "burst")
    },
    "loop_delay_ms_target": 10_000,
    "send_delay_ms_target": 60_000,
}
"""All three limits, and admission by the load of the process; nothing is refused."""
SIGNED: dict[str, object] = {"tokens_required": True, "token_secret": SECRET}


@dataclass(frozen=True, slots=True)
class Variant:
    """An ingress with these settings, all of whose answers have this status. `users` is how many tokens there are."""

    name: str
    status: int = 202
    settings: Mapping[str, object] = field(default_factory=dict)
    users: int = 0
    pauses_worker: bool = False


BARE = Variant("nothing", settings={"shedding_enable": False})
VARIANTS = (
    Variant("limits and admission", settings=UNLIMITED),
    Variant("limits, admission, known tokens", settings=UNLIMITED | SIGNED, users=5_000),
    Variant("limits, admission, new tokens", settings=UNLIMITED | SIGNED, users=TOKENS),
)
REFUSALS = (
    Variant("shed", 429, {"degradation_stage": "3"}),
    Variant("process limit", 429, {"process_limit_requests_per_second": 1}),
    Variant("address limit", 429, {"address_limit_requests_per_second": 1}),
    Variant("full queue", 429, {"queue_size": 1}, pauses_worker=True),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time of the ingress per answer, and as a multiple of that of an accepted purchase without protection."""

    name: str
    cpu_us: float
    ratio: float


class _Bench:
    def __init__(self, stage: Stage, worker: Process, directory: Path, stack: ExitStack) -> None:
        self._stage = stage
        self._worker = worker
        self._directory = directory
        self._stack = stack
        self._ingresses: dict[str, tuple[Process, str, str]] = {}
        self._tokens: dict[int, Path] = {}
        self._products = 0

    def start(self, variant: Variant) -> None:
        port, admin_port = free_port(), free_port()
        ports = {"public_port": port, "admin_port": admin_port}
        ingress = self._stage.ingress(len(self._ingresses) + 1, **ports, **variant.settings)
        self._stack.enter_context(ingress)
        urls = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
        self._ingresses[variant.name] = (ingress, *urls)
        if variant.users and variant.users not in self._tokens:
            self._tokens[variant.users] = _tokens(variant.users, self._directory)

    def cpu_us(self, variant: Variant, seconds: int = SECONDS) -> float:
        """CPU time of this variant's ingress per answer. Raises WrkFailed."""
        ingress, url, _ = self._ingresses[variant.name]
        self._products += 1
        product_id = f"protection-{self._products}"
        # Its own listener would want a token.
        open_product(self._ingresses[BARE.name][2], product_id, ENOUGH, per_user_limit=WINS_PER_USER_MAX)
        with self._paused_worker() if variant.pauses_worker else nullcontext():
            meter = Meter({"ingress": [pid_of(ingress)]})
            tokens = self._tokens.get(variant.users)
            answered = wrk(url, product_id, "async", CONNECTIONS, seconds, tokens=tokens)
            spent_s = meter.spent_s()["ingress"]
        if answered.statuses.get(variant.status, 0) < EXPECTED_MIN * answered.count:
            raise WrkFailed(f"{variant.name}: unexpected statuses: {answered}")
        return spent_s * 1e6 / answered.count

    @contextmanager
    def _paused_worker(self) -> Iterator[None]:
        """Nothing is decided inside, so the first purchases fill the queue."""
        self._worker.pause()
        try:
            yield
        finally:
            self._worker.resume()


def measure(stage: Stage, rounds: int) -> list[Cost]:
    """The cost of each variant and refusal, each the median of `rounds` pairs with a bare purchase right before it."""
    worker = stage.worker()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        stack.enter_context(worker)
        bench = _Bench(stage, worker, Path(directory), stack)
        for variant in (BARE, *VARIANTS, *REFUSALS):
            bench.start(variant)
            bench.cpu_us(variant, WARM_UP_S)
        bare: list[float] = []
        costs: dict[str, list[Cost]] = {}
        for _ in range(rounds):
            for variant in (*VARIANTS, *REFUSALS):
                bare.append(bench.cpu_us(BARE))
                cpu_us = bench.cpu_us(variant)
                costs.setdefault(variant.name, []).append(Cost(variant.name, cpu_us, cpu_us / bare[-1]))
    return [
        Cost(BARE.name, median(bare), 1.0),
        *(
            Cost(name, median(each.cpu_us for each in rows), median(each.ratio for each in rows))
            for name, rows in costs.items()
        ),
    ]


def _tokens(users: int, directory: Path) -> Path:
    """A file with a token for each of so many users, one per line."""
    expires_at = int(time.time()) + TOKEN_LIFETIME_S
    path = directory / f"tokens-{users}"
    tokens = (
        jwt.encode({"sub": f"user-{number}", "scope": "purchase", "exp": expires_at}, SECRET, "HS256")
        for number in range(users)
    )
    path.write_text("\n".join(tokens) + "\n")
    return path

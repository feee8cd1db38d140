"""What flow control and tokens add to a purchase, and what a refusal costs, in CPU time of the ingress.

Two ingresses run side by side, one with protection, and only one of them is called at a time. So both are measured
within seconds.
"""

import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

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


class _Pair:
    """An ingress without protection and one with that of a variant; whichever is not called is idle."""

    def __init__(self, stage: Stage, variant: Variant, tokens: Path | None) -> None:
        self._stage = stage
        self._variant = variant
        self._tokens = tokens

    def measure(self, rounds: int) -> list[tuple[float, float]]:
        """CPU time per answer without and with the variant, in each round. Raises WrkFailed."""
        with ExitStack() as stack:
            worker = stack.enter_context(self._stage.worker())
            bare, ours = (_start(self._stage, each, stack) for each in (BARE, self._variant))

            def bare_us() -> float:
                return self._cpu_us(BARE, bare, bare.admin_url, worker)

            def ours_us() -> float:
                # The administration listener of an ingress with tokens would want one, too.
                return self._cpu_us(self._variant, ours, bare.admin_url, worker)

            # To warm up.
            bare_us()
            ours_us()
            found = []
            for number in range(rounds):
                # The machine's speed changes from second to second: each goes first in its turn.
                if number % 2:
                    ours_first = ours_us()
                    found.append((bare_us(), ours_first))
                else:
                    found.append((bare_us(), ours_us()))
            return found

    def _cpu_us(self, variant: Variant, ingress: "_Ingress", admin_url: str, worker: Process) -> float:
        product_id = f"protection-{uuid.uuid4().hex}"
        open_product(admin_url, product_id, ENOUGH, per_user_limit=WINS_PER_USER_MAX)
        tokens = self._tokens if variant.users else None
        with _paused(worker) if variant.pauses_worker else nullcontext():
            meter = Meter({"ingress": [pid_of(ingress.process)]})
            answered = wrk(ingress.url, product_id, "async", CONNECTIONS, SECONDS, tokens=tokens)
            spent_s = meter.spent_s()["ingress"]
        if answered.statuses.get(variant.status, 0) < EXPECTED_MIN * answered.count:
            raise WrkFailed(f"{variant.name}: unexpected statuses: {answered}")
        return spent_s * 1e6 / answered.count


class _Ingress(NamedTuple):
    process: Process
    url: str
    admin_url: str


def _start(stage: Stage, variant: Variant, stack: ExitStack) -> _Ingress:
    port, admin_port = free_port(), free_port()
    ingress = stage.ingress(
        int(variant is not BARE), public_port=port, admin_port=admin_port, **variant.settings
    )
    stack.enter_context(ingress)
    return _Ingress(ingress, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}")


@contextmanager
def _paused(worker: Process) -> Iterator[None]:
    """Nothing is decided inside, so the first purchases fill the queue."""
    worker.pause()
    try:
        yield
    finally:
        worker.resume()


def measure(stage: Stage, rounds: int) -> list[Cost]:
    """The cost of a bare purchase, then of each variant and refusal. Raises WrkFailed."""
    bare: list[float] = []
    costs: list[Cost] = []
    with tempfile.TemporaryDirectory() as directory:
        for variant in (*VARIANTS, *REFUSALS):
            tokens = _tokens(variant.users, Path(directory)) if variant.users else None
            pairs = _Pair(stage, variant, tokens).measure(rounds)
            bare += [without for without, _ in pairs]
            ratio = median(ours / without for without, ours in pairs)
            costs.append(Cost(variant.name, median(ours for _, ours in pairs), ratio))
    return [Cost(BARE.name, median(bare), 1.0), *costs]


def _tokens(users: int, directory: Path) -> Path:
    """A file with one token per user and line."""
    expires_at = int(time.time()) + TOKEN_LIFETIME_S
    path = directory / f"tokens-{users}"
    tokens = (
        jwt.encode({"sub": f"user-{number}", "scope": "purchase", "exp": expires_at}, SECRET, "HS256")
        for number in range(users)
    )
    path.write_text("\n".join(tokens) + "\n")
    return path

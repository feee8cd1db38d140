"""The calls of both listeners, with the scope that each needs, and clients with tokens."""

from typing import Any, NamedTuple

from tokens import WITH_SECRET, bearer, token

from contract.serving import (
    ACTIVITY,
    PREWARM,
    PURCHASE,
    PURCHASE_ASYNC,
    PURCHASED,
    REQUESTS,
    STATS,
    SYSTEM,
    Reply,
    Service,
    opening,
)

TICKET = "/api/v1/seckill/ticket"
CONTROL = "/api/v1/control"
RESTRICTED: dict[str, Any] = {**WITH_SECRET, "tickets_required": True, "ticket_secret": "t" * 32}


class Call(NamedTuple):
    """A call that succeeds or fails for a reason other than access, if alice makes it with this scope."""

    method: str
    path: str
    template: str
    scope: str
    admin: bool = False
    body: Any = None

    async def make(self, service: Service, headers: dict[str, str], **more: Any) -> Reply:
        return await service.call(
            self.method,
            self.path,
            template=self.template,
            admin=self.admin,
            headers=headers,
            **({} if self.body is None else {"json": self.body}),
            **more,
        )


def _buy(path: str) -> Call:
    return Call("POST", path, path, "purchase", body={"product_id": 5, "user_id": "alice"})


def _get(prefix: str, rest: str, template: str, scope: str) -> Call:
    return Call("GET", prefix + rest, prefix + template, scope)


def _operate(command: str, body: Any = None, **more: Any) -> Call:
    path = f"{ACTIVITY}/{command}"
    return Call(
        "POST", path, path, "sale:write", admin=True, body={"product_id": 5, **more} if body is None else body
    )


def _control(method: str, query: str = "", body: Any = None) -> Call:
    return Call(
        method, f"{CONTROL}/retry_after_s{query}", f"{CONTROL}/{{name}}", "admin", admin=True, body=body
    )


CALLS = [
    _buy(PURCHASE),
    _buy(PURCHASE_ASYNC),
    _buy(TICKET),
    _get(REQUESTS, "0-0-0", "{request_id}", "purchase"),
    _get(REQUESTS, "0-0-0/events", "{request_id}/events", "purchase"),
    _get(PURCHASED, "5/alice", "{product_id}/{user_id}", "purchase"),
    _get(STATS, "5", "{product_id}", "sale:read"),
    _get(SYSTEM, "", "", "sale:read"),
    _get(STATS, "5", "{product_id}", "sale:read")._replace(admin=True),
    _get(ACTIVITY, "", "", "sale:read")._replace(admin=True),
    _operate("prewarm", opening(5)),
    _operate("adjust", change=1, reason="a box that was not counted"),
    _operate("pause"),
    _operate("resume"),
    _operate("extend", end_time="2080-01-01T00:00:00Z"),
    _operate("limits", per_user_limit=2),
    _operate("close"),
    _operate("cleanup"),
    _get(CONTROL, "", "", "admin")._replace(admin=True),
    _control("GET"),
    _control("PUT", body={"value": 2, "reason": "a crowd"}),
    _control("DELETE", "?reason=over"),
]
SCOPES = ("purchase", "sale:read", "sale:write", "admin")


async def prewarm(service: Service, product_id: int, **more: Any) -> None:
    headers = bearer(token("ops@shop.example", "sale:write"))
    opened = await service.call(
        "POST", PREWARM, admin=True, json=opening(product_id, **more), headers=headers
    )
    assert opened.status == 200, opened.text


async def buy(
    service: Service, headers: dict[str, str], path: str = PURCHASE, product_id: int = 5, **more: Any
) -> Reply:
    return await service.call("POST", path, json={"product_id": product_id, **more}, headers=headers)


def refused(reply: Reply, status: int, kind: str) -> dict[str, Any]:
    """The problem of a refusal; a 401 has a challenge (RFC 6750, 3), and so has a 403 for lack of a scope."""
    assert (reply.status, reply.kind) == (status, "application/problem+json"), reply.text
    problem: dict[str, Any] = reply.json()
    assert (problem["type"], problem["status"]) == (f"urn:seckill:problem:{kind}", status)
    challenge = reply.headers.get("WWW-Authenticate", "")
    expected = {
        "not-authenticated": "Bearer realm=",
        "insufficient-scope": 'Bearer realm="seckill", error="insuf',
    }
    assert challenge.startswith(expected.get(kind, "")), challenge
    assert bool(challenge) is (kind in expected)
    return problem

"""What claims grant, compared with PyJWT, which has a clock of its own, and with the rules of scopes."""

import time
from typing import Any

import jwt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokens import SECRET, claims, signed

from pipeline.domain.claims import ClaimFault, ClaimRules, Grant, judge_claims
from pipeline.domain.scopes import Caller, Scope, granted

NOW_S = 1_000_000
_RULES = st.builds(
    ClaimRules,
    st.just(0.0) | st.floats(0, 60),
    st.none() | st.just("shop"),
    st.none() | st.just("seckill"),
)
_ODD = st.none() | st.booleans() | st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=2)
_TIMES = st.integers(-100, 100).map(lambda after_s: after_s * 1_000)
"""Far from the present, which passes while PyJWT decides."""


def by_pyjwt(made: dict[str, Any], rules: ClaimRules) -> bool:
    try:
        jwt.decode(
            signed(made),
            SECRET,
            ["HS256"],
            {"require": ["exp", "sub"], "verify_iat": False},
            audience=rules.audience,
            issuer=rules.issuer,
            leeway=rules.leeway_s,
        )
    except jwt.PyJWTError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "exp": _TIMES | _TIMES.map(float) | _ODD,
            "nbf": _TIMES | _TIMES.map(float),
            "iss": st.sampled_from(["shop", "shopp", "", None, 7]),
            "aud": st.sampled_from(["seckill", "other", ["seckill"], ["other", "seckill"], [], 7]),
            "sub": st.sampled_from(["alice", "1001", None, 7, True, ["alice"]]),
        },
    ),
    _RULES,
)
def test_registered_claims_are_judged_as_by_pyjwt(made: dict[str, Any], rules: ClaimRules) -> None:
    now_s = int(time.time())
    for name in ("exp", "nbf"):
        if type(made.get(name)) in (int, float):
            made[name] = now_s + made[name] + 500
    if type(made.get("exp")) is str and made["exp"].strip().isdigit():
        return  # PyJWT also takes a number in a string, which RFC 7519 does not allow
    if type(made.get("exp")) is bool or made.get("aud") == []:
        return  # PyJWT takes true for the time 1, and an empty list for no audience
    assert isinstance(judge_claims(made, now_s, rules), Grant) is by_pyjwt(made, rules)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 200), st.integers(0, 10))
@example(not_before=50, lifetime=0, at=50, leeway=0)
def test_a_token_is_valid_from_nbf_until_exp_give_or_take_the_leeway(
    not_before: int, lifetime: int, at: int, leeway: int
) -> None:
    made = {"sub": "alice", "nbf": not_before, "exp": not_before + lifetime}
    judged = judge_claims(made, at, ClaimRules(leeway))
    if at >= not_before + lifetime + leeway:
        assert judged is ClaimFault.EXPIRED
    elif at < not_before - leeway:
        assert judged is ClaimFault.NOT_YET_VALID
    else:
        assert judged == Grant(Caller("alice", "alice", frozenset()), not_before + lifetime + leeway)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"exp": None}, ClaimFault.NO_EXPIRY),
        ({"exp": "2000000"}, ClaimFault.NO_EXPIRY),
        ({"exp": True}, ClaimFault.NO_EXPIRY),
        ({"exp": -1}, ClaimFault.NO_EXPIRY),
        ({"exp": float("nan")}, ClaimFault.NO_EXPIRY),
        ({"exp": float("inf")}, ClaimFault.NO_EXPIRY),
        ({"exp": 10**400}, ClaimFault.NO_EXPIRY),
        ({"nbf": "0"}, ClaimFault.BAD_NOT_BEFORE),
        ({"nbf": 10**400}, ClaimFault.BAD_NOT_BEFORE),
        ({"sub": None}, ClaimFault.NO_SUBJECT),
        ({"sub": 1001}, ClaimFault.NO_SUBJECT),
        ({"sub": ""}, ClaimFault.NO_SUBJECT),
        ({"sub": "x" * 257}, ClaimFault.NO_SUBJECT),
        ({"sub": "a\nlog line"}, ClaimFault.NO_SUBJECT),
        ({"sub": "ops@shop.example", "scope": "sale:read purchase"}, ClaimFault.NOT_A_USER),
        ({"scope": ["purchase"]}, ClaimFault.BAD_SCOPE),
        ({"aud": "anybody"}, ClaimFault.OTHER_AUDIENCE),
    ],
)
def test_the_fault_names_the_claim(changed: dict[str, Any], fault: ClaimFault) -> None:
    judged = judge_claims({**claims(), "exp": NOW_S + 1, **changed}, NOW_S, ClaimRules())
    assert judged is fault
    assert fault.value.startswith(next(iter(changed))) or fault is ClaimFault.NOT_A_USER
    assert not set('"\\') & set(fault.value), "it is quoted in WWW-Authenticate"


@given(st.lists(st.sampled_from([*Scope, "", "Admin", "sale", "purchase:all"])))
def test_admin_implies_all_scopes_and_unknown_ones_grant_nothing(names: list[str]) -> None:
    expected = {scope for scope in Scope if scope in names or "admin" in names}
    assert granted(names) == expected
    judged = judge_claims({"sub": "u", "exp": NOW_S + 1, "scope": " ".join(names)}, NOW_S, ClaimRules())
    assert isinstance(judged, Grant)
    assert judged.caller.scopes == expected


def test_only_an_administrator_sees_what_belongs_to_others() -> None:
    buyer = Caller("alice", "alice", granted(["purchase", "sale:read", "sale:write"]))
    operator = Caller("ops@shop.example", None, granted(["admin"]))
    reader = Caller("ops@shop.example", None, granted(["sale:read"]))
    assert [buyer.may_see(user) for user in ("alice", "bob", None)] == [True, False, False]
    assert [operator.may_see(user) for user in ("alice", "bob", None)] == [True, True, True]
    assert [reader.may_see(user) for user in ("alice", None)] == [False, False]

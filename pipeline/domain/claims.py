"""What the claims of a token with a valid signature grant, and until when (RFC 7519, RFC 8693 for `scope`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from pipeline.domain.ids import canonical_id
from pipeline.domain.scopes import Caller, Scope, granted

SUBJECT_LENGTH_MAX = 256
"""A subject is logged and recorded as the author of a command."""
TIME_S_MAX = 2**53


class ClaimFault(StrEnum):
    """Why the claims grant nothing. The texts are for clients, and have neither quotes nor backslashes."""

    NO_EXPIRY = "exp: missing or not a time"
    EXPIRED = "exp: the token has expired"
    BAD_NOT_BEFORE = "nbf: not a time"
    NOT_YET_VALID = "nbf: the token is not valid yet"
    NO_SUBJECT = "sub: missing or not a string of 1 to 256 printable characters"
    NOT_A_USER = "sub: not a user id, which the scope purchase requires"
    OTHER_ISSUER = "iss: the token is from another issuer"
    OTHER_AUDIENCE = "aud: the token is for another audience"
    BAD_SCOPE = "scope: not a string"


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """`issuer` and `audience` are what a token must name. None: any issuer, but no audience, which would be another."""

    leeway_s: float = 0.0
    issuer: str | None = None
    audience: str | None = None


class Grant(NamedTuple):
    """The caller, until `until_s` (in Unix time, with the leeway)."""

    caller: Caller
    until_s: float


def judge_claims(claims: Mapping[str, Any], now_s: float, rules: ClaimRules) -> Grant | ClaimFault:
    """What these claims grant at `now_s`, in Unix time."""
    if (expires_s := _time_s(claims.get("exp"))) is None:
        return ClaimFault.NO_EXPIRY
    if now_s >= expires_s + rules.leeway_s:
        return ClaimFault.EXPIRED
    if "nbf" in claims:
        if (not_before_s := _time_s(claims["nbf"])) is None:
            return ClaimFault.BAD_NOT_BEFORE
        if now_s < not_before_s - rules.leeway_s:
            return ClaimFault.NOT_YET_VALID
    if rules.issuer is not None and claims.get("iss") != rules.issuer:
        return ClaimFault.OTHER_ISSUER
    if not _is_for(claims.get("aud"), rules.audience):
        return ClaimFault.OTHER_AUDIENCE
    caller = _caller(claims.get("sub"), claims.get("scope", ""))
    return caller if isinstance(caller, ClaimFault) else Grant(caller, expires_s + rules.leeway_s)


def _caller(subject: object, scope: object) -> Caller | ClaimFault:
    if type(subject) is not str or not 1 <= len(subject) <= SUBJECT_LENGTH_MAX or not subject.isprintable():
        return ClaimFault.NO_SUBJECT
    if type(scope) is not str:
        return ClaimFault.BAD_SCOPE
    names = scope.split(" ")
    user_id = canonical_id(subject)
    if user_id is None and Scope.PURCHASE in names:
        return ClaimFault.NOT_A_USER
    return Caller(subject, user_id, granted(names))


def _time_s(value: object) -> float | None:
    return value if type(value) in (int, float) and 0 <= value <= TIME_S_MAX else None  # type: ignore[operator, return-value]


def _is_for(audience: object, expected: str | None) -> bool:
    if expected is None:
        return audience is None
    return audience == expected or (type(audience) is list and expected in audience)

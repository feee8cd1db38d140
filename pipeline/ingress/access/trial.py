"""Trial tokens. In production the shop's own sign-in issues them."""

from collections.abc import Sequence
from typing import Any

import jwt

from pipeline.credentials import secret_of
from pipeline.domain.claims import ClaimFault, ClaimRules, judge_claims
from pipeline.errors import OperatorError
from pipeline.settings import SECRET_ALGORITHM, Settings, secrets_in


class NoTrialToken(OperatorError):
    """The token cannot be issued; the message names the setting or the claim."""


def trial_token(settings: Settings, user: str, scopes: Sequence[str], now_s: int, lifetime_s: int) -> str:
    """A token that an ingress with these settings accepts. Raises NoTrialToken."""
    if SECRET_ALGORITHM not in settings.accepted_algorithms():
        raise NoTrialToken(f"SECKILL_TOKEN_ALGORITHMS: this command issues only {SECRET_ALGORITHM} tokens")
    claims: dict[str, Any] = {
        "sub": user,
        "scope": " ".join(scopes),
        "iat": now_s,
        "exp": now_s + lifetime_s,
        **({"iss": settings.token_issuer} if settings.token_issuer else {}),
        **({"aud": settings.token_audience} if settings.token_audience else {}),
    }
    rules = ClaimRules(0.0, settings.token_issuer, settings.token_audience)
    if isinstance(judged := judge_claims(claims, now_s, rules), ClaimFault):
        raise NoTrialToken(judged)
    return jwt.encode(claims, _signing_secret(settings), SECRET_ALGORITHM)


def _signing_secret(settings: Settings) -> bytes:
    secret = secret_of(settings.token_secret, settings.token_secret_file)
    if secret is None:
        raise NoTrialToken("SECKILL_TOKEN_SECRET or SECKILL_TOKEN_SECRET_FILE: not set")
    return secrets_in(secret.get_secret_value())[0]

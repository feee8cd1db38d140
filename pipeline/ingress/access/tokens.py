"""Verifies JSON Web Tokens: who the caller is, and which scopes they have. Independent of HTTP.

Every buyer has a token of their own, so most tokens are new, and `jwt.decode` takes 45 µs for one (HS256): it checks
header and encoding character by character. But all tokens of an issuer have the same header. So PyJWT reads a header
once, and verifies each signature: a new token costs 13 µs, a repeated one 1.
"""

import binascii
import hashlib
from collections import OrderedDict

import jwt
import orjson

from pipeline.domain.claims import ClaimFault, ClaimRules, Grant, judge_claims
from pipeline.domain.scopes import Caller
from pipeline.ingress.access.keys import KeySet, TokenKeys
from pipeline.ingress.errors import NotAuthenticated

TOKEN_LENGTH_MAX = 4_096
"""A longer one is refused unread: each byte of an invalid token costs as much as one of a valid token."""
HEADER_LENGTH_MAX = 1_024
"""Of the encoded header, which PyJWT checks character by character."""
HEADERS_CACHED_MAX = 64
"""Different headers of verified tokens: one for each key, and a few spellings."""

_TO_BASE64 = bytes.maketrans(b"-_+/", b"+/!!")
"""From the alphabet of base64url; "!" is invalid in both."""


class UnknownKey(NotAuthenticated):
    """The token names a key that is not known, perhaps because it is newer than our keys."""


class Tokens:
    def __init__(self, keys: TokenKeys, rules: ClaimRules, cached_max: int) -> None:
        self._keys = keys
        self._rules = rules
        self._cached_max = cached_max
        self._header_reader = jwt.PyJWS()
        self._verified_with: KeySet | None = None
        self._grants: OrderedDict[bytes, Grant] = OrderedDict()
        """By digest, so that no usable token stays in memory."""
        self._signers: OrderedDict[bytes, tuple[jwt.PyJWK, ...]] = OrderedDict()
        """The keys that may have signed a token, by its encoded header. Only headers of verified tokens."""

    async def authenticate(self, token: str, now_s: float) -> Caller:
        """As `verify`, after another look for new keys if the token's key is unknown. Raises NotAuthenticated."""
        try:
            return self.verify(token, now_s)
        except UnknownKey:
            await self._keys.look_again()
        return self.verify(token, now_s)

    def verify(self, token: str, now_s: float) -> Caller:
        """The bearer of this token at `now_s`, in Unix time. Raises NotAuthenticated."""
        keys = self._keys.current()
        if keys is not self._verified_with:
            # A key that was removed has been revoked, and what it signed with it.
            self._grants.clear()
            self._signers.clear()
            self._verified_with = keys
        if len(token) > TOKEN_LENGTH_MAX or not token.isascii():
            raise NotAuthenticated(f"not a token, or longer than {TOKEN_LENGTH_MAX} characters")
        encoded = token.encode()
        digest = hashlib.sha256(encoded).digest()
        grant = self._grants.get(digest)
        if grant is None:
            grant = self._grants[digest] = self._verified(encoded, keys, now_s)
            if len(self._grants) > self._cached_max:
                self._grants.popitem(last=False)
        elif now_s < grant.until_s:
            self._grants.move_to_end(digest)
        else:
            del self._grants[digest]
            raise NotAuthenticated(ClaimFault.EXPIRED)
        return grant.caller

    def _verified(self, token: bytes, keys: KeySet, now_s: float) -> Grant:
        """What the token grants, verified from the beginning. Raises NotAuthenticated."""
        signed, _, signature = token.rpartition(b".")
        header, _, payload = signed.partition(b".")
        signers = self._signers.get(header)
        is_new_header = signers is None
        if signers is None:
            signers = self._signers_of(header, keys)
        signature_bytes = _base64url(signature)
        if not any(key.Algorithm.verify(signed, key.key, signature_bytes) for key in signers):
            raise NotAuthenticated("the signature is not valid")
        if is_new_header:
            self._signers[header] = signers
            if len(self._signers) > HEADERS_CACHED_MAX:
                self._signers.popitem(last=False)
        try:
            claims = orjson.loads(_base64url(payload))
        except orjson.JSONDecodeError:
            claims = None
        if type(claims) is not dict:
            raise NotAuthenticated("the claims are not a JSON object")
        judged = judge_claims(claims, now_s, self._rules)
        if isinstance(judged, ClaimFault):
            raise NotAuthenticated(judged)
        return judged

    def _signers_of(self, encoded: bytes, keys: KeySet) -> tuple[jwt.PyJWK, ...]:
        """The keys that may have signed a token with this encoded header. Raises NotAuthenticated."""
        if len(encoded) > HEADER_LENGTH_MAX:
            raise NotAuthenticated(f"the header is longer than {HEADER_LENGTH_MAX} characters")
        try:
            # PyJWT takes whole tokens only, so the other parts are left empty.
            header = self._header_reader.get_unverified_header(encoded + b"..")
        except jwt.PyJWTError:
            raise NotAuthenticated("not a JSON Web Token in compact form") from None
        if "crit" in header or "b64" in header:
            raise NotAuthenticated("crit: the header has extensions that are not supported")
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in keys.algorithms:
            raise NotAuthenticated("alg: this algorithm is not accepted")
        if not (signers := keys.candidates(algorithm, key_id)):
            raise UnknownKey("kid: missing" if key_id is None else "kid: no such key")
        return signers


def _base64url(part: bytes) -> bytes:
    """Raises NotAuthenticated."""
    try:
        return binascii.a2b_base64(part.translate(_TO_BASE64) + b"=" * (-len(part) % 4), strict_mode=True)
    except binascii.Error:
        raise NotAuthenticated("not a JSON Web Token in compact form") from None

"""Tokens and keys for tests: valid ones, and every way in which one can be invalid."""

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.utils import base64url_encode

SECRET = "a secret for tests only, of 32 bytes or more"
OTHER_SECRET = "another secret for tests only, of 32 bytes or more"
WITH_SECRET: dict[str, Any] = {"tokens_required": True, "token_secret": SECRET}
"""Settings that require tokens signed with SECRET."""


class Issuer:
    """Signs with a key of its own, which it publishes under `key_id`."""

    def __init__(self, algorithm: str, key_id: str | None = None) -> None:
        self.algorithm = algorithm
        self.key_id = key_id
        self._private: Any = {
            "RS256": lambda: rsa.generate_private_key(public_exponent=65_537, key_size=2_048),
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }[algorithm]()

    def token(self, **more: Any) -> str:
        headers = {} if self.key_id is None else {"kid": self.key_id}
        return jwt.encode(claims(**more), self._private, self.algorithm, headers)

    def signed_as(self, algorithm: str) -> str:
        """Its own signature, under a header that names this algorithm."""
        header = {"alg": algorithm, "kid": self.key_id}
        text = b".".join(_part(json.dumps(part).encode()) for part in (header, claims()))
        signature = jwt.get_algorithm_by_name(self.algorithm).sign(text, self._private)
        return b".".join([text, _part(signature)]).decode()

    def public_key(self) -> dict[str, Any]:
        """As a member of a JWK set."""
        kind = jwt.get_algorithm_by_name(self.algorithm)
        named = {} if self.key_id is None else {"kid": self.key_id}
        return {**kind.to_jwk(self._private.public_key(), as_dict=True), "use": "sig", **named}

    def public_pem(self) -> bytes:
        pem: bytes = self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem


def jwks(*issuers: Issuer) -> bytes:
    return json.dumps({"keys": [issuer.public_key() for issuer in issuers]}).encode()


def claims(user: object = "alice", scope: object = "purchase", **more: Any) -> dict[str, Any]:
    """Valid ones, for an hour from now; a claim that is None in `more` is left out."""
    now_s = int(time.time())
    made = {"sub": user, "scope": scope, "iat": now_s, "exp": now_s + 3_600, **more}
    return {name: value for name, value in made.items() if value is not None}


def token(user: object = "alice", scope: object = "purchase", secret: str = SECRET, **more: Any) -> str:
    return signed(claims(user, scope, **more), secret)


def signed(payload: object, secret: str | bytes = SECRET, **header: Any) -> str:
    """A token with this payload and header, whatever they are: PyJWT refuses to make many of them."""
    encoded = [_part(json.dumps({"alg": "HS256", **header}).encode()), _part(json.dumps(payload).encode())]
    key = secret.encode() if isinstance(secret, str) else secret
    hs256 = jwt.get_algorithm_by_name("HS256")
    signature = b"" if header.get("alg") == "none" else hs256.sign(b".".join(encoded), key)
    return b".".join([*encoded, _part(signature)]).decode()


def replace(path: Path, data: bytes) -> None:
    """As an operator replaces a key file: in one step."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    new.replace(path)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _part(data: bytes) -> bytes:
    return base64url_encode(data)

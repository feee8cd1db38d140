"""Settings that no process starts with, and how it reports them."""

import pytest

from pipeline.process.configuration import BadSettings, load_settings
from pipeline.settings import secrets_in


@pytest.mark.parametrize("cache_bytes_max", [0, 1_048_575])
def test_a_cache_that_is_too_small_is_refused(cache_bytes_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "SECKILL_RESULTS_CACHE_BYTES_MAX"
    monkeypatch.setenv(name, str(cache_bytes_max))
    with pytest.raises(BadSettings, match=f"{name}: .* 1048576 .*{cache_bytes_max}"):
        load_settings()
    monkeypatch.setenv(name, "1048576")
    assert load_settings().results_cache_bytes_max == 1_048_576


REDIS_URL = "SECKILL_REDIS_URL"


@pytest.mark.parametrize(
    ("url", "refusal"),
    [
        *(
            (url, f"^SECKILL_REDIS_URL: .*redis://.*{url}")
            for url in (
                "localhost:6379",
                "localhost",
                "http://localhost:6379",
                "redis:localhost",
                "redis://localhost:none/0",
                "redis://localhost:65536",
                "redis://localhost/first",
                "redis://localhost/0#1",
            )
        ),
        # Without the user and the password.
        *(
            (url, r"\(got '\*\*\*@redis:6379'\)")
            for url in (
                "user:se/c@ret@redis:6379",
                "redis://:sec/ret@redis:6379",
                "redis://user:123/ret@redis:6379",
                "redis://:sec#ret@redis:6379",
                "redis://:sec[ret@redis:6379",
            )
        ),
    ],
)
def test_an_invalid_redis_url_is_named_without_its_password(
    url: str, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REDIS_URL, url)
    with pytest.raises(BadSettings, match=refusal) as refused:
        load_settings()
    assert not any(part in str(refused.value) for part in ("sec", "se/", "ret@", "123"))


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://:a@[::1]:6379/1",
        "rediss://r:6380/0?timeout=5",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_a_redis_url_is_used_unchanged(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REDIS_URL, url)
    assert load_settings().redis() == url


# --- who may do what ----------------------------------------------------------------------------------------

LONG = "a secret for tests only, of 32 bytes or more"


def refusal(monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    """Why no process starts with these settings."""
    for name, value in settings.items():
        monkeypatch.setenv(f"SECKILL_{name.upper()}", value)
    with pytest.raises(BadSettings) as refused:
        load_settings()
    return str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokens_required": "1"}, ["TOKENS_REQUIRED", "TOKEN_SECRET or SECKILL_TOKEN_SECRET_FILE"]),
        (
            {"tokens_required": "1", "token_secret": LONG, "token_secret_file": "x"},
            ["TOKENS_REQUIRED", "not both"],
        ),
        (
            {"tokens_required": "1", "token_algorithms": "HS256,ES256", "token_secret": LONG},
            ["TOKEN_ALGORITHMS", "TOKEN_JWKS_FILE"],
        ),
        ({"tokens_required": "1", "token_algorithms": "none"}, ["TOKEN_ALGORITHMS", "EdDSA"]),
        ({"token_algorithms": "HS256, RS256"}, ["TOKEN_ALGORITHMS"]),
        ({"token_algorithms": "HS512"}, ["TOKEN_ALGORITHMS"]),
        ({"token_leeway_ms": "60001"}, ["TOKEN_LEEWAY_MS", "60000"]),
        ({"token_issuer": 'a"\n'}, ["TOKEN_ISSUER"]),
        ({"tickets_required": "1"}, ["TICKETS_REQUIRED", "TICKET_SECRET or SECKILL_TICKET_SECRET_FILE"]),
        ({"ticket_lifetime_ms": "600001"}, ["TICKET_LIFETIME_MS", "600000"]),
        ({"admin_on_public": "1"}, ["ADMIN_ON_PUBLIC", "TOKENS_REQUIRED"]),
        *(
            ({"admin_host": host}, ["ADMIN_HOST", "TOKENS_REQUIRED"])
            for host in ("0.0.0.0", "::", "10.0.0.7", "admin.example", "127.0.0.1.example", "")  # noqa: S104
        ),
        *(
            ({"cors_origins": origins}, ["CORS_ORIGINS"])
            for origins in (
                *(
                    "*",
                    "https://*.example",
                    "shop.example",
                    "https://shop.example/",
                    "null",
                    "HTTPS://shop.example",
                ),
                *(
                    "https://shop.example, https://b.example",
                    "https://shop.example,",
                    "https://u:p@shop.example",
                ),
                ",".join(["https://shop.example"] * 33),
            )
        ),
    ],
)
def test_access_that_is_open_by_mistake_prevents_the_start(
    settings: dict[str, str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(monkeypatch, **settings)
    assert message.startswith(f"SECKILL_{words[0]}: ")
    assert all(word in message for word in words)
    assert LONG not in message


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_the_administration_listens_on_any_loopback_address(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECKILL_ADMIN_HOST", host)
    assert load_settings().admin_host == host


def test_with_tokens_the_administration_listens_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECKILL_ADMIN_HOST", "10.0.0.7")
    monkeypatch.setenv("SECKILL_TOKENS_REQUIRED", "true")
    monkeypatch.setenv("SECKILL_TOKEN_SECRET", LONG)
    assert load_settings().admin_host == "10.0.0.7"


@pytest.mark.parametrize("name", ["token_secret", "ticket_secret"])
@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("x" * 31, "32 bytes"),
        (f"{LONG}\nshort", "32 bytes"),
        (" ", "32 bytes"),
        (f"{LONG}\n" * 9, "more than 8"),
    ],
)
def test_a_weak_secret_is_refused_without_being_shown(
    name: str, secret: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(monkeypatch, **{name: secret})
    assert message.startswith(f"SECKILL_{name.upper()}: ")
    assert words in message
    assert not any(line in message for line in secret.split("\n") if line.strip())


def test_secrets_are_read_one_per_line() -> None:
    assert secrets_in(f"\n {LONG}\r\n\n{'é' * 16}\n") == (LONG.encode(), "é".encode() * 16)

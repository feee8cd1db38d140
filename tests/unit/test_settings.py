"""Settings that no process starts with, and how it reports them."""

from typing import get_args

import pytest

from pipeline.domain.limiters import Algorithm
from pipeline.process.configuration import BadSettings, load_settings
from pipeline.settings import LimiterAlgorithm


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


@pytest.mark.parametrize(
    ("proxies", "refusal"),
    [
        ("proxy.example", "'proxy.example'"),
        ("10.0.0.1/8", "host bits"),
        ("10.0.0.0/8,,::1", "''"),
        ("::ffff:10.0.0.1", "IPv4 address"),
        (",".join(["10.0.0.1"] * 101), "more than 100"),
    ],
)
def test_invalid_trusted_proxies_are_named(
    proxies: str, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECKILL_TRUSTED_PROXIES", proxies)
    with pytest.raises(BadSettings, match=f"^SECKILL_TRUSTED_PROXIES: .*{refusal}"):
        load_settings()
    monkeypatch.setenv("SECKILL_TRUSTED_PROXIES", "10.0.0.0/8, ::1")
    assert load_settings().trusted_proxies == "10.0.0.0/8,::1"


def test_the_algorithms_of_the_client_limits_are_those_of_the_limiters() -> None:
    assert list(get_args(LimiterAlgorithm)) == list(Algorithm)

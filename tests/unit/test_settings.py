"""Settings that no process starts with, and how it reports them."""

import pytest

from pipeline.process.configuration import BadSettings, load_settings


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

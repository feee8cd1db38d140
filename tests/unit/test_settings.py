"""Settings: what no process starts with, and how it says so."""

import pytest

from pipeline.settings import BadSettings, load_settings


@pytest.mark.parametrize("cache_bytes_max", [0, 1_048_575])
def test_an_ingress_that_keeps_next_to_no_decision_does_not_start(
    cache_bytes_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "SECKILL_RESULTS_CACHE_BYTES_MAX"
    monkeypatch.setenv(name, str(cache_bytes_max))
    with pytest.raises(BadSettings, match=f"{name}: .* 1048576 .*{cache_bytes_max}"):
        load_settings()
    monkeypatch.setenv(name, "1048576")
    assert load_settings().results_cache_bytes_max == 1_048_576

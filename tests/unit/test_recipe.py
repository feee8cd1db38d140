"""Our processes are started with the settings that were set, in whatever source, and no others."""

from pathlib import Path

import pytest

from pipeline.local.recipe import environment, follower_part, ingress_part, worker_part
from pipeline.settings import CONFIG_VARIABLE, BrokerKind, Profile, Settings


def test_a_process_gets_the_settings_that_were_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECKILL_KAFKA_LIBS_DIR")
    monkeypatch.setenv("SECKILL_BUSY_MESSAGE", "later")
    monkeypatch.setenv("SECKILL_TOKEN_SECRET", "t" * 32)
    settings = Settings(
        data_dir=Path("elsewhere"), broker=BrokerKind.MEMORY, kafka_profile=Profile.CLUSTER, redis_url=None
    ).model_copy(update={"kafka_idempotence": False, "tables_port": 7, "worker_name": "worker-3"})
    part = worker_part(settings)
    assert part.name == "worker-3"
    assert part.environment == environment(
        {
            "busy_message": "later",
            "token_secret": "t" * 32,
            "data_dir": "elsewhere",
            "broker": "memory",
            "kafka_profile": "cluster",
            "kafka_idempotence": False,
            "tables_port": 7,
            "worker_name": "worker-3",
            "config": "",
        }
    )
    for name, value in part.environment.items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_a_process_gets_the_settings_of_the_file_even_if_the_file_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "busy_message: 'later: #1'\nretry_after_s: 9\nkafka_leave_on_stop: false\nlog_level: debug\n"
    )
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    monkeypatch.setenv("SECKILL_RETRY_AFTER_S", "5")
    settings = Settings()
    file.write_text("busy_message: changed\nwaiters_max: 1\n")
    for name, value in ingress_part(settings).environment.items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
    assert (settings.busy_message, settings.retry_after_s, settings.kafka_leave_on_stop) == (
        "later: #1",
        5,
        False,
    )


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("10.0.0.7", "10.0.0.7")],  # noqa: S104 -- not bound
)
def test_a_part_has_an_address_that_this_machine_can_reach(host: str, address: str) -> None:
    settings = Settings(public_host=host, public_port=8, tables_host=host, tables_port=9)
    assert ingress_part(settings).address == f"http://{address}:8"
    assert follower_part(settings).address == worker_part(settings).address == f"http://{address}:9"
    assert ingress_part(settings).health == f"http://{address}:8/health/ready"
    assert follower_part(settings).health == worker_part(settings).health == f"http://{address}:9/ready"
    alone = settings.model_copy(update={"health_port": 10})
    assert ingress_part(alone).health == "http://127.0.0.1:10/health/ready"

"""Settings that secure the connections to Kafka and Redis: which fit together, and that no secret is ever printed."""

import logging
import ssl
from pathlib import Path

import pytest
import trustme

from pipeline.credentials import SECRET_BYTES_MAX
from pipeline.endpoints import SaslMechanism, SecurityProtocol
from pipeline.kafka.connection import client_options
from pipeline.local.recipe import environment, worker_part
from pipeline.process.configuration import BadSettings, is_secret, load_settings
from pipeline.settings import LIVE_SETTINGS, Settings
from pipeline.settings.access import Access
from pipeline.settings.kafka import Kafka
from pipeline.settings.listeners import Listeners
from pipeline.settings.redis import Redis

SECRET = "correct horse/battery@staple"
SASL = {
    "kafka_security_protocol": "SASL_SSL",
    "kafka_sasl_mechanism": "SCRAM-SHA-512",
    "kafka_user": "ingress",
    "kafka_password": SECRET,
}
TLS_URL = {"redis_url": "rediss://redis:6380/0"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A CA, a certificate with its key apart and in one file, and what is none of these."""
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    found = {name: directory / f"{name}.pem" for name in ("ca", "certificate", "key", "both", "text")}
    authority.cert_pem.write_to_path(found["ca"])
    certificate.cert_chain_pems[0].write_to_path(found["certificate"])
    certificate.private_key_pem.write_to_path(found["key"])
    certificate.private_key_and_cert_chain_pem.write_to_path(found["both"])
    found["text"].write_text("no certificate, but more than 32 bytes")
    return found


def refusal(monkeypatch: pytest.MonkeyPatch, **settings: object) -> list[str]:
    """The lines of the refusal to start with these in the environment; None is unset."""
    for name, value in settings.items():
        if value is not None:
            monkeypatch.setenv(f"SECKILL_{name.upper()}", str(value))
    with pytest.raises(BadSettings) as refused:
        load_settings()
    assert SECRET not in str(refused.value)
    return str(refused.value).splitlines()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({**SASL, "kafka_sasl_mechanism": None}, ["SECKILL_KAFKA_SASL_MECHANISM"]),
        ({**SASL, "kafka_sasl_mechanism": "GSSAPI"}, ["SECKILL_KAFKA_SASL_MECHANISM"]),
        ({**SASL, "kafka_security_protocol": "TLS"}, ["SECKILL_KAFKA_SECURITY_PROTOCOL"]),
        ({**SASL, "kafka_user": ""}, ["SECKILL_KAFKA_USER"]),
        (
            {**SASL, "kafka_user": None, "kafka_password": ""},
            ["SECKILL_KAFKA_USER", "SECKILL_KAFKA_PASSWORD"],
        ),
        (
            {**SASL, "kafka_security_protocol": "SSL"},
            ["SECKILL_KAFKA_SASL_MECHANISM", "SECKILL_KAFKA_USER", "SECKILL_KAFKA_PASSWORD"],
        ),
        ({"kafka_user": "ingress"}, ["SECKILL_KAFKA_USER"]),
        ({"kafka_ca_file": "ca"}, ["SECKILL_KAFKA_CA_FILE"]),
        ({"kafka_check_hostname": False}, ["SECKILL_KAFKA_CHECK_HOSTNAME"]),
        ({"kafka_security_protocol": "SSL", "kafka_ca_file": "text"}, ["SECKILL_KAFKA_CA_FILE"]),
        ({"kafka_security_protocol": "SSL", "kafka_key_file": "key"}, ["SECKILL_KAFKA_KEY_FILE"]),
        (
            {"kafka_security_protocol": "SSL", "kafka_certificate_file": "certificate"},
            ["SECKILL_KAFKA_CERTIFICATE_FILE"],
        ),
        ({"redis_user": "decider"}, ["SECKILL_REDIS_USER"]),
        (
            {"redis_password": SECRET, "redis_url": "redis://decider:other@redis"},
            ["SECKILL_REDIS_PASSWORD"],
        ),
        ({"redis_url": "redis://redis", "redis_ca_file": "ca"}, ["SECKILL_REDIS_CA_FILE"]),
        ({"redis_check_hostname": False}, ["SECKILL_REDIS_CHECK_HOSTNAME"]),
        ({**TLS_URL, "redis_key_file": "key"}, ["SECKILL_REDIS_KEY_FILE"]),
        ({**TLS_URL, "redis_certificate_file": "text"}, ["SECKILL_REDIS_CERTIFICATE_FILE"]),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_by_name(
    settings: dict[str, object],
    names: list[str],
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {name: files[str(value)] if name.endswith("_file") else value for name, value in settings.items()}
    assert [line.partition(":")[0] for line in refusal(monkeypatch, **given)] == names


def test_a_live_setting_changes_although_the_files_are_gone(files: dict[str, Path], tmp_path: Path) -> None:
    copies = {name: tmp_path / path.name for name, path in files.items()}
    for name, path in copies.items():
        path.write_bytes(files[name].read_bytes())
    server = {"ca_file": copies["ca"], "certificate_file": copies["certificate"], "key_file": copies["key"]}
    settings = load_settings(
        kafka_security_protocol="SSL",
        **{f"kafka_{name}": path for name, path in server.items()},
        **TLS_URL,
        **{f"redis_{name}": path for name, path in server.items()},
        token_secret_file=copies["text"],
    )
    for path in copies.values():
        path.unlink()
    changed = settings.with_values({"waiters_max": 5})
    assert changed.waiters_max == 5
    assert changed == settings.model_copy(update={"waiters_max": 5})


def test_no_rule_about_several_settings_is_about_a_live_one() -> None:
    """`with_values` leaves these rules out."""
    for area in (Kafka, Redis, Access, Listeners):
        assert not LIVE_SETTINGS & area.model_fields.keys()


def test_kafka_clients_get_what_is_set(files: dict[str, Path]) -> None:
    assert client_options(Settings(kafka_bootstrap="k:1").kafka()) == {"bootstrap_servers": "k:1"}
    options = client_options(
        load_settings(
            **SASL, kafka_bootstrap="k:1,k:2", kafka_ca_file=files["ca"], kafka_certificate_file=files["both"]
        ).kafka()
    )
    context = options.pop("ssl_context")
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert options == {
        "bootstrap_servers": "k:1,k:2",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ingress",
        "sasl_plain_password": SECRET,
    }
    options = client_options(load_settings(kafka_security_protocol="SSL", kafka_check_hostname=False).kafka())
    context = options["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)


def test_redis_clients_get_one_url_with_everything(files: dict[str, Path]) -> None:
    from redis.asyncio.connection import parse_url

    settings = load_settings(
        redis_url="rediss://redis:6380/2?timeout=5",
        redis_user="dec/ider",
        redis_password=SECRET,
        redis_ca_file=files["ca"],
        redis_certificate_file=files["both"],
        redis_check_hostname=False,
    )
    options = dict(parse_url(settings.redis()))
    del options["connection_class"]
    assert options == {
        "host": "redis",
        "port": 6380,
        "db": 2,
        "timeout": 5.0,
        "username": "dec/ider",
        "password": SECRET,
        "ssl_ca_certs": str(files["ca"]),
        "ssl_certfile": str(files["both"]),
        "ssl_keyfile": str(files["both"]),
        "ssl_check_hostname": False,
    }
    alone = parse_url(load_settings(redis_url="redis://r", redis_password="p@").redis())
    assert (alone["password"], "username" in alone) == ("p@", False)
    by_socket = parse_url(load_settings(redis_url="unix:///run/r.sock?db=1", redis_password="p").redis())
    assert (by_socket["path"], by_socket["password"]) == ("/run/r.sock", "p")


@pytest.mark.parametrize("name", ["kafka_password", "redis_password"])
def test_a_secret_can_be_in_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    more: dict[str, object] = {"redis_url": "redis://r"} if name == "redis_password" else {**SASL, name: None}
    settings = load_settings(**more, **{f"{name}_file": path})
    shown = settings.redis() if name == "redis_password" else str(client_options(settings.kafka()))
    assert "battery" in shown
    # A child process gets the path, not the content.
    part = worker_part(settings)
    assert part.environment[f"SECKILL_{name.upper()}_FILE"] == str(path)
    assert f"SECKILL_{name.upper()}" not in part.environment
    for variable, value in part.environment.items():
        monkeypatch.setenv(variable, value)
    assert load_settings() == settings


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\n", "is empty"),
        (b"\xff", "is not UTF-8"),
        (b"x" * (SECRET_BYTES_MAX + 1), f"has more than {SECRET_BYTES_MAX} bytes"),
    ],
)
def test_an_unusable_file_is_refused(
    content: bytes | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    (line,) = refusal(monkeypatch, redis_password_file=path)
    assert line.startswith("SECKILL_REDIS_PASSWORD_FILE: ")
    assert reason in line


@pytest.mark.parametrize("name", ["kafka_password", "redis_password", "token_secret", "ticket_secret"])
def test_a_secret_has_one_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET * 2)
    (line,) = refusal(monkeypatch, **{name: "other" * 9, f"{name}_file": path})
    assert line.startswith(f"SECKILL_{name.upper()}_FILE: ")
    assert f"SECKILL_{name.upper()} is set, too" in line
    assert "other" not in line


@pytest.mark.parametrize("name", ["token_secret", "ticket_secret"])
def test_a_file_with_a_weak_secret_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    (line,) = refusal(monkeypatch, **{f"{name}_file": path})
    assert line.startswith(f"SECKILL_{name.upper()}_FILE: ")
    assert "at least 32 bytes" in line


def test_a_child_process_gets_a_secret_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(**SASL, redis_url="redis://r", redis_password=SECRET)
    part = worker_part(settings)
    assert part.environment["SECKILL_KAFKA_PASSWORD"] == part.environment["SECKILL_REDIS_PASSWORD"] == SECRET
    assert SECRET not in " ".join(part.command)
    for name, value in part.environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings
    assert environment({"kafka_password": settings.kafka_password}) == {"SECKILL_KAFKA_PASSWORD": SECRET}


def test_no_secret_is_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    by_url = load_settings(redis_url=f"redis://user:{SECRET.replace('@', '%40').replace('/', '%2F')}@r")
    by_file = load_settings(**SASL, redis_password_file=path)
    with caplog.at_level(logging.INFO):
        for each in (by_url, by_file, by_file.kafka(), by_file.redis_password_file, by_file.kafka_password):
            logging.getLogger("test").info("%s %r", each, each)
    assert "battery" not in caplog.text
    assert str(by_file.kafka()) == "127.0.0.1:9092"


def test_a_refusal_does_not_show_the_value_of_any_secret() -> None:
    assert {name for name in Settings.model_fields if is_secret(name)} >= {
        *("kafka_password", "redis_password", "token_secret", "ticket_secret"),
    }
    assert not is_secret("kafka_password_file")
    assert not is_secret("")
    # A value of a wrong type is refused by the type itself.
    with pytest.raises(BadSettings, match=r"^redis_password: ") as refused:
        load_settings(redis_password=[SECRET])
    assert SECRET not in str(refused.value)


def test_the_names_are_those_of_kafka() -> None:
    settings = load_settings(**SASL)
    assert settings.kafka_security_protocol is SecurityProtocol.SASL_SSL
    assert settings.kafka_sasl_mechanism is SaslMechanism.SCRAM_SHA_512

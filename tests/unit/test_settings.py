"""The sources of the settings, settings that no process starts with, and how it reports them."""

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import SecretStr, ValidationError

from pipeline import settings_page, yaml_files
from pipeline.domain.limiters import Algorithm
from pipeline.process import configuration
from pipeline.process.configuration import BadSettings, load_settings, source_of
from pipeline.settings import CONFIG_VARIABLE, LIVE_SETTINGS, LimiterAlgorithm, LogLevel, Settings, secrets_in

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_settings_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECKILL_KAFKA_LIBS_DIR")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings file."""
    path = tmp_path / "mine.yaml"
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    return path


# --- sources ------------------------------------------------------------------------------------------------


def test_the_environment_is_above_the_file_and_the_file_above_the_defaults(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("retry_after_s: 7\nbusy_message: 请稍后\nconnections_max: 9_000\nredis_url:\n", "utf-8")
    monkeypatch.setenv("SECKILL_RETRY_AFTER_S", "8")
    settings = load_settings()
    assert (settings.retry_after_s, settings.busy_message, settings.connections_max) == (8, "请稍后", 9_000)
    assert settings.redis_url is None
    assert settings.waiters_max == Settings.model_fields["waiters_max"].default
    sources = {name: source_of(settings, name) for name in ("retry_after_s", "busy_message", "waiters_max")}
    assert sources == {"retry_after_s": "environment", "busy_message": "file", "waiters_max": "default"}
    assert load_settings(retry_after_s=9).retry_after_s == 9


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}"])
def test_a_file_may_be_empty(file: Path, text: str) -> None:
    file.write_text(text)
    assert load_settings() == Settings.model_construct()


def test_an_empty_name_means_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, "")
    assert load_settings() == Settings.model_construct()


def test_the_example_loads_with_and_without_what_is_commented_out(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = (ROOT / "examples" / "settings.yaml").read_text("utf-8")
    uncommented = re.sub("^# (?=[a-z_]+: )", "", example, flags=re.MULTILINE)
    file.write_text(uncommented, "utf-8")
    assert load_settings().kafka().addresses.count("kafka-") == 3
    monkeypatch.setenv(CONFIG_VARIABLE, str(ROOT / "examples" / "settings.yaml"))
    assert load_settings() == Settings.model_construct(), "the example has the defaults"


# --- mistakes in the environment ----------------------------------------------------------------------------


def test_a_misspelt_variable_prevents_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an effect, it would leave a listener open that its operator believes closed."""
    monkeypatch.setenv("SECKILL_TOKEN_REQUIRED", "true")
    monkeypatch.setenv("SECKILL_KAFKA_PASSWORT", "hidden")
    monkeypatch.setenv("SECKILL_RETRY_AFTER_S", "0")
    with pytest.raises(BadSettings) as refusal:
        load_settings()
    assert str(refusal.value).splitlines() == [
        "SECKILL_KAFKA_PASSWORT: unknown setting; did you mean kafka_password?",
        "SECKILL_TOKEN_REQUIRED: unknown setting; did you mean tokens_required?",
        "SECKILL_RETRY_AFTER_S: Input should be greater than or equal to 1 (got '0')",
    ]
    monkeypatch.delenv("SECKILL_RETRY_AFTER_S")
    with pytest.raises(BadSettings, match=r"^SECKILL_KAFKA_PASSWORT: .*\nSECKILL_TOKEN_REQUIRED: [^\n]*$"):
        load_settings()


def test_variables_of_others_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in ("", "KAFKA_", "REDIS_", "ADMIN_", "INGRESS_"):
        for name in (
            "SERVICE_HOST",
            "SERVICE_PORT",
            "PORT_9092_TCP",
            "PORT_9092_TCP_PORT",
            "PORT_9092_TCP_ADDR",
        ):
            monkeypatch.setenv(f"SECKILL_{service}{name}", "10.0.0.1")
    monkeypatch.setenv("SECKILL_PORT", "tcp://10.0.0.1:8083")
    monkeypatch.setenv("SECKILL_FAULT_POINT", "")
    monkeypatch.setenv("TOKEN_REQUIRED", "true")
    assert load_settings() == Settings.model_construct()


# --- mistakes in the file -----------------------------------------------------------------------------------


def test_each_mistake_has_a_line_with_its_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("retry_after_s: 0\nreddis_url: redis://:hidden@redis\nlog_level: loud\nwaiters_max: 5\n")
    monkeypatch.setenv("SECKILL_WAITERS_MAX", "none")
    with pytest.raises(BadSettings) as refusal:
        load_settings(public_port=0)
    assert sorted(str(refusal.value).splitlines()) == [
        f"{file}: log_level: Input should be 'debug', 'info', 'warning' or 'error' (got 'loud')",
        f"{file}: reddis_url: unknown setting; did you mean redis_url?",
        f"{file}: retry_after_s: Input should be greater than or equal to 1 (got 0)",
        "SECKILL_WAITERS_MAX: Input should be a valid integer, unable to parse string as an integer (got 'none')",
        "public_port: Input should be greater than or equal to 1 (got 0)",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("retry_after_s: 1\nretry_after_s: 2", "line 2: retry_after_s appears twice"),
        ("- 1", "not a mapping of names to values"),
        ("nonsense", "not a mapping of names to values"),
        ("1: 2", "1 is not a name"),
        ("a: [", "line 1: "),
        ("redis_url: *hidden", "line 1: found undefined alias ..."),
        ("redis_url: !hidden x", "line 1: could not determine a constructor for the tag ..."),
        ('redis_url: "hidden', "line 1: found unexpected end of stream"),
        ("redis_url: hidden: hidden", "line 1: mapping values are not allowed here"),
        ("retry_after_s: 5\nbusy_message: !!int hidden", "line 2: a value that is not valid for its type"),
        ("busy_message: !!timestamp hidden", "line 1: a value that is not valid for its type"),
        ("busy_message: 2026-13-01", "line 1: a value that is not valid for its type"),
        (f"retry_after_s: {'9' * 5_000}", "line 1: a value that is not valid for its type"),
        ("? [retry_after_s]\n: 1", "line 1: found unhashable key"),
        ("a: " + "[" * 5_000, "nested too deeply"),
        ("#" * (yaml_files.FILE_BYTES_MAX + 1), f"larger than {yaml_files.FILE_BYTES_MAX} bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_without_its_values(file: Path, text: str, reason: str) -> None:
    file.write_text(text)
    with pytest.raises(BadSettings) as refusal:
        load_settings()
    assert str(refusal.value).startswith(f"{CONFIG_VARIABLE}: {file}: {reason}")
    assert "hidden" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("flag", ["true", "on", "no"])
def test_a_flag_is_no_number(file: Path, flag: str) -> None:
    file.write_text(
        f"queue_size: {flag}\nhealth_port: {flag}\ndegradation_threshold: {flag}\ntokens_required: no\n"
    )
    with pytest.raises(BadSettings) as refusal:
        load_settings()
    assert [line.split(": ")[1:] for line in sorted(str(refusal.value).splitlines())] == [
        [name, f"must not be {str(flag != 'no').lower()} (got {flag != 'no'})"]
        for name in ("degradation_threshold", "health_port", "queue_size")
    ]


def test_a_file_that_is_missing_or_not_text_is_refused(file: Path) -> None:
    with pytest.raises(BadSettings, match=f"^{CONFIG_VARIABLE}: {file}: No such file or directory$"):
        load_settings()
    file.write_bytes(b"busy_message: \xff")
    with pytest.raises(BadSettings, match=f"^{CONFIG_VARIABLE}: {file}: not UTF-8 at byte 14$"):
        load_settings()
    file.unlink()
    file.mkdir()
    with pytest.raises(BadSettings, match=r"Is a directory$"):
        load_settings()


def test_no_mistake_shows_a_secret(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(
        "redis_url: {url: 'redis://:hidden@redis'}\nkafka_bootstrap: 'user:hidden@kafka'\ntoken: hidden\n"
    )
    with pytest.raises(BadSettings) as refusal:
        load_settings()
    assert len(str(refusal.value).splitlines()) == 3
    assert "hidden" not in str(refusal.value)

    class WithSecret(Settings):
        key: SecretStr | None = None

    monkeypatch.setattr(configuration, "Settings", WithSecret)
    file.write_text("key: [hidden]")
    with pytest.raises(
        BadSettings, match=f"^{file}: key: Input should be a valid string \\(got a secret\\)$"
    ):
        load_settings()


# --- live settings, and the page ----------------------------------------------------------------------------


def test_other_values_are_validated_and_no_source_is_read_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("retry_after_s: 7\nbusy_message: file\n")
    settings = load_settings()
    file.write_text("retry_after_s: nothing\nwaiters_max: 1\n")
    monkeypatch.setenv("SECKILL_BUSY_MESSAGE", "environment")
    changed = settings.with_values({"log_level": "debug"})
    assert (changed.log_level, changed.retry_after_s, changed.busy_message) == (LogLevel.DEBUG, 7, "file")
    assert changed.waiters_max == settings.waiters_max
    assert settings.log_level is LogLevel.INFO
    with pytest.raises(ValidationError):
        settings.with_values({"log_level": "loud"})


def test_nothing_that_is_live_decides_or_is_secret() -> None:
    assert {"retry_after_s", "busy_message", "log_level", "breaker_failure_threshold"} <= LIVE_SETTINGS
    assert not LIVE_SETTINGS & {"worker_name", "key_prefix", "kafka_bootstrap", "redis_url", "public_port"}
    assert not [name for name in LIVE_SETTINGS if configuration.is_secret(name)]


def test_the_page_is_that_of_the_model() -> None:
    assert settings_page.PAGE.read_text("utf-8") == settings_page.page(), "run `make settings-doc`"


def test_every_setting_says_what_it_is_for() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


# --- values -------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("query", ["password=hidden", "timeout=5&username=hidden&db=1"])
@pytest.mark.parametrize("path", ["", "/0", "/first"])
def test_a_password_in_the_query_of_a_redis_url_is_refused_and_not_shown(
    query: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The local stack prints the address of a given Redis."""
    monkeypatch.setenv(REDIS_URL, f"redis://localhost{path}?{query}")
    with pytest.raises(BadSettings, match=rf"\(got 'redis://localhost{path}\?\*\*\*'\)$") as refused:
        load_settings()
    assert "hidden" not in str(refused.value)


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
            ["TOKEN_SECRET_FILE", "cannot be read"],
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

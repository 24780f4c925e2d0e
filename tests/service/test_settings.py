"""Settings: read from the environment, checked and explained."""

from __future__ import annotations

import pytest

from service import settings
from service.settings import BadSettings, load_settings, unknown


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(f"SHOAL_{name.upper()}", raising=False)
    return monkeypatch


def test_load_settings_reads_the_environment(environment: pytest.MonkeyPatch) -> None:
    """Settings are read from variables with the prefix."""
    environment.setenv("SHOAL_PORT", "9000")
    environment.setenv("SHOAL_DEVICE", "gpu:1")
    environment.setenv("SHOAL_REQUEST_TIMEOUT", "0.25")
    loaded = load_settings()
    assert (loaded.port, loaded.device, loaded.request_timeout) == (9000, "gpu:1", 0.25)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("SHOAL_PORT", "99999", "65535"),
        ("SHOAL_PORT", "tcp://10.0.0.1:80", "a service named 'shoal': set enableServiceLinks"),
        ("SHOAL_GRPC_PORT", "tcp://10.0.0.1:80", "a service named 'shoal-grpc'"),
        ("SHOAL_HOST", "", "at least 1 character"),
        ("SHOAL_MAX_UPLOAD_MEMORY", "2000", "SHOAL_MAX_UPLOAD_BYTES=10485760"),
        ("SHOAL_DEVICE", "tpu", "pattern"),
        ("SHOAL_MAX_QUEUE_SIZE", "0", "greater than or equal to 1"),
        ("SHOAL_REQUEST_TIMEOUT", "-1", "greater than 0"),
        ("SHOAL_MODEL", "../etc", "pattern"),
        ("SHOAL_LOG_FORMAT", "xml", "json"),
        ("SHOAL_RATE_LIMIT", "0", "greater than 0"),
        ("SHOAL_RATE_BURST", "5", "set SHOAL_RATE_LIMIT"),
        ("SHOAL_TRUSTED_PROXIES", "10.0.0.1,*", "such as 10.0.0.0/8"),
        ("SHOAL_ALLOWED_HOSTS", "a.example, http://b.example", "'http://b.example' is not a host"),
        ("SHOAL_ALLOWED_HOSTS", "a.example/path", "not a host name"),
        ("SHOAL_ALLOWED_HOSTS", "a.*.example", "not a host name"),
        ("SHOAL_ALLOWED_HOSTS", "bücher.example", "in ASCII"),
        ("SHOAL_CORS_ORIGINS", "https://a.example/path", "not an origin"),
        ("SHOAL_METRICS_NEED_KEY", "true", "SHOAL_API_KEYS_FILE"),
    ],
)
def test_load_settings_rejects_invalid_values(
    environment: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    """The error names the setting, its value and its bound, and nothing else."""
    environment.setenv(name, value)
    with pytest.raises(BadSettings) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{name}={value}: ")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_load_settings_names_all_invalid_settings(environment: pytest.MonkeyPatch) -> None:
    """All invalid settings are named in one error."""
    environment.setenv("SHOAL_PORT", "-1")
    environment.setenv("SHOAL_DECODE_PROCESSES", "0")
    with pytest.raises(BadSettings) as caught:
        load_settings()
    assert [line.partition("=")[0] for line in str(caught.value).splitlines()] == [
        "SHOAL_PORT",
        "SHOAL_DECODE_PROCESSES",
    ]


def test_unknown_variables_are_reported() -> None:
    """A variable that resembles a setting is reported, and Kubernetes' own variables are not."""
    environment = {
        "SHOAL_MAX_BATCHSIZE": "8",
        "SHOAL_PORT": "80",
        "SHOAL_SERVICE_HOST": "10.0.0.1",
        "SHOAL_PORT_8000_TCP_ADDR": "10.0.0.1",
        "SHOAL_COFFEE": "black",
        "PATH": "/bin",
    }
    assert list(unknown(environment)) == [
        "SHOAL_COFFEE is not a setting and is ignored",
        "SHOAL_MAX_BATCHSIZE is not a setting and is ignored; did you mean SHOAL_MAX_BATCH_SIZE?",
    ]

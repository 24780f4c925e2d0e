"""Flags made from the settings, and how they set the environment."""

from __future__ import annotations

import argparse

import pytest

from service.settings import Settings, load_settings
from shoal import flags

SECRET = {name for name, f in Settings.model_fields.items() if "SecretStr" in str(f.annotation)}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Removes the variables of all settings, before the test and after it."""
    for name in Settings.model_fields:
        variable = f"SHOAL_{name.upper()}"
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    return monkeypatch


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="x", allow_abbrev=False)
    flags.add(parser)
    return parser


def test_flags_exist_for_every_setting_but_secrets(parser: argparse.ArgumentParser) -> None:
    """Every setting has a flag, except secrets, since all users can read command lines."""
    assert "api_keys" in SECRET
    known = {option for action in parser._actions for option in action.option_strings}
    expected = {flags.flag(name) for name in Settings.model_fields.keys() - SECRET}
    switches = {name for name, field in Settings.model_fields.items() if field.annotation is bool}
    off = {flags.flag(name).replace("--", "--no-", 1) for name in switches}
    assert "--no-page" in off
    assert known == expected | off | {"-h", "--help"}


def test_flags_help_states_meaning_and_default(parser: argparse.ArgumentParser) -> None:
    """The help of a flag is the description of the setting and its default."""
    text = " ".join(parser.format_help().split())
    assert (
        "--port N TCP port to listen on. 0: any free port. The log contains the number of the "
        "port. (default: 8000)" in text
    )
    assert "--log-format {auto,json,text}" in text
    assert "models)" not in text  # the store's folder is "the one that ships"


def test_flags_help_states_the_unit_of_times(parser: argparse.ArgumentParser) -> None:
    """The placeholder of a time is SECONDS, and that of another number is not."""
    text = " ".join(parser.format_help().split())
    for name in ("max-queue-delay", "request-timeout", "max-decode-seconds", "drain-delay"):
        assert f"--{name} SECONDS" in text
    assert "--rate-limit NUMBER" in text


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        (["--port", "9000"], "port", 9000),
        (["--max-queue-delay", "0.002"], "max_queue_delay", 0.002),
        (["--max-batch-size", "8"], "max_batch_size", 8),
        (["--device", "gpu:1"], "device", "gpu:1"),
        (["--no-page"], "page", False),
        (["--page"], "page", True),
        (["--log-level", "debug"], "log_level", "debug"),
        (["--model", "pets"], "model", "pets"),
    ],
)
def test_flags_override_the_environment(
    parser: argparse.ArgumentParser,
    environment: pytest.MonkeyPatch,
    given: list[str],
    name: str,
    value: object,
) -> None:
    """A flag overrides its variable; other variables keep their values."""
    environment.setenv("SHOAL_PORT", "80")
    environment.setenv("SHOAL_REQUEST_TIMEOUT", "2")
    flags.apply(parser.parse_args(given))
    loaded = load_settings()
    assert getattr(loaded, name) == value
    assert loaded.request_timeout == 2 and (name == "port" or loaded.port == 80)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--port", "99999"], "--port: Input should be less than or equal to 65535"),
        (["--port", "http"], "--port: Input should be a valid integer"),
        (["--max-batch-size", "0"], "--max-batch-size: Input should be greater than or equal to 1"),
        (["--device", "tpu"], "--device: String should match pattern"),
        (["--log-format", "xml"], "--log-format: invalid choice: 'xml'"),
        (["--api-keys", "secret"], "unrecognized arguments: --api-keys"),
    ],
)
def test_flags_reject_invalid_values(
    parser: argparse.ArgumentParser,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    message: str,
) -> None:
    """An invalid value ends with status 2 and a message that names the flag."""
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(given)
    assert caught.value.code == 2 and message in capsys.readouterr().err

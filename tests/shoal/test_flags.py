"""Settings as flags: every one, as the class says, and in force for the whole process."""

from __future__ import annotations

import argparse

import pytest

from service.settings import Settings, load_settings
from shoal import flags

SECRET = {name for name, f in Settings.model_fields.items() if "SecretStr" in str(f.annotation)}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What the flags put there is taken away again."""
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


def test_every_setting_has_one(parser: argparse.ArgumentParser) -> None:
    """But for secrets, which every user of the machine could read."""
    assert "api_keys" in SECRET
    known = {option for action in parser._actions for option in action.option_strings}
    wanted = {flags.flag(name) for name in Settings.model_fields.keys() - SECRET}
    switches = {name for name, field in Settings.model_fields.items() if field.annotation is bool}
    off = {flags.flag(name).replace("--", "--no-", 1) for name in switches}
    assert "--no-page" in off
    assert known == wanted | off | {"-h", "--help"}


def test_the_help_is_the_settings_own(parser: argparse.ArgumentParser) -> None:
    """Its meaning and its default, once."""
    text = " ".join(parser.format_help().split())
    assert "--port N TCP port to listen on; 0 takes a free one and logs it. (8000)" in text
    assert "--log-format {auto,json,text}" in text and "--max-queue-delay SECONDS" in text
    assert "models)" not in text  # the store's folder is "the one that ships"


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
def test_what_is_given_is_set(
    parser: argparse.ArgumentParser,
    environment: pytest.MonkeyPatch,
    given: list[str],
    name: str,
    value: object,
) -> None:
    """A flag wins over the environment, in which all others stay as they were."""
    environment.setenv("SHOAL_PORT", "80")
    environment.setenv("SHOAL_REQUEST_TIMEOUT", "2")
    flags.apply(parser.parse_args(given))
    loaded = load_settings()
    assert getattr(loaded, name) == value
    assert loaded.request_timeout == 2 and (name == "port" or loaded.port == 80)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--port", "99999"], "--port: Input should be less than or equal to 65535"),
        (["--port", "http"], "--port: Input should be a valid integer"),
        (["--max-batch-size", "0"], "--max-batch-size: Input should be greater than or equal to 1"),
        (["--device", "tpu"], "--device: String should match pattern"),
        (["--log-format", "xml"], "--log-format: invalid choice: 'xml'"),
        (["--api-keys", "secret"], "unrecognized arguments: --api-keys"),
    ],
)
def test_out_of_bounds(
    parser: argparse.ArgumentParser,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    told: str,
) -> None:
    """In the words of the settings, and under the name that was typed."""
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(given)
    assert caught.value.code == 2 and told in capsys.readouterr().err

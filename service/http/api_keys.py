"""Checks API keys, which allow predictions, and admin keys, which allow changes of the model.

Clients send a key as `Authorization: Bearer KEY` (RFC 6750) or as `X-API-Key: KEY`. The service
keeps only digests of keys in memory, compares digests in constant time, and never logs a key.

A key file is read again when it changes, so an operator can replace a key without a restart. The
operator adds the new key, waits until clients use it, and removes the old key. If the changed file
cannot be read or contains no key, the previous keys stay valid.
"""

from __future__ import annotations

import hashlib
import hmac
import pathlib
import re
import time
from collections.abc import Callable, Mapping

from service.errors import Unauthorized
from service.settings import PREFIX, BadSettings
from service.telemetry.logs import log

MIN_LENGTH = 16
"""Minimum number of characters of a key."""
CHECK_INTERVAL = 1.0
"""Minimum number of seconds between two checks for a change of the file."""


class ApiKeys:
    """The keys in a setting and in a key file."""

    def __init__(
        self,
        listed: str = "",
        file: pathlib.Path | None = None,
        setting: str = "API_KEYS",
        rejection: type[Unauthorized] = Unauthorized,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            listed: Value of the setting: keys, separated by commas.
            file: File with further keys. None: there is no file.
            setting: Name of the setting with the keys, without prefix, for error messages.
            rejection: Exception class that `check` raises.
            clock: Returns a monotonic time, in seconds.

        Raises:
            BadSettings: A key is too short, the file cannot be read, or the file contains no key.
        """
        self._listed = _digests(listed, f"{PREFIX}{setting}")
        self._file = file
        self.required = bool(self._listed or file)
        """Whether requests must have a key."""
        self._setting = setting
        self._rejection = rejection
        self._clock = clock
        self._check_at = clock() + CHECK_INTERVAL
        self._version: object = None
        self._from_file: tuple[bytes, ...] = ()
        if file is not None:
            self._version = _file_version(file)
            self._from_file = self._read(file)

    def check(self, headers: Mapping[str, str]) -> bytes | None:
        """Check the key of a request.

        Args:
            headers: The headers of the request, with names in lower case.

        Returns:
            The SHA-256 digest of the key, or None if no key is required.

        Raises:
            Unauthorized: The request has no key, or an invalid key. The class of the exception is
                the constructor's `rejection`.
        """
        if not self.required:
            return None
        self._read_if_changed()
        digest = _digest(_sent_key(headers))
        matches = [hmac.compare_digest(digest, key) for key in (*self._listed, *self._from_file)]
        if not any(matches):
            raise self._rejection
        return digest

    def reload(self) -> None:
        """Read the file now, even if it has not changed."""
        if self._file is not None:
            self._read_again(self._file)

    def _read_if_changed(self) -> None:
        if self._file is None or (now := self._clock()) < self._check_at:
            return
        self._check_at = now + CHECK_INTERVAL
        if _file_version(self._file) != self._version:
            self._read_again(self._file)

    def _read_again(self, file: pathlib.Path) -> None:
        self._version = _file_version(file)
        try:
            self._from_file = self._read(file)
            log.info("API keys read", extra={"fields": {"keys": len(self._from_file)}})
        except BadSettings as error:
            log.error("the API keys were not reloaded, and the previous keys stay valid: %s", error)

    def _read(self, file: pathlib.Path) -> tuple[bytes, ...]:
        variable = f"{PREFIX}{self._setting}_FILE={file}"
        try:
            digests = _digests(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise BadSettings(f"{variable}: the file cannot be read: {error}") from error
        if not digests:
            raise BadSettings(f"{variable}: the file contains no key. Write one key per line.")
        return digests


def _sent_key(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _file_version(file: pathlib.Path) -> object:
    """Return a value that changes when the file changes, or None if the file does not exist.

    The value contains the inode, because Kubernetes replaces the file of a mounted Secret.
    """
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _digests(text: str, source: str) -> tuple[bytes, ...]:
    keys = [key for key in re.split(r"[\s,]+", text) if key]
    if any(len(key) < MIN_LENGTH for key in keys):
        raise BadSettings(
            f"{source}: a key has fewer than {MIN_LENGTH} characters. Use a longer key."
        )
    return tuple(_digest(key) for key in keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

"""Keys: who may ask for predictions, and who for another version of the model.

A key is sent as `Authorization: Bearer KEY` (RFC 6750) or `X-API-Key: KEY`. Only digests stay in
memory, all of them are compared in constant time, and no key is ever logged or told.

A file of keys is read again when it changes, so keys are exchanged without a restart: add the new
one, let clients change, remove the old one. A file that cannot be read any more, or has no key
left, changes nothing: what protected before goes on to.
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

SHORTEST = 16
LOOK_EVERY = 1.0
"""Seconds between two looks at whether the file has changed."""


class ApiKeys:
    """Those of one setting and the file that another names. Raises BadSettings for a key that is
    too short, a file without keys, or none where named."""

    def __init__(
        self,
        given: str = "",
        file: pathlib.Path | None = None,
        setting: str = "API_KEYS",
        refusal: type[Unauthorized] = Unauthorized,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._given = _digests(given, f"{PREFIX}{setting}")
        self._file = file
        self.required = bool(self._given or file)
        """Whether requests must have a key."""
        self._setting = setting
        self._refusal = refusal
        self._clock = clock
        self._look_at = clock() + LOOK_EVERY
        self._seen: object = None
        self._from_file: tuple[bytes, ...] = ()
        if file is not None:
            self._seen = _state(file)
            self._from_file = self._read(file)

    def check(self, headers: Mapping[str, str]) -> bytes | None:
        """The digest of the key that `headers` (names in lower case) name; None where none is
        wanted. Raises `refusal`."""
        if not self.required:
            return None
        self._look()
        digest = _digest(_named(headers))
        known = [hmac.compare_digest(digest, key) for key in (*self._given, *self._from_file)]
        if not any(known):
            raise self._refusal
        return digest

    def reload(self) -> None:
        """Read the file now, whether or not it looks changed."""
        if self._file is not None:
            self._read_again(self._file)

    def _look(self) -> None:
        if self._file is None or (now := self._clock()) < self._look_at:
            return
        self._look_at = now + LOOK_EVERY
        if _state(self._file) != self._seen:
            self._read_again(self._file)

    def _read_again(self, file: pathlib.Path) -> None:
        self._seen = _state(file)
        try:
            self._from_file = self._read(file)
            log.info("keys read", extra={"fields": {"keys": len(self._from_file)}})
        except BadSettings as error:
            log.error("the keys stay as they were: %s", error)

    def _read(self, file: pathlib.Path) -> tuple[bytes, ...]:
        variable = f"{PREFIX}{self._setting}_FILE={file}"
        try:
            digests = _digests(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise BadSettings(f"{variable}: cannot be read: {error}") from error
        if not digests:
            raise BadSettings(f"{variable}: holds no key; write one a line")
        return digests


def _named(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _state(file: pathlib.Path) -> object:
    """Differs when the file has changed; a mounted Kubernetes Secret is another file then."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _digests(text: str, source: str) -> tuple[bytes, ...]:
    keys = [key for key in re.split(r"[\s,]+", text) if key]
    if any(len(key) < SHORTEST for key in keys):
        raise BadSettings(
            f"{source}: a key is shorter than {SHORTEST} characters; make a longer one"
        )
    return tuple(_digest(key) for key in keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

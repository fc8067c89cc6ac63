"""The bearer tokens of the REST API: a file that holds their hashes, roles and ends.

A token is 32 random bytes, so its SHA-256 needs no salt and cannot be guessed back.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from marshmallow import ValidationError, validate
from marshmallow import fields as f

from virtvault import schemas
from virtvault.errors import InvalidRequest, InvalidSettings
from virtvault.moments import written
from virtvault.schemas.base import MOMENT, NAME, Strict, text

__all__ = ["ROLES", "Token", "TokenFile"]

# Each may what those before it may.
ROLES = ("viewer", "operator", "restore")
PREFIX = "vv_"


@dataclass(frozen=True)
class Token:
    """One token as it is stored. ``expires`` is empty where it never does."""

    name: str
    role: str
    sha256: str
    created: str
    expires: str = ""

    def may(self, role: str) -> bool:
        """Whether it may what ``role`` may."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def expired(self, now: datetime) -> bool:
        """Whether it has ended."""
        return bool(self.expires) and datetime.fromisoformat(self.expires) <= now


class _TokenSchema(Strict):
    model = Token
    name = text(validate=NAME)
    role = text(validate=validate.OneOf(ROLES))
    sha256 = text(validate=validate.Regexp(r"^[0-9a-f]{64}\Z"))
    created = text(validate=MOMENT)
    expires = f.String(validate=MOMENT)


class TokenFile:
    """The file: read again whenever it has changed, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._tokens: tuple[Token, ...] = ()

    def all(self) -> tuple[Token, ...]:
        """The tokens that there are, expired ones too; none where there is no file.

        :raises InvalidSettings: the file is open to others, somebody else's, or not what it
            should be.
        """
        try:
            # The file itself: a link could name one of anybody's.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            self._seen = ()
            return ()
        except OSError as error:
            raise self._unusable(
                f"cannot be opened: {error.strerror}",
                f"It must be a file of the user that reads it: `chown USER {self._path}`.",
            ) from error
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            self._refuse(found)
            seen = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if seen != self._seen:
                self._tokens = self._parse(file.read())
                self._seen = seen
        return self._tokens

    def find(self, secret: str, now: datetime) -> Token | None:
        """The token that ``secret`` is, None where it is none or has expired."""
        digest, found = _hash(secret), None
        for token in self.all():
            # All are compared, and each in the same time.
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return None if found is None or found.expired(now) else found

    def add(self, name: str, role: str, now: datetime, seconds: int = 0) -> str:
        """Make a token and give it: this is the only time that it is seen.

        :param seconds: how long it holds; 0: for ever.
        :raises InvalidRequest: the name is wrong or taken.
        """
        secret = PREFIX + secrets.token_urlsafe(32)
        expires = written(now + timedelta(seconds=seconds)) if seconds else ""
        made = Token(name, role, _hash(secret), written(now), expires)
        try:
            _TokenSchema().load(_plain(made))
        except ValidationError as error:
            raise InvalidRequest(
                f"Token {name!r} cannot be: {error.messages}.", "Mend that."
            ) from error
        with self._alone():
            tokens = self.all()
            if any(token.name == name for token in tokens):
                raise InvalidRequest(
                    f"There is a token {name} already in {self._path}.",
                    f"Choose another name, or `virtvault token remove {name}` first.",
                )
            self._write((*tokens, made))
        return secret

    def remove(self, name: str) -> Token:
        """Remove a token; it is refused from the next request on.

        :raises InvalidRequest: there is none of that name.
        """
        with self._alone():
            tokens = self.all()
            gone = next((token for token in tokens if token.name == name), None)
            if gone is None:
                names = ", ".join(token.name for token in tokens) or "none"
                raise InvalidRequest(
                    f"There is no token {name} in {self._path}.", f"There are: {names}."
                )
            self._write(tuple(token for token in tokens if token is not gone))
        return gone

    # -- inside -------------------------------------------------------------------------------

    def _refuse(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077:
            raise self._unusable(
                f"has mode {stat.S_IMODE(found.st_mode):04o}: others may read or change it",
                f"`chmod 600 {self._path}`, and make its tokens anew where others could read it.",
            )
        trusted = {0, os.geteuid()}
        if os.geteuid() == 0:
            # Root looks after the file of the user that Flower runs as: whose the directory is.
            trusted.add(self._path.parent.stat().st_uid)
        if found.st_uid not in trusted:
            raise self._unusable(
                f"belongs to user {found.st_uid}, and we are {os.geteuid()}",
                f"`chown {os.geteuid()} {self._path}`, where its tokens are yours.",
            )

    def _parse(self, content: bytes) -> tuple[Token, ...]:
        try:
            return tuple(_TokenSchema().load(item) for item in json.loads(content)["tokens"])
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise self._unusable(
                f"is not a file of tokens: {error}",
                "Restore it, or move it away and make the tokens anew by `virtvault token add`.",
            ) from error

    def _unusable(self, what: str, mend: str) -> InvalidSettings:
        return InvalidSettings(f"The file of tokens {self._path} {what}.", mend)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the directory, so that two who change the file at once do it one by one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, tokens: tuple[Token, ...]) -> None:
        owner = self._path if self._path.exists() else self._path.parent
        uid = owner.stat().st_uid
        new = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            if os.geteuid() == 0:
                os.fchown(file.fileno(), uid, -1)
            json.dump({"tokens": [_plain(token) for token in tokens]}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


def _plain(token: Token) -> dict[str, str]:
    return {name: value for name, value in schemas.dump(token).items() if value or name == "name"}


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

"""How the REST API says no: every error is an HTTP status and one document of one shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from marshmallow import ValidationError
from tornado.web import HTTPError

from virtvault.errors import (
    BadInput,
    DomainBusy,
    NotReachable,
    PointBusy,
    UnknownDomain,
    UnknownPoint,
    UnknownTask,
    VirtvaultError,
)

__all__ = ["Refused", "no_number", "no_twins", "refuse_fields", "refused"]


class Refused(Exception):
    """An answer other than what was asked for: an HTTP status and the error's three parts."""

    def __init__(
        self,
        status: int,
        error: str,
        message: str,
        mend: str,
        *,
        fields: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {"error": error, "message": message, "mend": mend}
        if fields is not None:
            self.body["fields"] = dict(fields)
        self.headers = dict(headers or {})


def refused(error: Any, status: int, path: list[str]) -> Refused:
    """Any error as the API tells it."""
    if isinstance(error, VirtvaultError):
        name, cause = type(error).__name__, error.__cause__
        status, headers = _status(error, bool(path)), {}
        if status == 503:
            headers["Retry-After"] = "5"
        fields = cause.messages if isinstance(cause, ValidationError) else None
        return Refused(
            status,
            name,
            error.message,
            error.mend,
            fields=fields if isinstance(fields, dict) else None,
            headers=headers,
        )
    if isinstance(error, HTTPError):
        return Refused(
            status, "BadRequest", f"{error.reason or 'Not possible'}.", "See docs/api.md."
        )
    return Refused(500, "Internal", "This is a bug.", "Flower's log on the server has the trace.")


def _status(error: VirtvaultError, named_in_path: bool) -> int:
    if named_in_path and isinstance(error, UnknownTask | UnknownPoint | UnknownDomain):
        return 404
    if isinstance(error, NotReachable):
        return 503
    if isinstance(error, BadInput) and not isinstance(error, DomainBusy | PointBusy):
        return 422
    return 409


def refuse_fields(messages: Any, known: list[str] | None = None) -> NoReturn:
    words = "; ".join(f"{name}: {' '.join(map(str, said))}" for name, said in messages.items())
    mend = f"Parameters are {', '.join(known) or 'none'}." if known is not None else "Mend that."
    raise Refused(422, "InvalidRequest", f"Query: {words}", mend, fields=messages)


def no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON's")


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name is there twice in one object")
    return made

"""Schemas of the settings file."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from marshmallow import ValidationError, validate, validates_schema
from marshmallow import fields as f

from virtvault.schemas.base import (
    NAME,
    Strict,
    text,
)
from virtvault.schemas.units import Duration
from virtvault.settings import NotifySettings, RepositorySettings, Settings


class RepositorySettingsSchema(Strict):
    model = RepositorySettings
    name = text(validate=NAME)
    path = text(validate=validate.Regexp(r"^/", error="must be an absolute path"))
    type = f.String(validate=validate.OneOf(("directory",)))


def _url(text: str) -> None:
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise ValidationError("must be an http(s) URL")


def _email_or_empty(address: str) -> None:
    if address:
        validate.Email()(address)


class NotifySettingsSchema(Strict):
    model = NotifySettings
    webhooks = f.List(f.String(validate=_url))
    webhook_secret_file = f.String()
    email_to = f.List(f.String(validate=validate.Email()))
    email_from = f.String(validate=_email_or_empty)
    smtp = f.String(validate=validate.Regexp(r"^[^:\s]+:\d+\Z", error="must be host:port"))
    smtp_starttls = f.Boolean(truthy={True}, falsy={False})
    smtp_user = f.String()
    smtp_password_file = f.String()
    repeat = Duration()
    email_wait = Duration()

    @validates_schema
    def _sender(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("email_to") and not data.get("email_from"):
            raise ValidationError("say whom e-mail comes from", "email_from")


def _at_least(low: float) -> validate.Range:
    return validate.Range(min=low, error=f"must be at least {low:g}")


def _qemu_version(text: str) -> None:
    if not text:
        return
    if re.fullmatch(r"\d+\.\d+", text) is None:
        raise ValidationError("must be MAJOR.MINOR, as in 4.2, or empty")
    # The oldest that the engine works with.
    if tuple(map(int, text.split("."))) < (2, 12):
        raise ValidationError("must be 2.12 or later, or empty")


class SettingsSchema(Strict):
    model = Settings
    host = f.String(validate=NAME)
    libvirt_uri = f.String()
    state_dir = f.String(validate=validate.Regexp(r"^/", error="must be an absolute path"))
    runtime_dir = f.String(
        validate=[
            validate.Regexp(r"^/", error="must be an absolute path"),
            validate.Length(max=60, error="at most 60 characters: unix sockets lie below it"),
        ]
    )
    broker_url = f.String(
        validate=validate.Regexp(r"^(redis|rediss|redis\+socket)://", error="must be a Redis URL")
    )
    result_backend = f.String()
    catalog_url = f.String()
    slots = f.Integer(validate=_at_least(1))
    lease_seconds = f.Integer(validate=_at_least(3))
    sweep_seconds = f.Integer(validate=_at_least(1))
    control_timeout = f.Integer(validate=_at_least(1))
    qmp_timeout = f.Float(validate=_at_least(1))
    poll_min = f.Float(validate=_at_least(0.05))
    poll_max = f.Float(validate=_at_least(0.05))
    stall_seconds = f.Integer(validate=_at_least(5))
    cbw_timeout = f.Integer(validate=_at_least(1))
    scratch_dir = f.String()
    scratch_limit = f.Integer(validate=_at_least(2**20))
    freeze_timeout = f.Integer(validate=_at_least(1))
    guard_seconds = f.Float(validate=validate.Range(min=0.2, max=60))
    qemu_as_of = f.String(validate=_qemu_version)
    nbd_clients = f.Integer(validate=_at_least(2))
    compression = f.String(validate=validate.OneOf(("none", "zstd")))
    repositories = f.Dict(keys=f.String(validate=NAME), values=f.Dict())
    default_repository = f.String()
    backing_roots = f.List(f.String(validate=validate.Regexp(r"^/", error="must be absolute")))
    restore_roots = f.List(f.String(validate=validate.Regexp(r"^/", error="must be absolute")))
    restore_devices = f.List(
        f.String(validate=validate.Regexp(r"^(/dev/|rbd:)", error="must be below /dev/ or rbd:"))
    )
    flower_address = f.String()
    flower_port = f.Integer(validate=validate.Range(min=1, max=65535))
    beat_interval = f.Float(validate=validate.Range(min=0.1, max=60))
    leader_seconds = f.Integer(validate=_at_least(2))
    tokens_file = f.String()
    callback_urls = f.List(f.String(validate=_url))
    history_days = f.Integer(validate=_at_least(1))
    notify = f.Nested(NotifySettingsSchema)

"""What central answers of policies: apply, list, preview.

The catalog has them; Redis has a copy of those in force, where beat reads it.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import redis
from celery import Celery
from celery.signals import worker_ready

from beat.entries import moment
from beat.foresight import foresee
from tasks.catalog import Catalog
from virtvault import policy_file, queues, runs, schemas
from virtvault.errors import InvalidRequest, VirtvaultError
from virtvault.models import PolicyDocument, PolicyVersion
from virtvault.settings import Settings

__all__ = ["publish", "register"]

log = logging.getLogger(__name__)

# What there is before the first policies are applied.
NONE_YET = PolicyVersion(0, "", document=PolicyDocument())

Plain = dict[str, Any]


def publish(catalog: Catalog, client: redis.Redis) -> None:
    """Make Redis have the policies that the catalog has.

    The catalog is read after the copy is watched: of two that publish at once the later reads the
    newer policies, or is refused and reads again. So nothing older ever replaces something newer,
    also where the catalog itself was taken back to a backup of it.
    """
    with client.pipeline() as pipe:
        while True:
            pipe.watch(queues.POLICIES_KEY)  # type: ignore[no-untyped-call]
            wanted = json.dumps(schemas.dump(replace(_in_force(catalog), text="")))
            there: Any = pipe.get(queues.POLICIES_KEY)
            if there is not None and there.decode() == wanted:
                return
            pipe.multi()
            pipe.set(queues.POLICIES_KEY, wanted)
            with suppress(redis.WatchError):
                pipe.execute()
                return


def register(app: Celery, catalog: Catalog, client: redis.Redis, settings: Settings) -> None:
    """Add the tasks; once the worker consumes, Redis gets the policies too."""

    @app.task(name=queues.APPLY_POLICIES, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def apply_policies(document: Plain, text: str, by: str = "", comment: str = "") -> Plain:
        loaded = schemas.load(PolicyDocument, document)
        text = text or json.dumps(schemas.dump(loaded), indent=2)
        if policy_file.read(text, "text") != loaded:
            raise InvalidRequest(
                "The text does not say what the policies sent with it do.",
                "Send the file that they were read from; nothing was changed.",
            )
        at = moment(datetime.now(UTC).timestamp())
        version = catalog.apply_policies(loaded, text, str(by)[:200], str(comment)[:1000], at)
        try:
            publish(catalog, client)
        except redis.RedisError as error:
            # They are in force; beat learns of them with the next look.
            log.warning("policies version %d are not in Redis yet: %s", version.number, error)
        return schemas.dump(version)

    @app.task(name=queues.POLICIES, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def policies(number: int = 0) -> Plain:
        found = catalog.policies(number) if number else _in_force(catalog)
        if found is None:
            raise InvalidRequest(
                f"There is no version {number} of the policies.",
                "`virtvault policy history` lists them.",
            )
        return schemas.dump(found)

    @app.task(name=queues.POLICY_VERSIONS, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def policy_versions() -> list[Plain]:
        return [schemas.dump(version) for version in catalog.policy_versions()]

    @app.task(name=queues.PREVIEW, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def preview(
        document: Plain | None = None, hours: int = 24, limit: int = 1000, domain: str = ""
    ) -> Plain:
        given = None if document is None else schemas.load(PolicyDocument, document)
        now = datetime.now(UTC)
        found = foresee(catalog, given, now, hours, limit, domain)
        return schemas.dump(found)

    @app.task(name=queues.SCHEDULE_STATE, throws=(VirtvaultError,), send_events=False)  # type: ignore[untyped-decorator]
    def schedule_state() -> dict[str, Plain]:
        # Asked by a beat that knows nothing: the policies may be gone as well.
        with runs.reachable():
            publish(catalog, client)
        return catalog.schedule_state()

    @worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def begin(**_: Any) -> None:
        with suppress(redis.RedisError, VirtvaultError):  # the watch does it again
            publish(catalog, client)


def _in_force(catalog: Catalog) -> PolicyVersion:
    return catalog.policies() or NONE_YET

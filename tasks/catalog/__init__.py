"""The central index of points, hosts, runs and schedules, and the truth about policies and history.

It is in any of the databases that :mod:`tasks.catalog.database` knows, and `central` alone opens
it. What is recorded may come twice, late and in any order: it ends the same.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import delete

from tasks.catalog.inventory import Hosts
from tasks.catalog.newest import Newest
from tasks.catalog.notices import NewNotice, Notice
from tasks.catalog.points import Points
from tasks.catalog.runs import Runs
from tasks.catalog.slots import Slots
from tasks.catalog.tables import AlertRow, CallbackRow, NoticeRow, RunRow, ScheduleRow, SlotRow
from tasks.catalog.versions import Versions, newest_version
from tasks.catalog.watching import Watching
from virtvault import schemas
from virtvault.models import Inventory, Point, PointStatus, SlotRecord

__all__ = ["Catalog", "NewNotice", "Newest", "Notice"]

UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class Catalog(Points, Hosts, Runs, Slots, Versions, Watching):
    """The catalog at a database URL; made, or brought to this version, as it is opened.

    :raises InvalidSettings: the database cannot be used as it is.
    :raises NotReachable: it does not answer; so does every method.
    """

    def record(self, payload: dict[str, Any]) -> None:
        """What a hypervisor's spool (:mod:`tasks.spool`), or beat, has to tell."""
        payload = _storable(payload)
        if "point" in payload:
            self.record_point(schemas.load(Point, payload["point"]))
        if "run" in payload:
            self.record_run(payload["run"])
        if "statuses" in payload:
            statuses = [schemas.load(PointStatus, item) for item in payload["statuses"]]
            self.record_statuses(statuses, payload["at"])
        if "removed" in payload:
            self.record_removed(**payload["removed"])
        if "inventory" in payload:
            self.record_inventory(schemas.load(Inventory, payload["inventory"]))
        if "slots" in payload:
            self.record_slots([schemas.load(SlotRecord, item) for item in payload["slots"]])

    def forget(self, before: str) -> None:
        """Drop history that ended before then (UTC): runs, slots, closed alerts, sent notices.

        Points stay while they exist, policies for ever, and so does where the schedule of a policy
        in force stands.
        """
        with self._writing() as session:
            session.execute(delete(RunRow).where(RunRow.finished < before))
            session.execute(delete(SlotRow).where(SlotRow.at < before))
            session.execute(delete(AlertRow).where(AlertRow.closed != "", AlertRow.closed < before))
            session.execute(
                delete(NoticeRow).where(NoticeRow.state != "waiting", NoticeRow.due < before)
            )
            session.execute(delete(CallbackRow).where(CallbackRow.at < before))
            version = newest_version(session)
            names = [] if version is None else [p["name"] for p in version.document["policies"]]
            session.execute(
                delete(ScheduleRow).where(ScheduleRow.at < before, ScheduleRow.policy.not_in(names))
            )


def _storable(value: Any) -> Any:
    """With what no database takes put as ``\ufffd``: NUL, and bytes that were no text.

    Errors quote what guests and file systems say.
    """
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {name: _storable(each) for name, each in value.items()}
    return [_storable(each) for each in value] if isinstance(value, list) else value

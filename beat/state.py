"""What beats share in Redis: the schedule and how far its work is.

==========  ======  ===========================================================================
``due``     ZSET    entry → when it is due next
``plan``    HASH    domain's uuid → JSON: its entries, each with its schedule's signature
``last``    HASH    entry → its last slot that was decided on, and its newest good point's instant
``ready``   HASH    entry → JSON of :class:`beat.entries.Work` that waits for room or its time
``flight``  HASH    entry → the same, claimed: its run record is written, its task has not ended
``records`` LIST    JSON of slot records that central is not known to have
``epoch``   STRING  there unless Redis was flushed
``step``    STRING  the last change's name and what came of it
==========  ======  ===========================================================================

Only the beat that leads writes, and Redis itself checks that with each write: a change is a batch
of commands, run together or not at all. Each renews the leadership, so that no burst outlasts it.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import redis

from beat.entries import Work
from beat.leader import LEADER_KEY, Deposed, Leadership
from virtvault import queues, schemas
from virtvault.models import SlotRecord
from virtvault.runs import KEEP_FINISHED, RunRecord

__all__ = ["Change", "State"]

DUE = f"{queues.BEAT_PREFIX}due"
PLAN = f"{queues.BEAT_PREFIX}plan"
LAST = f"{queues.BEAT_PREFIX}last"
READY = f"{queues.BEAT_PREFIX}ready"
FLIGHT = f"{queues.BEAT_PREFIX}flight"
RECORDS = f"{queues.BEAT_PREFIX}records"
EPOCH = f"{queues.BEAT_PREFIX}epoch"
STEP = f"{queues.BEAT_PREFIX}step"

_COMMIT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local before = redis.call('GET', KEYS[2])
if before and string.sub(before, 1, #ARGV[3]) == ARGV[3] then
  return cjson.decode(string.sub(before, #ARGV[3] + 1))
end
local done = {}
for i = 4, #ARGV do
  local change = cjson.decode(ARGV[i])
  if change[1] == '' or redis.call('EXISTS', change[1]) == 0 then
    for _, command in ipairs(change[2]) do redis.call(unpack(command)) end
    table.insert(done, 1)
  else
    table.insert(done, 0)
  end
end
redis.call('SET', KEYS[2], ARGV[3] .. cjson.encode(done))
return done
"""


class Change:
    """Commands that are run together; not at all where the key ``unless`` is there."""

    def __init__(self, unless: str = "") -> None:
        self.unless = unless
        self.commands: list[list[str]] = []
        self.records: list[str] = []

    def add(self, *words: str | float) -> None:
        self.commands.append([w if isinstance(w, str) else repr(w) for w in words])

    # -- an entry's states --------------------------------------------------------------------

    def wait(self, work: Work) -> None:
        self.add("HSET", READY, work.entry, work.dump())

    def no_wait(self, entry: str) -> None:
        self.add("HDEL", READY, entry)

    def undecide(self, entry: str) -> None:
        """What waited has not begun, and nobody knows where or why it should: should the entry
        come back, it begins as a new one."""
        self.no_wait(entry)
        self.add("HDEL", LAST, entry)

    def claim(self, work: Work) -> None:
        self.add("HDEL", READY, work.entry)
        self.add("HSET", FLIGHT, work.entry, work.dump())

    def land(self, entry: str) -> None:
        self.add("HDEL", FLIGHT, entry)

    def due(self, entry: str, at: float) -> None:
        self.add("ZADD", DUE, at, entry)

    def last(self, entry: str, slot: float, good: float) -> None:
        self.add("HSET", LAST, entry, f"{slot!r} {good!r}")

    def tell(self, record: SlotRecord) -> None:
        """Central shall have it."""
        self.records.append(json.dumps(schemas.dump(record)))
        self.add("RPUSH", RECORDS, self.records[-1])

    def run(self, record: RunRecord) -> None:
        """What :meth:`virtvault.runs.RunRecord.write` does."""
        key = queues.run_key(record.task_id)
        self.add("HSET", key, *itertools.chain(*record.fields().items()))
        if record.state == "ended":
            self.add("SREM", queues.OPEN_RUNS_KEY, record.task_id)
            self.add("EXPIRE", key, str(KEEP_FINISHED))
        else:
            self.add("SADD", queues.OPEN_RUNS_KEY, record.task_id)
            self.add("PERSIST", key)


class State:
    """Reads for every beat, writes for the one that leads."""

    def __init__(self, client: redis.Redis, leadership: Leadership) -> None:
        self.client = client
        self._leadership = leadership
        self._commit = client.register_script(_COMMIT)

    def commit(self, *changes: Change) -> list[bool]:
        """Make changes, all in one step; gives which of them had nothing against them.

        :raises Deposed: another beat leads; nothing was changed.
        """
        texts = [json.dumps([c.unless, c.commands]) for c in changes if c.commands]
        if not texts:
            return []
        token = self._leadership.token
        # Where an answer is lost the client asks again: a step has a name, and is made once.
        args: list[str | int] = [token, self._leadership.milliseconds, uuid.uuid4().hex, *texts]
        answer: Any = self._commit(keys=[LEADER_KEY, STEP], args=args) if token else None
        if answer is None:
            raise Deposed
        return [bool(each) for each in answer]

    # -- reading ------------------------------------------------------------------------------

    def whole(self) -> bool:
        """Whether Redis has what was written; not after a flush, nor at the very first start."""
        return bool(self.client.exists(EPOCH))

    def due(self, now: float, limit: int) -> list[tuple[str, float]]:
        """Entries that are due, those due longest first."""
        found: Any = self.client.zrangebyscore(DUE, "-inf", now, 0, limit, withscores=True)
        return [(name.decode(), score) for name, score in found]

    def scores(self, entries: Sequence[str]) -> list[float | None]:
        found: Any = self.client.zmscore(DUE, list(entries)) if entries else []
        return list(found)

    def plans(self, uuids: Sequence[str]) -> list[dict[str, str]]:
        """The entries of domains, ``<policy>/<kind>`` → signature."""
        found: Any = self.client.hmget(PLAN, list(uuids)) if uuids else []
        return [json.loads(raw) if raw else {} for raw in found]

    def planned(self) -> list[str]:
        """The uuids of all domains that have entries."""
        found: Any = self.client.hkeys(PLAN)
        return [key.decode() for key in found]

    def lasts(self) -> dict[str, tuple[float, float]]:
        """Each entry's last slot and newest good instant (0: not known)."""
        found: Any = self.client.hgetall(LAST)
        made = {}
        for entry, text in found.items():
            slot, good = text.split()
            made[entry.decode()] = (float(slot), float(good))
        return made

    def works(self, key: str) -> dict[str, Work]:
        """What waits (``READY``) or is in flight (``FLIGHT``), by entry."""
        found: Any = self.client.hgetall(key)
        return {entry.decode(): Work.load(text) for entry, text in found.items()}

    # -- after a flush ------------------------------------------------------------------------

    def restore(
        self,
        lasts: dict[str, tuple[float, float]],
        works: Iterable[tuple[str, Work]],
        records: Iterable[str],
    ) -> None:
        """Write all of it anew from memory, in bounded steps; the epoch last."""
        change = Change()
        for entry, (slot, good) in lasts.items():
            change.last(entry, slot, good)
            if len(change.commands) >= 1000:
                self.commit(change)
                change = Change()
        for key, work in works:
            change.add("HSET", key, work.entry, work.dump())
        for text in records:
            change.add("RPUSH", RECORDS, text)
        change.add("SET", EPOCH, uuid.uuid4().hex)
        self.commit(change)

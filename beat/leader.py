"""One of several beats leads: a key in Redis that expires, renewed by its holder.

The key's value names the holder, and is the token that every change of the schedule is checked
against (:mod:`beat.state`): who has lost the key changes nothing any more.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import redis

from virtvault import queues

__all__ = ["LEADER_KEY", "Leadership", "who_leads"]

LEADER_KEY = f"{queues.BEAT_PREFIX}leader"

_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 1 end
if not holder then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 2 end
return 0
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end"


class Leadership:
    """What one beat has of it. ``seconds`` is for how long it holds unrenewed."""

    def __init__(self, client: redis.Redis, seconds: float) -> None:
        self.token = ""
        self.milliseconds = int(seconds * 1000)
        # When it was held last; what was known then may be outdated once it has run out since.
        self.held = 0.0
        self._client = client
        self._hold = client.register_script(_HOLD)
        self._release = client.register_script(_RELEASE)
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def hold(self, now: float) -> bool:
        """Renew it, or take it where nobody has it; gives whether it was taken just now.

        :raises Deposed: another beat has it.
        """
        token = self.token or self._new_token(now)
        answer: Any = self._hold(keys=[LEADER_KEY], args=[token, self.milliseconds])
        if not answer:
            self.token = ""
            raise Deposed
        self.token = token
        self.held = time.monotonic()
        return bool(answer == 2)

    @property
    def unbroken(self) -> bool:
        """Whether nobody else can have led since it was held last."""
        return time.monotonic() - self.held < self.milliseconds / 1000

    def release(self) -> None:
        """Give it back, so that the next one need not wait."""
        if self.token:
            self._release(keys=[LEADER_KEY], args=[self.token])
            self.token = ""

    def _new_token(self, now: float) -> str:
        since = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return json.dumps({"beat": self._name, "since": since, "token": uuid.uuid4().hex})


class Deposed(Exception):
    """Another beat leads."""


def who_leads(client: redis.Redis) -> str:
    """The beat that leads and since when, as a person reads it; empty where none does.

    :raises redis.RedisError: Redis does not answer.
    """
    raw: Any = client.get(LEADER_KEY)
    if not raw:
        return ""
    said = json.loads(raw)
    return f"{said['beat']} since {said['since']}"

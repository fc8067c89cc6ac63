"""The ends of runs for those who listen: one reader of Redis for all of them."""

from __future__ import annotations

import asyncio
import logging
import threading

from virtvault import Client
from virtvault.models import RunInfo

__all__ = ["Ends", "Full"]

log = logging.getLogger(__name__)

# Listeners at a time, and ends that may wait for a slow one until it is sent away.
LISTENERS = 100
BACKLOG = 1000
# Seconds until reading is tried again after a failure.
AGAIN = 1.0


class Full(Exception):
    """There are as many listeners as there may be."""


class Ends:
    """Reads the stream in a thread, from the first listener on, and hands each end to all."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._listeners: set[asyncio.Queue[RunInfo | None]] = set()
        self._reading = False

    def join(self) -> asyncio.Queue[RunInfo | None]:
        """A queue that gets each run as it ends, and None when its reader is too slow.

        Of the event loop that calls; give it back by :meth:`leave`.

        :raises Full: there are too many listeners.
        """
        if len(self._listeners) >= LISTENERS:
            raise Full
        queue: asyncio.Queue[RunInfo | None] = asyncio.Queue(BACKLOG + 1)
        self._listeners.add(queue)
        if not self._reading:
            self._reading = True
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._read, args=(loop,), name="ends", daemon=True).start()
        return queue

    def leave(self, queue: asyncio.Queue[RunInfo | None]) -> None:
        """Listen no more."""
        self._listeners.discard(queue)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        pause = threading.Event()
        while True:
            try:
                for run in self._client.ends(last=0, follow=True):
                    loop.call_soon_threadsafe(self._tell, run)
            except Exception as error:
                if loop.is_closed():
                    return
                log.warning("ends of runs are not heard now: %s", error)
            pause.wait(AGAIN)

    def _tell(self, run: RunInfo) -> None:
        for queue in list(self._listeners):
            if queue.qsize() < BACKLOG:
                queue.put_nowait(run)
            else:
                self.leave(queue)
                queue.put_nowait(None)

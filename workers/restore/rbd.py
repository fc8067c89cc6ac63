"""RBD images that a restore makes: filled under a name of its own, then given the one asked for.

Which cluster, and as which user, is the worker's own affair: ``CEPH_CONF`` and ``CEPH_ARGS`` in its
environment, else /etc/ceph/ceph.conf and ``client.admin``. QEMU makes and fills the image; asking,
renaming and removing are left to Ceph's ``rbd``.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from virtvault.errors import (
    DestinationExists,
    InvalidRequest,
    MonitorError,
    NotReachable,
    NotSupported,
    WorkFailed,
)
from workers.monitor import Monitor

__all__ = ["Image"]

# Seconds; librados waits for ever by default.
LIMITS = ("--client-mount-timeout=15", "--rados-mon-op-timeout=15", "--rados-osd-op-timeout=30")
# Seconds until a cluster believes that a client which was killed has an image open no more: 30 by
# default (osd_client_watch_timeout).
WATCHED = 60.0
SEE_TO_IT = (
    "See to the cluster (`ceph -s`), and to CEPH_CONF, CEPH_ARGS or /etc/ceph/ceph.conf where the "
    "worker runs."
)


@dataclass(frozen=True)
class Image:
    """An image that is to be: ``tag`` names the run that makes it."""

    pool: str
    name: str
    tag: str

    def __str__(self) -> str:
        return f"rbd:{self.pool}/{self.name}"

    @property
    def partial(self) -> str:
        """Its name while it is not whole."""
        return f".{self.name}.{self.tag}.partial"

    def location(self) -> dict[str, str]:
        """Where QEMU finds the partial image."""
        return {"pool": self.pool, "image": self.partial, **_user()}

    def require(self) -> None:
        """See that it can be made.

        :raises DestinationExists: there is an image of that name; it is never overwritten.
        :raises InvalidRequest: there is no such pool.
        :raises NotReachable: the cluster does not answer.
        :raises NotSupported: this host lacks Ceph's tools.
        """
        if self.identity(self.name):
            raise self._exists()

    def make(self, monitor: Monitor, size: int) -> str:
        """Make the partial image, ``size`` bytes of zeroes; gives its identity.

        :raises NotSupported: this QEMU knows nothing of RBD.
        :raises NotReachable: the cluster does not answer.
        :raises WorkFailed: Ceph refuses it.
        """
        job = f"make-{self.partial}"
        options = {"driver": "rbd", "location": self.location(), "size": size}
        try:
            monitor.execute("blockdev-create", **{"job-id": job, "options": options})
            while (made := _job(monitor, job))["status"] != "concluded":
                monitor.wait(0.05)
        except MonitorError as error:
            if "not found or not supported" not in error.message:
                raise
            raise NotSupported(
                f"The QEMU of this host cannot write to {self}: {error.message}.",
                "Install its RBD driver (Debian: qemu-block-extra).",
            ) from error
        except NotReachable as error:
            raise NotReachable(f"{self}: the cluster does not answer.", SEE_TO_IT) from error
        if "error" in made:
            raise WorkFailed(f"{self} cannot be made: {made['error']}.", SEE_TO_IT)
        monitor.execute("job-dismiss", id=job)
        return self.identity(self.partial)

    def publish(self, identity: str) -> None:
        """Give the partial image its name, unless an earlier worker has.

        :param identity: of the partial image.
        :raises DestinationExists: an image of that name has appeared meanwhile.
        """
        there = self.identity(self.name)
        if there and there == identity:
            return
        if there:
            raise self._exists()
        # Never over another image, should one appear just now: Ceph refuses that.
        done = self._rbd("rename", self._spec(self.partial), self._spec(self.name))
        if done.returncode == errno.EEXIST:
            raise self._exists()
        if done.returncode:
            raise self._failed(done)

    def remove(self) -> None:
        """Remove the partial image, where there is one.

        :raises VirtvaultError: it is there still, or that is not known.
        """
        identity = self.identity(self.partial)
        # A rename that was cut short leaves both names to one image: then it is the whole one.
        if not identity or identity == self.identity(self.name):
            return
        until = time.monotonic() + WATCHED
        while (done := self._rbd("rm", "--no-progress", self._spec(self.partial))).returncode:
            if done.returncode == errno.ENOENT:
                return
            # The cluster counts a daemon that was killed among those who have it open for a while.
            if done.returncode != errno.EBUSY or time.monotonic() > until:
                raise self._failed(done)
            time.sleep(0.5)

    def identity(self, name: str) -> str:
        """What tells an image from any other of the same name, empty where there is none."""
        done = self._rbd("info", "--format=json", self._spec(name))
        if not done.returncode:
            return str(json.loads(done.stdout)["id"])
        if "error opening pool" in done.stderr and done.returncode == errno.ENOENT:
            raise InvalidRequest(
                f"{self}: the cluster has no pool {self.pool}.",
                "Make the pool, or name another of this host's restore_devices.",
            )
        if done.returncode != errno.ENOENT:
            raise self._failed(done)
        return ""

    def _spec(self, name: str) -> str:
        return f"{self.pool}/{name}"

    def _rbd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                ["rbd", *LIMITS, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                # What ends the worker must not cut a rename short.
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise NotSupported(
                f"{self}: this host has no `rbd` to ask the cluster with.",
                "Install Ceph's tools (Debian: ceph-common) and restart the worker.",
            ) from error

    def _failed(self, done: subprocess.CompletedProcess[str]) -> NotReachable | WorkFailed:
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        if done.returncode == errno.ETIMEDOUT or "couldn't connect" in said:
            return NotReachable(f"{self}: the cluster does not answer: {said}", SEE_TO_IT)
        return WorkFailed(f"{self}: `rbd {done.args[len(LIMITS) + 1]}` failed: {said}", SEE_TO_IT)

    def _exists(self) -> DestinationExists:
        return DestinationExists(
            f"Already there: {self}.",
            "Restore under another name: an image is never overwritten. Where it may go, remove "
            f"it first: `rbd rm {self._spec(self.name)}`.",
        )


def _job(monitor: Monitor, name: str) -> dict[str, Any]:
    return next(job for job in monitor.execute("query-jobs") if job["id"] == name)


def _user() -> dict[str, str]:
    """The user that CEPH_ARGS names: QEMU does not look there, unlike Ceph's tools."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--id", "--user")
    parser.add_argument("-n", "--name", default="")
    known, _ = parser.parse_known_args(shlex.split(os.environ.get("CEPH_ARGS", "")))
    user = known.id or known.name.removeprefix("client.")
    return {"user": user} if user else {}

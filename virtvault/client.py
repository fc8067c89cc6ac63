"""The public face: what other services and the command line use to back up and restore.

::

    client = Client()
    result = client.backup("db1").wait()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from virtvault import events, queues, runs, schemas
from virtvault.errors import UnknownTask
from virtvault.handle import READY, RESULTS, Handle
from virtvault.models import (
    BitmapChanges,
    BitmapInfo,
    BitmapRequest,
    CheckLine,
    DiskInfo,
    Event,
    JobInfo,
    RetentionRules,
    RunInfo,
    Submission,
)
from virtvault.routing import Routing
from virtvault.runs import RunRecord

__all__ = ["Client", "Handle"]


class Client(Routing):
    """Enqueues work and asks questions. Holds no libvirt and no database; safe to keep open."""

    # -- long work ----------------------------------------------------------------------------

    def backup(
        self,
        domain: str,
        *,
        repository: str = "",
        sync: str = "auto",
        disks: Sequence[str] = (),
        speed: int = 0,
        freeze: str = "auto",
        bitmap: str = "",
        start_paused: bool = False,
    ) -> Handle:
        """Enqueue a backup on the domain's hypervisor. Fields: :class:`BackupRequest`.

        With ``sync="none"`` the task goes on until it is cancelled; its progress has the URLs.

        :raises BadInput: unknown domain or repository, or a field that is wrong.
        :raises NotReachable: Redis does not answer.
        """
        return self._enqueue(
            queues.BACKUP,
            {
                "domain": domain,
                "repository": repository,
                "sync": sync,
                "disks": list(disks),
                "speed": speed,
                "freeze": freeze,
                "bitmap": bitmap,
                "start_paused": start_paused,
            },
        )

    def restore(
        self,
        point: str,
        *,
        to: str = "",
        host: str = "",
        repository: str = "",
        mode: str = "flatten",
        format: str = "qcow2",
        disks: Sequence[str] = (),
        speed: int = 0,
        name: str = "",
        start: bool = False,
        in_place: bool = False,
        devices: Mapping[str, str] | None = None,
        force: bool = False,
    ) -> Handle:
        """Enqueue a restore on ``host``, or on the hypervisor that made the point.

        Fields: :class:`RestoreRequest`. In place, ``host`` is where the domain is.

        :raises BadInput: unknown point, or a field that is wrong.
        :raises NotReachable: Redis does not answer.
        """
        return self._enqueue(
            queues.RESTORE,
            {
                "point": point,
                "to": to,
                "repository": repository,
                "mode": mode,
                "format": format,
                "disks": list(disks),
                "speed": speed,
                "name": name,
                "start": start,
                "in_place": in_place,
                "devices": dict(devices or {}),
                "force": force,
            },
            host,
        )

    def verify(
        self,
        points: Sequence[str],
        *,
        host: str = "",
        repository: str = "",
        boot: bool = False,
        boot_seconds: int = 180,
        against_source: bool = False,
        samples: int = 256,
        speed: int = 0,
    ) -> Handle:
        """Enqueue a verify of points of one repository. Fields: :class:`VerifyRequest`.

        :raises BadInput: unknown point, or a field that is wrong.
        :raises NotReachable: Redis does not answer.
        """
        return self._enqueue(
            queues.VERIFY,
            {
                "points": list(points),
                "repository": repository,
                "boot": boot,
                "boot_seconds": boot_seconds,
                "against_source": against_source,
                "samples": samples,
                "speed": speed,
            },
            host,
        )

    def serve(
        self,
        point: str,
        *,
        host: str = "",
        repository: str = "",
        disks: Sequence[str] = (),
        seconds: int = 0,
        force: bool = False,
    ) -> Handle:
        """Serve a point's disks over NBD; its progress has the URLs. Fields: :class:`ServeRequest`.

        :raises BadInput: unknown point, or a field that is wrong.
        :raises NotReachable: Redis does not answer.
        """
        return self._enqueue(
            queues.SERVE,
            {
                "point": point,
                "repository": repository,
                "disks": list(disks),
                "seconds": seconds,
                "force": force,
            },
            host,
        )

    def prune(
        self,
        *,
        host: str = "",
        repository: str = "",
        domain: str = "",
        rules: RetentionRules | None = None,
        points: Sequence[str] = (),
        dry_run: bool = False,
        speed: int = 0,
    ) -> Handle:
        """Enqueue a prune of a repository. Fields: :class:`PruneRequest`.

        :param host: the hypervisor that prunes. Default: one that has the repository.
        :param domain: a name or uuid, also of a domain that is gone and has points.
        :raises BadInput: a field is wrong, or several repositories could be meant.
        :raises NotReachable: Redis or that hypervisor does not answer.
        """
        return self._enqueue(
            queues.PRUNE,
            {
                "repository": repository,
                "domain": self.find_uuid(domain) if domain else "",
                "rules": schemas.dump(rules or RetentionRules()),
                "points": list(points),
                "dry_run": dry_run,
                "speed": speed,
            },
            host,
        )

    def submit(self, submission: Submission) -> Handle:
        """Have ``central`` enqueue long work, told to it as a document: for other services.

        With a ``task_id`` of the caller's own it may be submitted again and again, as after a
        :class:`NotReachable`: it stays one task.

        :raises BadInput: a field is wrong, the callback is not allowed, or that ``task_id`` was
            given to another request.
        :raises NotReachable: Redis, central or the hypervisor does not answer. Unknown is then
            whether it was enqueued: submit it again under the same ``task_id``.
        """
        wanted = replace(submission, task_id=submission.task_id or str(uuid4()))
        answer = self._question(queues.CENTRAL, queues.SUBMIT, schemas.dump(wanted))
        with runs.reachable():
            run = RunRecord.read(self.redis, answer["task_id"])
        return Handle(self, answer["task_id"], answer["task"], answer["host"], run)

    def run(self, task_id: str) -> RunInfo | None:
        """How a task ended, from the catalog: also when its result is kept no more."""
        answer = self._question(queues.CENTRAL, queues.RUN, task_id)
        return schemas.load(RunInfo, answer) if answer else None

    def handle(self, task_id: str) -> Handle:
        """The handle of a task that was enqueued before.

        :raises UnknownTask: nobody knows it.
        """
        with runs.reachable():
            run = RunRecord.read(self.redis, task_id)
            meta = self.app.backend.get_task_meta(task_id)
        if run is None and meta["status"] == "PENDING":
            raise UnknownTask(
                f"No task {task_id} is known.", "`virtvault jobs` lists what is running."
            )
        task = run.task if run else meta.get("name", "")
        if task not in RESULTS:
            raise UnknownTask(
                f"Task {task_id} is not a backup or restore of ours.",
                "`virtvault jobs` lists what is running.",
            )
        return Handle(self, task_id, task, run.host if run else "", None)

    # -- questions ----------------------------------------------------------------------------

    def disks(self, domain: str) -> list[DiskInfo]:
        """A domain's disks, and why one would be skipped."""
        found = self.find_domain(domain)
        answer = self._ask(found.host, queues.DISKS, found.uuid)
        return [schemas.load(DiskInfo, item) for item in answer]

    def bitmaps(
        self, domain: str, *, name: str = "*", disks: Sequence[str] = ()
    ) -> list[BitmapInfo]:
        """A domain's dirty bitmaps, running or not; ``name`` may be a glob pattern."""
        answer = self._bitmap(queues.BITMAPS, domain, name, disks)
        return [schemas.load(BitmapInfo, item) for item in answer]

    def add_bitmap(
        self,
        domain: str,
        name: str,
        *,
        disks: Sequence[str] = (),
        granularity: int = 0,
        persistent: bool | None = None,
    ) -> BitmapChanges:
        """Add a bitmap to all disks meant or to none. Fields: :class:`BitmapRequest`.

        :raises BadInput: nothing was touched.
        """
        options = {"granularity": granularity, "persistent": persistent}
        answer = self._bitmap(queues.ADD_BITMAP, domain, name, disks, **options)
        return schemas.load(BitmapChanges, answer)

    def clear_bitmap(self, domain: str, name: str, *, disks: Sequence[str] = ()) -> BitmapChanges:
        """Clear a bitmap of the user's on the disks that have it.

        :raises BadInput: nothing was touched.
        """
        answer = self._bitmap(queues.CLEAR_BITMAP, domain, name, disks)
        return schemas.load(BitmapChanges, answer)

    def remove_bitmap(
        self, domain: str, name: str, *, disks: Sequence[str] = (), include_ours: bool = False
    ) -> BitmapChanges:
        """Remove bitmaps, by name or glob pattern, from the disks that have them.

        :param include_ours: virtvault's too: the next backup of such a disk is then a full.
        :raises BadInput: nothing was touched.
        """
        options = {"include_ours": include_ours}
        answer = self._bitmap(queues.REMOVE_BITMAP, domain, name, disks, **options)
        return schemas.load(BitmapChanges, answer)

    def check(self, host: str = "") -> list[CheckLine]:
        """Test one or all living hypervisors: are they ready to back up?"""
        lines = []
        hosts = [host] if host else self._living()
        for name in hosts:
            for item in self._ask(name, queues.CHECK):
                line = schemas.load(CheckLine, item)
                subject = f"{name}: {line.subject}" if len(hosts) > 1 else line.subject
                lines.append(replace(line, subject=subject))
        return lines

    def jobs(self, host: str = "", domain: str = "") -> list[JobInfo]:
        """All jobs of one or all living hypervisors, ours and others'; of one domain where given.

        :raises UnknownDomain: no hypervisor has that domain, and no job belongs to it.
        """
        found = []
        for name in [host] if host else self._living():
            found += [schemas.load(JobInfo, item) for item in self._ask(name, queues.JOBS)]
        if domain:
            found = [j for j in found if domain in (j.domain, j.uuid, f"{j.host}/{j.domain}")]
            if not found:
                self.find_domain(domain)
        return found

    def events(
        self,
        domain: str = "",
        *,
        names: Sequence[str] = (),
        host: str = "",
        last: int = 50,
        follow: bool = False,
    ) -> Iterator[Event]:
        """The ``last`` events that QEMU and libvirt sent, oldest first; then what comes.

        ``domain`` is a name, a uuid or ``host/name``; ``names`` are shell patterns in any case
        (``block_job_*``), of which one must fit. With ``follow`` it never ends, and waits where
        Redis goes away meanwhile. An event may come twice when Redis was restarted.

        :raises NotReachable: Redis does not answer.
        """
        return events.read(self.redis, domain, names, host, last, follow)

    def cancel(self, name: str, *, host: str = "", domain: str = "", others: bool = False) -> str:
        """Cancel a queued or running task, or a job; gives a sentence on what was done.

        ``name`` is a task id, or a job as :meth:`jobs` lists it, narrowed by ``host`` and
        ``domain``. A job of ours cancels its whole task, since a point is all disks or nothing;
        one that is not ours is cancelled only where ``others`` is set.

        :raises UnknownTask: there is no such task or job, or there are several such jobs.
        :raises InvalidRequest: the job is somebody else's, or has ended.
        """
        return self._steer(queues.CANCEL, name, host, domain, others=others)

    def pause(self, name: str, *, host: str = "", domain: str = "") -> str:
        """Pause a task's block jobs, or one job; ``name`` and errors as in :meth:`cancel`."""
        return self._steer(queues.PAUSE, name, host, domain)

    def resume(self, name: str, *, host: str = "", domain: str = "") -> str:
        """Resume a task's block jobs, or one job; ``name`` and errors as in :meth:`cancel`."""
        return self._steer(queues.RESUME, name, host, domain)

    def set_speed(self, name: str, rate: int, *, host: str = "", domain: str = "") -> str:
        """Limit a task's block jobs, or one job, to ``rate`` bytes per second each; 0: no limit.

        ``name`` and errors as in :meth:`cancel`.
        """
        return self._steer(queues.SET_SPEED, name, host, domain, rate=rate)

    # -- inside -------------------------------------------------------------------------------

    def _enqueue(self, task: str, plain: Mapping[str, Any], host: str = "") -> Handle:
        host, request = self.route(task, plain, host)
        return self._submit(task, host, schemas.dump(request))

    def _submit(self, task: str, host: str, payload: dict[str, Any]) -> Handle:
        run = self._publish(task, host, payload)
        return Handle(self, run.task_id, task, host, run)

    def _steer(self, action: str, name: str, host: str, domain: str, **more: Any) -> str:
        """Have the hypervisor of a task, or of a job, act on it."""
        try:
            handle = self.handle(name)
        except UnknownTask:
            job = self._job(name, host, domain)
            if job.task_id == name:  # a run that Redis has forgotten
                return str(self._ask(job.host, action, name, **more))
            return str(self._ask(job.host, action, name, uuid=job.uuid, **more))
        if not handle.host or handle.state() in READY:
            raise UnknownTask(f"Task {name} has ended.", f"`virtvault task {name}` shows how.")
        return str(self._ask(handle.host, action, name, **more))

    def _job(self, name: str, host: str, domain: str) -> JobInfo:
        """The one job of that id, or one of the task of that id.

        :raises UnknownTask: there is none, or there are several.
        """
        listed = self.jobs(host, domain)
        found = [job for job in listed if job.job == name]
        if len(found) > 1:
            raise UnknownTask(
                f"Block job {name} runs on {len(found)} domains: "
                f"{', '.join(f'{job.host}/{job.domain}' for job in found)}.",
                "Say which with --domain HOST/DOMAIN.",
            )
        found += [job for job in listed if job.task_id == name]
        if not found:
            raise UnknownTask(
                f"No task or block job {name} is known"
                + (f" on {host}" if host else "")
                + (f" for domain {domain}" if domain else "")
                + ".",
                "`virtvault jobs` lists what runs; a task that has ended takes no commands.",
            )
        return found[0]

    def _bitmap(
        self, task: str, domain: str, name: str, disks: Sequence[str], **options: Any
    ) -> Any:
        request = schemas.load(
            BitmapRequest, {"domain": domain, "name": name, "disks": list(disks), **options}
        )
        found = self.find_domain(domain)
        return self._ask(found.host, task, {**schemas.dump(request), "domain": found.uuid})

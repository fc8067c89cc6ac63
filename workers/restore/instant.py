"""``instant``: a new domain that runs at once from overlays, while its data is pulled in behind it.

A storage daemon serves the point read-only over NBD; each disk is an empty overlay on that, and the
domain is defined and started on the overlays. A ``block-stream`` in its QEMU then brings the data
into them. An overlay is whole when its header names no backing file and each of its clusters is
there. Where the guest is shut off meanwhile the daemon goes on with the pull itself.

Once the guest runs, only a cancel takes it away again. Whatever else goes wrong is tried again: a
daemon that ended is started anew, a guest that stood because of it runs on, a pull that failed is
begun again where it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

from virtvault.errors import (
    Cancelled,
    DestinationExists,
    InvalidRequest,
    VirtvaultError,
    WorkFailed,
)
from virtvault.models import PointDisk, RestoredDisk
from workers import definitions
from workers.domain_xml import NewDisk, policies_of, settled
from workers.engine import now
from workers.exports import Export
from workers.images import claim, require_room, require_unchanged, sync
from workers.isolation import unix
from workers.jobs import Detached
from workers.journal import sync_directory
from workers.repository.directory import create_image
from workers.restore import protection
from workers.restore.destination import directory_of
from workers.restore.new_domain import NewDomain
from workers.restore.pulling import Pulling
from workers.restore.story import Story, key_of, make_directory, remove_directories, stored

__all__ = ["Instant"]

log = logging.getLogger(__name__)


class Instant(Story):
    """One domain that runs from a point until it stands alone."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.to = directory_of(self.settings, self.request.to or self.request.name)
        self.domain = NewDomain(self, self.to)
        self.run.draft["to"] = str(self.to)
        # Whose jobs are to be paused, and who is at work on the new domain.
        self.run.uuid, self.run.domain = self.domain.uuid, self.domain.name
        self.socket = self.daemon.directory / "served" / "nbd.sock"
        self.overlays = {d.target: self.to / f"{d.target}.qcow2" for d in self.disks}
        self._hypervisor = self.engine.hypervisor

    def locks(self) -> list[str]:
        """See :meth:`Story.locks`; the new domain's own, so that no backup of it meets the pull."""
        return [key_of("to", self.to), self.domain.key, self.domain.uuid]

    def what(self) -> str:
        """See :meth:`Story.what`."""
        return f"domain {self.domain.name} in {self.to}"

    def work(self) -> None:
        """See :meth:`Story.work`."""
        if self.run.phase == "booting" and (
            self._hypervisor.is_active(self.domain.uuid) or self._written()
        ):
            self._booted()  # an earlier worker died just then; what the guest wrote stays
        if self.run.phase in ("planned", "booting"):
            self._boot()
        if self.run.phase == "pulling":
            self.ties.step("pulling")
            Pulling(self).to_the_end()
            self.phase("copied")
        self.ties.step("closing")
        self._close()

    def undo(self) -> None:
        """See :meth:`Story.undo`; of a guest that runs only after a cancel."""
        self.domain.clear()
        self._end_serving()
        for disk, overlay in self.overlays.items():
            if disk in self.run.draft.get("overlays", []):
                overlay.unlink(missing_ok=True)
        remove_directories(self)

    def give_up(self, why: str) -> None:
        """End where there is nothing left to end well; nothing of the domain's is removed.

        :raises WorkFailed: always.
        """
        self._end_serving()
        self.engine.journal.forget(self.run.task_id)
        raise WorkFailed(why, "Remove what is left of it, and restore the point again.")

    def keeps(self, error: BaseException) -> bool:
        """See :meth:`Story.keeps`: of a guest that has run, only a cancel is the end."""
        has_run = self.run.phase in ("pulling", "copied") or (
            self.run.phase == "booting" and self._written()
        )
        return has_run and not isinstance(error, Cancelled)

    def restored(self) -> list[RestoredDisk]:
        """See :meth:`Story.restored`."""
        return [
            RestoredDisk(
                target=disk.target,
                path=str(self.overlays[disk.target]),
                format="qcow2",
                virtual_size=disk.virtual_size,
                stored=stored(self.overlays[disk.target]),
            )
            for disk in self.disks
        ]

    # -- the story ----------------------------------------------------------------------------

    def _boot(self) -> None:
        self.ties.step("preparing")
        self.require_point()
        self.phase("planned")  # before the first overlay goes: one that is missing was not written
        self.undo()  # what an earlier worker had begun
        self.run.draft |= {"overlays": [], "made": []}
        self._require()
        self.phase("planned")
        self.ties.check(self.engine.journal)
        protection.keep(self.repository, self.point, self.run.task_id, self._reason())
        self.serve()
        make_directory(self, self.to)
        for disk in self.disks:
            overlay = self.overlays[disk.target]
            self._claim(disk.target)
            create_image(overlay, disk.virtual_size, backing=self._url(disk), backing_format="raw")
            sync(overlay)
        sync_directory(self.to)
        self.ties.check(self.engine.journal)
        self.ties.step("booting")
        self.run.draft["empty"] = {t: _state(overlay) for t, overlay in self.overlays.items()}
        self.phase("booting")
        self.domain.define(self._new_disks())
        definitions.start(self._hypervisor, self.domain.uuid)
        self._booted()

    def _claim(self, target: str) -> None:
        ours: list[str] = self.run.draft["overlays"]
        ours.append(target)
        self.phase("planned")
        try:
            claim(self.overlays[target])
        except DestinationExists:
            ours.remove(target)  # another's, that came just now: not for undo to remove
            raise

    def _booted(self) -> None:
        self.run.draft["booted"] = now()
        self.phase("pulling")

    def _written(self) -> bool:
        """Whether an overlay is not as it was made: a guest has run, and went off."""
        empty = self.run.draft.get("empty", {})
        return any(_state(overlay) != empty.get(t) for t, overlay in self.overlays.items())

    def _close(self) -> None:
        """Stand alone, tried until it works: all is there, so no cancel takes it away any more."""
        while True:
            try:
                self._stand_alone()
            except (VirtvaultError, OSError) as error:
                log.warning("task %s: %s", self.run.task_id, error)
                if reason := self.gone():
                    self.give_up(reason)
            else:
                return
            if self.ties.stopping():
                raise Detached
            self.ties.sample(())
            time.sleep(self.engine.pace.longest)

    def _stand_alone(self) -> None:
        """All is pulled in: let go of the point."""
        for overlay in self.overlays.values():
            sync(overlay)
        if definitions.is_defined(self._hypervisor, self.domain.uuid):
            policies = self.run.draft["policies"]
            before = self._hypervisor.inactive_xml(self.domain.uuid)
            definitions.rewrite(self._hypervisor, before, settled(before, policies))
            definitions.rewrite_saved(
                self._hypervisor, self.domain.uuid, lambda xml: settled(xml, policies)
            )
            if self._hypervisor.is_active(self.domain.uuid):
                self.note(
                    "until it was shut off and started again, do not save, managedsave or migrate "
                    "it, nor commit its snapshots: libvirt still takes its images to stand on the "
                    "point"
                )
        else:
            self.note("its domain was undefined meanwhile; the images are complete")
        self._end_serving()

    def gone(self) -> str:
        """That somebody threw the domain and images of it away; empty where not."""
        lost = [str(overlay) for overlay in self.overlays.values() if not overlay.exists()]
        try:
            if not lost or definitions.is_defined(self._hypervisor, self.domain.uuid):
                return ""
        except VirtvaultError:  # nobody knows; asked again
            return ""
        return (
            f"Domain {self.domain.name} was undefined and {', '.join(lost)} removed while it was "
            "being restored; nothing else of it was touched."
        )

    # -- serving ------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve the point, by a daemon that is started for it; one that was there has ended.

        :raises VirtvaultError: it cannot be opened.
        """
        self.end_daemon()
        self.daemon.start()
        served = self.socket.parent
        served.mkdir(mode=0o700)
        # The socket is to be reached by QEMU's user, the daemon's monitors are not.
        for place in (self.daemon.directory.parent, self.daemon.directory):
            place.chmod(0o711)
        uid = self.domain.user()
        with contextlib.closing(self.monitor()) as monitor:
            sources = self.open_sources(monitor)
            monitor.execute("nbd-server-start", addr=unix(str(self.socket)))
            for target, source in sources.items():
                monitor.execute(
                    "block-export-add",
                    type="nbd",
                    id=target,
                    node_name=source.node,
                    name=target,
                    writable=False,
                )
        os.chown(served, uid, -1)
        os.chown(self.socket, uid, -1)
        self.socket.chmod(0o600)

    def _end_serving(self) -> None:
        self.end_daemon()
        protection.let_go(self.repository, self.point, self.run.task_id)

    def _reason(self) -> str:
        return f"domain {self.domain.name} runs from it until task {self.run.task_id} ends"

    # -- its plan -----------------------------------------------------------------------------

    def _require(self) -> None:
        there = [str(overlay) for overlay in self.overlays.values() if os.path.lexists(overlay)]
        if there:
            raise DestinationExists(
                f"Already there: {', '.join(there)}.",
                "Remove them, or restore into another directory.",
            )
        for disk in self.disks:
            backing, roots = disk.backing, self.settings.backing_roots
            require_unchanged(self.point.id, backing, roots)
        require_room((self.to, self.needed(disk)) for disk in self.disks)
        self._require_socket()
        self.run.draft["policies"] = policies_of(self.domain.stored_xml(), self.overlays)
        self.domain.require(self._new_disks())

    def _require_socket(self) -> None:
        # sun_path, with its end.
        if len(os.fsencode(self.socket)) > 107:
            raise InvalidRequest(
                f"{self.socket} is too long for a socket.", "Choose a shorter runtime_dir."
            )

    def _new_disks(self) -> dict[str, NewDisk]:
        return {
            target: NewDisk(str(overlay), "qcow2", served=str(self.socket))
            for target, overlay in self.overlays.items()
        }

    def _url(self, disk: PointDisk) -> str:
        return Export(disk.target, str(self.socket), "").url


def _state(image: Path) -> list[int]:
    """What changes when an image is written to; as JSON keeps it."""
    try:
        entry = image.stat()
    except FileNotFoundError:
        return []
    return [entry.st_size, entry.st_mtime_ns]

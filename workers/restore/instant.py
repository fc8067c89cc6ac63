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

from virtvault.errors import (
    Cancelled,
    DestinationExists,
    InvalidRequest,
    VirtvaultError,
)
from virtvault.models import PointDisk, RestoredDisk
from workers import definitions
from workers.domain_xml import NewDisk, policies_of, settled
from workers.engine import now
from workers.exports import Export
from workers.images import require_room, require_unchanged, sync
from workers.isolation import unix
from workers.journal import sync_directory
from workers.repository import sidecar
from workers.repository.directory import create_image
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
        if self.run.phase == "booting" and self._hypervisor.is_active(self.domain.uuid):
            self._booted()  # an earlier worker died just then
        if self.run.phase in ("planned", "booting"):
            self._boot()
        if self.run.phase == "pulling":
            self.ties.step("pulling")
            Pulling(self).to_the_end()
            self.phase("copied")
        self.ties.step("closing")
        self._stand_alone()

    def undo(self) -> None:
        """See :meth:`Story.undo`; of a guest that runs only after a cancel."""
        self.domain.clear()
        self._end_serving()
        for disk, overlay in self.overlays.items():
            if disk in self.run.draft.get("overlays", []):
                overlay.unlink(missing_ok=True)
        remove_directories(self)

    def keeps(self, error: BaseException) -> bool:
        """See :meth:`Story.keeps`: of a guest that runs, only a cancel is the end."""
        return self.run.phase in ("pulling", "copied") and not isinstance(error, Cancelled)

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
        self.undo()  # what an earlier worker had begun
        self.run.draft |= {"overlays": [], "made": []}
        self._require()
        self.phase("planned")
        self.ties.check(self.engine.journal)
        self._protect()
        self.serve()
        make_directory(self, self.to)
        self.run.draft["overlays"] = list(self.overlays)
        self.phase("planned")
        for disk in self.disks:
            overlay = self.overlays[disk.target]
            create_image(overlay, disk.virtual_size, backing=self._url(disk), backing_format="raw")
            overlay.chmod(0o600)
            sync(overlay)
        sync_directory(self.to)
        self.ties.check(self.engine.journal)
        self.ties.step("booting")
        self.phase("booting")
        self.domain.define(self._new_disks())
        definitions.start(self._hypervisor, self.domain.uuid)
        self._booted()

    def _booted(self) -> None:
        self.run.draft["booted"] = now()
        self.phase("pulling")

    def _stand_alone(self) -> None:
        """All is pulled in: let go of the point."""
        for overlay in self.overlays.values():
            sync(overlay)
        if definitions.is_defined(self._hypervisor, self.domain.uuid):
            before = self._hypervisor.inactive_xml(self.domain.uuid)
            after = settled(before, self.run.draft["policies"])
            definitions.rewrite(self._hypervisor, before, after)
        else:
            self.note("its domain was undefined meanwhile; the images are complete")
        self._end_serving()

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
        self._unprotect()

    def _protect(self) -> None:
        """Keep prune away from the point also in the moments when no daemon has it open."""
        directory = self.repository.directory(self.point.uuid, self.point.id)
        try:
            if not sidecar.protection(directory):
                sidecar.write(directory, sidecar.PROTECTED, {"reason": self._reason()})
        except VirtvaultError as error:
            # A repository that is mounted read-only: nobody prunes it from here.
            log.info("point %s is not protected: %s", self.point.id, error)

    def _unprotect(self) -> None:
        directory = self.repository.directory(self.point.uuid, self.point.id)
        with contextlib.suppress(VirtvaultError):
            if sidecar.protection(directory) == self._reason():
                sidecar.drop(directory, sidecar.PROTECTED)

    def _reason(self) -> str:
        return f"domain {self.domain.name} runs from it until task {self.run.task_id} ends"

    # -- its plan -----------------------------------------------------------------------------

    def _require(self) -> None:
        there = [str(overlay) for overlay in self.overlays.values() if overlay.exists()]
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
        directory = self.repository.directory(self.point.uuid, self.point.id)
        xml = directory / "domain.xml"
        if xml.exists():
            self.run.draft["policies"] = policies_of(xml.read_text(), self.overlays)
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

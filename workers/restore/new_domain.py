"""The domain that a restore defines under a new name: from the point's XML, with its own uuid."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from xml.etree.ElementTree import ParseError

from virtvault.errors import (
    DestinationExists,
    NotSupported,
    RepositoryUnusable,
    VirtvaultError,
    WorkFailed,
)
from workers import definitions, nvram
from workers.domain_xml import NewDisk, domain_type, nvram_of, redefine
from workers.restore.destination import require_reach
from workers.restore.story import Story, key_of

__all__ = ["NewDomain"]


class NewDomain:
    """The domain of one run. Its uuid is in the journal before anything of it is made."""

    def __init__(self, story: Story, directory: Path) -> None:
        self.story = story
        self.name = story.request.name
        self.directory = directory
        self._hypervisor = story.engine.hypervisor
        self._point = story.repository.directory(story.point.uuid, story.point.id)

    @property
    def uuid(self) -> str:
        """Its own, the same for every worker of the run."""
        draft = self.story.run.draft
        draft["name"] = self.name
        found: str = draft.setdefault("uuid", str(uuid.uuid4()))
        return found

    @property
    def key(self) -> str:
        """The name of the lock on its name."""
        return key_of("name", self.name)

    def require(self, disks: Mapping[str, NewDisk]) -> None:
        """See that libvirt takes the definition, before anything is copied for it.

        :raises DestinationExists: the name is in use, or the file of its firmware variables is.
        :raises InvalidRequest: QEMU's user could not open the images where they will be.
        :raises WorkFailed: libvirt does not take it.
        """
        self.clear()  # what an earlier worker had begun
        definitions.require_free_name(self._hypervisor, self.name)
        stored = self.stored_xml()
        if nvram_of(stored):
            self._require_no_nvram()
        require_reach(self.directory, definitions.qemu_user(self._hypervisor, domain_type(stored)))
        xml, notes = self._xml(disks)
        # Its uuid is durable first: killed in between, the next worker knows whose it is.
        self.story.phase("planned")
        definitions.try_definition(self._hypervisor, xml, self.uuid)
        for note in notes:
            self.story.note(note)

    def user(self) -> int:
        """The uid its QEMU will run as."""
        return definitions.qemu_user(self._hypervisor, domain_type(self.stored_xml()))

    def define(self, disks: Mapping[str, NewDisk]) -> None:
        """Write its NVRAM and define it; may run again after a kill."""
        # Once defined it may have been started, and have written to them.
        if not definitions.is_defined(self._hypervisor, self.uuid):
            self._put_nvram()
        definitions.define(self._hypervisor, self._xml(disks)[0])

    def define_complete(self, disks: Mapping[str, NewDisk], where: str) -> None:
        """Define it on images that are complete, and start it where that was asked for.

        :param where: the images, for the message.
        :raises WorkFailed: the images stay; the message says so.
        """
        try:
            self.define(disks)
        except VirtvaultError as error:
            raise WorkFailed(
                f"The disks are restored and complete ({where}), but: {error.message}", error.mend
            ) from error
        if self.story.request.start:
            try:
                definitions.start(self._hypervisor, self.uuid)
            except WorkFailed as error:
                raise WorkFailed(
                    f"Domain {self.name} is defined, its disks are complete ({where}), but: "
                    f"{error.message}",
                    f"{error.mend} Start it with `virsh start {self.name}`.",
                ) from error

    def clear(self) -> None:
        """Take it away again, as far as it is there: it is ended, whatever it was doing."""
        ours = self.story.run.draft.get("uuid", "")
        if ours in ("", self.story.point.uuid):
            return
        if definitions.is_defined(self._hypervisor, self.uuid):
            definitions.end(self._hypervisor, self.uuid)
            definitions.undefine(self._hypervisor, self.uuid)
        if self.story.run.draft.pop("nvram", False):
            with contextlib.suppress(FileNotFoundError):
                self.nvram.unlink()

    @property
    def nvram(self) -> Path:
        """The file of its firmware variables."""
        return self.directory / f"{self.name}_VARS.fd"

    def _put_nvram(self) -> None:
        if not nvram_of(self.stored_xml()):
            return
        if not self.story.run.draft.get("nvram"):
            self._require_no_nvram()
        kept = self._point / nvram.FILE
        if not kept.exists():
            self.story.note(
                "the point has no NVRAM of its domain (see its own notes): the firmware begins "
                "with its defaults, and its boot entries are gone"
            )
            return
        self.story.run.draft["nvram"] = True
        self.story.engine.journal.write(self.story.run)
        nvram.put(kept.read_bytes(), self.nvram)

    def _require_no_nvram(self) -> None:
        if os.path.lexists(self.nvram):
            raise DestinationExists(
                f"Already there: {self.nvram}, where the firmware variables of domain {self.name} "
                "would be.",
                "Remove it, or choose another name or directory.",
            )

    def _xml(self, disks: Mapping[str, NewDisk]) -> tuple[str, list[str]]:
        return redefine(
            self.stored_xml(),
            name=self.name,
            uuid=self.uuid,
            disks=disks,
            directory=str(self.directory),
            nvram=str(self.nvram),
        )

    def stored_xml(self) -> str:
        """The definition of the point's domain.

        :raises NotSupported: the point has none.
        :raises RepositoryUnusable: it is damaged.
        """
        path = self._point / "domain.xml"
        try:
            text = path.read_text(encoding="utf-8")
            domain_type(text)  # parsed
            return text
        except (UnicodeDecodeError, ParseError) as error:
            raise RepositoryUnusable(
                f"{path} of point {self.story.point.id} is cut off or damaged: {error}.",
                "Restore its disks (--to) and define a domain by hand, or use another point.",
            ) from error
        except OSError as error:
            raise NotSupported(
                f"Point {self.story.point.id} has no domain.xml: {error.strerror}.",
                "Restore its disks (--to) and define a domain by hand.",
            ) from error

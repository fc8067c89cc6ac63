"""What this hypervisor has, kept up to date.

Domains are read again where libvirt said that they changed, and the states of all with one call at
each look: what a look costs does not grow with the domains' XML. A repository that does not answer
holds up nobody.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt

from virtvault.errors import DomainStopped, InvalidSettings, MonitorError, VirtvaultError
from virtvault.models import DomainInfo, Inventory, RepositoryInfo
from virtvault.settings import Settings
from virtvault.whereabouts import SHUT_OFF
from workers.engine import now
from workers.hypervisor import Hypervisor, state_word
from workers.repository import open_repository
from workers.repository.directory import IDENTITY

__all__ = ["BOOT_TESTS", "Stocktaking", "differs", "of_this_host"]

log = logging.getLogger(__name__)

# Domains of ours that stand for the time of a boot test, and are nobody's.
BOOT_TESTS = "virtvault-verify-"
EVENTS = (
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
)
# Seconds for one question to libvirt, and for all repositories.
PATIENCE = 5.0
# Seconds from an event to the look: a start or a migration is many events.
SETTLE = 0.2
# Not every change of a definition is an event (a disk that is attached with --config), so each
# is read again after so many seconds, and so many at a look.
AGAIN = 600.0
PORTION = 20
# A change of free room that is smaller than this, and than a hundredth of it, is none.
GIB = 2**30


class Stocktaking:
    """Looks at libvirt and repositories on a connection of its own.

    :param known: what was known before: it holds while libvirt does not answer.
    """

    def __init__(self, settings: Settings, known: Inventory | None = None) -> None:
        self._settings = settings
        hypervisor = Hypervisor(replace(settings, qmp_timeout=min(settings.qmp_timeout, PATIENCE)))
        self._hypervisor = hypervisor
        self._domains = _Domains(hypervisor, known)
        self._versions = dict(known.versions) if known else {}
        self._repositories = [_Repository(settings, name) for name in settings.repositories]

    def look(self) -> Inventory:
        """What there is now. Without libvirt its ``trouble`` says so, and what was known holds."""
        trouble = ""
        try:
            self._domains.look()
            self._versions = self._hypervisor.versions()
        except VirtvaultError as error:
            trouble = error.message
        until = time.monotonic() + PATIENCE
        for repository in self._repositories:
            repository.ask()
        return Inventory(
            host=self._settings.host,
            at=now(),
            versions=self._versions,
            repositories=tuple(one.answer(until) for one in self._repositories),
            domains=self._domains.known,
            default=_default(self._settings),
            trouble=trouble,
        )

    def wait(self, seconds: float) -> None:
        """Sleep, but return early when libvirt says that something has changed."""
        if self._domains.woken.wait(seconds):
            time.sleep(SETTLE)


class _Domains:
    """The domains of this host by uuid; ``woken`` is set when libvirt told of a change."""

    def __init__(self, hypervisor: Hypervisor, known: Inventory | None) -> None:
        self._hypervisor = hypervisor
        self._known = {domain.uuid: domain for domain in known.domains} if known else {}
        # When they were last seen as they are known.
        self._seen = known.at if known else ""
        # When each was read, by uuid: not for those that were known before.
        self._read: dict[str, float] = {}
        self._changed: set[str] = set()
        self._lock = threading.Lock()
        self._listening: tuple[libvirt.virConnect, list[int]] | None = None
        self.woken = threading.Event()

    @property
    def known(self) -> tuple[DomainInfo, ...]:
        """By name."""
        return tuple(sorted(self._known.values(), key=lambda domain: (domain.name, domain.uuid)))

    def look(self) -> None:
        """Bring what is known up to date.

        :raises NotReachable: libvirt does not answer; what was not brought up to date will be.
        """
        # Before the look, so that what comes during it is looked at again.
        self.woken.clear()
        self._listen()
        with self._lock:
            changed, self._changed = self._changed, set()
        try:
            self._bring_up_to_date(changed)
        except VirtvaultError:
            with self._lock:
                self._changed |= changed
            raise
        self._seen = now()

    def _bring_up_to_date(self, changed: set[str]) -> None:
        states = self._hypervisor.call("states of the domains", _states)
        found: dict[str, DomainInfo] = {}
        due = changed | self._oldest()
        for uuid, (name, state) in states.items():
            if name.startswith(BOOT_TESTS):
                continue
            known = self._known.get(uuid)
            bare = DomainInfo(name, uuid, self._hypervisor.settings.host, state)
            known = replace(known or bare, name=name, state=state)
            if uuid in due or uuid not in self._read:
                known = self._describe(known)
            if known is not None:
                found[uuid] = self._aged(known)
        self._known = found
        self._read = {uuid: when for uuid, when in self._read.items() if uuid in found}

    def _oldest(self) -> set[str]:
        """Those that were read too long ago, as many as one look may take."""
        old = sorted((when, uuid) for uuid, when in self._read.items())[:PORTION]
        return {uuid for when, uuid in old if time.monotonic() - when > AGAIN}

    def _describe(self, known: DomainInfo) -> DomainInfo | None:
        """One domain as it is now, None where it is gone meanwhile."""
        began = time.monotonic()
        try:
            found = self._hypervisor.describe(known.uuid)
        except DomainStopped:
            return None
        except (MonitorError, ElementTree.ParseError) as error:
            # One that is ill must not hide the others.
            log.warning("domain %s is told as it was known: %s", known.name, error)
            found = known
        self._read[known.uuid] = began
        return found

    def _aged(self, domain: DomainInfo) -> DomainInfo:
        """With the time when it was seen active last."""
        before = self._known.get(domain.uuid)
        if domain.state != SHUT_OFF or before is None:
            return replace(domain, active="")
        return replace(domain, active=before.active if before.state == SHUT_OFF else self._seen)

    def _listen(self) -> None:
        """Have libvirt tell of changes. On a new connection nothing of before is to be relied on.

        :raises NotReachable: libvirt does not answer.
        """
        connection = self._hypervisor.connection()
        if self._listening is not None:
            if self._listening[0] is connection:
                return
            _deregister(*self._listening)
            self._listening = None

        def register(opened: libvirt.virConnect) -> tuple[libvirt.virConnect, list[int]]:
            return opened, [
                opened.domainEventRegisterAny(None, event, self._told, None) for event in EVENTS
            ]

        self._listening = self._hypervisor.call("registration for changes", register)
        self._read.clear()

    # Called by libvirt's event loop, which serves every connection of the process: it must
    # neither wait nor raise.
    def _told(self, _: libvirt.virConnect, domain: libvirt.virDomain, *__: Any) -> None:
        with self._lock:
            self._changed.add(domain.UUIDString())
        self.woken.set()


def _states(connection: libvirt.virConnect) -> dict[str, tuple[str, str]]:
    """Name and state of every domain by uuid, with one question whatever their number."""
    return {
        domain.UUIDString(): (domain.name(), state_word(told["state.state"], told["state.reason"]))
        for domain, told in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
    }


def _deregister(connection: libvirt.virConnect, numbers: list[int]) -> None:
    """Give registrations back. On a dead connection this fails, and yet frees them here."""
    for number in numbers:
        with contextlib.suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(number)


class _Repository:
    """Asks one repository for its room; a mount that hangs has one thread of ours, not more."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._thread: threading.Thread | None = None
        self._found = RepositoryInfo(name)

    def ask(self) -> None:
        """Begin, unless it still owes the last answer."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._look, name=f"repository {self._name}", daemon=True
            )
            self._thread.start()

    def answer(self, until: float) -> RepositoryInfo:
        """The answer, waited for until then."""
        assert self._thread is not None
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            path = self._settings.repositories[self._name].path
            return replace(self._found, free=-1, size=-1, why=f"{path} does not answer.")
        return self._found

    def _look(self) -> None:
        try:
            self._found = of_this_host(self._settings, self._name)
        except VirtvaultError as error:
            self._found = RepositoryInfo(self._name, why=error.message)
        except OSError as error:
            self._found = RepositoryInfo(self._name, why=f"{error.filename}: {error.strerror}.")


def of_this_host(settings: Settings, name: str) -> RepositoryInfo:
    """One repository as it is now.

    One that was never used stays so: it is given its id when it is (to look is no use, and its
    directory may not be mounted yet).

    :raises RepositoryUnusable: it is not there, or damaged.
    :raises OSError: it cannot be read.
    """
    given = settings.repositories[name]
    path = Path(given.path)
    seen = Path(settings.state_dir, "repositories", name)
    unused = path.is_dir() and not (path / IDENTITY).exists() and not seen.exists()
    identity = "" if unused else open_repository(settings, name).id
    stat = os.statvfs(path)
    return RepositoryInfo(
        name=name,
        id=identity,
        type=given.type,
        free=stat.f_bavail * stat.f_frsize,
        size=stat.f_blocks * stat.f_frsize,
    )


def differs(before: Inventory, found: Inventory) -> bool:
    """Whether something changed that is worth telling: room only by more than 1 GiB and 1 %."""
    told = {one.name: one for one in before.repositories}
    settled = [_settled(told.get(one.name), one) for one in found.repositories]
    return replace(found, at=before.at, repositories=tuple(settled)) != before


def _settled(before: RepositoryInfo | None, found: RepositoryInfo) -> RepositoryInfo:
    """With the room as it was told, where it is much the same."""
    if before is None:
        return found
    free = before.free if _much_the_same(before.free, found.free) else found.free
    size = before.size if _much_the_same(before.size, found.size) else found.size
    return replace(found, free=free, size=size)


def _much_the_same(before: int, found: int) -> bool:
    if min(before, found) < 0:
        return before == found
    return abs(found - before) <= max(GIB, before // 100)


def _default(settings: Settings) -> str:
    try:
        return settings.repository_name("")
    except InvalidSettings:
        return ""

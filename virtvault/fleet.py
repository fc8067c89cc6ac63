"""What a client asks and says of the fleet as a whole: policies, freshness, runs, alerts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from virtvault import ends, queues, schemas
from virtvault.models import (
    Alert,
    DomainInfo,
    DomainStatus,
    FleetStatus,
    PolicyDocument,
    PolicyVersion,
    Preview,
    RunInfo,
    SlotRecord,
)
from virtvault.stored import StoredPoints

__all__ = ["Fleet"]


class Fleet(StoredPoints):
    """The central tier's side of a client."""

    # -- policies -----------------------------------------------------------------------------

    def apply_policies(
        self, document: PolicyDocument, text: str, *, by: str = "", comment: str = ""
    ) -> PolicyVersion:
        """Put new policies in force, all or none; gives their version.

        The same text again makes no new version. Read a file by
        :func:`virtvault.policy_file.read`.

        :param text: the YAML they were read from; it is kept, and given back by :meth:`policies`.
        :raises InvalidRequest: they cannot hold as they stand; nothing was changed.
        """
        answer = self._question(
            queues.CENTRAL, queues.APPLY_POLICIES, schemas.dump(document), text, by, comment
        )
        return schemas.load(PolicyVersion, answer)

    def policies(self, number: int = 0) -> PolicyVersion:
        """The policies in force, or those of version ``number``.

        :raises InvalidRequest: there is no such version.
        """
        return schemas.load(PolicyVersion, self._question(queues.CENTRAL, queues.POLICIES, number))

    def policy_versions(self) -> list[PolicyVersion]:
        """All versions there were, newest first, without text and document."""
        answer = self._question(queues.CENTRAL, queues.POLICY_VERSIONS)
        return [schemas.load(PolicyVersion, item) for item in answer]

    def preview(
        self,
        document: PolicyDocument | None = None,
        *,
        hours: int = 24,
        limit: int = 1000,
        domain: str = "",
    ) -> Preview:
        """What policies (those in force, or ``document``) would do in the next ``hours``.

        :param limit: so many runs at most are listed; the preview counts all.
        :param domain: name, uuid or ``host/name`` of the only one that is looked at.
        :raises UnknownDomain: no hypervisor has it.
        """
        plain = None if document is None else schemas.dump(document)
        answer = self._question(queues.CENTRAL, queues.PREVIEW, plain, hours, limit, domain)
        return schemas.load(Preview, answer)

    # -- the fleet ----------------------------------------------------------------------------

    def fleet(self, domain: str = "") -> FleetStatus:
        """How fresh the fleet is; with ``domain`` (name, uuid or ``host/name``) that one alone.

        :raises UnknownDomain: neither a hypervisor nor the catalog has it.
        """
        return _status(self._question(queues.CENTRAL, queues.FLEET, domain))

    def runs(
        self, *, since: str = "", domain: str = "", policy: str = "", limit: int = 1000
    ) -> list[RunInfo]:
        """Runs that ended after ``since`` (UTC, empty: any), and those at work; newest first.

        :param domain: a uuid or a name.
        """
        answer = self._question(queues.CENTRAL, queues.RUNS, since, domain, policy, limit)
        return [schemas.load(RunInfo, item) for item in answer]

    def slots(self, *, since: str = "", domain: str = "", limit: int = 1000) -> list[SlotRecord]:
        """What became of the slots of policies since then; newest first."""
        answer = self._question(queues.CENTRAL, queues.SLOTS, since, domain, limit)
        return [schemas.load(SlotRecord, item) for item in answer]

    def alerts(self, *, closed_since: str = "") -> list[Alert]:
        """What is wrong now; and with ``closed_since`` (UTC) what was since then."""
        answer = self._question(queues.CENTRAL, queues.ALERTS, closed_since)
        return [schemas.load(Alert, item) for item in answer]

    def ends(self, *, last: int = 50, follow: bool = False) -> Iterator[RunInfo]:
        """The ``last`` runs that ended, oldest first; with ``follow`` then each as it ends.

        A run may come twice, none is left out that ended while Redis was there.
        """
        return ends.read(self.redis, last, follow)

    def label(self, domain: str, labels: Mapping[str, str]) -> DomainInfo:
        """Set labels of a domain in its libvirt metadata; an empty value removes one.

        :raises InvalidRequest: a name or a value cannot be a label.
        """
        found = self.find_domain(domain)
        return schemas.load(
            DomainInfo, self._ask(found.host, queues.LABEL, found.uuid, dict(labels))
        )


def _status(answer: dict[str, Any]) -> FleetStatus:
    """Central's answer. Its domains are not looked at field by field: 50 000 would take 8 s."""
    try:
        domains = tuple(
            DomainStatus(**{**one, "policies": tuple(one["policies"])}) for one in answer["domains"]
        )
    except (KeyError, TypeError):  # of a central of another version: it is said what is wrong
        return schemas.load(FleetStatus, answer)
    return replace(schemas.load(FleetStatus, {**answer, "domains": []}), domains=domains)

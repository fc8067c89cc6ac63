"""The versions of the policies."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from tasks.catalog.database import Database
from tasks.catalog.tables import PolicyVersionRow
from virtvault import schemas
from virtvault.models import PolicyDocument, PolicyVersion

__all__ = ["Versions", "newest_version"]


class Versions(Database):
    """The catalog's policies."""

    def apply_policies(
        self, document: PolicyDocument, text: str, by: str, comment: str, at: str
    ) -> PolicyVersion:
        """Make them the newest version, or give that one where it has the same text already.

        :param at: UTC, when they are applied.
        """
        plain = schemas.dump(document)
        digest = hashlib.sha256(json.dumps([plain, text], sort_keys=True).encode()).hexdigest()
        with self._writing() as session:
            newest = newest_version(session)
            if newest is not None and newest.digest == digest:
                return _version(newest, document, newest.text)
            row = PolicyVersionRow(
                number=1 if newest is None else newest.number + 1,
                applied=at,
                by=by,
                comment=comment,
                policies=len(document.policies),
                text=text,
                document=plain,
                digest=digest,
            )
            session.add(row)
            session.flush()
            return _version(row, document, text)

    def policies(self, number: int = 0) -> PolicyVersion | None:
        """A version with its text and document; 0 is the newest; None where there is none."""
        with self._reading() as session:
            row = session.get(PolicyVersionRow, number) if number else newest_version(session)
            if row is None:
                return None
            return _version(row, schemas.load(PolicyDocument, row.document), row.text)

    def policy_versions(self) -> list[PolicyVersion]:
        """All of them, newest first, without text and document."""
        query = select(PolicyVersionRow).order_by(PolicyVersionRow.number.desc())
        query = query.options(defer(PolicyVersionRow.text), defer(PolicyVersionRow.document))
        with self._reading() as session:
            return [_version(row, None, "") for row in session.scalars(query)]


def newest_version(session: Session) -> Any:
    """The row of the policies in force, None before the first."""
    query = select(PolicyVersionRow).order_by(PolicyVersionRow.number.desc()).limit(1)
    return session.scalars(query).first()


def _version(row: Any, document: PolicyDocument | None, text: str) -> PolicyVersion:
    return PolicyVersion(
        number=row.number,
        applied=row.applied,
        by=row.by,
        comment=row.comment,
        policies=row.policies,
        text=text,
        document=document,
    )

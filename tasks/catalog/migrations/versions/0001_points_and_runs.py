"""The tables as they were before they had versions.

Those that such a database has already are left as they are.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "points",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("repository_id", sa.String(8), primary_key=True),
        sa.Column("uuid", sa.String(36), nullable=False),
        sa.Column("domain", sa.String(300), nullable=False),
        sa.Column("host", sa.String(100), nullable=False),
        sa.Column("instant", sa.String(30), nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_points_uuid", "points", ["uuid"], if_not_exists=True)
    op.create_index("ix_points_domain", "points", ["domain"], if_not_exists=True)
    op.create_table(
        "statuses",
        sa.Column("point", sa.String(40), primary_key=True),
        sa.Column("repository_id", sa.String(8), primary_key=True),
        sa.Column("uuid", sa.String(36), nullable=False),
        sa.Column("at", sa.String(30), nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_statuses_uuid", "statuses", ["uuid"], if_not_exists=True)
    op.create_table(
        "removed",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("repository_id", sa.String(8), primary_key=True),
        sa.Column("at", sa.String(30), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "runs",
        sa.Column("task_id", sa.String(100), primary_key=True),
        sa.Column("task", sa.String(100), nullable=False),
        sa.Column("host", sa.String(100), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("started", sa.String(30), nullable=False),
        sa.Column("finished", sa.String(30), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("mend", sa.Text, nullable=False),
        if_not_exists=True,
    )

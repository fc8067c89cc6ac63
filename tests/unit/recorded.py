"""What the QEMUs of recorded replies can do."""

from __future__ import annotations

from workers.capabilities import Capabilities

__all__ = ["MODERN"]

# QEMU 7.2, as tests/unit/test_capabilities.py finds it in its recorded replies.
MODERN = Capabilities(
    version=(7, 2, 0),
    copy="blockdev-backup",
    isolation=True,
    merge="any node",
    persistent=True,
    job_commands="job",
    keeps_jobs=True,
    flat=True,
    graph=True,
    x_perf=True,
    bitmap_flags=True,
    nbd_reconnect=True,
    block_exports=True,
)

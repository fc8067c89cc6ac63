"""All disks of a point show one instant, and the guest hardly notices it."""

from __future__ import annotations

import json
import struct
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt_qemu
import pytest

from tests.integration.conftest import MIB, Points
from tests.integration.test_points import (
    Running,
    assert_nothing_remains,
    bitmaps,
    committed,
    image_of,
    nodes,
    processes,
    until,
)
from tests.lab import DiskSpec, Guest
from virtvault.errors import GuestAgentFailed, WorkFailed
from virtvault.models import BackupRequest
from workers import guard, instant, isolation
from workers.backup import backup
from workers.engine import Engine, Ties

Boot = Callable[..., Guest]

THREE = (
    DiskSpec("vda", "qcow2", 64 * MIB),
    DiskSpec("vdb", "raw", 64 * MIB, iothread=True),
    DiskSpec("sda", "qcow2", 64 * MIB, bus="scsi"),
)

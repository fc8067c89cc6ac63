"""The test lab: real libvirt, QEMU, guests and Redis, started for a test and removed after it."""

from tests.lab.compare import assert_same
from tests.lab.guest import DiskSpec, Guest, GuestWriteFailed
from tests.lab.host import Hypervisor, accelerator
from tests.lab.image import BootImage, boot_image
from tests.lab.redis_server import RedisServer
from tests.lab.stack import Stack

__all__ = [
    "Guest",
    "DiskSpec",
    "GuestWriteFailed",
    "assert_same",
    "Hypervisor",
    "RedisServer",
    "Stack",
    "accelerator",
    "boot_image",
    "BootImage",
]

"""The Monitor interface: everything the engine knows of a QEMU is behind it.

Two stand behind it: :class:`workers.hypervisor.LibvirtMonitor` for a running domain and
:class:`workers.storage_daemon.StorageDaemonMonitor` for a qemu-storage-daemon.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from virtvault.errors import NotReachable

if TYPE_CHECKING:
    from workers.capabilities import Capabilities

__all__ = ["Monitor", "limited", "qmp_arguments"]

T = TypeVar("T")


class Monitor(Protocol):
    """QMP to one process."""

    @property
    def capabilities(self) -> Capabilities:
        """What this process can do; asked of it once."""

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command and give its ``return`` value.

        Keywords spell ``-`` as ``_``; values go as they are.

        :raises MonitorError: QEMU refused it; the message quotes QEMU.
        :raises DomainStopped: the process behind the monitor is gone.
        :raises NotReachable: no answer within the time limit.
        """

    def wait(self, seconds: float) -> None:
        """Sleep, but return early when an event of a block job arrives."""

    def close(self) -> None:
        """Give the monitor back. Safe to call twice."""


def qmp_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments as QMP spells them."""
    return {key.replace("_", "-"): value for key, value in arguments.items()}


def limited(call: Callable[[], T], seconds: float, what: str) -> T:
    """Run a call that cannot be interrupted (libvirt's C) and stop waiting after ``seconds``.

    The thread of a call that never returns is left behind as a daemon: it holds nothing of ours.

    :raises NotReachable: the time is up; ``what`` names the call.
    """
    result: list[T] = []
    raised: list[BaseException] = []

    def body() -> None:
        try:
            result.append(call())
        except BaseException as error:  # handed to the caller below
            raised.append(error)

    thread = threading.Thread(target=body, name=f"limited {what}", daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not result:
        raise NotReachable(
            f"{what} did not answer within {seconds:g} s.",
            "See whether libvirtd and the QEMU process are hung; the next try starts anew.",
        )
    return result[0]

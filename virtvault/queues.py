"""Names on the wire: queues, tasks, Redis keys. Nothing else spells them."""

from __future__ import annotations

__all__ = [
    "BACKUP",
    "CENTRAL",
    "DOMAINS",
    "RESTORE",
    "control_queue",
    "host_queue",
]

# -- queues -----------------------------------------------------------------------------------
CENTRAL = "central"


def host_queue(host: str) -> str:
    """The queue of long work on a hypervisor."""
    return f"hv.{host}"


def control_queue(host: str) -> str:
    """The queue of short questions and job control, never behind a backup."""
    return f"hv.{host}.control"


# -- tasks ------------------------------------------------------------------------------------
BACKUP = "virtvault.backup"
RESTORE = "virtvault.restore"

CHECK = "virtvault.check"
DOMAINS = "virtvault.domains"
DISKS = "virtvault.disks"
JOBS = "virtvault.jobs"
CANCEL = "virtvault.cancel"
PAUSE = "virtvault.pause"
RESUME = "virtvault.resume"
FIND_POINT = "virtvault.find_point"

RECORD = "virtvault.record"
POINTS = "virtvault.points"
SHOW = "virtvault.show"
SWEEP = "virtvault.sweep"

# -- Redis keys: the live view, rebuilt by workers after a flush ----------------------------------
HOSTS_KEY = "virtvault:hosts"
OPEN_RUNS_KEY = "virtvault:runs:open"
PROGRESS_STREAM = "virtvault:progress"


def host_key(host: str) -> str:
    """What a hypervisor last said of itself; expires with its heartbeat."""
    return f"virtvault:host:{host}"


def run_key(task_id: str) -> str:
    """The run record: request, queue, who holds it until when."""
    return f"virtvault:run:{task_id}"


def progress_key(task_id: str) -> str:
    """The latest progress of a task."""
    return f"virtvault:progress:{task_id}"

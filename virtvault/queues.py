"""Names on the wire: queues, tasks, Redis keys. Nothing else spells them."""

from __future__ import annotations

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
VERIFY = "virtvault.verify"
SERVE = "virtvault.serve"
PRUNE = "virtvault.prune"

# What a caller may submit, and what a Handle waits for.
LONG_TASKS = (BACKUP, RESTORE, VERIFY, SERVE, PRUNE)

CHECK = "virtvault.check"
DOMAINS = "virtvault.domains"
DISKS = "virtvault.disks"
JOBS = "virtvault.jobs"
CANCEL = "virtvault.cancel"
PAUSE = "virtvault.pause"
RESUME = "virtvault.resume"
SET_SPEED = "virtvault.set_speed"
FIND_POINT = "virtvault.find_point"
PROTECT = "virtvault.protect"
SCAN = "virtvault.scan"
BITMAPS = "virtvault.bitmaps"
ADD_BITMAP = "virtvault.add_bitmap"
CLEAR_BITMAP = "virtvault.clear_bitmap"
REMOVE_BITMAP = "virtvault.remove_bitmap"
LABEL = "virtvault.label"

RECORD = "virtvault.record"
POINTS = "virtvault.points"
SHOW = "virtvault.show"
STATUSES = "virtvault.statuses"
FATE = "virtvault.fate"
KNOWN = "virtvault.known"
REBUILD = "virtvault.rebuild"
SWEEP = "virtvault.sweep"
SUBMIT = "virtvault.submit"
RUN = "virtvault.run"
APPLY_POLICIES = "virtvault.apply_policies"
POLICIES = "virtvault.policies"
POLICY_VERSIONS = "virtvault.policy_versions"
PREVIEW = "virtvault.preview"
FLEET = "virtvault.fleet"
RUNS = "virtvault.runs"
SLOTS = "virtvault.slots"
ALERTS = "virtvault.alerts"
# What beat needs to go on after Redis was flushed: the policies and each entry's last slot.
SCHEDULE_STATE = "virtvault.schedule_state"
# Freshness, alerts, callbacks: looked at again and again, driven by beat.
WATCH = "virtvault.watch"

# -- Redis keys: the live view, rebuilt by workers after a flush ----------------------------------
# Hash: hypervisor → when it was last heard of.
HOSTS_KEY = "virtvault:hosts"
# Set of the task ids that are queued or running.
OPEN_RUNS_KEY = "virtvault:runs:open"
# Bounded stream of progress samples.
PROGRESS_STREAM = "virtvault:progress"
# Bounded stream of what QEMU and libvirt said, over the whole fleet; see virtvault.events.
EVENTS_STREAM = "virtvault:events"
# Bounded stream: ends of runs, over the whole fleet; see Client.ends.
ENDS_STREAM = "virtvault:ends"
# Bounded stream: a hypervisor's inventory has changed (`host`).
INVENTORY_STREAM = "virtvault:inventory"
# There while Redis has not been flushed since central put back the hypervisors that are gone.
INVENTORY_KEPT_KEY = "virtvault:inventory-kept"
# The policies in force, JSON of models.PolicyVersion without its text; beat reads them here.
POLICIES_KEY = "virtvault:policies"
# Beat's own keys lie below this prefix (beat/state.py).
BEAT_PREFIX = "virtvault:beat:"


def round_key(task: str) -> str:
    """There while a round that beat has sent waits for central, and not longer than minutes."""
    return f"{BEAT_PREFIX}round:{task}"


def host_key(host: str) -> str:
    """JSON ``{host, seen, at}``: a hypervisor's sign of life; expires with its heartbeat.

    ``at`` is that of the inventory that holds.
    """
    return f"virtvault:host:{host}"


def inventory_key(host: str) -> str:
    """JSON of :class:`virtvault.models.Inventory`: stays when the hypervisor is gone."""
    return f"virtvault:inventory:{host}"


def run_key(task_id: str) -> str:
    """The run record: what was asked of which queue, and how far it is."""
    return f"virtvault:run:{task_id}"


def lease_key(task_id: str) -> str:
    """There while a living worker holds the run; expires by Redis' own clock."""
    return f"virtvault:lease:{task_id}"


def progress_key(task_id: str) -> str:
    """The latest progress of a task."""
    return f"virtvault:progress:{task_id}"

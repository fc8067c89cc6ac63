"""Which way a run captures its domain, and domains that are started for their backup."""

from __future__ import annotations

from virtvault.errors import DomainStopped, InvalidRequest
from workers.capture.direct import Direct
from workers.capture.isolated import Isolated
from workers.capture.offline import Offline
from workers.capture.way import Capture
from workers.coexistence import require_quiet
from workers.engine import Engine
from workers.journal import Run
from workers.targets import Targets

__all__ = ["again", "choose_way", "let_run", "start_unrun"]


def choose_way(engine: Engine, run: Run, targets: Targets) -> Capture:
    """The way for the domain as it is now.

    :raises NotSupported: its QEMU is too old for any.
    :raises DomainBusy: libvirt is at work on it.
    """
    state = engine.hypervisor.state(run.uuid)
    if state in ("shut off", "crashed") and not engine.hypervisor.is_active(run.uuid):
        return Offline(engine, run, targets)
    monitor = engine.hypervisor.monitor(engine.hypervisor.domain(run.uuid))
    # Before QMP is asked anything: the QEMU of a domain that is just arriving does not answer.
    require_quiet(engine.hypervisor, monitor)
    kind = Isolated if monitor.capabilities.isolation else Direct
    return kind(engine, run, targets, monitor, state)


def again(engine: Engine, run: Run, targets: Targets) -> Capture:
    """The way a run is under way by.

    :raises DomainStopped: its QEMU, or its storage daemon, is gone.
    """
    if run.way == "offline":
        return Offline(engine, run, targets)
    if not engine.hypervisor.is_active(run.uuid):
        raise DomainStopped(
            f"Domain {run.domain} ended while it was being backed up.",
            "Back it up again; where QEMU was killed the next point is a full.",
        )
    monitor = engine.hypervisor.monitor(engine.hypervisor.domain(run.uuid))
    kind = Direct if run.way == "direct" else Isolated
    return kind(engine, run, targets, monitor, engine.hypervisor.state(run.uuid))


def start_unrun(engine: Engine, run: Run) -> None:
    """Start the run's domain with its CPUs standing.

    :raises InvalidRequest: it is not shut off.
    """
    if engine.hypervisor.is_active(run.uuid):
        raise InvalidRequest(
            f"Domain {run.domain} runs already: it cannot be captured before its first write.",
            "Leave --start-paused out, or shut it down first.",
        )
    # In the journal first: whatever happens to us, the next worker knows that it has not run.
    run.unstarted = True
    engine.journal.write(run)
    engine.hypervisor.start_paused(run.uuid)


def let_run(engine: Engine, run: Run) -> None:
    """Let a domain run that was started for its backup: the instant is taken."""
    if run.unstarted:
        engine.hypervisor.resume(run.uuid)
        run.unstarted = False
        engine.journal.write(run)

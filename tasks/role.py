"""``python -P -m tasks.role ROLE``: one role in the foreground.

Each role is imported when it is the one to run: central, beat and Flower need no libvirt, a
hypervisor needs no database. Nothing is opened before the process is the one that uses it.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pathlib import Path

from tasks.app import central_app, consume
from virtvault import runs, settings
from virtvault.errors import VirtvaultError
from virtvault.settings import Settings

__all__ = ["main"]


def main() -> None:
    """Run one role until it is told to stop."""
    roles = {
        "worker": run_worker,
        "control": run_control,
        "central": run_central,
        "beat": run_beat,
        "flower": run_flower,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in roles:
        sys.exit(f"usage: python -m tasks.role {'|'.join(roles)}")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        roles[sys.argv[1]](settings.load())
    except VirtvaultError as error:
        print(f"error: {error.message}\n  {error.mend}", file=sys.stderr)
        sys.exit(error.exit_code)


def run_worker(given: Settings) -> None:
    """A hypervisor's long work."""
    from tasks import hypervisor

    hypervisor.run_worker(given)


def run_control(given: Settings) -> None:
    """A hypervisor's questions and job control."""
    from tasks import hypervisor

    hypervisor.run_control(given)


def run_central(given: Settings) -> None:
    """The central worker."""
    from tasks import central, submit
    from tasks.catalog import Catalog

    if given.catalog_url.startswith("sqlite:///"):
        Path(given.catalog_url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    app = central_app(given)
    catalog, client = Catalog(given.catalog_url), runs.connect(given)
    central.register(app, catalog, client)
    submit.register(app, catalog, client, given)
    # By name: tasks stand below beat.
    import_module("beat.questions").register(app, catalog, client, given)
    import_module("beat.watch").register(app, catalog, client, given)
    consume(app, "central", given, quiet=True)


def run_beat(given: Settings) -> None:
    """The scheduler. Imported by name: tasks stand below beat."""
    import_module("beat.run").run(given)


def run_flower(given: Settings) -> None:
    """The dashboard."""
    from tasks import flower

    flower.run(central_app(given), given)


if __name__ == "__main__":
    main()

"""What a host must have before `up` starts anything."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

from virtvault.errors import NotSupported

__all__ = ["require"]

# Program → the Debian package that has it.
PROGRAMS = {
    "redis-server": "redis-server",
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "setpriv": "util-linux",
}
MODULES = ("libvirt", "qemu.qmp", "flower", "sqlalchemy", "supervisor")


def require() -> None:
    """Look for what `up` will start or import.

    :raises NotSupported: naming all that is missing.
    """
    programs = [program for program in PROGRAMS if shutil.which(program) is None]
    modules = [module for module in MODULES if not _importable(module)]
    if not programs and not modules:
        return
    lacks = [*programs, *(f"the Python module {module}" for module in modules)]
    mends = []
    if programs:
        packages = dict.fromkeys(PROGRAMS[program] for program in programs)
        mends.append(f"apt install {' '.join(packages)}")
    if modules:
        mends.append("pip install 'virtvault[embedded]'")
    raise NotSupported(f"This host lacks {', '.join(lacks)}.", f"Run: {' && '.join(mends)}")


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False

"""``python -m tests.lab COMMAND…``: run a command with libvirt up for as long as it takes.

Tests that run side by side must share one libvirtd: the first of them to end would take it away.
"""

import subprocess
import sys

from tests.lab.host import Hypervisor


def main() -> int:
    """Run the command; its exit code."""
    with Hypervisor():
        return subprocess.run(sys.argv[1:], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

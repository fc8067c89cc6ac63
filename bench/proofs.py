"""What proofs and merges cost: `scripts/bench`, ratios in one run.

Digests of a full's image beside `sha256sum` and `cp` of the same file; and a merge of a small
increment into that full beside a copy of the full, which any other way to remove it would take.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.integration.stored import MIB, Stored
from virtvault.models import PruneRequest
from workers import digests
from workers.engine import Ties
from workers.prune import prune

FULL = 1024 * MIB
CHANGED = 16 * MIB


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="vvbench-", dir="/var/tmp") as name:
        directory = Path(name)
        stored = Stored(directory / "s", size=FULL)
        data = directory / "data"
        data.write_bytes(os.urandom(FULL // 2))
        full = stored.take(content=f"write -q -s {data} 0 {FULL // 2}")
        data.write_bytes(os.urandom(CHANGED))
        changed = stored.take(full, content=f"write -q -s {data} {FULL // 4} {CHANGED}")
        stored.take(changed)
        image = stored.image(full)
        runtime = stored.settings.runtime_dir

        def timed(what: Callable[[], object]) -> float:
            subprocess.run(["sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches"], check=True)
            began = time.monotonic()
            what()
            return time.monotonic() - began

        copy = timed(lambda: subprocess.run(["cp", image, directory / "copy"], check=True))
        sha = timed(
            lambda: subprocess.run(["sha256sum", image], check=True, stdout=subprocess.DEVNULL)
        )
        hashed = timed(lambda: digests.compute([image], runtime, whole=True))
        request = PruneRequest(points=(full,))
        merged = timed(lambda: prune(stored.engine, request, Ties(uuid.uuid4().hex)))
        stored.assert_equal([changed])
        print(f"digests of {FULL // 2 // MIB} MiB, read cold: {hashed:.2f} s")
        print(f"  to sha256sum {hashed / sha:.2f} x; to cp {hashed / copy:.2f} x")
        print(f"merge of {CHANGED // MIB} MiB into that full, both proven: {merged:.2f} s")
        print(f"  to a copy of the full {merged / copy:.2f} x")
        stored.close()


if __name__ == "__main__":
    main()

"""Whether two disk images hold the same bytes, whatever their formats."""

import subprocess
from pathlib import Path

__all__ = ["assert_same"]


def assert_same(image_a: Path, format_a: str, image_b: Path, format_b: str) -> None:
    """Raise AssertionError, with the first differing offset, unless the contents are equal.

    Images that a paused QEMU holds open may be compared too, so no locks are asked for (-U).
    A larger image equals a smaller one if it has only zeros beyond its end (no -s).
    """
    result = subprocess.run(
        ["qemu-img", "compare", "-U", "-f", format_a, "-F", format_b, image_a, image_b],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        said = (result.stdout + result.stderr).strip()
        raise AssertionError(f"{image_a} and {image_b} differ: {said}")

"""The wheel, as another service installs it: no libvirt, and a `tasks.py` of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

USE_BESIDE_FOREIGN_TASKS = """
import sys
import tasks
assert tasks.FOREIGN, tasks
import virtvault
import virtvault.settings
client = virtvault.Client(virtvault.settings.Settings(broker_url="redis://127.0.0.1:1/0"))
try:
    client.backup("db1")
except virtvault.VirtvaultError as error:
    assert error.exit_code == 3, error
    assert "Redis does not answer" in str(error), error
assert "libvirt" not in sys.modules
assert "workers" not in sys.modules
print("used")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty virtual environment with just our wheel and its needs."""
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(ROOT))
    venv.create(directory / "venv", with_pip=True)
    wheel = next(directory.glob("virtvault-*.whl"))
    python = directory / "venv" / "bin" / "python"
    constraints = directory / "constraints.txt"
    pinned = (ROOT / "requirements.lock").read_text().splitlines()
    constraints.write_text(
        "\n".join(line.split()[0] for line in pinned if "==" in line and line[0].isalpha())
    )
    run(str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), str(wheel))
    return python


def run(*command: str, cwd: Path | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTVAULT", "PYTHON"))}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_client_works_without_libvirt_and_beside_a_foreign_tasks_module(
    python: Path, tmp_path: Path
) -> None:
    (tmp_path / "tasks.py").write_text("FOREIGN = True\n")
    assert run(str(python), "-c", USE_BESIDE_FOREIGN_TASKS, cwd=tmp_path).strip() == "used"


def test_the_command_line_of_the_wheel_runs(python: Path, tmp_path: Path) -> None:
    out = run(str(python.with_name("virtvault")), "backup", "--help", cwd=tmp_path)
    assert "--freeze" in out


def test_the_wheel_has_all_four_packages_and_their_types(python: Path) -> None:
    code = "import virtvault, pathlib; print(pathlib.Path(virtvault.__file__).parent.parent)"
    site = Path(run(str(python), "-c", code).strip())
    for package in ("virtvault", "workers", "tasks", "beat"):
        assert (site / package / "__init__.py").exists()
    assert (site / "virtvault" / "py.typed").exists()
    assert list((site / "tasks" / "catalog" / "migrations" / "versions").glob("0001_*.py"))

"""The small Linux the lab's guests boot: Debian's cloud kernel and an initramfs made here."""

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DEFAULT_CACHE", "BootImage", "boot_image"]

DEFAULT_CACHE = Path(__file__).resolve().parents[2] / ".lab"
INIT = Path(__file__).with_name("init.sh")
KERNEL_PACKAGE = "linux-image-cloud-amd64"

# What init loads, with whatever these need first. This kernel has ext4 built in and no AHCI
# driver at all, so a booted guest does not see SATA disks.
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_scsi", "sd_mod")


@dataclass(frozen=True)
class BootImage:
    """What QEMU boots directly; both are plain files to be copied, not changed."""

    kernel: Path
    initramfs: Path


def boot_image(cache: Path = DEFAULT_CACHE) -> BootImage:
    """The bootable image out of `cache`, built there first if need be (about 5 s, 27 MB to load).

    The image is made beside its place and renamed into it, so two runs cannot see half of one.
    The name carries a hash of what goes in by hand: a changed init makes a new image.

    Raises RuntimeError with the failing command's output when a package or program is missing.
    """
    recipe = hashlib.sha256(INIT.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]
    place = cache / f"image-{recipe}"
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as scratch:
            built = Path(scratch) / "image"
            built.mkdir(mode=0o755)
            _build(Path(scratch), built)
            try:
                built.rename(place)
            except OSError:
                # Another run was faster; its image serves as well as ours.
                if not place.is_dir():
                    raise
    return BootImage(kernel=place / "vmlinuz", initramfs=place / "initramfs.cpio")


def _build(scratch: Path, built: Path) -> None:
    package = _unpack_kernel(scratch)
    (kernel,) = (package / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, built / "vmlinuz")

    root = scratch / "root"
    _add_program(root, "busybox", "/bin/busybox")
    _add_program(root, "qemu-ga", "/usr/sbin/qemu-ga")
    if _program("mke2fs") is not None:
        _add_program(root, "mke2fs", "/sbin/mke2fs")
        _add_file(root, Path("/etc/mke2fs.conf"))
    _add_modules(root, next(package.glob("**/lib/modules/*")))
    (root / "dev").mkdir()
    shutil.copyfile(INIT, root / "init")
    (root / "init").chmod(0o755)
    _archive(root, built / "initramfs.cpio")


def _unpack_kernel(scratch: Path) -> Path:
    # The name holds a version that changes with every update; apt knows today's.
    depends = _run(["apt-cache", "depends", "--important", KERNEL_PACKAGE])
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        raise RuntimeError(f"apt knows no {KERNEL_PACKAGE}; run apt-get update first")
    _run(["apt-get", "-o", "APT::Sandbox::User=root", "download", found[1]], cwd=scratch)
    (archive,) = scratch.glob("*.deb")
    package = scratch / "kernel"
    _run(["dpkg", "-x", str(archive), str(package)])
    return package


def _program(name: str) -> str | None:
    # /usr/sbin is not in every user's PATH.
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _add_program(root: Path, name: str, place: str) -> None:
    program = _program(name)
    if program is None:
        raise RuntimeError(f"{name} is missing; install busybox-static and qemu-guest-agent")
    _add_file(root, Path(program), place)
    # ldd fails for a static program, which needs nothing more.
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    for library in re.findall(r"(/\S+) \(0x", listing.stdout):
        _add_file(root, Path(library))


def _add_file(root: Path, source: Path, place: str | None = None) -> None:
    target = root / (place or str(source)).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _add_modules(root: Path, tree: Path) -> None:
    """Copy MODULES and all they depend on, and list them in an order insmod can follow."""
    files = {_module_name(path): path for path in tree.glob("kernel/**/*.ko*")}
    builtin = {
        _module_name(Path(line)) for line in (tree / "modules.builtin").read_text().splitlines()
    }
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in files:
            raise RuntimeError(f"{tree.name} has no module {name}")
        path = files[name]
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in depends[1].decode().split(",") if depends and depends[1] else []:
            add(needed.replace("-", "_"))
        order.append(name)
        (root / "lib/modules" / name).write_bytes(content)

    (root / "lib/modules").mkdir(parents=True, exist_ok=True)
    for name in MODULES:
        add(name)
    (root / "lib/modules/order").write_text("".join(f"{name}\n" for name in order))


def _module_name(path: Path) -> str:
    return path.name.strip().split(".ko")[0].replace("-", "_")


def _archive(root: Path, target: Path) -> None:
    # Left uncompressed: unpacking costs the emulated CPU more than reading a few MB.
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    with target.open("wb") as output:
        subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
            input="\n".join(names).encode(),
            stdout=output,
            cwd=root,
            check=True,
        )


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout

from tests.integration.conftest import MIB
from tests.lab import DiskSpec

def test_x(boot, points):
    guest = boot(DiskSpec("vda", "qcow2", 64*MIB))
    p = points(guest)
    guest.qemu_io("vda", "write -P 1 1M 4M")
    p.take()
    guest.qemu_io("vda", "write -P 2 1M 64k")
    r, = [p.take()]
    print(r)
    p.prove_all()

"""How a run gets at a domain's disks as they are at one instant.

Three ways, one interface (:class:`workers.capture.way.Capture`): ``isolated`` (running or paused,
QEMU 7.1 and newer), ``direct`` (running or paused, older QEMU) and ``offline`` (shut off).
"""

"""The engine on a hypervisor: libvirt, QMP, block jobs, points. Knows neither Celery nor Redis."""

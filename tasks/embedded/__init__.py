"""Everything on one hypervisor: a private Redis and all roles under one supervisord.

``python -P -m tasks.embedded up|down``, which is what ``virtvault up`` and ``down`` become.
"""

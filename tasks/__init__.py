"""Celery: the apps of each role, task bodies, progress, and the catalog's recording."""

"""Where points are stored."""

from __future__ import annotations

from virtvault.errors import UnknownRepository
from virtvault.settings import Settings
from workers.repository.directory import DirectoryRepository

__all__ = ["DirectoryRepository", "open_repository"]


def open_repository(settings: Settings, name: str) -> DirectoryRepository:
    """The repository of that name as this worker's configuration has it.

    :raises UnknownRepository: it names none so.
    :raises RepositoryUnusable: it is not there, not writable or damaged.
    """
    name = settings.repository_name(name)
    found = settings.repositories.get(name)
    if found is None:
        raise UnknownRepository(
            f"Hypervisor {settings.host} has no repository {name!r}.",
            f"It has {', '.join(settings.repositories) or 'none'}; add [repositories.{name}].",
        )
    return DirectoryRepository(found, settings.state_dir)

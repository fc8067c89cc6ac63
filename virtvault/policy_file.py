"""Reading a policy file: YAML, every error with its line."""

from __future__ import annotations

from virtvault.models import PolicyDocument

__all__ = ["read"]


def read(text: str, where: str) -> PolicyDocument:
    """The policies in ``text``.

    :param where: the file's name, for errors.
    :raises InvalidRequest: each problem as ``WHERE:LINE: FIELD: what is wrong``.
    """
    raise NotImplementedError

"""One POST of one JSON document, signed so that its receiver knows whom it is from."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from virtvault.errors import InvalidSettings

__all__ = ["post", "secret", "signature"]

# Seconds: somebody who takes longer is asked again later.
TIMEOUT = httpx.Timeout(10.0, connect=5.0)
AGENT = f"virtvault/{version('virtvault')}"


def post(url: str, body: dict[str, Any], secret_file: str = "") -> None:
    """POST ``body``; a 2xx answer means that it was taken. Redirects are not followed.

    :raises httpx.HTTPError: nobody took it.
    :raises InvalidSettings: the file of the secret cannot be read.
    """
    content = json.dumps(body, ensure_ascii=False).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": AGENT,
        "X-Virtvault-Id": body["id"],
    }
    if secret_file:
        now = str(int(time.time()))
        headers["X-Virtvault-Timestamp"] = now
        headers["X-Virtvault-Signature"] = signature(secret(secret_file), now, content)
    # The answer's body is nobody's business: it is not read.
    with (
        httpx.Client(timeout=TIMEOUT, follow_redirects=False) as client,
        client.stream("POST", url, content=content, headers=headers) as answer,
    ):
        if not answer.is_success:
            moved = "; redirects are not followed" if answer.is_redirect else ""
            raise httpx.HTTPError(f"it answered {answer.status_code}{moved}")


def signature(key: bytes, timestamp: str, content: bytes) -> str:
    """``sha256=`` and the hex HMAC of the timestamp, a dot, and the body as it is sent."""
    return (
        "sha256=" + hmac.new(key, timestamp.encode() + b"." + content, hashlib.sha256).hexdigest()
    )


def secret(file: str) -> bytes:
    """What a file of one secret holds, without the newline at its end. Read each time: it changes.

    :raises InvalidSettings: it cannot be read, or is empty.
    """
    try:
        found = Path(file).read_bytes().strip()
    except OSError as error:
        raise InvalidSettings(
            f"The secret file {file} cannot be read: {error.strerror}.",
            "Mend its path in [notify], or let the user of the central worker read it.",
        ) from error
    if not found:
        raise InvalidSettings(f"The secret file {file} is empty.", "Put the secret into it.")
    return found

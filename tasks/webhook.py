"""One POST of one JSON document, signed so that its receiver knows whom it is from."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from virtvault.errors import InvalidSettings

__all__ = ["post", "secret", "signature"]

# Seconds: somebody who takes longer is asked again later. The limits of single steps alone would
# wait for ever for one who answers byte by byte, and keep everybody else from their notices.
TIMEOUT = httpx.Timeout(10.0, connect=5.0)
ALL = 15.0
AGENT = f"virtvault/{version('virtvault')}"

# It logs whole URLs, and many a webhook's has its secret in path or query.
logging.getLogger("httpx").setLevel(logging.WARNING)


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
    asyncio.run(_post(url, content, headers))


async def _post(url: str, content: bytes, headers: dict[str, str]) -> None:
    try:
        async with (
            asyncio.timeout(ALL),
            httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False) as client,
            # The answer's body is nobody's business: it is not read.
            client.stream("POST", url, content=content, headers=headers) as answer,
        ):
            if not answer.is_success:
                moved = "; redirects are not followed" if answer.is_redirect else ""
                raise httpx.HTTPError(f"it answered {answer.status_code}{moved}")
    except TimeoutError as error:
        raise httpx.HTTPError(f"it gave no whole answer within {ALL:g} s") from error


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

"""JSON over HTTP, with patience for a busy server."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
from time import sleep
from typing import Any
from urllib.parse import urlsplit

from lit_probsft.errors import UserError, first_line

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds before the first retry, doubled for each further one; the most seconds that a server may ask for."""


class Refused(UserError):
    """The server answered with an error that a retry does not change; `status` is that of the response."""

    def __init__(self, problem: str, status: int) -> None:
        super().__init__("--server", problem)
        self.status = status


class HttpClient:
    """Sends requests to a server with the OpenAI protocol, from any number of threads.

    Args:
        url: with or without a scheme and `/v1`.
        retries: of a request, after connection errors and the statuses 408, 429 and 5xx. The pauses double, with
            jitter; the server's `Retry-After` makes them longer.
        timeout: seconds to wait for a response.
        api_key: sent as a bearer token.

    Raises:
        UserError: `url` is not a URL of HTTP.
    """

    def __init__(self, url: str, *, retries: int, timeout: float, api_key: str | None = None) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            self._place = parts.hostname or "", parts.port
            if parts.scheme not in ("http", "https") or not self._place[0] or " " in url:
                raise ValueError
        except ValueError as error:  # also a port that is no number
            raise UserError("--server", f"expected a URL such as http://localhost:8000, got {url!r}") from error
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self.url = f"{parts.scheme}://{parts.netloc}{self._path}"
        self._retries, self._timeout = retries, timeout
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def call(self, path: str, body: Any = None, *, starting: bool = False) -> dict[str, Any]:
        """Send a request and return the JSON of the response.

        Args:
            path: below `/v1`.
            body: sent as JSON with POST; without it, the request is a GET.
            starting: do not wait for a server that takes no connections.

        Raises:
            Refused: the server refuses the request, or what it returns is not a JSON object.
            UserError: no server answers, at once if `starting`, otherwise after all retries.
        """
        for attempt in range(self._retries + 1):
            pause = FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5)
            try:
                status, headers, text = self._exchange(path, body)
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                problem = first_line(error)
                if starting:
                    raise UserError("--server", f"no server answers at {self.url}: {problem}") from error
            else:
                content = _object(text)
                if status == 200 and content and not content.get("error"):
                    return content
                problem = f"status {status}, {_message(content, text) or headers.get('Location', '')}"
                if status not in (408, 429) and (status < 500 or status == 501):
                    raise Refused(f"{self.url}{path} refuses the request: {problem}", status)
                if (wanted := headers.get("Retry-After", "")).isdecimal():
                    pause = max(pause, min(int(wanted), LONGEST_PAUSE))
            if attempt < self._retries:
                sleep(pause)
        raise UserError("--server", f"{self.url} failed {self._retries + 1} times, the last time with: {problem}")

    def _exchange(self, path: str, body: Any) -> tuple[int, http.client.HTTPMessage, str]:
        """Status, headers and content of one response."""
        connection = self._connection(*self._place, timeout=CONNECT_TIMEOUT)
        try:
            connection.connect()
            connection.sock.settimeout(self._timeout)
            data = None if body is None else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", self._path + path, data, self._headers)
            try:
                response = connection.getresponse()
                return response.status, response.headers, response.read().decode("utf-8", "replace")
            except TimeoutError as error:  # not retried: the server may still be busy with this request
                problem = f"{self.url} has not answered within {self._timeout:g} s; send it fewer requests at a time"
                raise UserError("--server", problem) from error
        finally:
            connection.close()


def _object(text: str) -> dict[str, Any]:
    """The JSON object in a text; empty if it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(content := json.loads(text), dict):
            return content
    return {}


def _message(content: Any, text: str) -> str:
    """The server's own words in a response that is an error."""
    for name in ("error", "message", "detail"):
        if isinstance(content, dict):
            content = content.get(name) or content
    return content if isinstance(content, str) else " ".join(text.split())[:300]

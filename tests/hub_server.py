"""A small local hub that serves models, datasets and uploads to the real client libraries over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN = "hf_of_the_tests"
USER = "me"


@dataclass
class Repo:
    """The files of each commit, and the commit of each branch and tag."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.refs.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


class Hub:
    """Repositories by name, `models/ID` and `datasets/ID`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.fails: str | None = None
        """A pattern of requests that fail with status 400; the client would retry after a 500."""

    def add(self, kind: str, name: str, folder: Path, branch: str = "main") -> str:
        """Commit all files of a folder and return the commit."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        return self.repos.setdefault(f"{kind}/{name}", Repo()).commit(files, branch)

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve the hub within the context; yields its address."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def log_message(self, *_: object) -> None:
        pass

    def _route(self, method: str) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append(f"{method} {path}")
        if self.hub.fails and re.search(self.hub.fails, path):
            self._respond(400, {"error": "the hub is overloaded"})
            return
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, path):
                answer(self, *match.groups())
                return
        self._respond(404, {"error": f"no such page {path}"})

    def _respond(self, status: int, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        if status >= 400 and isinstance(content, dict):
            self.send_header("X-Error-Message", content["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def user(self) -> str | None:
        return USER if self.headers.get("Authorization") == f"Bearer {TOKEN}" else None

    def _repo(self, kind: str, name: str) -> Repo | None:
        repo = self.hub.repos.get(f"{kind}/{name}")
        if repo is None:
            self._respond(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return repo

    def _files(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self._repo(kind, name)
        if repo is None:
            return None
        found = repo.at(revision)
        if found is None:
            self._respond(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return found

    # --- reading

    def resolve(self, datasets: str | None, name: str, revision: str, path: str) -> None:
        found = self._files("datasets" if datasets else "models", name, revision)
        if found is None:
            return
        sha, files = found
        if path not in files:
            self._respond(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            return
        content = files[path]
        headers = {"X_Repo_Commit": sha, "ETag": f'"{_oid(content)}"', "Accept_Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            part = content[start : end + 1]
            self._respond(206, part, Content_Range=f"bytes {start}-{start + len(part) - 1}/{len(content)}", **headers)
        else:
            self._respond(200, content, **headers)

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        found = self._files(kind, name, revision or "main")
        if found is not None:
            sha, files = found
            siblings = [{"rfilename": path} for path in files]
            self._respond(200, {"_id": "1", "id": name, "sha": sha, "siblings": siblings, "private": False, "tags": []})

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        found = self._files(kind, name, revision)
        if found is not None:
            self._respond(200, [] if folder else [_entry(path, content) for path, content in found[1].items()])

    def paths(self, kind: str, name: str, revision: str) -> None:
        found = self._files(kind, name, revision)
        if found is not None:
            wanted = re.findall(r"paths=([^&]*)", self.body.decode()) or json.loads(self.body or b"{}").get("paths", [])
            wanted = [unquote(path) for path in ([wanted] if isinstance(wanted, str) else wanted)]
            self._respond(200, [_entry(path, found[1][path]) for path in wanted if path in found[1]])

    # --- writing

    def whoami(self) -> None:
        if self.user:
            self._respond(200, {"type": "user", "name": USER, "orgs": []})
        else:
            self._respond(401, {"error": "Invalid credentials in Authorization header"})

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or USER
        name = f"models/{owner}/{asked['name']}"
        if name in self.hub.repos:
            self._respond(
                409,
                {"error": "You already created this model repo", "url": f"http://{self.headers['Host']}/{name[7:]}"},
            )
        elif owner != USER:
            self._respond(403, {"error": f"You don't have the rights to create a model under the namespace {owner!r}"})
        else:
            repo = self.hub.repos[name] = Repo(
                private="private" in (asked.get("visibility"), asked.get("private") and "private")
            )
            repo.commit({".gitattributes": b""}, message="initial commit")
            self._respond(200, {"url": f"http://{self.headers['Host']}/{owner}/{asked['name']}"})

    def may_write(self, kind: str, name: str) -> None:
        if name.startswith(f"{USER}/"):
            self._respond(200, {})
        else:
            self._respond(403, {"error": "You have read access but not the required permissions"})

    def branch(self, kind: str, name: str, branch: str) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        if branch in repo.refs:
            self._respond(409, {"error": "Reference already exists"})
        else:
            repo.refs[branch] = repo.refs["main"]
            self._respond(200, {})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        files = [
            {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
            for one in json.loads(self.body)["files"]
        ]
        self._respond(200, {"files": files})

    def commit(self, kind: str, name: str, revision: str) -> None:
        found = self._files(kind, name, revision)
        if found is None:
            return
        files, message = dict(found[1]), ""
        for line in map(json.loads, self.body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        sha = self.hub.repos[f"{kind}/{name}"].commit(files, revision, message)
        self._respond(200, {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{sha}", "commitOid": sha})

    def valid(self) -> None:
        self._respond(200, {"errors": [], "warnings": []})


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}


_REPO = r"/api/(models|datasets)/([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, Any]] = [
    (r"/api/whoami-v2", _Handler.whoami),
    (r"/api/validate-yaml", _Handler.valid),
    (r"/api/repos/create", _Handler.create),
    (rf"{_REPO}/auth-check/write", _Handler.may_write),
    (rf"{_REPO}/branch/(.+)", _Handler.branch),
    (rf"{_REPO}/preupload/(.+)", _Handler.preupload),
    (rf"{_REPO}/commit/(.+)", _Handler.commit),
    (rf"{_REPO}/paths-info/(.+)", _Handler.paths),
    (rf"{_REPO}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    (rf"{_REPO}(?:/revision/(.+))?", _Handler.info),
    (r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", _Handler.resolve),
]


def forget() -> None:
    """Clear this process's caches about the hub."""
    import huggingface_hub

    from lit_probsft.storage import hub as remote

    huggingface_hub.HfFileSystem.clear_instance_cache()
    for known in (remote.model_commit, remote.dataset_commit, remote.warn_of_code):
        known.cache_clear()


@contextmanager
def connected(hub: Hub, cache: Path) -> Iterator[str]:
    """Point this process's Hugging Face libraries to `hub`, with a cache and a token of the tests."""
    import datasets
    import huggingface_hub
    import pytest

    with hub.served() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ENDPOINT": endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_XET_CACHE": str(cache / "xet"),
        }.items():
            patch.setattr(huggingface_hub.constants, name, value)
        for name, value in {
            "HF_ENDPOINT": endpoint,
            "HUB_DATASETS_URL": endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}",
            "HF_HUB_OFFLINE": False,
            "HF_DATASETS_OFFLINE": False,
            "HF_DATASETS_CACHE": cache / "datasets",
        }.items():
            patch.setattr(datasets.config, name, value)
        # transformers keeps a client, with the address that was right when it was made.
        patch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        patch.setenv("HF_TOKEN", TOKEN)
        forget()
        yield endpoint
        forget()

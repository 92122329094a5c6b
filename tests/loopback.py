"""A server on the loopback interface: plain files, and repositories in the protocol of the Hugging Face hub."""

import base64
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import unquote, urlparse

COMMIT = "1" * 40  # the first of every repository
HIDDEN = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@dataclass
class Repo:
    """A repository: its commits with their files, and the branches that name them.

    `token`: what a request must carry, None for a public one; `gated`: whether it also needs accepted terms.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {COMMIT: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    private: bool = False
    token: str | None = None
    gated: bool = False

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the first commit."""
        return self.commits[COMMIT]


class Server(http.server.ThreadingHTTPServer):
    """Serves `plain` (path to content) and `repos`; `requests` are (method, path), in order.

    Files are cut off after `cut` bytes, by their last name; `unsized` are sent without a length. `refuses` is the
    error code of every request to the hub.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plain: dict[str, bytes] = {}
        self.unsized: set[str] = set()
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.cut: dict[str, int] = {}
        self.refuses: str | None = None
        self.write_token: str | None = None  # what a request that writes must carry
        self.uploads: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.read()

    def do_GET(self) -> None:
        self.read()

    def do_POST(self) -> None:
        self.write()

    def do_PUT(self) -> None:
        self.write()

    # ---- reading

    def read(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path))
        if path in self.server.plain:
            content = self.server.plain[path]
            self.send(200, content, {} if path in self.server.unsized else {"Content-Length": str(len(content))})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            repo = self.server.repos.get(match[1])
            if repo is None:
                self.send(401, b"", {"X-Error-Code": "RepoNotFound", "Content-Length": "0"})
            else:
                self.send_json({"id": match[1], "private": repo.private, "sha": repo.branches["main"]})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+?)/([^/]+)", path):
            self.send_file(*match.groups())
        else:
            self.send(404, b"", {"Content-Length": "0"})

    def send_file(self, name: str, revision: str, filename: str) -> None:
        repo = self.server.repos.get(name)
        code = self.server.refuses or ("RepoNotFound" if repo is None else None)
        if code is None and repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
            code = "GatedRepo" if repo.gated else "RepoNotFound"
        if code is None:
            commit = repo.branches.get(revision, revision)
            code = "RevisionNotFound" if commit not in repo.commits else None
        if code is None and filename not in repo.commits[commit]:
            code = "EntryNotFound"
        if code:
            refused = 403 if code == "GatedRepo" else 404
            self.send(refused, b"", {"X-Error-Code": code, "Content-Length": "0"})
            return
        content = repo.commits[commit][filename]
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Etag": hashlib.sha256(content).hexdigest(),
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "Content-Length": str(len(content)),
        }
        self.send(200, content, headers)

    # ---- writing

    def write(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        needed = self.server.write_token
        is_upload = path.startswith("/upload/")  # signed by its address
        if needed and not is_upload and self.headers.get("Authorization") != f"Bearer {needed}":
            self.send(401, b"{}", {"Content-Length": "2"})
        elif is_upload:
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/upload/")
            self.server.uploads[path.removeprefix("/upload/")] = body
            self.send_json({})
        elif path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            links = [{"upload": {"href": f"{self.server.url}/upload/{item['oid']}"}} for item in wanted]
            objects = [item | {"actions": link} for item, link in zip(wanted, links, strict=True)]
            self.send_json({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path):
            getattr(self, match[2])(self.server.repos[match[1]], match[3], body)
        else:
            self.send(404, b"", {"Content-Length": "0"})

    def create(self, asked: dict) -> None:
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        is_new = name not in self.server.repos
        if is_new:
            private = bool(asked.get("private") or asked.get("visibility") == "private")
            self.server.repos[name] = Repo(private=private)
        self.send_json({"url": f"{self.server.url}/{name}"}, 200 if is_new else 409)

    def branch(self, repo: Repo, name: str, body: bytes) -> None:
        is_new = name not in repo.branches
        repo.branches.setdefault(name, repo.branches["main"])
        self.send_json({}, 200 if is_new else 409)

    def preupload(self, repo: Repo, revision: str, body: bytes) -> None:
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
            for f in json.loads(body)["files"]
        ]
        self.send_json({"files": [mode | {"shouldIgnore": False} for mode in modes]})

    def commit(self, repo: Repo, revision: str, body: bytes) -> None:
        files = dict(repo.commits[repo.branches[revision]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
        commit = hashlib.sha1(body).hexdigest()
        repo.commits[commit], repo.branches[revision] = files, commit
        name = next(name for name, known in self.server.repos.items() if known is repo)
        self.send_json({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})

    # ---- replies

    def send_json(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send(status, content, {"Content-Type": "application/json", "Content-Length": str(len(content))})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: self.server.cut.get(self.path.rpartition("/")[2], len(content))])

    def log_message(self, *arguments) -> None:
        """Keep the test's output free of requests."""


def running(server: Server):
    """Serve until the generator is closed."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()

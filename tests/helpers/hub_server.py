"""A Hugging Face Hub in memory, for tests: it speaks the protocol of the real client (huggingface_hub) on this machine.

Models only. Files lie in Git, or in Git LFS when they are large or weights; Xet storage is not offered, and the client has to be configured
accordingly (HF_HUB_DISABLE_XET), because it does not detect this. Status codes, headers and messages are those of huggingface.co.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repository import Commit, File, Refusal, Repository, is_lfs
from local_server import LocalServer, Request

DATE = "2024-01-01T00:00:00.000Z"


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """A fault of the next `times` requests whose method and path (a regular expression) are these.

    status: the status of the response. Without it the connection breaks after `after` bytes of the body, of the request if it has a body.
    """

    method: str
    path: str
    status: int | None = None
    after: int = 0
    times: int = 1


ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = []
PARTS_OF_A_PATH = {"repo": "[^/]+/[^/]+", "path": ".+"}


def route(method: str, *templates: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Route requests to a method of HubServer: `{repo}`, `{revision}`, … in the path become its arguments."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for template in templates:
            pattern = re.sub(r"{(\w+)}", lambda name: f"(?P<{name[1]}>{PARTS_OF_A_PATH.get(name[1], '[^/]+')})", template)
            ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True
    wbufsize = -1
    server: "HubServer"

    def respond(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        request = Request(self.command, url.path, {name.lower(): value for name, value in self.headers.items()}, query)
        fault = self.server.remember(request)
        sends_body = {"content-length", "transfer-encoding"} & request.headers.keys()
        if fault is not None and fault.status is None and sends_body:
            request.body = self.rfile.read(fault.after)
            self.close_connection = True
            return
        request.body = self.body()
        answer = Answer(b"broken", fault.status) if fault is not None and fault.status else self.server.answer(request)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault is not None and fault.status is None:
            answer.body = answer.body[: fault.after]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = respond  # noqa: N815

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(iter(self.chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    def log_message(self, *args: object) -> None:
        pass


class HubServer(LocalServer):
    """The Hub.

    users: the name that goes with a token. `part_size`: an LFS object of more bytes is sent in parts of this size.
    requests: all that were made; `unknown`: requests without a route. `faults`: the faults to produce.
    card_errors, card_warnings: what the Hub finds wrong with the metadata of a README.md.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(Handler)
        self.folder = folder
        self.users: dict[str, str] = {}
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.unknown: list[str] = []
        self.faults: list[Fault] = []
        self.part_size: int | None = None
        self.card_errors: list[str] = []
        self.card_warnings: list[str] = []
        self.homes = 0
        self.lock = threading.RLock()

    # For tests

    def add_user(self, token: str, name: str) -> None:
        self.users[token] = name

    def put(self, repo_id: str, files: dict[str, bytes], *, revision: str = "main", title: str = "put") -> str:
        """Commits files to a branch; the repository and the branch are created where there are none. Returns the commit's sha."""
        repository = self.repositories.setdefault(repo_id, Repository(repo_id))
        parent = repository.commit(revision if repository.ref(revision) else "main")
        new = {path: File(content, lfs=is_lfs(path, len(content))) for path, content in files.items()}
        repository.objects |= {file.sha256: file.content for file in new.values() if file.lfs}
        commit = Commit(parent.files | new, title, author=repository.owner, parent=parent)
        return repository.add(f"refs/heads/{revision}", commit).sha

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Return the environment of a process that uses this Hub, with a separate home folder and an empty cache."""
        self.homes += 1
        home = self.folder / f"home-{self.homes}"
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_TOKEN": token or "",
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "no_proxy": "127.0.0.1",
        }

    def asked(self, method: str, path: str = "") -> list[Request]:
        """The requests with that method whose path a regular expression is found in."""
        return [request for request in self.requests if request.method == method and re.search(path, request.path)]

    # For the handler, in its threads

    def remember(self, request: Request) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and fault.method == request.method and re.search(fault.path, request.path):
                    fault.times -= 1
                    return fault
            return None

    def answer(self, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        with self.lock:
            try:
                for known, pattern, function in ROUTES:
                    if known == method and (match := pattern.fullmatch(request.path)):
                        result = function(self, request, **{name: unquote(part) for name, part in match.groupdict().items()})
                        return result if isinstance(result, Answer) else json_answer(result)
                self.unknown.append(f"{request.method} {request.path}")
                raise Refusal(501, f"the Hub of the tests does not know {self.unknown[-1]}")
            except Refusal as refusal:
                return json_answer({"error": refusal.message}, refusal.status, refusal.headers)

    # Who may do what

    def user(self, request: Request) -> str | None:
        """Return the name of the user, or None for a request without a login."""
        if "authorization" not in request.headers:
            return None
        token = request.headers["authorization"].removeprefix("Bearer ")
        if token not in self.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def logged_in(self, request: Request, *, code: str | None = None) -> str:
        user = self.user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.", code=code)
        return user

    def repository(self, request: Request, repo: str, *, write: bool = False) -> Repository:
        """An invisible repository does not exist: users who are logged in receive 404. Everybody may open a pull request."""
        repository = self.repositories.get(repo)
        hidden = repository is None or (repository.private and self.user(request) != repository.owner)
        user = self.logged_in(request, code="RepoNotFound") if hidden or write else self.user(request)
        if repository is None or hidden:
            raise Refusal(404, "Repository not found", code="RepoNotFound")
        if write and user != repository.owner and "create_pr" not in request.query:
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository

    @route("GET", "/api/agent-harnesses")
    def agent_harnesses(self, request: Request) -> Any:
        raise Refusal(404, "no list of the programs that drive the client")

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Any:
        name = self.logged_in(request)
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write", "createdAt": DATE}}
        return {"type": "user", "id": name, "name": name, "fullname": name, "orgs": [], "auth": access}

    # Repositories

    @route("POST", "/api/repos/create")
    def create(self, request: Request) -> Any:
        user, wanted = self.logged_in(request), request.json
        repo = f"{wanted['organization'] or user}/{wanted['name']}"
        if not repo.startswith(f"{user}/"):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{wanted["organization"]}"')
        answer = {"url": f"{self.url}/{repo}", "name": repo}
        if repo in self.repositories:
            return json_answer({"error": "You already created this model repo", **answer}, 409)
        # Older clients send the first
        private = wanted.get("private", False) or wanted.get("visibility") == "private"
        self.repositories[repo] = Repository(repo, private=private)
        return answer

    @route("GET", "/api/models/{repo}", "/api/models/{repo}/revision/{revision}")
    def info(self, request: Request, repo: str, revision: str = "main") -> Any:
        repository = self.repository(request, repo)
        commit = repository.commit(revision)
        return {
            "id": repo,
            "modelId": repo,
            "author": repository.owner,
            "sha": commit.sha,
            "lastModified": DATE,
            "createdAt": DATE,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [
                file.entry(path) if "blobs" in request.query else {"rfilename": path} for path, file in sorted(commit.files.items())
            ],
        }

    @route("GET", "/api/models/{repo}/tree/{revision}", "/api/models/{repo}/tree/{revision}/{path}")
    def tree(self, request: Request, repo: str, revision: str, path: str = "") -> Any:
        files = self.repository(request, repo).commit(revision).files
        inside = f"{path}/" if path else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, file in sorted(files.items()):
            if name.startswith(inside):
                *folders, _ = name.removeprefix(inside).split("/")
                for depth in range(len(folders)):
                    folder = inside + "/".join(folders[: depth + 1])
                    oid = hashlib.sha1(folder.encode()).hexdigest()
                    entries[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0}
                entries[name] = file.entry(name)
        if path and not entries:
            raise Refusal(404, f"{path} does not exist on {revision!r}", code="EntryNotFound")
        deep = request.query.get("recursive", "false").lower() in ("true", "1")
        return [entry for name, entry in entries.items() if deep or "/" not in name.removeprefix(inside)]

    @route("POST", "/api/models/{repo}/paths-info/{revision}")
    def paths_info(self, request: Request, repo: str, revision: str) -> Any:
        files = self.repository(request, repo).commit(revision).files
        return [files[path].entry(path) for path in parse_qs(request.body.decode())["paths"] if path in files]

    @route("GET", "/api/models/{repo}/refs")
    def refs(self, request: Request, repo: str) -> Any:
        kinds: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        names = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
        for ref, commit in self.repository(request, repo).refs.items():
            _, kind, name = ref.split("/", 2)
            kinds[names[kind]].append({"name": name, "ref": ref, "targetCommit": commit.sha})
        return kinds

    @route("GET", "/api/models/{repo}/commits/{revision}")
    def commits(self, request: Request, repo: str, revision: str) -> Any:
        return [
            {"id": commit.sha, "title": commit.title, "message": commit.message, "authors": [{"user": commit.author}], "date": DATE}
            for commit in self.repository(request, repo).commit(revision).history()
        ]

    @route("POST", "/api/models/{repo}/branch/{branch}")
    def create_branch(self, request: Request, repo: str, branch: str) -> Any:
        repository = self.repository(request, repo, write=True)
        return self.point(repository, f"refs/heads/{branch}", request.json.get("startingPoint", "main"))

    @route("POST", "/api/models/{repo}/tag/{revision}")
    def create_tag(self, request: Request, repo: str, revision: str) -> Any:
        return self.point(self.repository(request, repo, write=True), f"refs/tags/{request.json['tag']}", revision)

    def point(self, repository: Repository, ref: str, revision: str) -> Any:
        if ref in repository.refs:
            raise Refusal(409, f"Reference already exists: {ref}")
        repository.add(ref, repository.commit(revision))
        return {}

    # Downloads

    @route("GET", "/{repo}/resolve/{revision}/{path}")
    def resolve(self, request: Request, repo: str, revision: str, path: str) -> Any:
        repository = self.repository(request, repo)
        user = self.user(request)
        if repository.gated and user not in {repository.owner, *repository.granted}:
            status, remedy = (401, "Please log in.") if user is None else (403, f"Visit {self.url}/{repo} to ask for access.")
            raise Refusal(status, f"Access to model {repo} is restricted. {remedy}", code="GatedRepo")
        commit = repository.commit(revision)
        headers = {"X-Repo-Commit": commit.sha}
        file = commit.files.get(path)
        if file is None:
            raise Refusal(404, "Entry not found", code="EntryNotFound", headers=headers)
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        if "range" not in request.headers:
            return Answer(file.content, headers=headers)
        start, end = request.headers["range"].removeprefix("bytes=").split("-")
        part = file.content[int(start) : int(end) + 1 if end else None]
        if not part:
            return Answer(status=416, headers={**headers, "Content-Range": f"bytes */{len(file.content)}"})
        content_range = f"bytes {start}-{int(start) + len(part) - 1}/{len(file.content)}"
        return Answer(part, 206, {**headers, "Content-Range": content_range})

    # Uploads: what goes where, the large files, and the commit

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Any:
        errors, warnings = ([{"message": message} for message in found] for found in (self.card_errors, self.card_warnings))
        return json_answer({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    @route("POST", "/api/models/{repo}/preupload/{revision}")
    def preupload(self, request: Request, repo: str, revision: str) -> Any:
        files = self.repository(request, repo, write=True).commit(revision).files
        committed = files[".gitignore"].content.decode() if ".gitignore" in files else ""
        ignored = request.json.get("gitIgnore", committed).split()
        return {
            "commitOid": self.repositories[repo].commit(revision).sha,
            "files": [
                {
                    "path": path,
                    "uploadMode": "lfs" if is_lfs(path, file["size"]) else "regular",
                    "shouldIgnore": any(fnmatch(path, pattern) for pattern in ignored),
                    "oid": files[path].etag if path in files else None,
                }
                for file in request.json["files"]
                for path in [file["path"]]
            ],
        }

    @route("POST", "/{repo}.git/info/lfs/objects/batch")
    def lfs_batch(self, request: Request, repo: str) -> Any:
        self.logged_in(request)
        repository = self.repository(request, repo, write="ref" in request.json)  # none for a pull request
        objects = []
        for wanted in request.json["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            address = f"{self.url}/lfs/{repo}/{oid}"
            upload: dict[str, Any] = {"href": address}
            if self.part_size is not None and size > self.part_size:
                numbers = range(1, -(-size // self.part_size) + 1)
                urls = {f"{number:05d}": f"{address}/{number}" for number in numbers}
                upload = {"href": f"{address}/complete", "header": {"chunk_size": str(self.part_size), **urls}}
            actions = {"actions": {"upload": upload, "verify": {"href": f"{address}/verify"}}}
            objects.append({"oid": oid, "size": size, **({} if oid in repository.objects else actions)})
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/lfs/{repo}/{oid}")
    def lfs_object(self, request: Request, repo: str, oid: str) -> Any:
        return self.keep(self.repositories[repo], oid, request.body)

    @route("PUT", "/lfs/{repo}/{oid}/{number}")
    def lfs_part(self, request: Request, repo: str, oid: str, number: str) -> Any:
        self.repositories[repo].parts[oid, int(number)] = request.body
        return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    @route("POST", "/lfs/{repo}/{oid}/complete")
    def lfs_complete(self, request: Request, repo: str, oid: str) -> Any:
        parts = [self.repositories[repo].parts[oid, part["partNumber"]] for part in request.json["parts"]]
        if [part["etag"] for part in request.json["parts"]] != [f'"{hashlib.md5(part).hexdigest()}"' for part in parts]:
            raise Refusal(400, "the parts are not those that were received")
        return self.keep(self.repositories[repo], oid, b"".join(parts))

    @route("POST", "/lfs/{repo}/{oid}/verify")
    def lfs_verify(self, request: Request, repo: str, oid: str) -> Any:
        if len(self.repository(request, repo).objects[oid]) != request.json["size"]:
            raise Refusal(400, "the object has another size")
        return {}

    def keep(self, repository: Repository, oid: str, content: bytes) -> Any:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the bytes do not have the SHA-256 that was announced")
        repository.objects[oid] = content
        return {}

    @route("POST", "/api/models/{repo}/commit/{revision}")
    def create_commit(self, request: Request, repo: str, revision: str) -> Any:
        repository = self.repository(request, repo, write=True)
        parent, ref = repository.commit(revision), repository.ref(revision)
        header, *operations = (json.loads(line) for line in request.body.splitlines())
        if "create_pr" in request.query:
            ref = f"refs/pr/{sum(name.startswith('refs/pr/') for name in repository.refs) + 1}"
        if ref is None or ref.startswith("refs/tags/"):
            raise Refusal(404, f"Invalid branch: {revision}", code="RevisionNotFound")
        if not parent.sha.startswith(header["value"].get("parentCommit", "")):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")

        files = dict(parent.files)
        for operation in operations:
            value, path = operation["value"], operation["value"]["path"]
            match operation["key"]:
                case "file":
                    files[path] = File(base64.b64decode(value["content"]), lfs=False)
                case "lfsFile" if value["oid"] in repository.objects:
                    files[path] = File(repository.objects[value["oid"]], lfs=True)
                case "lfsFile":
                    raise Refusal(400, "Your push was rejected because an LFS pointer pointed to a file that does not exist.")
                case "deletedFile" if path in files:
                    del files[path]
                case "deletedFolder" if any(name.startswith(path) for name in files):
                    files = {name: file for name, file in files.items() if not name.startswith(path)}
                case _:
                    raise Refusal(404, f"A file with this name doesn't exist: {path}", code="EntryNotFound")
        title, message = header["value"]["summary"], header["value"]["description"]
        commit = repository.add(ref, Commit(files, title, message, author=self.user(request) or "", parent=parent))
        page = f"{self.url}/{repo}"
        answer = {"success": True, "commitOid": commit.sha, "commitUrl": f"{page}/commit/{commit.sha}", "hookOutput": ""}
        return answer | {"pullRequestUrl": ref.replace("refs/pr", f"{page}/discussions") if "create_pr" in request.query else None}

"""A local Hugging Face Hub: repositories in memory, and the part of the API that its client uses."""

import base64
import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import yaml
from huggingface_hub import constants, hf_api, repocard
from huggingface_hub.utils import close_session, get_session

PUBLIC = "https://huggingface.co"
TOKEN = "hf_loopback"
LARGE = (".safetensors", ".bin", ".png")
"""Suffixes of the files that the hub stores as large files."""


class Hub:
    """Repositories by name; each revision is a dictionary of files."""

    def __init__(self):
        self.repositories, self.requests = {}, []
        self.gated = set()
        self.failing = {}
        """By repository name, the error status that every request gets."""

    def create(self, name, files=None):
        """Create a repository with files that others would have put there."""
        self.repositories[name] = {"main": {}}
        return self.commit(name, "main", files or {})

    def commit(self, name, branch, files):
        """Make these files a branch, and also a revision named by their commit."""
        told = json.dumps([name, [(path, base64.b64encode(files[path]).decode()) for path in sorted(files)]])
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.repositories[name] |= {branch: files, commit: files}
        return commit

    def files(self, name, revision="main"):
        """Return the files of a repository."""
        return self.repositories[name][revision]

    def commit_of(self, name, revision):
        return next(
            key
            for key, files in self.repositories[name].items()
            if len(key) == 40 and files is self.files(name, revision)
        )

    def fetched(self):
        """Return the names of the files downloaded since the last call."""
        found = [
            path.split("/resolve/")[1].split("/", 1)[1]
            for verb, path in self.requests
            if verb == "GET" and "/resolve/" in path
        ]
        self.requests.clear()
        return sorted(found)


class RefusalError(Exception):
    """An error to send as the answer."""

    def __init__(self, status, code, text=""):
        super().__init__(text)
        self.status, self.code, self.text = status, code, text or code


class Handler(BaseHTTPRequestHandler):
    """A handler of the client's requests; `ROUTES` says which function answers which."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status=200, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.hub.requests.append((self.command, path))
        try:
            for pattern, verbs, function in ROUTES:
                if self.command in verbs and (found := re.fullmatch(pattern, path)):
                    return function(self, self.server.hub, *found.groups())
            raise RefusalError(404, "NotFound", path)
        except RefusalError as refusal:
            self.answer(
                refusal.status, {"error": refusal.text}, X_Error_Code=refusal.code, X_Error_Message=refusal.text
            )

    @property
    def is_known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, hub, name, revision="main"):
        if name in hub.failing:
            raise RefusalError(hub.failing[name], "", "Not today")
        if name not in hub.repositories:
            raise RefusalError(404, "RepoNotFound", "Repository not found")
        if name in hub.gated and not self.is_known:
            raise RefusalError(403, "GatedRepo", f"Access to model {name} is restricted")
        if revision not in hub.repositories[name]:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return hub.files(name, revision)

    def must_be_known(self):
        if not self.is_known:
            raise RefusalError(401, "", "Invalid credentials in Authorization header")


for verb in ("GET", "HEAD", "POST"):
    setattr(Handler, f"do_{verb}", Handler.handle_any)


def create(self, hub):
    self.must_be_known()
    asked = json.loads(self.body)
    name = f"{asked.get('organization') or 'me'}/{asked['name']}"
    if asked.get("organization") == "others":
        raise RefusalError(403, "", "You don't have the rights to create a model under the namespace others")
    if name in hub.repositories:
        return self.answer(409, {"error": "You already created this model repo", "url": f"/{name}"})
    hub.create(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
    self.answer(content={"url": f"http://{self.headers['Host']}/{name}", "name": name})


def validate(self, hub):
    """Validate a card as the hub does, by the rules on its page about model cards."""
    content = json.loads(self.body)["content"]
    found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    fields = yaml.safe_load(found[1]) if found else {}
    errors = [
        f'"{key}" must be text'
        for key in ("library_name", "pipeline_tag", "license")
        if not isinstance(fields.get(key, ""), str)
    ]
    errors += (
        [f'"base_model" is no name: {fields["base_model"]}']
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", fields.get("base_model", "a/b"))
        else []
    )
    errors += ['"tags" must be texts'] if not all(isinstance(tag, str) for tag in fields.get("tags", [])) else []
    for model in fields.get("model-index", []):
        for result in model["results"]:
            errors += [f"no {key}" for key in ("task", "dataset", "metrics") if not result.get(key)]
            errors += [f"metric {metric}" for metric in result["metrics"] if not isinstance(metric["value"], float)]
    warnings = [] if fields else [{"message": "empty or missing yaml metadata in repo card"}]
    self.answer(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": warnings})


def info(self, hub, name, revision=None):
    files = self.repository(hub, name, revision or "main")
    siblings = [{"rfilename": path} for path in sorted(files)]
    self.answer(content={"id": name, "sha": hub.commit_of(name, revision or "main"), "siblings": siblings})


def refs(self, hub, name):
    self.repository(hub, name)
    branches = [key for key in hub.repositories[name] if len(key) != 40]
    told = [{"name": key, "ref": f"refs/heads/{key}", "targetCommit": hub.commit_of(name, key)} for key in branches]
    self.answer(content={"branches": told, "tags": [], "converts": []})


def tree(self, hub, name, revision):
    files = self.repository(hub, name, revision)
    self.answer(content=[described(path, content) for path, content in sorted(files.items())])


def described(path, content):
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    told = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if path.endswith(LARGE):
        told["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return told


def resolve(self, hub, name, revision, path):
    files = self.repository(hub, name, revision)
    if path not in files:
        raise RefusalError(404, "EntryNotFound", "Entry not found")
    told = described(path, files[path])
    etag = told["lfs"]["oid"] if "lfs" in told else told["oid"]
    self.answer(content=files[path], ETag=f'"{etag}"', X_Repo_Commit=hub.commit_of(name, revision))


def preupload(self, hub, name, revision):
    self.must_be_known()
    files = self.repository(hub, name, revision)
    told = []
    for asked in json.loads(self.body)["files"]:
        path = asked["path"]
        oid = described(path, files[path])["oid"] if path in files else None
        told.append({"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": oid})
    self.answer(content={"files": told})


def commit(self, hub, name, revision):
    self.must_be_known()
    files = dict(self.repository(hub, name, revision))
    for line in map(json.loads, self.body.splitlines()):
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "deletedFile":
            del files[value["path"]]
    made = hub.commit(name, revision, files)
    url = f"http://{self.headers['Host']}/{name}/commit/{made}"
    self.answer(content={"success": True, "commitOid": made, "commitUrl": url})


def branch(self, hub, name, revision):
    self.must_be_known()
    hub.repositories[name].setdefault(revision, hub.files(name))
    self.answer(content={})


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("/api/repos/create", ("POST",), create),
    ("/api/validate-yaml", ("POST",), validate),
    (f"/api/models/{NAME}", ("GET",), info),
    (f"/api/models/{NAME}/revision/(.+)", ("GET",), info),
    (f"/api/models/{NAME}/refs", ("GET",), refs),
    (f"/api/models/{NAME}/tree/([^/]+)", ("GET",), tree),
    (f"/api/models/{NAME}/preupload/(.+)", ("POST",), preupload),
    (f"/api/models/{NAME}/commit/(.+)", ("POST",), commit),
    (f"/api/models/{NAME}/branch/(.+)", ("POST",), branch),
    (f"/{NAME}/resolve/([^/]+)/(.+)", ("GET", "HEAD"), resolve),
]
"""Paths, verbs, and the functions that answer them."""


@contextlib.contextmanager
def serve(monkeypatch, cache):
    """Serve a hub that huggingface_hub in this process uses as if it were the real one, with its own cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    before = constants.ENDPOINT
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(before, endpoint)
    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(cache / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
    # huggingface_hub 1 checks cards at the public hub, whatever its endpoint is.
    session = SimpleNamespace(post=lambda url, **how: get_session().post(url.replace(PUBLIC, endpoint), **how))
    monkeypatch.setattr(repocard, "get_session", lambda: session)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    close_session()
    try:
        yield server.hub
    finally:
        close_session()
        server.shutdown()
        server.server_close()

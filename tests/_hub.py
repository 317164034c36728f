"""A model hub on the loopback, as far as huggingface_hub needs one to create a repository and commit a folder to it."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"


class Hub:
    """What it holds.

    Attributes:
        files: of each repository, by name.
        private: of each repository, whether it was created so.
        asked: (method, path) of each request.
        refuses: the status of every answer, if any.
    """

    def __init__(self):
        self.files, self.private, self.asked, self.refuses = {}, {}, [], None
        self.url = ""

    @contextmanager
    def running(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub = None

    def do_GET(self):
        self._respond(b"")

    def do_POST(self):
        self._respond(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _respond(self, body):
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path))
        if self.hub.refuses or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(self.hub.refuses or 401, {"error": "not with this token"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        else:
            repo, _, rest = path.removeprefix("/api/models/").partition("/")
            name, _, rest = rest.partition("/")
            self._of_repo(f"{repo}/{name}", rest.partition("/")[0], body)

    def _create(self, wanted):
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        there = repo in self.hub.files
        self.hub.files.setdefault(repo, {".gitattributes": b""})
        self.hub.private.setdefault(repo, wanted.get("private", wanted.get("visibility") == "private"))
        self._send(409 if there else 200, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def _of_repo(self, repo, verb, body):
        files = self.hub.files[repo]
        if verb == "tree":
            self._send(200, [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()])
        elif verb == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            self._send(200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif verb == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._send(
                200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
            )
        else:
            self._send(
                200, {"id": repo, "sha": "0" * 40, "siblings": [], "private": self.hub.private[repo], "tags": []}
            )

    def _send(self, status, said):
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

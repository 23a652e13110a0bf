"""What huggingface_hub leaves in its cache, and what it asks a hub for."""

import hashlib
import json
import os
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from common import save_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 10_000


def etag(data):
    if len(data) < LARGE:
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return hashlib.sha256(data).hexdigest()


def handler(files, log):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, body, headers=()):
            self.send_response(200)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            log.append(f"{self.command} {self.path}")
            path = self.path.split("?")[0]
            if path.startswith("/api/models/owner/name/tree/"):
                tree = []
                for name, data in files.items():
                    entry = {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                    if len(data) >= LARGE:
                        entry["lfs"] = {"oid": etag(data), "size": len(data), "pointerSize": 130}
                    tree.append(entry)
                return self.reply(json.dumps(tree).encode())
            if path.startswith("/api/models/owner/name"):
                siblings = [{"rfilename": name} for name in files]
                info = {"id": "owner/name", "modelId": "owner/name", "sha": COMMIT, "siblings": siblings}
                return self.reply(json.dumps(info).encode())
            data = files[path.removeprefix(f"/owner/name/resolve/{COMMIT}/")]
            headers = [("X-Repo-Commit", COMMIT), ("ETag", f'"{etag(data)}"')]
            return self.reply(data, headers)

        do_HEAD = do_GET

    return Handler


def tree(folder):
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            entries[name] = "-> " + os.readlink(path)
        elif path.is_file():
            data = path.read_bytes()
            entries[name] = data.decode() if len(data) < 100 else f"{len(data)} bytes"
    return entries


def make(out, emoji):
    from huggingface_hub import constants, snapshot_download

    model = out / "models/sd15"
    files = {
        str(path.relative_to(model)): path.read_bytes()
        for path in sorted(model.rglob("*"))
        if path.is_file()
    }
    log = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(files, log))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    was_offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        with tempfile.TemporaryDirectory() as cache:
            asked = []
            for _ in range(2):
                snapshot_download("owner/name", cache_dir=cache, endpoint=endpoint, token=False)
                asked.append(sorted(log))
                log.clear()
            entries = tree(Path(cache))
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        server.shutdown()
    # Its own notes: locks, a list of the commit's files, a mark for programs that make backups.
    notes = (".locks/", "CACHEDIR.TAG", "models--owner--name/trees/")
    entries = {name: entry for name, entry in entries.items() if not name.startswith(notes)}
    save_json(out / "hub.json", {"tree": entries, "second": asked[1]})

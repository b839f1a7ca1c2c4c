"""A hub of models as pods ask it: the bundled models, by HTTP, as hf://offshoot/ROLE."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class Hub:
    """Serves the folders in `models` on `address` until it is closed, and counts the files that it has sent."""

    def __init__(self, models, address):
        self.files = {f"offshoot/{folder.name}": {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
                      for folder in Path(models).iterdir() if folder.is_dir()}
        self.sent = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                content, headers = hub.look_up(self.path.partition("?")[0])
                self.send_response(404 if content is None else 200)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if body and content:
                    self.wfile.write(content)
                    hub.sent += "ETag" in headers

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def look_up(self, path):
        for repository, files in self.files.items():
            if path.startswith(f"/api/models/{repository}/revision/"):
                names = [{"rfilename": name} for name in sorted(files)]
                return json.dumps({"sha": COMMIT, "siblings": names}).encode(), {}
            name = path.removeprefix(f"/{repository}/resolve/{COMMIT}/")
            if name in files:
                content = files[name].read_bytes()
                return content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return None, {}

    def close(self):
        self.server.shutdown()
        self.server.server_close()

"""EndpointSlices of a cluster before 1.21, whose API server has v1beta1 only, as v1: a proxy that renames the version.

Pods reach it in place of the API server (KUBERNETES_SERVICE_HOST and _PORT). Its certificate is signed by the cluster's
authority, whose key is in the folder of OFFSHOOT_CLUSTER_CA (ca.crt, ca.key). Tokens go through it, so rights are checked
by the real server.
"""

import http.client
import json
import ssl
import subprocess
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

OLD, NEW = b"discovery.k8s.io/v1beta1", b"discovery.k8s.io/v1"


def certificate(folder, authority, address):
    """A certificate for an address, as a file with its key."""
    key, request, made = (Path(folder, name) for name in ("key.pem", "request.pem", "certificate.pem"))
    run = lambda *words: subprocess.run(["openssl", *words], check=True, capture_output=True)
    run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=slices", "-keyout", key, "-out", request)
    extension = Path(folder, "extension")
    extension.write_text(f"subjectAltName=IP:{address}")
    run("x509", "-req", "-in", request, "-CA", Path(authority, "ca.crt"), "-CAkey", Path(authority, "ca.key"), "-set_serial", "77", "-days", "1",
        "-out", made, "-extfile", extension)
    both = Path(folder, "both.pem")
    both.write_bytes(made.read_bytes() + key.read_bytes())
    return both


class OldSlices:
    """See the module documentation. `server` is the URL of the API server."""

    def __init__(self, folder, authority, address, server):
        self.upstream = urllib.parse.urlparse(server)
        self.trust = ssl.create_default_context(cafile=str(Path(authority, "ca.crt")))
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate(folder, authority, address))
        self.address, self.port, self.server, self.open = address, 0, None, set()
        self.start()

    def start(self):
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                proxy.open.add(self.connection)
                upstream = http.client.HTTPSConnection(proxy.upstream.hostname, proxy.upstream.port, context=proxy.trust, timeout=120)
                try:
                    headers = {"Authorization": self.headers.get("Authorization", ""), "Accept": "application/json"}
                    upstream.request("GET", self.path.replace(NEW.decode(), OLD.decode()), headers=headers)
                    reply = upstream.getresponse()
                    self.send_response(reply.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    # A list is one line, and so is each event of a watch.
                    while line := reply.readline():
                        line = line.replace(OLD, NEW)
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                        self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    self.close_connection = True
                finally:
                    upstream.close()
                    proxy.open.discard(self.connection)

            def log_message(self, *arguments):
                pass

        class Server(ThreadingHTTPServer):
            def get_request(self):
                accepted, peer = super().get_request()
                return proxy.tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False), peer

            def handle_error(self, request, client_address):
                pass

        self.server = Server((self.address, self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        """Nobody is there any more; watches break."""
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.open):
            try:
                connection.shutdown(2)
            except OSError:
                pass


def api_server(config):
    """The URL in what `kubectl config view --raw -o json` prints."""
    return json.loads(config)["clusters"][0]["cluster"]["server"]

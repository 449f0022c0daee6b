"""Takes logs as NDJSON or as OTLP/HTTP and writes them down as records, as `agent/docs/records.md` has them.

OTLP is read with the messages that OpenTelemetry publishes for Python and Google's protobuf. What is answered stands in
`behaviour.json`, which is read for each request.
"""

import base64
import gzip
import http.server
import json
import os
import ssl
import sys
import threading
import time

from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as service

DIRECTORY = sys.argv[1]
LOCK = threading.Lock()


def plain(value):
    """A value of OpenTelemetry as one of JSON."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: plain(item.value) for item in value.kvlist_value.values}
    return getattr(value, kind)


def attributes(pairs):
    return {pair.key: plain(pair.value) for pair in pairs}


def record(resource, log):
    given = attributes(log.attributes)
    made = {
        "position": given.pop("sidestep.position"),
        "length": given.pop("sidestep.length"),
        "class": given.pop("sidestep.class"),
        "stream": given.pop("sidestep.stream"),
        "flags": given.pop("sidestep.flags", []),
        "time_unix_nano": log.time_unix_nano,
        "resource": resource,
        "attributes": given,
    }
    uid = given.pop("log.record.uid")
    assert uid == f"{made['stream']}@{made['position']}", uid
    body = plain(log.body)
    if isinstance(body, bytes):
        given["sidestep.body.base64"] = base64.b64encode(body).decode()
        body = body.decode(errors="replace")
    made["body"] = body
    return made


def records(content_type, body):
    if content_type == "application/x-ndjson":
        assert body.endswith(b"\n"), "a line without its end"
        return [json.loads(line) for line in body.splitlines()]
    assert content_type == "application/x-protobuf", content_type
    request = service.ExportLogsServiceRequest.FromString(body)
    found = []
    for logs in request.resource_logs:
        resource = attributes(logs.resource.attributes)
        for scope in logs.scope_logs:
            assert scope.scope.name == "sidestep", scope
            found += [record(resource, log) for log in scope.log_records]
    return found


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self):
        self.answer(405, {}, b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with open(os.path.join(DIRECTORY, "behaviour.json")) as file:
            behaviour = json.load(file)
        time.sleep(behaviour.get("delay", 0))
        if "garbage" in behaviour:
            self.wfile.write(behaviour["garbage"].encode())
            self.close_connection = True
            return
        otlp = self.headers["Content-Type"] == "application/x-protobuf"
        found = records(self.headers["Content-Type"], body) if body else []
        status, text = behaviour.get("status", 200), behaviour.get("body", "").encode()
        if any(behaviour.get("refuse", "\0") in item["body"] for item in found):
            status, text = 400, b"a record that may not be"
        if status == 200:
            response = service.ExportLogsServiceResponse()
            if "rejected" in behaviour:
                response.partial_success.rejected_log_records = behaviour["rejected"]
                response.partial_success.error_message = "too old"
            text = response.SerializeToString() if otlp else b""
        line = {
            "path": self.path,
            "status": status,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "records": found,
        }
        with LOCK, open(os.path.join(DIRECTORY, "requests.ndjson"), "a") as file:
            file.write(json.dumps(line) + "\n")
        headers = dict(behaviour.get("headers", {}))
        if status == 200 and otlp:
            headers["Content-Type"] = "application/x-protobuf"
        self.answer(status, headers, text)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        # A client that goes away is none of its errors.
        if not isinstance(sys.exc_info()[1], (ConnectionError, ssl.SSLError)):
            super().handle_error(request, client_address)


server = Server(("127.0.0.1", int(sys.argv[2])), Handler)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3], sys.argv[4])
    if len(sys.argv) > 5:
        context.load_verify_locations(sys.argv[5])
        context.verify_mode = ssl.CERT_REQUIRED
    # The handshake is the connection's own thread's.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()

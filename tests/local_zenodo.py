"""A server on this machine that answers as Zenodo's API does, and misbehaves when told to."""

import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RECORD = 5235536


class LocalZenodo(ThreadingHTTPServer):
    """Serves ``files`` (name to bytes) of one record.

    Attributes:
        breaks: break each file off after these many bytes of an answer, this often: [bytes, times].
        busy: answer this many requests with 429 and Retry-After.
        ranges: serve ranges.
        wrong_md5: name of files whose record lies.
        delay: seconds before each chunk of 16 KiB.
        log: (method, path, Range) of each request.
        most_at_once: greatest number of file requests under way.
        sent: bytes of all answers.
    """

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.breaks, self.busy, self.ranges = [0, 0], 0, True
        self.retry_after, self.wrong_md5, self.delay = "1", set(), 0
        self.log, self.at_once, self.most_at_once, self.sent = [], 0, 0, 0
        self.lock = threading.Lock()

    @property
    def api(self):
        return f"http://127.0.0.1:{self.server_port}/api"

    def requests_of(self, name):
        return [asked for _, path, asked in self.log if f"/{name}/" in path]

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        with server.lock:
            server.log.append((self.command, self.path, self.headers.get("Range")))
            busy = server.busy > 0
            server.busy -= busy
        if busy:
            return self._answer(429, b"slow down", {"Retry-After": server.retry_after})
        if self.path == f"/api/records/{RECORD}":
            return self._answer(200, json.dumps(self._record()).encode())
        match = re.fullmatch(rf"/api/records/{RECORD}/files/([^/]+)/content", self.path)
        if not match or match[1] not in server.files:
            return self._answer(404, b"{}")
        with server.lock:
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self._serve(server.files[match[1]])
        finally:
            with server.lock:
                server.at_once -= 1

    do_HEAD = do_GET

    def _record(self):
        files = []
        for name, content in self.server.files.items():
            md5 = "0" * 32 if name in self.server.wrong_md5 else hashlib.md5(content).hexdigest()
            link = {"self": f"{self.server.api}/records/{RECORD}/files/{name}/content"}
            files.append({"key": name, "size": len(content), "checksum": f"md5:{md5}", "links": link})
        return {"id": RECORD, "files": files}

    def _serve(self, content):
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        status, headers, total = 200, {}, len(content)
        if asked and self.server.ranges:
            start = int(asked[1]) if asked[1] else max(0, total - int(asked[2]))
            end = min(int(asked[2]), total - 1) if asked[1] and asked[2] else total - 1
            if start >= total:
                return self._answer(416, b"", {"Content-Range": f"bytes */{total}"})
            status, headers = 206, {"Content-Range": f"bytes {start}-{end}/{total}"}
            content = content[start : end + 1]
        self._answer(status, content, headers)

    def _answer(self, status, content, headers=()):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        with self.server.lock:
            self.server.sent += len(content)
            stop, times = self.server.breaks
            breaks = times > 0 and status in (200, 206) and len(content) > stop and "/content" in self.path
            self.server.breaks[1] -= breaks
        if breaks:
            self.wfile.write(content[:stop])
            self.wfile.flush()
            self.close_connection = True
            return
        for place in range(0, len(content), 1 << 14):
            self.wfile.write(content[place : place + (1 << 14)])
            if self.server.delay and status in (200, 206):
                self.wfile.flush()
                time.sleep(self.server.delay)


@contextmanager
def local_zenodo(files):
    """Run the server while the block runs."""
    server = LocalZenodo(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

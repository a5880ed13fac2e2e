"""A judge for tests, in a process of its own: `python -m tests.judge_server` prints its port.

The path says how it misbehaves. An item is relevant by 0.75 to a context of the same parity, else by 0.25.
"""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

FLAKY = {
    "flaky": (500, "oops"),
    "flaky-garbage": (200, "I would say: relevant"),
    "flaky-length": (200, '{"relevance": [0.5, 0.5, 0.5]}'),
}
ALWAYS = {
    "outside": (200, '{"relevance": [7, 7, 7, 7, 7]}'),
    "nan": (200, '{"relevance": [NaN, 0, 0, 0, 0]}'),
    "words": (200, '{"relevance": ["yes", true, null, "0.5", []]}'),
    "wrong": (404, ""),
    "elsewhere": (307, ""),
    "huge": (200, " " * (2 << 20)),
}
SECONDS = {"slow": 2.0, "together": 0.3}


class Judge(BaseHTTPRequestHandler):
    """One path per misbehaviour; GET /calls tells the bodies that came so far, GET /most how many at once."""

    bodies: ClassVar[list[str]] = []
    failed: ClassVar[set[tuple[str, str]]] = set()
    now: ClassVar[list[int]] = [0, 0]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, json.dumps({"calls": self.bodies, "most": self.now[1]}))

    def do_POST(self) -> None:
        self.now[0] += 1
        self.now[1] = max(self.now)
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.bodies.append(body)
        pairs = json.loads(body)["pairs"]
        good = [0.75 if (int(p["context"]["id"]) - int(p["item"]["id"])) % 2 == 0 else 0.25 for p in pairs]
        self.misbehave(self.path.removeprefix("/"), good, (self.path, body))
        self.now[0] -= 1

    def misbehave(self, way: str, good: list[float], question: tuple[str, str]) -> None:
        """Answer as the way says; a flaky one fails the first time that it hears a question."""
        is_first, answer = question not in self.failed, json.dumps({"relevance": good})
        self.failed.add(question)
        if way.startswith("flaky") and is_first:
            self.answer(*FLAKY[way])
        elif way in ALWAYS:
            self.answer(*ALWAYS[way])
        elif (way == "fails-on-9" and '"item": {"id": "9"' in question[1]) or (
            way == "token" and self.headers["Authorization"] != "Bearer secret"
        ):
            self.answer(503 if way == "fails-on-9" else 401, "")
        elif way == "drip":
            self.drip(answer)
        else:
            time.sleep(SECONDS.get(way, 0.0))
            self.answer(200, answer)

    def drip(self, answer: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        for byte in answer.encode():
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.2)

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        if status == 307:
            self.send_header("Location", "/good")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    print(server.server_port, flush=True)
    server.serve_forever()

"""A proxy before an OpenAI-compatible server that fails as it is told, and counts what the server behind it has done.

It is in a request's way over real HTTP: what it breaks, the client sees as a network or an endpoint breaks it. What was answered behind it
before the fault is billed all the same, and `billed` has it by the server's own count.
"""

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler

from tests.endpoint import Loopback

FAULTS = ("429", "500", "hang", "cut", "malformed", "wrong schema", "no usage", "slow")


class FaultProxy(Loopback):
    """`plan(request number, body) -> fault or None`, the faults being those of `FAULTS`; `hang_s` is longer than the client waits."""

    def __init__(self, target, plan, hang_s=1.5):
        self.requests, self.delivered, self.faults = 0, Counter(), Counter()
        self.billed_tokens = self.billed_requests = 0
        lock, proxy = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                content = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(content)
                with lock:
                    number, proxy.requests = proxy.requests, proxy.requests + 1
                    fault = plan(number, body)
                    proxy.faults[fault] += 1
                try:
                    self._pass_on(content, body, fault)
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

            def _pass_on(self, content, body, fault):
                if fault == "429":
                    return self._send(429, b"slow down", {"Retry-After": "0.05"})
                status, answer = self._asked(content)
                if status == 200:
                    usage = json.loads(answer).get("usage") or {}
                    with lock:
                        proxy.billed_requests += 1
                        proxy.billed_tokens += usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
                if fault == "500":
                    return self._send(500, b"oh no")
                if fault == "hang":
                    time.sleep(hang_s)
                    self.close_connection = True
                    return None
                if fault == "cut":
                    return self._send(status, answer, short=len(answer) // 2)
                if fault == "malformed":
                    return self._send(status, answer[: len(answer) // 2])
                if fault == "wrong schema":
                    return self._send(status, b'{"detail": {"choices": "none"}}')
                if fault == "no usage" and status == 200:
                    answer = json.dumps({name: value for name, value in json.loads(answer).items() if name != "usage"}).encode()
                with lock:
                    proxy.delivered[json.dumps(body, sort_keys=True)] += status == 200
                return self._send(status, answer, slow=fault == "slow")

            def _asked(self, content):
                request = urllib.request.Request(target + self.path.removeprefix("/v1"), content, {"Content-Type": "application/json"})
                try:
                    with urllib.request.urlopen(request, timeout=100) as response:
                        return response.status, response.read()
                except urllib.error.HTTPError as error:
                    return error.code, error.read()

            def _send(self, status, content, headers=(), short=None, slow=False):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
                    self.send_header(name, value)
                self.end_headers()
                if short is not None:
                    self.wfile.write(content[:short])
                    self.close_connection = True
                elif slow:
                    for start in range(0, len(content), -(-len(content) // 5)):
                        self.wfile.write(content[start : start + -(-len(content) // 5)])
                        time.sleep(0.02)
                else:
                    self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.serve(Handler)

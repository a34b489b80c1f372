"""An OpenAI-compatible endpoint of the tests' own, over real HTTP: it answers, and fails, as it is told."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, finish="stop"):
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


def tag_answer(*names):
    return json.dumps({"tags": [{"tag": name, "explanation": "so"} for name in names]})


class Quiet(ThreadingHTTPServer):
    """Says nothing of a client that hung up, or was killed."""

    def handle_error(self, request, client_address):
        pass


class Loopback:
    """An HTTP server on a free port of this machine: `url` is its API's, until `close`."""

    def serve(self, handler):
        self.http = Quiet(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


class Server(Loopback):
    """An OpenAI-compatible endpoint: `plan(prompt, number of the try)` gives (status, headers, body) for each request."""

    def __init__(self, plan):
        self.tries, self.bodies, self.headers, self.times = Counter(), [], [], []
        self.now = self.most = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"].removeprefix("<text>\n").removesuffix("\n</text>")
                with lock:
                    server.tries[prompt] += 1
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                    server.times.append(time.monotonic())
                    server.now += 1
                    server.most = max(server.most, server.now)
                try:
                    status, headers, answer = plan(prompt, server.tries[prompt])
                finally:
                    with lock:
                        server.now -= 1
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                if status is None:  # hang up without a word
                    self.close_connection = True
                    return
                try:
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except ConnectionError:
                    pass

            def log_message(self, *arguments):
                pass

        self.serve(Handler)

"""An OpenAI-compatible server without a model: what it completes follows from the ids, the seed and the limit."""

import contextlib
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STOP = 1


def made(prompt, seed, limit):
    """The completion: random ids up to the stop, which comes after 6 tokens in the mean."""
    draw, ids = random.Random(repr((list(prompt), seed))), []
    while len(ids) < limit:
        ids.append(STOP if draw.random() < 1 / 6 else draw.randrange(3, 300))
        if ids[-1] == STOP:
            break
    return ids


class FakeServer:
    """Serves on a free port until it is closed.

    Args:
        fault: asked with (the number of the request, what was asked) before each completion; what it returns goes
            wrong: a status, (status, headers), "html", "text", "short", "break" or "hang".
    """

    def __init__(self, tokenizer, model="policy", context=4096, fault=lambda number, asked: None, key=None, delay=0.0):
        self.asked, self.keys, self.closed = [], [], False
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def handle(self):
                # A client that has gone is no fault: some tests end theirs. Its traceback must not be printed from this
                # thread: that parses, and the parser of CPython 3.11.7 is not safe against the one of the main thread
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def send(self, content, status=200, kind="application/json", headers=None, cut=False):
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)
                if cut:
                    self.close_connection = True

            def do_GET(self):
                if key and self.headers.get("Authorization") != f"Bearer {key}":
                    self.send({"error": "Unauthorized"}, 401)
                elif self.path == "/v1/models":
                    self.send({"object": "list", "data": [{"id": model, "max_model_len": context}]})
                elif self.path == "/version":
                    self.send({"version": "9.9"})
                else:
                    self.send({"detail": "Not Found"}, 404)

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = asked["prompt"]
                probe = isinstance(prompt, str)
                if not probe:
                    with outer._lock:
                        number = len(outer.asked)
                        outer.asked.append(asked)
                    time.sleep(delay)
                else:
                    number, prompt = -1, tokenizer(prompt, add_special_tokens=False)["input_ids"]
                if outer.closed:
                    self.close_connection = True
                    return
                wrong = fault(number, asked)
                if isinstance(wrong, int):
                    return self.send({"error": {"message": f"told to say {wrong}"}}, wrong)
                if isinstance(wrong, tuple):
                    return self.send({"error": {"message": "later"}}, wrong[0], headers=wrong[1])
                if wrong == "html":
                    return self.send(b"<html><h1>Proxy</h1></html>", kind="text/html")
                if wrong == "hang":
                    time.sleep(30)  # longer than any test asks it to wait
                ids = made(prompt, asked.get("seed"), asked["max_tokens"])
                reason = "stop" if ids[-1:] == [STOP] else "length"
                if wrong == "short":
                    ids, reason = [5, 6], "abort"
                choice = {"index": 0, "text": "...", "finish_reason": reason, "prompt_token_ids": prompt,
                          "token_ids": ids}  # fmt: skip
                if wrong == "text":
                    choice = {"index": 0, "text": "...", "finish_reason": reason}
                usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": len(prompt) // 2}}
                self.send({"choices": [choice], "usage": usage}, cut=wrong == "break")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        """As if it was killed: what is being made is never sent."""
        self.closed = True
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.closed:
            self.close()

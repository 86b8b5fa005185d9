"""A scripted endpoint on loopback that speaks OpenAI's chat protocol and counts what it answers."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OPINION = "The grammar is fine. The story goes well with its beginning."
GRADES = """\
Grammar: {}/10
Creativity: {}/10
Consistency: {}/10
Plot: {}/10
Age group: B"""


class JudgingEndpoint:
    """Answers by the name of the story's hero, which stands in each test story.

    `script[hero]` lists what to do with the requests about that hero in turn: "ok", "chatter" (no
    grades), "refuse" (a sorry in words), a status such as "429", "slow" (longer than the client
    waits), "hang" (until the end), "drop" (the connection closes). A script that has run out means
    "ok". `grades[hero]` are four numbers.
    """

    def __init__(self) -> None:
        self.script: dict[str, list[str]] = {}
        self.grades: dict[str, tuple[int, int, int, int]] = {}
        self.answered: Counter[tuple[str, str, int]] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._now = 0
        self._lock, self._end = threading.Lock(), threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each body waits 40 ms for an acknowledgement

            def do_POST(self) -> None:
                endpoint.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # A shutdown waits for a poll, which is one in half a second by default.
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def close(self) -> None:
        self._end.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        hero = next(h for h in self.heroes() if f"named {h} " in body["messages"][0]["content"])
        turn = sum(message["role"] == "user" for message in body["messages"])
        with self._lock:
            self.requests.append(body)
            self.headers.append({k.lower(): v for k, v in handler.headers.items()})
            todo = self.script.get(hero, [])
            what = todo.pop(0) if todo else "ok"
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            self._do(handler, what, body, hero, turn)
        except OSError:  # a client that does not wait
            handler.close_connection = True
        finally:
            with self._lock:
                self._now -= 1

    def heroes(self) -> list[str]:
        return list(self.grades)

    def _do(
        self, handler: BaseHTTPRequestHandler, what: str, body: dict[str, Any], hero: str, turn: int
    ) -> None:
        if what == "hang":
            self._end.wait()
        if what in ("drop", "hang"):
            handler.close_connection = True
            return
        if what == "slow":
            time.sleep(1.0)
        if what.isdigit():
            content = json.dumps({"error": {"message": f"scripted {what}"}}).encode()
            handler.send_response(int(what))
            if what == "429":
                handler.send_header("Retry-After", "0")
        else:
            text = OPINION if turn == 1 else GRADES.format(*self.grades[hero])
            text = {"chatter": "Seven, I think.", "refuse": "I'm sorry, I can't."}.get(what, text)
            message = {"role": "assistant", "content": text}
            content = json.dumps(
                {
                    "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                    "system_fingerprint": "",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
                }
            ).encode()  # fmt: skip
            handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        handler.wfile.flush()
        if not what.isdigit() and what != "slow":
            with self._lock:
                self.answered[body["model"], hero, turn] += 1

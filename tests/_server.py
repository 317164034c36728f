"""A small server on the loopback that follows OpenAI's published schema, fails when told to, and remembers what it was asked."""

import json
import math
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = {"": {" A": 0.6, " B": 0.3, "A": 0.05, " As": 0.05}}


class Loopback:
    """What it says, and how it fails; change it while it runs.

    Attributes:
        table: probabilities of next tokens, by the end of what it was given; the longest end that is known counts.
        faults: popped for each request: a status, "hang", "drop", a (status, body), bytes in place of HTTP, or None.
        lists: whether it has log-probs; "nothing" is none of a first token; "lossy" gives long lists as llama.cpp does.
        asked: (path, body, authorisation) of each request that it answered.
        received: requests, answered or not.
        busiest: requests at one time.
        seconds: that an answer takes.
        listing: what /models says; None is no such list.
        says: more of each reply, system_fingerprint perhaps.
        headers: of each request.
        location: where it sends on to.
    """

    def __init__(self, table=WORDS, faults=(), lists=True, seconds=0.0, counts=True):
        self.table, self.faults, self.lists, self.seconds, self.counts = table, list(faults), lists, seconds, counts
        self.asked, self.received, self.busy, self.busiest = [], 0, 0, 0
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.stop_after = None
        self.port = 0
        self.listing, self.says, self.headers, self.location = None, {}, [], None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    @contextmanager
    def running(self):
        """Serve until the end of the block, or until `stop_after` answers."""
        self.stopped.clear()
        handler = type("Handler", (_Handler,), {"loopback": self})
        server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        server.daemon_threads, self.port = True, server.server_address[1]
        server.handle_error = lambda *_: None  # a client that went away
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        killer = threading.Thread(target=self._kill, args=(server,), daemon=True)
        killer.start()
        try:
            yield self
        finally:
            self.stopped.set()
            thread.join()
            killer.join()

    def _kill(self, server):
        self.stopped.wait()
        server.shutdown()
        server.server_close()

    def next_tokens(self, text):
        known = max((end for end in self.table if text.endswith(end)), key=len)
        return {token: math.log(p) for token, p in self.table[known].items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loopback: Loopback

    def do_GET(self):
        us = self.loopback
        us.headers.append(dict(self.headers.items()))
        self._send(200 if us.listing else 404, us.listing or {"detail": "Not Found"})

    def do_POST(self):
        us = self.loopback
        us.headers.append(dict(self.headers.items()))
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or "{}")
        with us.lock:
            us.received += 1
            us.busy += 1
            us.busiest = max(us.busiest, us.busy)
            fault = us.faults.pop(0) if us.faults else None
            if us.stop_after is not None and len(us.asked) >= us.stop_after:
                fault = "drop"
                us.stopped.set()
            if fault is None:
                us.asked.append((self.path, body, self.headers.get("authorization")))
        try:
            self._respond(body, fault)
        finally:
            with us.lock:
                us.busy -= 1

    def _respond(self, body, fault):
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "hang":
            self.loopback.stopped.wait(5)
            return
        if isinstance(fault, bytes):
            self.wfile.write(fault)
            self.close_connection = True
            return
        time.sleep(self.loopback.seconds)
        status, said = fault if isinstance(fault, tuple) else (200 if fault == "drip" else fault or 200, None)
        if said is None:
            said = self._answer(body) if status == 200 else {"error": {"message": f"fault {status}", "code": None}}
        self._send(status, said, slowly=fault == "drip")

    def _send(self, status, said, slowly=False):
        data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(status)
        if self.loopback.location:
            self.send_header("location", self.loopback.location)
        self.send_header("content-type", "text/html" if isinstance(said, str) else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        for part in [data[i : i + 1] for i in range(len(data))] if slowly else [data]:
            self.wfile.write(part)
            if slowly and self.loopback.stopped.wait(0.05):
                return

    def _answer(self, body):
        chat = self.path.endswith("/chat/completions")
        given = body["messages"][-1]["content"] if chat else body["prompt"]
        listed = self.loopback.next_tokens(given)
        wanted = body.get("top_logprobs") if chat else body.get("logprobs")
        text = max(listed, key=listed.get) if body.get("max_tokens") == 1 else f"said: {given}"
        ended = "length" if body.get("max_tokens") == 1 else "stop"
        choice = {"index": 0, "finish_reason": ended, "logprobs": self._lists(listed, wanted, chat)}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": len(given.split()), "completion_tokens": 1, "total_tokens": len(given.split()) + 1}
        kind = "chat.completion" if chat else "text_completion"
        answer = {"id": "x", "object": kind, "created": 0, "model": body["model"], "choices": [choice]}
        answer |= self.loopback.says
        return answer | ({"usage": usage} if self.loopback.counts else {})

    def _lists(self, listed, wanted, chat):
        if not wanted or not self.loopback.lists:
            return None
        top = dict(sorted(listed.items(), key=lambda item: -item[1])[:wanted])
        token, logp = next(iter(top.items()))
        if self.loopback.lists == "lossy" and len(top) > 5:  # another token of the first one's text takes its place
            top[token] = min(top.values()) - 1
        if self.loopback.lists == "nothing":
            top, chosen = {}, []
        elif chat:
            several = [{"token": t, "logprob": p, "bytes": None} for t, p in top.items()]
            chosen = [{"token": token, "logprob": logp, "bytes": None, "top_logprobs": several}]
        if chat:
            return {"content": chosen, "refusal": None}
        return {"tokens": [token], "token_logprobs": [logp], "top_logprobs": [top] if top else [], "text_offset": [0]}

    def log_message(self, *_):
        pass

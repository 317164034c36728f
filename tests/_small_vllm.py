"""A server that speaks as vLLM does and computes with transformers, in a thread of the tests' own process.

It has the paths that prefopt asks: completions with log-probs at the temperature, adapters, and all weights from a folder.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


class SmallVLLM:
    """Models by name, in float64; `received` counts what came over.

    Args:
        folder: of the model that it serves.
    """

    def __init__(self, folder: Path):
        self.folder, self.received = folder, {"adapters": 0, "weights": 0}
        self.models: dict[str, Any] = {"base": self._read(folder)}

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What it answers, once it has done it."""
        if path == "/v1/completions":
            return {"choices": [self._choice(body, number) for number in range(body["n"])]}
        if path == "/v1/load_lora_adapter":
            model = PeftModel.from_pretrained(self._read(self.folder), body["lora_path"])
            self.models[body["lora_name"]] = model.double().eval()
            self.received["adapters"] += 1
        elif path == "/v1/unload_lora_adapter":
            self.models.pop(body["lora_name"], None)
        elif path == "/collective_rpc":
            self.models["base"] = self._read(Path(body["kwargs"]["weights_path"]))
            self.received["weights"] += 1
        return {}

    @torch.no_grad()
    def _choice(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        """The completion of this number."""
        draw, warmth = torch.Generator().manual_seed(body["seed"] * 64 + number), body["temperature"] or 1.0
        ids, logps = list(body["prompt"]), []
        while len(logps) < body["max_tokens"] and not (logps and ids[-1] in body["stop_token_ids"]):
            row = (self.models[body["model"]](torch.tensor([ids])).logits[0, -1] / warmth).log_softmax(-1)
            token = int(row.argmax() if not body["temperature"] else row.exp().multinomial(1, generator=draw))
            ids.append(token)
            logps.append(min(float(row[token]), 0.0))
        return {"index": number, "token_ids": ids[-len(logps) :], "logprobs": {"token_logprobs": logps}}

    @staticmethod
    def _read(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


@contextmanager
def small_vllm(folder: Path) -> Iterator[tuple[SmallVLLM, str]]:
    """The server and its address, while the context lasts."""
    small = SmallVLLM(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = {"/v1/models": {"data": [{"id": "base"}]}}
            self._answer(known.get(self.path, {"vllm_config": {"model_config": {}}}))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(small.post(self.path, json.loads(body or b"{}")))

        def _answer(self, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nowhere."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield small, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

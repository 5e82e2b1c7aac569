"""A tiny GPT-2 as files, and a server that hands files out as the Hugging Face hub does; both for tests."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import torch
from safetensors.torch import load, save

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MERGES = ["H e", "l l", "He ll", "Hell o", "Ġ t", "Ġt h", "Ġth e"]


def tiny_model() -> dict[str, bytes]:
    """The files of a random one-layer GPT-2 and its byte-level tokenizer, built without any code of ours."""
    vocab = {symbol: token for token, symbol in enumerate(byte_symbols())}
    for merge in MERGES:
        vocab[merge.replace(" ", "")] = len(vocab)
    end = vocab["<|endoftext|>"] = len(vocab)
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": len(vocab)}
    config |= {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config |= {"bos_token_id": end, "eos_token_id": end}
    return {
        "config.json": as_json(config),
        "generation_config.json": as_json({"bos_token_id": end, "eos_token_id": end}),
        "model.safetensors": save(tiny_weights(len(vocab)), metadata={"format": "pt"}),
        "vocab.json": as_json(vocab),
        "merges.txt": "\n".join(["#version: 0.2", *MERGES, ""]).encode(),
        "tokenizer_config.json": as_json({"tokenizer_class": "GPT2Tokenizer", "model_max_length": 32}),
    }


def tiny_weights(vocab_size: int, width: int = 8, n_positions: int = 32) -> dict[str, torch.Tensor]:
    """Random tensors under the checkpoint's names; the matrices lie as Conv1D keeps them, (in, out)."""
    shapes = {"wte.weight": (vocab_size, width), "wpe.weight": (n_positions, width)}
    matrices = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
    matrices |= {"mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
    for name, (n_in, n_out) in matrices.items():
        shapes |= {f"h.0.{name}.weight": (n_in, n_out), f"h.0.{name}.bias": (n_out,)}
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    chance = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=chance) * 0.2 for name, shape in shapes.items()}


def in_shards(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same model with its weights in two files and an index."""
    tensors = load(files["model.safetensors"])
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    rest = {file: content for file, content in files.items() if file != "model.safetensors"}
    return {
        **rest,
        "model.safetensors.index.json": as_json({"metadata": {}, "weight_map": weight_map}),
        **{shard: save({name: tensors[name] for name in part}) for shard, part in shards.items()},
    }


def byte_symbols() -> list[str]:
    """How GPT-2 writes the 256 bytes in its vocabulary: printable ones as they are, others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


class HubServer:
    """One repository behind the hub's protocol: HEAD and GET of /{repo}/resolve/{revision}/{file}.

    `files` is what the repository holds; of safetensors and .bin it tells the sha256, as the hub does of
    large files. Three ways to go wrong: `damaged` is sent in a file's place while its size and sha256 are
    reported as before; the first answer with a file in `cut` breaks off half-way; what is `refused` gets a 403.
    """

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo, self.files = repo, files
        self.damaged: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.refused: set[tuple[str, str]] = set()  # HEAD or GET, file
        self.gated: set[str] = set()  # repositories
        self.requests: list[tuple[str, str, str]] = []  # HEAD or GET, revision, file
        self.authorizations: set[str | None] = set()  # the headers of that name that came with them
        self.other_requests: list[str] = []  # what the client asks on its own account
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def fetched(self) -> list[str]:
        return sorted(file for method, _, file in self.requests if method == "GET")

    def asked(self) -> set[str]:
        return {file for _, _, file in self.requests}

    def stop(self) -> None:
        """From here on nobody listens on the port."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self.answer()
            return
        self.hub.other_requests.append(self.path)
        if self.path.startswith(f"/api/models/{self.hub.repo}/tree/{COMMIT}"):
            files = [{"type": "file", "path": file, "size": 1, "oid": "0" * 40} for file in self.hub.files]
            self.send(as_json(files), {"Content-Type": "application/json"})
        else:
            self.refuse(404, "NotFound")

    def answer(self) -> None:
        repo, _, rest = unquote(self.path).strip("/").partition("/resolve/")
        revision, _, file = rest.rpartition("/")
        self.hub.requests.append((self.command, revision, file))
        self.hub.authorizations.add(self.headers["Authorization"])
        if repo in self.hub.gated:
            self.refuse(403, "GatedRepo")
        elif repo != self.hub.repo:
            self.refuse(401, "RepoNotFound")  # 401, not 404: the hub does not tell strangers what is private
        elif revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif (self.command, file) in self.hub.refused:
            self.refuse(403, "Forbidden")
        elif file not in self.hub.files:
            self.refuse(404, "EntryNotFound")
        else:
            self.send_file(file)

    def send_file(self, file: str) -> None:
        content = self.hub.files[file]
        large = file.endswith((".safetensors", ".bin"))
        blob = b"blob %d\0" % len(content) + content  # what git hashes to name a small file
        etag = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(blob).hexdigest()
        facts = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        body = self.hub.damaged.get(file, content) if self.command == "GET" else content
        if self.command == "GET" and file in self.hub.cut:
            self.hub.cut.remove(file)
            self.send(body, facts, only=len(body) // 2)
        else:
            self.send(body, facts)

    def send(self, body: bytes, headers: dict[str, str], only: int | None = None) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:only])

    def refuse(self, status: int, reason: str) -> None:
        self.send_response(status)
        facts = {"X-Error-Code": reason, "X-Repo-Commit": COMMIT, "Content-Length": "0"}
        for name, value in facts.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass

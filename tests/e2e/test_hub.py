"""Models from the hub as a user meets them: each case is a process of its own, with a hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, as_json, in_shards, tiny_model

ROOT = Path(__file__).parents[2]
MODEL = {"config.json", "generation_config.json", "model.safetensors"}
TOKENIZER = {"vocab.json", "merges.txt", "tokenizer_config.json"}
NOT_FOR_US = {"pytorch_model.bin", "model.fp16.safetensors", "tf_model.h5", "tokenizer.json", "README.md"}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer("org/tiny", tiny_model() | dict.fromkeys(NOT_FOR_US, b"not for us"))
    yield server
    server.stop()


@pytest.fixture
def python(hub: HubServer, tmp_path: Path) -> Run:
    """Runs Python with the test's hub and an empty cache, and nothing else of this machine's settings."""
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.endpoint}
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    # A proxy must not come between, and no model is so large that it needs two threads.
    settings = {**kept, **home, "PYTHONPATH": str(ROOT), "NO_PROXY": "*", "OMP_NUM_THREADS": "1"}

    def run(*arguments: str, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        command, env = [sys.executable, *arguments], settings | more
        return subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=timeout
        )

    return run


@pytest.fixture
def generate(python: Run) -> Run:
    def run(*flags: str, model: str = "org/tiny", **more: str) -> subprocess.CompletedProcess[str]:
        command = ("-m", "minigpt.generate", "--model", model, "--max-new-tokens", "3", *flags, "Hello")
        return python(*command, **more)

    return run


@pytest.fixture
def fetch(python: Run) -> Run:
    """Only the fetching, for what the command line cannot tell apart: prints the directory or the error."""

    def run(call: str, **more: str) -> subprocess.CompletedProcess[str]:
        code = f"from minigpt.hub import model_files, tokenizer_files\ntry: print({call})\n"
        return python("-c", code + "except Exception as error: print(type(error).__name__, error)", **more)

    return run


def assert_one_line(run: subprocess.CompletedProcess[str], *words: str) -> None:
    """A user's mistake: exit code 3, one line that has these words in it, and no text."""
    assert (run.returncode, run.stdout) == (3, ""), run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert [word for word in words if word not in run.stderr] == [], run.stderr


def test_only_what_is_needed_is_downloaded_and_only_once(hub: HubServer, generate: Run) -> None:
    first = generate()
    assert (first.returncode, first.stdout != "") == (0, True), first.stderr
    assert hub.fetched() == sorted(MODEL | TOKENIZER)
    assert not hub.asked() & NOT_FOR_US

    hub.requests.clear()
    hub.other_requests.clear()
    assert generate("--offline").stdout == first.stdout
    assert generate(HF_HUB_OFFLINE="1").stdout == first.stdout
    assert hub.requests == hub.other_requests == []

    hub.stop()
    again = generate()
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr


def test_downloading_is_silent_where_nobody_watches(hub: HubServer, fetch: Run) -> None:
    hub.cut.add("model.safetensors")
    run = fetch("model_files('org/tiny')")
    assert run.stderr == ""
    assert hub.fetched().count("model.safetensors") == 2  # it broke off once, and the client took it up again
    stored = Path(run.stdout.strip(), "model.safetensors").read_bytes()
    assert stored == hub.files["model.safetensors"]


def test_all_files_come_from_one_commit(hub: HubServer, fetch: Run) -> None:
    folder = Path(fetch("model_files('org/tiny')").stdout.strip())
    assert folder.name == COMMIT
    assert {path.name for path in folder.iterdir()} == MODEL
    assert {file for _, revision, file in hub.requests if revision != COMMIT} == {"config.json"}


def test_a_second_call_asks_only_whether_the_branch_has_moved(hub: HubServer, fetch: Run) -> None:
    both = "(model_files('org/tiny'), tokenizer_files('org/tiny'))"
    first = fetch(both)
    hub.requests.clear()
    assert fetch(both).stdout == first.stdout
    assert {(method, file) for method, _, file in hub.requests} == {("HEAD", "config.json")}


def test_a_tokenizer_in_one_file(hub: HubServer, fetch: Run) -> None:
    del hub.files["vocab.json"], hub.files["merges.txt"]
    fetch("tokenizer_files('org/tiny')")
    assert hub.fetched() == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert "added_tokens.json" not in hub.asked()


def test_added_tokens_are_fetched_where_there_are_any(hub: HubServer, fetch: Run) -> None:
    hub.files["added_tokens.json"] = as_json({"<new>": 300})
    fetch("tokenizer_files('org/tiny')")
    assert hub.fetched() == sorted(TOKENIZER | {"config.json", "added_tokens.json"})


def test_shards(hub: HubServer, generate: Run) -> None:
    whole = generate().stdout
    hub.repo, hub.files = "org/sharded", in_shards(tiny_model())
    hub.requests.clear()
    run = generate(model="org/sharded")
    assert (run.returncode, run.stdout) == (0, whole), run.stderr
    assert hub.fetched() == sorted(hub.files)


def test_a_stray_folder_does_not_hide_the_model(hub: HubServer, fetch: Run, tmp_path: Path) -> None:
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert COMMIT in fetch("model_files('org/tiny')").stdout
    assert (
        "the local 'org/tiny' is a directory without config.json"
        in fetch("model_files('org/tiny', revision='v9')").stdout
    )


def test_offline_without_an_earlier_download(hub: HubServer, generate: Run) -> None:
    for run in (generate("--offline"), generate(HF_HUB_OFFLINE="1")):
        assert_one_line(run, "config.json", "'org/tiny'", "not in the cache", "--offline", "HF_HUB_OFFLINE")
    assert hub.requests == hub.other_requests == []


def test_transformers_variable_means_the_same(hub: HubServer, generate: Run) -> None:
    assert_one_line(generate(TRANSFORMERS_OFFLINE="1"), "offline mode forbids", "TRANSFORMERS_OFFLINE")
    assert hub.requests == []


def test_parts_of_the_client_that_are_switched_off_are_not_needed(
    hub: HubServer, generate: Run, tmp_path: Path
) -> None:
    """No links in the cache (as on Windows), no Xet, no telemetry, no token that was not asked for."""
    first = generate(HF_TOKEN="hf_secret")
    assert hub.authorizations == {"Bearer hf_secret"}
    hub.authorizations.clear()
    parts = (
        "SYMLINKS",
        "SYMLINKS_WARNING",
        "SHARED_BLOBS",
        "XET",
        "TELEMETRY",
        "IMPLICIT_TOKEN",
        "PROGRESS_BARS",
    )
    off = {f"HF_HUB_DISABLE_{part}": "1" for part in parts} | {
        "HF_HOME": str(tmp_path / "other"),
        "HF_TOKEN": "hf_secret",
    }
    assert generate(**off).stdout == first.stdout
    assert hub.authorizations == {None}
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_symlink()]
    hub.requests.clear()
    assert generate("--offline", **off).stdout == first.stdout
    assert hub.requests == []


def test_what_hf_download_has_fetched_serves_offline(hub: HubServer, fetch: Run, python: Run) -> None:
    """It leaves a listing of the repository, from which follows what the repository has not."""
    del hub.files["generation_config.json"]
    download = f"import huggingface_hub; huggingface_hub.snapshot_download('org/tiny', revision='{COMMIT}')"
    assert python("-c", download).returncode == 0
    both = ", ".join(f"{kind}_files('org/tiny', revision='{COMMIT}')" for kind in ("model", "tokenizer"))
    assert fetch(f"({both})", HF_HUB_OFFLINE="1").stdout.count(f"snapshots/{COMMIT}") == 2


def test_what_was_never_asked_for_is_not_taken_for_absent(hub: HubServer, fetch: Run) -> None:
    fetch("tokenizer_files('org/tiny')")
    said = fetch("model_files('org/tiny', offline=True)").stdout
    assert said.startswith("FileNotFoundError generation_config.json of 'org/tiny'")


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_refusal_is_not_taken_for_absence(method: str, hub: HubServer, fetch: Run) -> None:
    hub.refused.add((method, "generation_config.json"))
    said = fetch("model_files('org/tiny')").stdout
    assert said.startswith("OSError cannot fetch generation_config.json of 'org/tiny'")
    assert "403" in said


def test_no_network_is_told_at_once(hub: HubServer, fetch: Run) -> None:
    hub.stop()
    run = fetch("model_files('org/tiny')", timeout=15)  # the client alone would try for 23 seconds
    assert run.stdout.startswith(f"OSError cannot fetch config.json of 'org/tiny' on {hub.endpoint}")
    assert run.stdout.endswith("; there is no directory 'org/tiny' with config.json here\n")
    assert (run.stdout.count("\n"), run.stderr) == (1, "")


def test_a_shortened_file(hub: HubServer, generate: Run) -> None:
    hub.damaged["model.safetensors"] = hub.files["model.safetensors"][:1000]
    assert_one_line(generate(), "model.safetensors", "'org/tiny'", "has size 1000", "try again")
    hub.damaged.clear()
    assert generate().returncode == 0


def test_content_that_does_not_fit_its_sha256(hub: HubServer, generate: Run) -> None:
    good = hub.files["model.safetensors"]
    hub.damaged["model.safetensors"] = good[:-1] + bytes([good[-1] ^ 1])  # one bit of one number
    assert_one_line(generate(), "model.safetensors", "'org/tiny'", "damaged", "sha256")
    hub.damaged.clear()
    hub.requests.clear()
    run = generate()
    assert run.returncode == 0, run.stderr
    assert hub.fetched().count("model.safetensors") == 1


def test_a_damaged_header(hub: HubServer, generate: Run) -> None:
    """The repository itself holds a bad file, so that its sha256 fits."""
    hub.files["model.safetensors"] = b"\xff" * 8 + hub.files["model.safetensors"][8:]
    assert_one_line(generate(), "model.safetensors", "damaged")


def test_weights_that_end_early(hub: HubServer, generate: Run) -> None:
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:-100]
    assert_one_line(generate(), "model.safetensors", "damaged")


def test_no_weights(hub: HubServer, generate: Run) -> None:
    del hub.files["model.safetensors"], hub.files["pytorch_model.bin"]
    assert_one_line(generate(), "'org/tiny'", "has no model.safetensors")


def test_pickled_weights_alone(hub: HubServer, generate: Run) -> None:
    del hub.files["model.safetensors"]
    run = generate()
    assert_one_line(run, "pytorch_model.bin", "not read", "save_pretrained", "--revision refs/pr/N")
    assert "pytorch_model.bin" not in hub.asked()


def test_a_missing_shard(hub: HubServer, generate: Run) -> None:
    hub.files = in_shards(tiny_model())
    del hub.files["model-00002-of-00002.safetensors"]
    assert_one_line(generate(), "'org/tiny'", "lacks model-00002-of-00002.safetensors")


def test_a_damaged_index(hub: HubServer, generate: Run) -> None:
    hub.files = in_shards(tiny_model()) | {"model.safetensors.index.json": b'{"weight_map": {"wte'}
    assert_one_line(generate(), "model.safetensors.index.json is not JSON")


def test_an_unknown_repository(hub: HubServer, generate: Run) -> None:
    run = generate(model="org/tinny")
    assert_one_line(run, "'org/tinny'", "no such model", hub.endpoint, "hf auth login")


def test_an_unknown_revision(hub: HubServer, generate: Run) -> None:
    assert_one_line(generate("--revision", "v9"), "'org/tiny'", "no revision 'v9'", "branches")


def test_a_gated_repository(hub: HubServer, generate: Run) -> None:
    hub.gated.add("org/closed")
    assert_one_line(generate(model="org/closed"), "gated", f"{hub.endpoint}/org/closed", "hf auth login")

"""Which name means which directory, and what is said where it means none; no network, no torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from huggingface_hub import constants

from minigpt import hub
from minigpt.hub import bundled, model_files, tokenizer_files


@pytest.fixture(autouse=True)
def _nothing_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, the test's own working directory, and a network that nobody may use."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def folder(path: str | Path, *files: str) -> Path:
    """A directory with files of these names; what is in them does not matter."""
    Path(path).mkdir(parents=True, exist_ok=True)
    for file in files:
        Path(path, file).write_text("{}")
    return Path(path)


@pytest.mark.parametrize("name", [42, ["gpt2"], b"gpt2", ""])
def test_what_is_no_name_is_refused(name: Any) -> None:
    folder(".", "config.json", "model.safetensors")  # where an empty name must not lead
    with pytest.raises(ValueError, match="a model is a directory, a name on the hub, or 'bundled'; got "):
        model_files(name)


def index(*shards: str) -> str:
    return json.dumps({"weight_map": {f"tensor{i}": shard for i, shard in enumerate(shards)}})


def test_importing_needs_no_torch() -> None:
    code = "import sys, minigpt.hub; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(hub.__file__).parents[1]).returncode == 0


# The bundled model


@pytest.mark.parametrize("place", ["minigpt/_bundled", "weights"], ids=["wheel", "checkout"])
def test_the_bundled_model(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "__file__", str(tmp_path / "minigpt" / "hub.py"))
    files = ("config.json", "model.safetensors", "vocab.json", "merges.txt")
    expected = folder(tmp_path / place, *files)
    assert bundled() == model_files() == model_files(None) == tokenizer_files(None) == expected


def test_bundled_is_its_name_wherever_a_model_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.model_files("bundled") == hub.tokenizer_files("bundled") == hub.bundled()
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "config.json").touch()
    (tmp_path / "bundled" / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert hub.model_files("bundled") == hub.bundled()
    assert hub.model_files("./bundled") == Path("bundled")


@pytest.mark.parametrize("name", ["bundeld", "bundle", "Bundled", "bunlded", "bundled/"])
def test_nobody_on_the_hub_is_asked_for_what_was_meant_to_be_bundled(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_Repository", None)
    with pytest.raises(
        FileNotFoundError, match=f"'{name}' does not exist; the bundled model is called 'bundled'"
    ):
        hub.model_files(name)


def test_a_missing_bundled_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "__file__", str(tmp_path / "minigpt" / "hub.py"))
    with pytest.raises(FileNotFoundError, match=r"bundled model is missing: no config.json in .*_bundled or"):
        model_files()


# Local directories


def test_a_local_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = folder(tmp_path / "model", "config.json", "model.safetensors")
    assert model_files(expected) == model_files(str(expected)) == expected
    assert model_files("../model").samefile(expected)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_files("~/model") == expected


def test_a_local_model_in_shards() -> None:
    model = folder("model", "config.json", "a.safetensors", "b.safetensors")
    (model / "model.safetensors.index.json").write_text(index("a.safetensors", "b.safetensors"))
    assert model_files("model") == Path("model")
    (model / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"^model lacks b.safetensors, which its .*index.json names$"):
        model_files("model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON: Expecting value"),
        ("[]", r"must hold an object, got \[\]"),
        ("[" * 100_000, "is not JSON that can be read: its brackets are nested too deeply"),
        ('{"metadata": {}}', "lacks the field weight_map, an object"),
        ('{"weight_map": 5}', "weight_map must be an object, got 5"),
        ('{"weight_map": {}}', "weight_map names no shards"),
        ('{"weight_map": {"a": 1}}', r"weight_map\['a'\] must be a text, got 1"),
        ('{"weight_map": {"a": ""}}', r"weight_map\['a'\] must be a file's name, got ''"),
    ],
)
def test_a_damaged_index(text: str, message: str) -> None:
    (folder("model", "config.json") / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=rf"model\.safetensors\.index\.json:? {message}"):
        model_files("model")


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_cannot_point_outside(shard: str) -> None:
    (folder("model", "config.json") / "model.safetensors.index.json").write_text(index(shard))
    with pytest.raises(ValueError, match=f"names a file outside of the directory: '{shard}'"):
        model_files("model")


def test_pickled_weights_alone() -> None:
    folder("model", "config.json", "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"^model has no model.safetensors, and pickled weights"
    ) as said:
        model_files("model")
    assert "save_pretrained" in str(said.value)
    assert "--revision refs/pr/N" in str(said.value)


def test_a_local_model_has_no_revisions() -> None:
    folder("model", "config.json", "model.safetensors")
    with pytest.raises(
        ValueError, match="revision 'v9' is for models on the hub; 'model' is a local directory"
    ):
        model_files("model", revision="v9")


# Local tokenizers


@pytest.mark.parametrize("files", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
@pytest.mark.parametrize("more", [(), ("config.json",)])
def test_a_local_tokenizer_may_do_without_a_config(files: tuple[str, ...], more: tuple[str, ...]) -> None:
    folder("tokenizer", *files, *more)
    assert tokenizer_files("tokenizer") == Path("tokenizer")


@pytest.mark.parametrize("files", [("config.json",), ("vocab.json",), ("config.json", "merges.txt")])
def test_half_a_tokenizer(files: tuple[str, ...]) -> None:
    folder("tokenizer", *files)
    with pytest.raises(FileNotFoundError, match=r"^tokenizer has no tokenizer: that takes vocab.json and"):
        tokenizer_files("tokenizer")


# Names that are no local model


@pytest.mark.parametrize(
    "name", ["./nowhere", "../nowhere", "~/nowhere", "/no/where", "a/b/c", "a b", "a\nb"]
)
@pytest.mark.parametrize("files", [model_files, tokenizer_files])
def test_a_path_that_does_not_exist(name: str, files: Any) -> None:
    with pytest.raises(FileNotFoundError, match="nor can a model on the hub have that name") as said:
        files(name)
    assert repr(name) in str(said.value)
    assert "\n" not in str(said.value)
    assert "does not exist" in str(said.value)


def test_a_path_that_is_no_model() -> None:
    folder("empty")
    with pytest.raises(FileNotFoundError, match=r"'./empty' is a directory without config.json, nor can"):
        model_files("./empty")
    folder("file", "config.json")
    with pytest.raises(FileNotFoundError, match=r"'file/config.json/' is a file, not a directory, nor can"):
        model_files("file/config.json/")


def test_an_adapter_is_no_model() -> None:
    folder("lora", "adapter_config.json")
    with pytest.raises(
        FileNotFoundError, match=r"^'lora' is a LoRA adapter, not a model: `minigpt merge-lora --adapter lora"
    ):
        model_files("lora")


def test_a_stray_folder_is_named_when_the_hub_has_nothing() -> None:
    folder("gpt2")
    with pytest.raises(FileNotFoundError, match=r"\(the local 'gpt2' is a directory without config.json\)$"):
        model_files("gpt2")


def test_offline_says_what_is_missing_and_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config.json of 'org/name' on .* not in the cache") as said:
        model_files("org/name", offline=True)
    assert str(tmp_path / "cache") in str(said.value)
    assert "without --offline" in str(said.value)


# What goes wrong in a download


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.huggingface_hub, "get_hf_file_metadata", lambda _: None)
    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", download)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), monkeypatch)
    with pytest.raises(OSError, match=r"cannot store config.json of 'org/name' .*No space left.*HF_HOME"):
        model_files("org/name")


def test_an_error_of_many_lines_is_told_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(RuntimeError("\nthe hub's client is puzzled.\nA long story.\n"), monkeypatch)
    with pytest.raises(
        OSError, match=r"the hub's client is puzzled; check the network and try again; [^\n]*$"
    ) as said:
        model_files("org/name")
    assert "\n" not in str(said.value)


def in_cache(cache: Path, content: bytes, sha256: str) -> Path:
    """A file as the hub's client leaves it: a link in a snapshot to a blob named by its etag."""
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "commit").mkdir(parents=True)
    (cache / "blobs" / sha256).write_bytes(content)
    link = cache / "snapshots" / "commit" / "model.safetensors"
    link.symlink_to(Path("..", "..", "blobs", sha256))
    return link


def test_content_is_held_against_its_sha256(tmp_path: Path) -> None:
    link = in_cache(tmp_path / "good", b"content", hashlib.sha256(b"content").hexdigest())
    hub._verify(link, "'org/name'")
    assert link.read_bytes() == b"content"

    link = in_cache(tmp_path / "bad", b"contend", hashlib.sha256(b"content").hexdigest())
    with pytest.raises(OSError, match=r"^model.safetensors of 'org/name' arrived damaged"):
        hub._verify(link, "'org/name'")
    assert [path for path in (tmp_path / "bad").rglob("*") if not path.is_dir()] == []


def test_a_blob_that_repositories_share_goes_by_its_own_name(tmp_path: Path) -> None:
    """Such a blob is a link to a file that another hash names; followed to the end it would look damaged."""
    link = in_cache(tmp_path, b"content", hashlib.sha256(b"content").hexdigest())
    blob = link.parent / os.readlink(link)
    blob.rename(tmp_path / ("f" * 64))
    blob.symlink_to(tmp_path / ("f" * 64))
    hub._verify(link, "'org/name'")
    assert link.exists()

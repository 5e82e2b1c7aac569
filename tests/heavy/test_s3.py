"""Jobs whose input and output are on S3: a server of moto on this machine, reached through s3fs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import call, save, tiny
from heavy import heavy

from minigpt.jobs.storage import RemoteFolder, locate
from minigpt.score.__main__ import main as score

moto_server, fsspec = heavy("moto.server"), heavy("fsspec")
heavy("s3fs")
# s3fs closes its connections when the interpreter ends, and botocore calls what Python will remove.
pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A filesystem with the bucket "tales"."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fs = fsspec.filesystem("s3")
        fs.mkdir("tales")
        yield fs
    server.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), tiny(initializer_range=0.5))


def test_files_folders_and_globs_are_found(s3: Any) -> None:
    for name in ("a.txt", "sub/b.jsonl", "sub/.hidden.txt"):
        s3.pipe_file(f"tales/find/{name}", b"Once\n")
    assert locate("s3://tales/find")[1] == ["a.txt", "sub/b.jsonl"]
    assert locate("s3://tales/find/a.txt") == (RemoteFolder("s3://tales/find"), ["a.txt"])
    assert locate("s3://tales/find/*/*.jsonl") == (RemoteFolder("s3://tales/find"), ["sub/b.jsonl"])
    with pytest.raises(
        ValueError, match="s3://tales/nothing does not exist: name a file, a folder or a glob"
    ):
        locate("s3://tales/nothing")


def test_a_file_is_written_whole_or_not_at_all(s3: Any) -> None:
    target = RemoteFolder("s3://tales/whole")
    target.write("a.txt", lambda file: file.write(b"old"))

    def fail(file: Any) -> None:
        file.write(b"half")
        raise KeyError("a bug, say")

    with pytest.raises(OSError, match="s3://tales/whole: KeyError"):
        target.write("a.txt", fail)
    assert s3.cat_file("tales/whole/a.txt") == b"old"
    assert s3.find("tales/whole") == ["tales/whole/a.txt"]
    target.delete("a.txt")
    assert not target.exists("a.txt")


def test_a_bucket_gives_what_a_folder_gives(s3: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("Once.\n<|endoftext|>\nIt ran.\n<|endoftext|>\nEnd.\n")
    pq.write_table(pa.table({"text": ["A cat", ""], "year": [1812, 1815]}), tmp_path / "in" / "b.parquet")
    s3.put(f"{tmp_path}/in/", "tales/in/", recursive=True)
    flags = ("--model", model, "--threads", 1, "--shard-rows", 2)
    here = call(tmp_path / "in", *flags, "--out", tmp_path / "out", main=score)
    there = call("s3://tales/in", *flags, "--out", "s3://tales/out", main=score)
    assert (here.code, there.code) == (1, 1), there.err
    assert "5 documents read, 4 written, 1 rejected (s3://tales/out/rejected.jsonl)" in there.err
    s3.get("tales/out/", f"{tmp_path}/fetched/", recursive=True)
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file())
    assert names == sorted(path.name for path in (tmp_path / "fetched").iterdir() if path.is_file())
    for name in names:
        if name.endswith(".parquet"):
            assert pq.read_table(tmp_path / "out" / name).equals(pq.read_table(tmp_path / "fetched" / name))
    (line,) = (tmp_path / "fetched" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "b.parquet:2"
    again = call("s3://tales/in", *flags, "--out", "s3://tales/out", main=score)
    assert "(5 of them before)" in again.err


def test_what_cannot_be_reached_is_one_line(s3: Any, model: Path, tmp_path: Path) -> None:
    result = call("s3://no-such-bucket/in", "--out", tmp_path / "out", "--model", model, main=score)
    assert (result.code, "s3://no-such-bucket" in result.mistake) == (1, True)
    result = call("nosuch://host/in", "--out", tmp_path / "out", "--model", model, main=score)
    assert (result.code, "nosuch://host" in result.mistake) == (2, True)

"""From a name to a directory of files: the bundled model, a local directory, the Hugging Face hub."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

from minigpt.errors import InvalidRequest
from minigpt.json_files import expect, field, read_object, shown
from minigpt.lazy import hub_constants as constants
from minigpt.lazy import hub_errors, huggingface_hub

BUNDLED = "bundled"  # the name of the model that is shipped with minigpt; ./bundled is a directory
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def bundled() -> Path:
    """The directory of the model that is shipped with minigpt.

    Raises:
        FileNotFoundError: it was not shipped.
    """
    package = Path(__file__).parent
    places = (package / "_bundled", package.parent / "weights")  # an installed wheel, a source checkout
    for place in places:
        if (place / CONFIG).is_file():
            return place
    raise FileNotFoundError(
        f"the bundled model is missing: no {CONFIG} in {places[0]} or {places[1]}; name another model"
    )


def model_files(
    name: str | os.PathLike[str] | None = None, *, revision: str | None = None, offline: bool = False
) -> Path:
    """A directory with config.json and model.safetensors (or shards and their index), fetched if need be.

    generation_config.json is there too if the model has one. Nothing else is downloaded, and nothing
    twice. `name` is a directory, a name on the hub, or "bundled" (or None);
    `revision` is a branch, tag or commit on the hub; `offline` uses only what was downloaded before.

    Raises:
        FileNotFoundError: there is no such model, or a file of it is missing.
        OSError: the hub cannot be reached or refuses, a file arrived damaged, or the disk is full.
        ValueError: the index of the shards is damaged, or a local directory is asked for a revision.

    >>> model_files("no/such/directory")
    Traceback (most recent call last):
    FileNotFoundError: 'no/such/directory' does not exist, nor can a model on the hub have that name
    """
    source = _open(name, revision, offline, marks=(CONFIG,))
    source.fetch("generation_config.json")
    if source.fetch(WEIGHTS) is None:
        for shard in _shards(source):
            if source.fetch(shard) is None:
                raise FileNotFoundError(f"{source} lacks {shard}, which its {INDEX} names")
    return source.folder


def tokenizer_files(
    name: str | os.PathLike[str] | None = None, *, revision: str | None = None, offline: bool = False
) -> Path:
    """A directory with vocab.json and merges.txt, or with tokenizer.json where those are absent.

    added_tokens.json and special_tokens_map.json (beside vocab.json) and tokenizer_config.json are there too if the
    model has them.
    Arguments and errors are those of `model_files`; a local directory may do without config.json.
    """
    source = _open(name, revision, offline, marks=(CONFIG, "vocab.json", "tokenizer.json"))
    if source.fetch("vocab.json") and source.fetch("merges.txt"):
        if source.fetch("added_tokens.json"):
            source.fetch("special_tokens_map.json")
    elif source.fetch("tokenizer.json") is None:
        raise FileNotFoundError(
            f"{source} has no tokenizer: that takes vocab.json and merges.txt, or tokenizer.json"
        )
    source.fetch("tokenizer_config.json")
    return source.folder


def _open(
    name: str | os.PathLike[str] | None, revision: str | None, offline: bool, marks: tuple[str, ...]
) -> _Directory | _Repository:
    if name == "" or not isinstance(name, str | os.PathLike | None):
        raise InvalidRequest(f"a model is a directory, a name on the hub, or {BUNDLED!r}; got {shown(name)}")
    name = os.fspath(bundled() if name in (None, BUNDLED) else name)
    path = Path(os.path.expanduser(name))
    # A stray local folder called "gpt2" must not hide the hub's model, so a folder alone is not enough.
    if any((path / mark).is_file() for mark in marks):
        if revision is not None:
            raise InvalidRequest(
                f"revision {revision!r} is for models on the hub; {name!r} is a local directory"
            )
        return _Directory(path)
    state = _why_not_local(name, path)
    _check_variables()
    try:  # without a request: a name that no model on the hub can have
        huggingface_hub.hf_hub_url(name, CONFIG)
    except hub_errors.HFValidationError:
        raise FileNotFoundError(f"{name!r} {state}, nor can a model on the hub have that name") from None
    try:
        return _Repository(name, revision or constants.DEFAULT_REVISION, offline)
    except OSError as error:
        if path.exists():
            raise type(error)(f"{error} (the local {name!r} {state})") from error
        raise


def _why_not_local(name: str, path: Path) -> str:
    """Why a path is no model's directory, as "does not exist".

    Raises:
        FileNotFoundError: it is clear that no model on the hub is meant either.
    """
    if (path / "adapter_config.json").is_file():
        merge = f"minigpt merge-lora --adapter {name} --out DIR"
        raise FileNotFoundError(
            f"{name!r} is a LoRA adapter, not a model: `{merge}` makes one of it and its base"
        )
    if path.is_dir():
        return f"is a directory without {CONFIG}"
    state = "is a file, not a directory" if path.exists() else "does not exist"
    bare = name.rstrip("/")
    is_near = "/" not in bare and get_close_matches(bare.lower(), [BUNDLED], cutoff=0.75)
    if is_near:  # not a name to ask the hub for
        raise FileNotFoundError(f"{name!r} {state}; the bundled model is called {BUNDLED!r}")
    return state


def _check_variables() -> None:
    """Refuses what the hub's client cannot read, which it would say without the variable's name.

    Raises:
        ValueError: a variable has no usable value.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "")
    try:
        _ = urlsplit(endpoint).port
    except ValueError as error:
        raise ValueError(f"HF_ENDPOINT is {endpoint!r}: {error}; set it to an address, or unset it") from None
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        if not os.environ.get(name, "10").isdecimal():
            raise ValueError(
                f"{name} is {os.environ[name]!r}: set it to a whole number of seconds, or unset it"
            )


def _shards(source: _Directory | _Repository) -> list[str]:
    index = source.fetch(INDEX)
    if index is None:
        raise FileNotFoundError(
            f"{source} has no {WEIGHTS}, and pickled weights (pytorch_model.bin) are not read: convert "
            "them with transformers' save_pretrained, or try a conversion on the hub at --revision refs/pr/N"
        )
    shards = sorted(set(_shards_of_index(index).values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise ValueError(f"{source}: {INDEX} names a file outside of the directory: {outside[0]!r}")
    return shards


def _shards_of_index(index: Path) -> dict[str, str]:
    """The shard of each tensor, by an index's weight_map.

    Raises:
        ValueError: the file names no shards.
    """
    names = field(dict, read_object(index), "weight_map", index)
    for tensor, shard in names.items():
        if not expect(str, shard, index, f"weight_map[{tensor!r}]"):
            raise ValueError(f"{index}: weight_map[{tensor!r}] must be a file's name, got ''")
    if not names:
        raise ValueError(f"{index}: weight_map names no shards")
    return names


class _Directory:
    """A model's files on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def fetch(self, file: str) -> Path | None:
        return self.folder / file if (self.folder / file).is_file() else None


class _Repository:
    """A model on the hub at one commit; its files are kept in the hub's own cache, one folder a commit."""

    def __init__(self, name: str, revision: str, offline: bool) -> None:
        self.name, self.revision = name, revision
        self.trouble = (
            hub_errors.OfflineModeIsEnabled() if offline or constants.HF_HUB_OFFLINE else self._try_to_reach()
        )
        config = self.fetch(CONFIG) if self.trouble else self._download(CONFIG)
        if config is None:
            raise FileNotFoundError(f"{self} has no {CONFIG}, so it is no model that can be read here")
        # A branch may move between two requests: from here on everything is asked for at the same commit.
        self.folder, self.revision = config.parent, config.parent.name

    def __str__(self) -> str:
        return f"{self.name!r} on {constants.ENDPOINT}"

    def fetch(self, file: str) -> Path | None:
        """Where `file` lies on this machine, downloaded if need be; None if the hub says that there is none.

        Raises:
            OSError: that could not be found out.
        """
        cached = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.revision)
        if isinstance(cached, str):
            return Path(cached)
        if cached is huggingface_hub._CACHED_NO_EXIST or self._is_unlisted(file):
            return None
        if self.trouble:
            raise self._failure(file, self.trouble)
        return self._download(file)

    def _is_unlisted(self, file: str) -> bool:
        """Whether a listing that `hf download` has left in the cache shows that there is no such file."""
        try:
            listing = huggingface_hub.get_cached_repo_tree(self.name, revision=self.revision)
        except hub_errors.CachedRepoTreeNotFoundError:
            return False
        return file not in [entry.path for entry in listing]

    def _try_to_reach(self) -> Exception | None:
        """What keeps us from the hub, if anything; found out by one request.

        A download repeats what fails for minutes before it gives up; nobody without a network should wait.
        """
        try:
            with _quiet():
                huggingface_hub.get_hf_file_metadata(
                    huggingface_hub.hf_hub_url(self.name, CONFIG, revision=self.revision)
                )
        except (hub_errors.RevisionNotFoundError, hub_errors.EntryNotFoundError):
            return None  # reached, and the download will say the same
        except Exception as error:
            return error
        return None

    def _download(self, file: str) -> Path | None:
        try:
            with _quiet():
                path = huggingface_hub.hf_hub_download(self.name, file, revision=self.revision)
        except hub_errors.RemoteEntryNotFoundError:
            return None
        except Exception as error:
            raise self._failure(file, error) from error
        _verify(Path(path), str(self))
        return Path(path)

    def _failure(self, file: str, error: Exception) -> OSError:
        """What stopped us, as one line for the user."""
        match error:
            case hub_errors.LocalEntryNotFoundError(__cause__=Exception() as cause):
                return self._failure(file, cause)
            case hub_errors.OfflineModeIsEnabled():
                return FileNotFoundError(
                    f"{file} of {self} is not in the cache {constants.HF_HUB_CACHE}, and offline mode "
                    "forbids fetching it: run once without --offline, HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
                )
            case hub_errors.GatedRepoError():
                page = f"{constants.ENDPOINT}/{self.name}"
                return OSError(f"{self} is gated: ask for access at {page}, then run `hf auth login`")
            case hub_errors.RepositoryNotFoundError():
                return FileNotFoundError(
                    f"there is no directory {self.name!r} with {CONFIG}, and no such model on "
                    f"{constants.ENDPOINT}; if it is private there, run `hf auth login`"
                )
            case hub_errors.RevisionNotFoundError():
                return FileNotFoundError(
                    f"{self} has no revision {self.revision!r}: give one of its branches, tags or commits"
                )
            case hub_errors.HfHubHTTPError(response=response):
                advice = "check HF_TOKEN" if response.status_code in (401, 403) else "try again later"
                return OSError(
                    f"cannot fetch {file} of {self}: the answer was {response.status_code}; {advice}"
                )
            case OSError(strerror=str(reason)):
                return OSError(
                    f"cannot store {file} of {self} in {constants.HF_HUB_CACHE}: {reason}; "
                    "make room there or point HF_HOME elsewhere"
                )
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        here = f"; there is no directory {self.name!r} with {CONFIG} here" if file == CONFIG else ""
        return OSError(
            f"cannot fetch {file} of {self}: {reason.rstrip('.')}; check the network and try again{here}"
        )


def sha256(file: Path) -> str:
    """The sha256 of a file's content, in hexadecimal digits, as the hub names it."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _verify(path: Path, source: str) -> None:
    """Holds a file just downloaded against the sha256 that the hub gave for it, if it gave one.

    The hub's client checks sizes only. A file that fails is removed, so that the next call fetches it anew.

    Raises:
        OSError: the content is another.
    """
    if not path.is_symlink():
        return  # a cache on a disk without links does not keep what the hub said
    # One step along the link and not to its end: blobs that repositories share are links again, whose
    # targets have names of another kind.
    blob = path.parent / os.readlink(path)
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return  # a small file, which git names in its own way
    if sha256(path) != blob.name:
        path.unlink()
        blob.unlink()
        raise OSError(f"{path.name} of {source} arrived damaged (its sha256 is another): try again")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings of the hub's client (retries, no token) out of what a command prints.

    Who sets HF_HUB_VERBOSITY wants to see them.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(level if "HF_HUB_VERBOSITY" in os.environ else logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

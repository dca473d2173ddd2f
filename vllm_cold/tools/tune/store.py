# SPDX-License-Identifier: Apache-2.0
"""What has been decoded, kept in ``results.jsonl`` so that a crash loses next to nothing.

The first line says what the outputs belong to (the fingerprint); each further line is one decoded
problem, or an analysis that has been made. Lines are only ever appended. The outputs are kept as
text, so the rule of ``--match``, the split and the grid may change without decoding again; what
the outputs depend on may not.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

from vllm_cold.method.settings import ADAPTIVE
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.grid import Setting

FORMAT = 2
NAME = "results.jsonl"
_HEAD = b'{"kind": "run", '
Key = tuple[Setting | None, str]  # None is greedy; the problem's id


@dataclass(frozen=True, slots=True)
class Output:
    """What the engine made of one problem.

    Attributes:
        text: The output.
        tokens: Their number.
        finish: vLLM's reason, "length" where ``--max-tokens`` cut it off.
    """

    text: str
    tokens: int
    finish: str


def file_stamps(folder: str) -> Any:
    """Name, size and time of change of each file of a model's folder; a hub name stays as it is,
    and ``cached_commit`` tells its revisions apart.

    Weights are too large to be read for a digest.
    """
    path = Path(folder)
    if not path.is_dir():
        return folder
    files = sorted(file for file in path.iterdir() if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def cached_commit(model: str, engine: Mapping[str, Any]) -> str | None:
    """The commit of a hub's model in the local cache, which an engine that started has loaded.

    Args:
        model: Folder or hub name.
        engine: Further arguments of ``vllm.LLM``, which may name a revision and a cache.

    Returns:
        None for a folder, and where the cache does not tell.
    """
    if Path(model).is_dir():
        return None
    from huggingface_hub import constants  # comes with vLLM
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(engine.get("download_dir") or constants.HF_HUB_CACHE).expanduser()
    folder = cache / repo_folder_name(repo_id=model, repo_type="model")
    try:
        return (folder / "refs" / (engine.get("revision") or "main")).read_text().strip()
    except OSError:
        return None


def file_digests(folder: str) -> dict[str, str]:
    """SHA-256 of each file of an adapter's folder, by name."""
    found = {}
    for file in sorted(Path(folder).iterdir()):
        if file.is_file():
            with file.open("rb") as stream:
                found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old or the new content, whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class Store:
    """An open results file, locked against a second process.

    Attributes:
        outputs: What is decoded, by setting and problem.
        found: How many of them were there when the file was opened.
        analyses: The splits, grids and rules with which these outputs were judged, in order.
        penalties: Those of the model's generation_config.json, which the engine applied.
        commit: Of a hub's model; None if it is not known.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self.outputs: dict[Key, Output] = {}
        self.analyses: list[dict[str, Any]] = []
        self.penalties: dict[str, float] = {}
        self.commit: str | None = None
        self.found = 0
        self._file = file

    def add(self, setting: Setting | None, problem_id: str, output: Output) -> None:
        """Keep an output; it is with the operating system when this returns."""
        most = None if setting is None else setting.beta_max
        self._append(
            {
                "kind": "output",
                "alpha": None if setting is None else setting.alpha,
                "beta": None if setting is None else setting.beta,
                **({} if most is None else {"beta_max": most}),
                "problem": problem_id,
                "text": output.text,
                "tokens": output.tokens,
                "finish": output.finish,
            }
        )
        self.outputs[setting, problem_id] = output

    def add_analysis(self, analysis: dict[str, Any]) -> None:
        """Note how the outputs are judged, unless it was noted before."""
        if analysis not in self.analyses:
            self._append({"kind": "analysis", **analysis})
            self.analyses.append(analysis)

    def note_penalties(self, penalties: dict[str, float]) -> None:
        """Note what the engine found, for reports that need no engine."""
        if penalties != self.penalties:
            self._append({"kind": "penalties", "penalties": penalties})
            self.penalties = penalties

    def note_commit(self, commit: str | None) -> None:
        """Note which revision of a hub's model the engine has loaded.

        Raises:
            ToolError: it is another one than that of the outputs that are there.
        """
        if commit is None or commit == self.commit:
            return
        if self.commit is not None:
            self._refuse(_change("the model's commit", self.commit, commit))
        self._append({"kind": "commit", "commit": commit})
        self.commit = commit

    def _refuse(self, changed: str) -> NoReturn:
        raise ToolError(
            f"{self.path}: holds outputs of another run ({changed}); choose another --output, or "
            "--restart to throw them away"
        )

    def sync(self) -> None:
        """Have the disk hold all that was added."""
        with self._writing():
            os.fsync(self._file.fileno())

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        with self._writing():
            while line:
                line = line[self._file.write(line) :]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ToolError(
                f"{self.path}: cannot be written: {error.strerror}; {len(self.outputs)} outputs "
                "are kept there, and the same command goes on when it can be"
            ) from error

    def _load(self, fingerprint: Mapping[str, Any], restart: bool) -> None:
        """Read the file up to its last whole line, and cut off what is behind it."""
        self._file.seek(0)
        content = self._file.read()
        if not (content.startswith(_HEAD) or _HEAD.startswith(content.rstrip(b"\0\n"))):
            raise ToolError(
                f"{self.path}: was not written by vllm-cold tune; choose another --output"
            )
        if restart:
            content = b""
        whole = content.rfind(b"\n") + 1
        records = []
        lines = content[:whole].split(b"\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                records.append(self._check(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                if number == len(lines):  # the machine went down while it was written
                    whole -= len(line) + 1
                    break
                raise ToolError(
                    f"{self.path}, line {number}: damaged; use --restart to decode everything "
                    "again, or another --output"
                ) from None
        # A run that ended before its first output, as with a mistake in the engine's arguments,
        # binds nobody.
        if not any(isinstance(record, tuple) for record in records):
            self._file.truncate(0)
            self._append({"kind": "run", "format": FORMAT, "fingerprint": fingerprint})
            return
        self._file.truncate(whole)
        self._compare(records[0], fingerprint)
        for record in records[1:]:
            if isinstance(record, tuple):
                key, output = record
                self.outputs[key] = output
            elif record["kind"] == "penalties":
                self.penalties = record["penalties"]
            elif record["kind"] == "commit":
                self.commit = record["commit"]
            else:
                self.analyses.append({k: v for k, v in record.items() if k != "kind"})
        self.found = len(self.outputs)

    @staticmethod
    def _check(record: Any) -> Any:
        """The record; an output as its key and itself. Raises if it is not as it was written."""
        if record["kind"] != "output":
            return record
        alpha, beta = record["alpha"], record["beta"]
        setting = None
        if beta == ADAPTIVE:
            setting = Setting(float(alpha), ADAPTIVE, float(record["beta_max"]))
        elif alpha is not None:
            setting = Setting(float(alpha), float(beta))
        output = Output(record["text"], int(record["tokens"]), record["finish"])
        return (setting, record["problem"]), output

    def _compare(self, header: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        then = header.get("fingerprint") if header.get("format") == FORMAT else None
        now = json.loads(json.dumps(fingerprint))  # as it reads after a round trip
        if then == now:
            return
        if not isinstance(then, dict):
            changed = "written by another version of vllm-cold tune"
        else:
            changed = "; ".join(
                _change(name, then.get(name), now.get(name))
                for name in sorted(then.keys() | now.keys())
                if then.get(name) != now.get(name)
            )
        self._refuse(changed)


def _change(name: str, then: Any, now: Any) -> str:
    short = (str, int, float, bool, type(None))
    if isinstance(then, short) and isinstance(now, short) and len(f"{then}{now}") < 80:
        return f"{name} was {then!r} and is {now!r}"
    return f"{name} changed"


@contextlib.contextmanager
def open_store(
    folder: str, fingerprint: Mapping[str, Any], restart: bool = False
) -> Iterator[Store]:
    """Open the results of ``folder``, which is made if need be.

    Args:
        folder: The folder of ``--output``.
        fingerprint: What the outputs depend on, as JSON.
        restart: Throw away what is there.

    Raises:
        ToolError: the folder cannot be written, another process writes there, or the results
            belong to another run.
    """
    path = Path(folder) / NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, whose rest would be written, or fail, when the file is closed.
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise ToolError(f"--output={folder!r}: cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ToolError(
                f"{path}: another vllm-cold tune is writing there; wait for it, or choose another "
                "--output"
            ) from None
        except OSError as error:
            raise ToolError(
                f"{path}: cannot be locked against a second process: {error.strerror}; choose an "
                "--output on another file system"
            ) from None
        store = Store(path, file)
        store._load(fingerprint, restart)
        yield store
        store.sync()

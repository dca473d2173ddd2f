# SPDX-License-Identifier: Apache-2.0
"""What has been decoded, kept in ``results.sqlite`` so that a crash loses next to nothing.

The table ``output`` has a row for each decoded problem. ``setting`` is a JSON object of what the
setting says, such as ``{"alpha": 0.1, "beta": 0.5}``, and ``null`` for greedy decoding. ``note``
says, as JSON by name, what the outputs belong to (the fingerprint), what the engine found, and the
analyses that have been made. The outputs are kept as text, so the rule of ``--match``, the split
and the grid may change without decoding again; what the outputs depend on may not.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from pydantic import BaseModel

from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.grid import Setting

FORMAT = 4
NAME = "results.sqlite"
_ID = 0x436F4C44  # SQLite's application_id, which tells these files from others
_SCHEMA = f"""
    BEGIN;
    DROP TABLE IF EXISTS note;
    DROP TABLE IF EXISTS output;
    PRAGMA application_id = {_ID};
    PRAGMA user_version = {FORMAT};
    CREATE TABLE note (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE output (
        setting TEXT NOT NULL,
        problem TEXT NOT NULL,
        text TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        finish TEXT NOT NULL,
        PRIMARY KEY (setting, problem)
    );
    COMMIT;
"""
_NOT_OURS = "was not written by vllm-cold tune; choose another --output"
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


class _Notes(BaseModel):
    fingerprint: dict[str, Any]
    analyses: list[dict[str, Any]] = []
    penalties: dict[str, float] = {}
    commit: str | None = None


class Store:
    """An open results file, locked against a second process.

    Attributes:
        outputs: What is decoded, by setting and problem.
        found: How many of them were there when the file was opened.
        analyses: The splits, grids and rules with which these outputs were judged, in order.
        penalties: Those of the model's generation_config.json, which the engine applied.
        commit: Of a hub's model; None if it is not known.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.outputs: dict[Key, Output] = {}
        self.analyses: list[dict[str, Any]] = []
        self.penalties: dict[str, float] = {}
        self.commit: str | None = None
        self.found = 0
        self._connection = connection

    def add(self, setting: Setting | None, problem_id: str, output: Output) -> None:
        """Keep an output; it is with the operating system when this returns."""
        values = json.dumps(None if setting is None else setting.values)
        # SQLite takes any bytes for text; Python would not give it half a surrogate pair.
        text = output.text.encode(errors="surrogatepass")
        self._write(
            "INSERT INTO output VALUES (?, ?, CAST(? AS TEXT), ?, ?)",
            (values, problem_id, text, output.tokens, output.finish),
        )
        self.outputs[setting, problem_id] = output

    def add_analysis(self, analysis: dict[str, Any]) -> None:
        """Note how the outputs are judged, unless it was noted before."""
        if analysis not in self.analyses:
            self._note("analyses", [*self.analyses, analysis])
            self.analyses.append(analysis)

    def note_penalties(self, penalties: dict[str, float]) -> None:
        """Note what the engine found, for reports that need no engine."""
        if penalties != self.penalties:
            self._note("penalties", penalties)
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
        self._note("commit", commit)
        self.commit = commit

    def sync(self) -> None:
        """Have the disk hold all that was added."""
        self._write("PRAGMA wal_checkpoint")

    def _note(self, name: str, value: Any) -> None:
        self._write("REPLACE INTO note VALUES (?, ?)", (name, json.dumps(value)))

    def _write(self, statement: str, values: tuple[Any, ...] = ()) -> None:
        try:
            self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise ToolError(
                f"{self.path}: cannot be written: {error}; {len(self.outputs)} outputs are kept "
                "there, and the same command goes on when it can be"
            ) from error

    def _refuse(self, changed: str) -> NoReturn:
        raise ToolError(
            f"{self.path}: holds outputs of another run ({changed}); choose another --output, or "
            "--restart to throw them away"
        )

    def _load(self, fingerprint: Mapping[str, Any], restart: bool) -> None:
        """Lock the file, then read it, or begin it anew."""
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        (whose,) = execute("PRAGMA application_id").fetchone()
        (version,) = execute("PRAGMA user_version").fetchone()
        (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and whose != _ID:
            raise ToolError(f"{self.path}: {_NOT_OURS}")
        # Each change is appended to a journal; the disk is waited for in ``sync``.
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        if tables and not restart:
            if version != FORMAT:
                self._refuse("written by another version of vllm-cold tune")
            self._read(fingerprint)
        if not self.outputs:
            self._connection.executescript(_SCHEMA)
            self._note("fingerprint", fingerprint)

    def _read(self, fingerprint: Mapping[str, Any]) -> None:
        rows = self._connection.execute("SELECT setting, problem, text, tokens, finish FROM output")
        outputs: dict[Key, Output] = {}
        for setting, problem, *output in rows:
            key: Setting | None = msgspec.json.decode(setting, type=Setting | None)
            outputs[key, problem] = Output(*output)
        # A run that ended before its first output, as with a mistake in the engine's arguments,
        # binds nobody.
        if not outputs:
            return
        rows = self._connection.execute("SELECT name, value FROM note")
        notes = _Notes.model_validate({name: json.loads(value) for name, value in rows})
        then = notes.fingerprint
        now = json.loads(json.dumps(fingerprint))  # as it reads after a round trip
        if then != now:
            self._refuse(
                "; ".join(
                    _change(name, then.get(name), now.get(name))
                    for name in sorted(then.keys() | now.keys())
                    if then.get(name) != now.get(name)
                )
            )
        self.outputs, self.found = outputs, len(outputs)
        self.analyses, self.penalties = notes.analyses, notes.penalties
        self.commit = notes.commit


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
            are damaged, of an older format or of another run.
    """
    path = Path(folder) / NAME
    with contextlib.ExitStack() as stack:
        with _errors(folder, path):
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=0, isolation_level=None)
            stack.enter_context(contextlib.closing(connection))
            connection.text_factory = lambda text: text.decode(errors="surrogatepass")
            store = Store(path, connection)
            store._load(fingerprint, restart)
        yield store
        store.sync()


@contextlib.contextmanager
def _errors(folder: str, path: Path) -> Iterator[None]:
    """What may be wrong where a file is opened, as one sentence."""
    try:
        yield
    except OSError as error:
        raise ToolError(f"--output={folder!r}: cannot be written: {error.strerror}") from None
    except (sqlite3.Error, ValueError) as error:  # pydantic's and json's are ValueErrors
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_NOTADB":
            raise ToolError(f"{path}: {_NOT_OURS}") from None
        if "LOCK" in name or "BUSY" in name:
            raise ToolError(
                f"{path}: cannot be locked: another vllm-cold tune is writing there, or its file "
                "system has no locks; wait for it, or choose another --output"
            ) from None
        if isinstance(error, ValueError) or "CORRUPT" in name:
            raise ToolError(
                f"{path}: damaged; remove it to decode everything again, or choose another --output"
            ) from None
        raise ToolError(f"--output={folder!r}: cannot be written: {error}") from None

# SPDX-License-Identifier: Apache-2.0
"""What has been decoded: ``answers.jsonl``, to which each answer is added as it comes.

The first line says what made the answers: model, adapters and options. Each further line is one
answer: the problem's id, prompt and contrast, the setting, the text, and why it ended. So the rule
of ``--match``, the reference answers, the split and the grid may change without decoding again.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import msgspec

from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.problems import Problem

NAME = "answers.jsonl"
_MARK = b'{"vllm-cold tune": 1, '  # the file's format


class Answer(msgspec.Struct, frozen=True):
    """What was made of one problem.

    Attributes:
        text: The output.
        finish: vLLM's reason, "length" where ``--max-tokens`` cut it off.
    """

    text: str
    finish: str


class _Line(Answer, frozen=True):
    id: str
    prompt: Any
    contrast: dict[str, Any]
    setting: Setting | Literal["greedy"]


def _asked(problem: Problem) -> Any:
    """A problem's prompt and contrast, as they read after a round trip."""
    return json.loads(json.dumps([problem.prompt, problem.args]))


Key = tuple[Setting | None, str]
"""A setting, None for greedy decoding, and a problem's id."""


class Answers:
    """The answers that are there, by setting and problem.

    Attributes:
        path: The file.
    """

    def __init__(
        self, path: Path, file: BinaryIO, made_with: Callable[[], Mapping[str, Any]]
    ) -> None:
        self.path = path
        self._file, self._made_with = file, made_with
        self._known: dict[Key, Answer] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def __getitem__(self, key: Key) -> Answer:
        return self._known[key]

    def add(self, setting: Setting | None, problem: Problem, answer: Answer) -> None:
        """Keep an answer; it is with the operating system when this returns."""
        if not self._known:
            # Not before: an engine that starts may first fetch its model's files.
            self._file.truncate(0)
            self._write(_MARK + json.dumps(self._made_with()).encode()[1:])
        prompt, contrast = _asked(problem)
        said = "greedy" if setting is None else setting.values
        line = {"id": problem.id, "setting": said, "text": answer.text, "finish": answer.finish}
        self._write(json.dumps({**line, "prompt": prompt, "contrast": contrast}).encode())
        self._known[setting, problem.id] = answer

    def _write(self, line: bytes) -> None:
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except OSError as error:
            raise ToolError(
                f"{self.path}: cannot be written: {error.strerror}; {len(self)} answers are kept "
                "there, and the same command goes on when it can be"
            ) from error

    def _load(self, problems: Iterable[Problem], restart: bool) -> None:
        """Read what is there, unless it is to be thrown away."""
        self._file.seek(0)
        content = self._file.read()
        if content and not content.startswith(_MARK):
            raise ToolError(
                f"{self.path}: was not written by this version of vllm-cold tune; choose another "
                "--output"
            )
        head, *lines = content.split(b"\n")
        lines = lines[:-1]  # behind the last line feed: nothing, or what a kill left of a line
        if restart or not lines:
            return
        try:
            then = json.loads(head)
        except ValueError as error:
            self._refuse_line(1, error)
        self._compare(then, json.loads(json.dumps(self._made_with())))
        self._file.truncate(content.rindex(b"\n") + 1)
        ours = {problem.id: problem for problem in problems}
        for number, line in enumerate(lines, 2):
            self._read(number, line, ours)
        if not self._known:
            self._refuse("none of its problems is among these")

    def _compare(self, then: dict[str, Any], now: dict[str, Any]) -> None:
        changed = [
            f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
            if len(f"{then.get(name)}{now.get(name)}") < 80
            else f"{name} changed"
            for name in now
            if then.get(name) != now[name]
        ]
        if changed:
            self._refuse("; ".join(changed))

    def _refuse(self, how: str) -> NoReturn:
        raise ToolError(
            f"{self.path}: holds answers of another run ({how}); choose another --output, or "
            "--restart to throw them away"
        )

    def _refuse_line(self, number: int, error: Exception) -> NoReturn:
        raise ToolError(
            f"{self.path}:{number}: damaged ({error}); remove that line to decode its answer "
            "again, or choose another --output"
        ) from None

    def _read(self, number: int, line: bytes, problems: Mapping[str, Problem]) -> None:
        try:
            row = msgspec.convert(json.loads(line), _Line)
        except (ValueError, msgspec.ValidationError) as error:
            self._refuse_line(number, error)
        problem = problems.get(row.id)
        if problem is None:  # the file of problems had more rows, or --limit was larger
            return
        if [row.prompt, row.contrast] != _asked(problem):
            self._refuse(f"line {number}: {problem.place} had another prompt or contrast")
        setting = None if isinstance(row.setting, str) else row.setting
        self._known[setting, row.id] = Answer(row.text, row.finish)


@contextmanager
def open_answers(
    folder: str,
    made_with: Callable[[], Mapping[str, Any]],
    problems: Iterable[Problem],
    restart: bool = False,
) -> Iterator[Answers]:
    """Open the answers of ``folder``, which is made if need be; no second process can do so.

    Args:
        folder: The folder of ``--output``.
        made_with: Says what the answers depend on beside problem and setting, as JSON.
        problems: Those that are to be answered.
        restart: Throw away what is there.

    Raises:
        ToolError: the folder cannot be written, another process writes there, or the answers are
            damaged or of another run.
    """
    path = Path(folder) / NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise ToolError(f"--output={folder!r}: cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ToolError(
                f"{path}: cannot be locked: another vllm-cold tune is writing there, or its file "
                "system has no locks; wait for it, or choose another --output"
            ) from None
        answers = Answers(path, file, made_with)
        answers._load(problems, restart)
        yield answers


def file_times(folder: str) -> dict[str, Any]:
    """Size in bytes and time of change, in nanoseconds, of each file of a folder, by name: files
    that changed make other answers.
    """
    files = [file for file in sorted(Path(folder).iterdir()) if file.is_file()]
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def model_folders(model: str, engine: Mapping[str, Any]) -> list[str]:
    """Where a model's files are: its folder, or that of its revision in the hub's cache; none where
    they are still to be fetched.

    Args:
        model: Folder or hub name.
        engine: Further arguments of ``vllm.LLM``, which may name a revision and a cache.
    """
    if Path(model).is_dir():
        return [model]
    from huggingface_hub import try_to_load_from_cache  # comes with vLLM

    revision, cache = engine.get("revision"), engine.get("download_dir")
    found = try_to_load_from_cache(model, "config.json", cache_dir=cache, revision=revision)
    return [str(Path(found).parent)] if isinstance(found, str) else []

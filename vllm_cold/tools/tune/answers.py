# SPDX-License-Identifier: Apache-2.0
"""What has been decoded: ``answers.jsonl``, to which each answer is added as it comes.

The first line says what made the answers: model, adapters and options. Each further line is one
answer: the problem's id, prompt and contrast, the setting, the text, and why it ended. So the rule
of ``--match``, the reference answers, the split and the grid may change without decoding again, and
a problem that changes is decoded again.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from vllm_cold.tools.contrast import kept
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


def _asked(setting: Setting | None, problem: Problem) -> Any:
    """The prompt and contrast that an answer was made of, as they read after a round trip."""
    asked: Any = [kept(problem.prompt), problem.args]
    if setting is not None and setting.plain is not None:
        reads = problem.plain.get(setting.plain)
        asked = [reads and reads.value, {}]
    return json.loads(json.dumps(asked))


class Answers(dict[tuple[Setting | None, str], Answer]):
    """The answers that are there, by setting (None for greedy decoding) and the problem's id.

    Attributes:
        path: The file.
    """

    def __init__(
        self, path: Path, file: BinaryIO, made_with: Callable[[], Mapping[str, Any]]
    ) -> None:
        super().__init__()
        self.path = path
        self._file, self._made_with = file, made_with
        self._begun = False  # whether the file has answers, of whichever problems

    def add(self, setting: Setting | None, problem: Problem, answer: Answer) -> None:
        """Keep an answer; it is with the operating system when this returns."""
        if not self._begun:
            self._begun = True
            # Not before: an engine that starts may first fetch its model's files.
            self._file.truncate(0)
            self._write(_MARK + json.dumps(self._made_with()).encode()[1:])
        prompt, contrast = _asked(setting, problem)
        said = "greedy" if setting is None else setting.values
        line = {"id": problem.id, "setting": said, "text": answer.text, "finish": answer.finish}
        self._write(json.dumps({**line, "prompt": prompt, "contrast": contrast}).encode())
        self[setting, problem.id] = answer

    def _write(self, line: bytes) -> None:
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except OSError as error:
            raise ToolError(
                f"{self.path}: cannot be written: {error.strerror}; {len(self)} answers are kept "
                "there, and the same command goes on when it can be"
            ) from error

    def load(self, problems: Iterable[Problem]) -> None:
        """Read what is there.

        Raises:
            ToolError: it is damaged, no file of this command's, or of another run.
        """
        self._file.seek(0)
        content = self._file.read()
        head, *lines = content.split(b"\n")
        lines = lines[:-1]  # behind the last line feed: nothing, or what a kill left of a line
        if content and not content.startswith(_MARK):
            raise ToolError(
                f"{self.path}: was not written by this version of vllm-cold tune; choose another "
                "--output"
            )
        if not lines:
            return
        self._begun = True
        number, ours = 1, {problem.id: problem for problem in problems}
        try:
            then, now = json.loads(head), json.loads(json.dumps(self._made_with()))
            for line in lines:
                number += 1
                row = msgspec.convert(json.loads(line), _Line)
                problem = ours.get(row.id)
                setting = None if isinstance(row.setting, str) else row.setting
                asked = [row.prompt, row.contrast]
                if problem is not None and asked == _asked(setting, problem):
                    self[setting, row.id] = Answer(row.text, row.finish)
        except (ValueError, msgspec.ValidationError) as error:
            raise ToolError(
                f"{self.path}:{number}: damaged ({error}); remove that line to decode its answer "
                "again, or choose another --output"
            ) from None
        if changed := [name for name in now if then.get(name) != now[name]]:
            name = changed[0]
            was = f"{name} was {then.get(name)!r} and is {now[name]!r}"
            raise ToolError(
                f"{self.path}: holds answers of another run "
                f"({was if len(was) < 99 else f'{name} changed'}); choose another --output, or "
                "remove that file"
            )
        self._file.truncate(content.rindex(b"\n") + 1)


@contextmanager
def open_answers(
    folder: str,
    made_with: Callable[[], Mapping[str, Any]],
    problems: Iterable[Problem],
) -> Iterator[Answers]:
    """Open the answers of ``folder``, which is made if need be; no second process can do so.

    Args:
        folder: The folder of ``--output``.
        made_with: Says what the answers depend on beside problem and setting, as JSON.
        problems: Those that are to be answered; other lines stay, unread.

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
        answers.load(problems)
        yield answers

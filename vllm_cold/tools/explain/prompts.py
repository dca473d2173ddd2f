# SPDX-License-Identifier: Apache-2.0
"""What is explained: prompts with what each is contrasted with, and the methods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vllm_cold.method.amateurs import (
    AmateurSpec,
    CannotLeaveOut,
    Messages,
    Part,
    Text,
    Without,
    says_what,
)
from vllm_cold.method.arguments import parse_request_args
from vllm_cold.method.presets import PRESET_NAMES
from vllm_cold.method.settings import KNOBS, PREFIX, ColdError, preset_of, read
from vllm_cold.tools.contrast import (
    Contrast,
    Prompt,
    amateur_reads,
    as_written,
    merge,
    messages_of,
    read_contrast,
)
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.trace import GREEDY, Piece
from vllm_cold.tools.rows import Given, read_row

MAX_PROMPTS = 50
MAX_COLUMNS = 3  # that a page has room for
COLD_NAME = "CoLD"  # of the method, where nobody names another


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt as it was given.

    Attributes:
        prompt: Text or messages.
        args: Its own ``cold_*`` keys.
        where: What an error begins with: the file and the line; "" for the command line.
    """

    prompt: Prompt
    args: Mapping[str, Any]
    where: str = ""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The prompt as it is shown."""
        if isinstance(self.prompt, str):
            return (Piece(self.prompt),)
        return tuple(Piece(content, role) for role, content in self.prompt)

    def refusal(self, error: ColdError | str) -> ToolError:
        """An error about flat arguments, as one about what the user has written: the command's
        options, or the keys of a file's row.
        """
        said = error if isinstance(error, str) else as_written(error, self.args)
        return ToolError(f"{self.where}: {said}" if self.where else said)


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and what its answer is contrasted with.

    Attributes:
        row: The prompt as it was given.
        chat: Whether a text goes through the chat template, as a user's message.
        args: All ``cold_*`` keys, as a client would send them.
        contrast: What they say.
    """

    row: Row
    chat: bool
    args: Mapping[str, Any]
    contrast: Contrast

    def reads(self, one: AmateurSpec) -> tuple[str | None, tuple[Piece, ...]]:
        """What an amateur reads, in words and in pieces (``trace.Amateur``)."""
        prompt, source = self.row.prompt, one.source
        match source:
            case Text(text):
                return "a text of its own", (Piece(text),)
            case Messages(messages):
                return "messages of its own", tuple(Piece(_text(m), m["role"]) for m in messages)
            case Without():
                conversation = messages_of(prompt, self.chat) or []
                numbered = [{**message, "at": i} for i, message in enumerate(conversation)]
                left = {message["at"] for message in source.of("", numbered)}
                return f"the same conversation {source}", tuple(
                    Piece(message["content"], message["role"], i not in left)
                    for i, message in enumerate(conversation)
                )
            case Part(spans):
                assert isinstance(prompt, str)
                found, at = [], 0
                for start, end in spans:
                    found += [Piece(prompt[at:start]), Piece(prompt[start:end], gone=True)]
                    at = end
                pieces = (*found, Piece(prompt[at:]))
                said = f"the same text without characters {source.value}"
                return said, tuple(piece for piece in pieces if piece.text)
        return None, ()


def _text(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def ask(row: Row, options: Mapping[str, Any], chat: bool = False) -> Asked:
    """Put a prompt together with a command's options.

    Args:
        row: The prompt.
        options: Flat arguments, for all prompts.
        chat: Whether a text goes through the chat template.

    Raises:
        ToolError: what is said of its amateurs does not fit together, or not to the prompt.
    """
    is_chat = chat or not isinstance(row.prompt, str)
    given: Mapping[str, Any] = {}
    args = given
    try:
        given = merge(options, row.args)
        args = _with_own_prompt(given, is_chat)
        contrast = read_contrast(args)
        for one in contrast.amateurs:
            amateur_reads(row.prompt, one, chat)
    except ColdError as error:
        if isinstance(error, CannotLeaveOut) and args != given:
            raise row.refusal(
                f"--preset={args[PREFIX + 'preset']}: leaves {error.value} out of a chat, and "
                f"{error.problem}; add one, or say with --without what the amateur does not read"
            ) from error
        raise row.refusal(error) from error
    return Asked(row, chat, args, contrast)


def _with_own_prompt(args: Mapping[str, Any], chat: bool) -> Mapping[str, Any]:
    """What a preset leaves out of a chat where nobody says it, as on a server."""
    given = parse_request_args(args).contrast
    preset = preset_of(given)
    own = None if preset is None or not chat or says_what(given) else preset.without
    if own is None:
        return args
    return {**args, PREFIX + "without": own if isinstance(own, str) else list(own)}


def read_prompts(path: Path) -> list[Row]:
    """The prompts of a file: one a line, or in a .jsonl file the ``prompt`` or the ``messages`` of
    each object, with its ``cold_*`` keys.

    Raises:
        ToolError: names the file and the line.
    """
    try:
        # Not splitlines(): JSON strings may hold other line separators, such as U+2028.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ToolError(f"--prompts={path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ToolError(f"--prompts={path}: is no UTF-8 text: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"--prompts={path}: line {number}"
        if path.suffix != ".jsonl":
            found.append(Row(line, {}, where))
            continue
        try:
            given, args = read_row(Given, line)
        except ValueError as error:
            raise ToolError(f"{where}: {error}") from error
        found.append(Row(given.read, args, where))
    if not found:
        raise ToolError(f"--prompts={path}: holds no prompt; put one on each line")
    if len(found) > MAX_PROMPTS:
        raise ToolError(
            f"--prompts={path}: holds {len(found)} prompts; one page takes up to {MAX_PROMPTS}: "
            "split the file"
        )
    return found


class Column(NamedTuple):
    """An answer's place on a page.

    Attributes:
        method: Which method it is of, counted from 0.
        greedy: Whether it is the expert's own answer, accounted for with that method.
    """

    method: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class Methods:
    """What stands side by side.

    Attributes:
        args: Of each method that contrasts, by its name: flat arguments, which win over a
            command's options.
        columns: Where their answers, and the greedy one, stand.
    """

    args: Mapping[str, Mapping[str, Any]]
    columns: tuple[Column, ...]


DEFAULT = Methods({COLD_NAME: {}}, (Column(0, False), Column(0, True)))


def read_methods(texts: Sequence[str]) -> Methods:
    """Read what ``--method`` gives.

    Args:
        texts: Each "greedy" or a preset's name, and after a colon values of its knobs with commas
            between them: "cold:alpha=0.02,beta=1".

    Raises:
        ToolError: one is unknown, there twice or out of range; too many; or nothing but greedy.
    """
    if len(texts) > MAX_COLUMNS:
        raise ToolError(f"--method: a page has room for {MAX_COLUMNS}, and there are {len(texts)}")
    args: dict[str, Mapping[str, Any]] = {}
    columns: list[Column] = []
    for text in texts:
        name, values = _read_method(text)
        column = Column(0, True) if name == GREEDY else Column(len(args), False)
        if name in args or column in columns:
            raise ToolError(
                f"--method={name}: is there twice; give it other values, or leave one out"
            )
        columns.append(column)
        if name != GREEDY:
            args[name] = values
    if not args:
        raise ToolError(
            f"--method={GREEDY}: has nothing to compare with; add one of {', '.join(PRESET_NAMES)}"
        )
    return Methods(args, tuple(columns))


def _read_method(text: str) -> tuple[str, Mapping[str, Any]]:
    """What it is called, and its flat arguments; their ranges are checked with all others."""
    preset, _, rest = text.partition(":")
    if preset not in (GREEDY, *PRESET_NAMES):
        names = ", ".join((GREEDY, *PRESET_NAMES))
        raise ToolError(f"--method={preset!r}: must be one of {names}")
    args: dict[str, Any] = {PREFIX + "preset": preset}
    name = preset
    for part in rest.split(",") if rest else ():
        key, _, value = map(str.strip, part.partition("="))
        knob = key.replace("-", "_")
        if knob not in KNOBS or PREFIX + knob in args or preset == GREEDY:
            allowed = "none" if preset == GREEDY else ", ".join(KNOBS) + ", each once"
            raise ToolError(
                f"--method={text!r}: {key!r} is no value of {preset}'s; it has {allowed}"
            )
        args[PREFIX + knob] = read(knob, value)
        name += f", {knob} {value}"
    return name, args

# SPDX-License-Identifier: Apache-2.0
"""Visual contrastive decoding on yes/no questions about objects in images, beside what might do as
well.

``python -m benchmarks.bench_pope --model MODEL --questions coco_pope_adversarial.json --images
val2014``. The questions are POPE's (arXiv 2305.10355), a line each: ``question_id``, ``image`` (a
file of ``--images``), ``text`` and ``label``, "yes" or "no". The same command goes on where it was
stopped. The first line of ``--output`` has all settings, and is written before the first answer.

arXiv 2504.10020 credits what VCD (arXiv 2311.16922) gains on POPE to two side effects: it moves
answers towards one of the two, whatever is in the image, and its mask turns sampling into greedy
decoding. So beside ``vcd`` stand

- ``careful``, a better prompt, ``leans to yes`` and ``leans to no``, prompts that move answers
  alone; and ``greedy, as often yes``: greedy decoding's own answers, moved by the distance between
  yes and no in its first token until as many are yes as with ``vcd``;
- ``image against none`` and ``vcd without mask``;
- with temperature 1, as the paper has it: ``sampled``, ``sampled, mask alone``, ``sampled, vcd``.

Each is compared with greedy decoding, those with temperature 1 with ``sampled``: accuracy, F1 of
yes, and the share of yes, with intervals by drawing images anew (their questions are not
independent), the difference of accuracies with Clopper and Pearson's interval, and McNemar's exact
p, which takes the questions for independent, alone and by Holm for all rows.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import msgspec
import numpy as np

from benchmarks.accuracy.report import Difference, compare, correct, signed
from benchmarks.rounds import positive, progress, table
from examples.engine import prepare_environment, start_llm
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.pictures import as_sent, read_picture

PLAIN = "{} Please answer this question with one word."
CAREFUL = "Look at the whole image. Say yes only to what you see there. " + PLAIN
VCD = {"alpha": 0.1, "beta": 1.0}
GREEDY, SAMPLED, MOVED = "greedy", "sampled", "greedy, as often yes"
MAX_TOKENS = 8
AT_ONCE = 64  # requests between two looks at the file
DRAWS = 2000  # of images, for an interval
TOP = 20  # tokens in which yes and no are looked for


@dataclass(frozen=True)
class System:
    """A way to decode.

    Attributes:
        prompt: With a place for the question.
        settings: Fields of ``ColdParams``; none without a contrast.
        images: What the amateur sees of the image, as ``cold_images`` says it.
        temperature: 0 is greedy decoding of the scores.
    """

    prompt: str = PLAIN
    settings: Mapping[str, float] = field(default_factory=dict)
    images: str = ""
    temperature: float = 0.0


SYSTEMS = {
    GREEDY: System(),
    "careful": System(CAREFUL),
    "leans to yes": System("If you are in doubt, say yes. " + PLAIN),
    "leans to no": System("If you are in doubt, say no. " + PLAIN),
    "vcd": System(settings=VCD, images="noise:500"),
    "image against none": System(settings=VCD, images="none"),
    "vcd without mask": System(settings=VCD | {"alpha": 0.0}, images="noise:500"),
    SAMPLED: System(temperature=1.0),
    "sampled, mask alone": System(settings=VCD | {"beta": 0.0}, images="none", temperature=1.0),
    "sampled, vcd": System(settings=VCD, images="noise:500", temperature=1.0),
}


class Question(msgspec.Struct, frozen=True):
    """A line of the questions' file."""

    question_id: int | str
    image: str
    text: str
    label: Literal["yes", "no"]


class Reply(msgspec.Struct, frozen=True):
    """An answer.

    Attributes:
        text: The text.
        margin: How much surer the model was of yes than of no in the first token, in nats, without
            a contrast; None where neither is among the most probable tokens.
    """

    text: str
    margin: float | None = None


class _Line(Reply, frozen=True, kw_only=True):
    system: str
    question: int | str


Run = Callable[[System, Sequence[Question]], list[Reply]]


def read_questions(path: Path, images: Path, limit: int | None) -> list[Question]:
    """The first ``limit`` questions.

    Raises:
        ToolError: names the line.
    """
    found: list[Question] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f"--questions={path}: cannot be read ({error})") from error
    for number, line in enumerate(lines[:limit], 1):
        try:
            found.append(msgspec.json.decode(line, type=Question))
        except msgspec.DecodeError as error:
            raise ToolError(f"--questions={path}: line {number}: {error}") from error
        if not (file := images / found[-1].image).is_file():
            raise ToolError(f"--questions={path}: line {number}: no such image: {file}")
    if len({one.question_id for one in found}) < len(found) or not found:
        raise ToolError(f"--questions={path}: needs questions, each with its own question_id")
    return found


def is_yes(text: str) -> bool | None:
    """What an answer says first; None for neither yes nor no."""
    match = re.search(r"\b(yes|no|not)\b", text.lower())
    return match and match[1] == "yes"


class Engine:
    """vLLM in this process. Called, it is a ``Run``."""

    def __init__(self, options: argparse.Namespace) -> None:
        prepare_environment()
        self._images = options.images
        engine = json.loads(options.engine_args)
        self._llm = start_llm(options.model, additional_config={"cold": True}, **engine)

    def __call__(self, system: System, questions: Sequence[Question]) -> list[Reply]:
        """Decode."""
        prompts = [as_sent(self._messages(system, one)) for one in questions]
        params = [_params(system, one) for one in questions]
        outputs = self._llm.chat(prompts, params, use_tqdm=False)
        plain = not system.settings
        return [
            Reply(out.text, _margin(out.logprobs[0]) if plain else None)
            for (out,) in (each.outputs for each in outputs)
        ]

    def _messages(self, system: System, one: Question) -> list[dict[str, Any]]:
        picture = read_picture(self._images / one.image, one.image)
        text = {"type": "text", "text": system.prompt.format(one.text)}
        return [{"role": "user", "content": [picture.part(), text]}]


def _params(system: System, question: Question) -> Any:
    from vllm import SamplingParams

    from vllm_cold import Amateur, ColdParams
    from vllm_cold.settings.images import read_view

    sampling: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": system.temperature}
    if system.temperature:
        sampling["seed"] = crc32(
            str(question.question_id).encode()
        )  # with one for all, all err alike
    if not system.settings:
        return SamplingParams(**sampling, logprobs=TOP, extra_args={"cold": 0})
    if system.images == "none":
        amateur = Amateur(without="images")
    else:
        amateur = Amateur(images=read_view("images", system.images))
    return ColdParams(**system.settings, amateur=amateur, **sampling)


def _margin(logprobs: Mapping[int, Any]) -> float | None:
    """Of a token: yes and no in any spelling; one that is not listed is as probable as the least
    probable one that is.
    """
    best: dict[str, float] = {}
    for one in logprobs.values():
        said = (one.decoded_token or "").strip().lower()
        best[said] = max(best.get(said, one.logprob), one.logprob)
    if "yes" not in best and "no" not in best:
        return None
    least = min(one.logprob for one in logprobs.values())
    return best.get("yes", least) - best.get("no", least)


class Kept(dict[tuple[str, int | str], Reply]):
    """The answers of a file, by system and question, to which each is added as it comes.

    Args:
        path: The file; its first line has the settings.
        settings: All that answers depend on.

    Raises:
        ToolError: the file is of other settings, or damaged.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self._path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        head, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
        if not head:
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
            return
        then = json.loads(head)
        if changed := [key for key in settings if then.get(key) != settings[key]]:
            raise ToolError(
                f"--output={path}: holds answers of other settings ({', '.join(changed)} changed); "
                "name another file"
            )
        for number, line in enumerate(lines, 2):
            try:
                row = msgspec.json.decode(line, type=_Line)
            except msgspec.DecodeError as error:
                raise ToolError(f"--output={path}: line {number}: {error}") from error
            self[row.system, row.question] = Reply(row.text, row.margin)
        path.write_text("\n".join([head, *lines, ""]), encoding="utf-8")  # without half a line

    def add(self, key: str, questions: Sequence[Question], replies: Sequence[Reply]) -> None:
        """Keep answers of a system."""
        with self._path.open("ab") as file:
            for one, reply in zip(questions, replies, strict=True):
                row = _Line(reply.text, reply.margin, system=key, question=one.question_id)
                file.write(msgspec.json.encode(row) + b"\n")
                self[key, one.question_id] = reply


@dataclass(frozen=True)
class Figures:
    """Shares from 0 to 1, each with the ends of its 95 % interval."""

    right: tuple[float, float, float]
    f1: tuple[float, float, float]
    yes: tuple[float, float, float]


def figures(said: Sequence[bool | None], questions: Sequence[Question]) -> Figures:
    """Accuracy, F1 of yes and share of yes; an answer that is neither is wrong, and not yes.

    Args:
        said: [questions] whether an answer is yes.
        questions: Those that were asked.
    """
    label = np.array([one.label == "yes" for one in questions])
    yes = np.array([one is True for one in said])
    right = np.array([a is b for a, b in zip(said, label.tolist(), strict=True)])
    _, image = np.unique([one.image for one in questions], return_inverse=True)
    each = np.stack([np.ones_like(yes), right, yes, yes & label, label], 1).astype(float)
    sums = np.zeros((image.max() + 1, each.shape[1]))
    np.add.at(sums, image, each)  # [images, 5]
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))

    def shares(total: Any) -> Any:
        count, correct_, yes_, both, label_ = np.moveaxis(total, -1, 0)
        return np.stack([correct_ / count, 2 * both / np.maximum(yes_ + label_, 1), yes_ / count])

    found = shares(sums.sum(0))
    low, high = np.percentile(shares(sums[drawn].sum(1)), [2.5, 97.5], axis=1)
    ends = zip(found.tolist(), low.tolist(), high.tolist(), strict=True)
    return Figures(*ends)


def moved(replies: Sequence[Reply], share: float) -> list[bool | None]:
    """Greedy decoding's answers, as if the distance between yes and no had been another one, by
    which the given share of them is yes; those that are neither stay so.
    """
    margins = [-np.inf if one.margin is None else one.margin for one in replies]
    count = round(share * len(replies))
    first = set(np.argsort(margins, kind="stable")[::-1][:count].tolist())
    return [None if one.margin is None else place in first for place, one in enumerate(replies)]


def report(kept: Mapping[tuple[str, int | str], Reply], questions: Sequence[Question]) -> str:
    """The table, in Markdown, of the systems that have answered all questions."""
    replies = {
        key: [kept[key, one.question_id] for one in questions]
        for key in SYSTEMS
        if all((key, one.question_id) in kept for one in questions)
    }
    said = {key: [is_yes(one.text) for one in found] for key, found in replies.items()}
    if GREEDY in said and "vcd" in said:
        said[MOVED] = moved(replies[GREEDY], sum(x is True for x in said["vcd"]) / len(questions))
    right = {
        key: np.array(
            [float(x is (q.label == "yes")) for x, q in zip(found, questions, strict=True)]
        )
        for key, found in said.items()
    }
    differences: dict[str, Difference] = {}
    for key in said:
        other = SAMPLED if key.startswith(f"{SAMPLED},") else GREEDY
        if key != other and other in right:
            differences[key] = compare(right[key], right[other])
    correct(list(differences.values()))
    rows = []
    for key, found in said.items():
        shares = figures(found, questions)
        cells = [_interval(each) for each in (shares.right, shares.f1, shares.yes)]
        row = [key, *cells, str(found.count(None))]
        if (one := differences.get(key)) is None:
            row += ["", "", ""]
        else:
            ends = f"{signed(one.points)} ({signed(one.low)} to {signed(one.high)})"
            row += [ends, f"{one.p:.2g}", f"{one.corrected:.2g}"]
        rows.append(row)
    columns = ["system", "right, %", "F1, %", "yes, %", "neither", "difference", "p", "p, Holm"]
    images = len({one.image for one in questions})
    return f"{len(questions)} questions about {images} images\n\n{table(columns, rows)}"


def _interval(found: tuple[float, float, float]) -> str:
    return "{:.1f} ({:.1f}-{:.1f})".format(*(100 * each for each in found))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="a model that sees: a folder or a hub's name")
    add("--questions", type=Path, required=True, metavar="FILE", help="a line of JSON each")
    add("--images", type=Path, required=True, metavar="DIR", help="the images' folder")
    add("--output", type=Path, default=Path("pope.jsonl"), metavar="FILE", help="the answers")
    add("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM",
        help=f"of {', '.join(SYSTEMS)}; all")  # fmt: skip
    add("--limit", type=positive, metavar="N", help="the first N questions, for a trial")
    add("--engine-args", default="{}", metavar="JSON", help="arguments of vllm.LLM")
    return parser.parse_args(argv)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """All that an answer depends on, but of the images their names alone."""
    return {
        "model": options.model,
        "engine": json.loads(options.engine_args),
        "questions": sha256(options.questions.read_bytes()).hexdigest(),
        "systems": {key: asdict(system) for key, system in SYSTEMS.items()},
        "max_tokens": MAX_TOKENS,
        "versions": {name: importlib.metadata.version(name) for name in ("vllm", "vllm-cold")},
    }


def main(argv: Sequence[str] | None = None, start: Callable[[Any], Run] = Engine) -> int:
    """Decode what is missing, and print the table; the exit status.

    Args:
        argv: The command line.
        start: Makes what decodes, of the options.
    """
    options = parse(argv)
    say = progress()
    run: Run | None = None
    try:
        questions = read_questions(options.questions, options.images, options.limit)
        kept = Kept(options.output, settings_of(options))
        for key in options.systems:
            left = [one for one in questions if (key, one.question_id) not in kept]
            for begin in range(0, len(left), AT_ONCE):
                run = run or start(options)
                part = left[begin : begin + AT_ONCE]
                kept.add(key, part, run(SYSTEMS[key], part))
                say(f"{key}: {begin + len(part)} of {len(left)}")
    except (ToolError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(kept, questions))
    return 0


if __name__ == "__main__":
    sys.exit(main())

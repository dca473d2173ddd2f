# SPDX-License-Identifier: Apache-2.0
"""What the engine is asked for, and what becomes of its errors."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from tests.unit.test_pictures import file, pixels
from vllm_cold import Blur
from vllm_cold.errors import ColdError
from vllm_cold.method.amateurs import Messages, Text
from vllm_cold.tools import engine as tools_engine
from vllm_cold.tools.adapters import Adapter
from vllm_cold.tools.contrast import Content, Pictured
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.pictures import as_sent, make_picture, text_of
from vllm_cold.tools.tune import decode
from vllm_cold.tools.tune.answers import Job
from vllm_cold.tools.tune.decode import Engine
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.problems import Problem

pytestmark = pytest.mark.unit

ONE = Problem("a", 1, "a", ("a",))
GRID = [Setting(alpha=0.1, beta=0.5)]
ADAPTERS = [Adapter("sql", "/sql", 8), Adapter("chat", "/chat", 8)]
TWICE = (("user", "Hi"), ("user", "you"))


def make(field: str, reads: Content) -> list[int]:
    """Words are tokens; the template fails for an assistant's message."""
    if isinstance(reads, Text):
        return [0, *map(len, reads.value.split())]
    if reads.value[0]["role"] == "assistant":
        raise ColdError(field, "x", "no assistant first")
    text = " ".join(f"{m['role']}: {text_of(m)}" for m in reads.value) + " assistant:"
    return [*map(len, text.split())]


class Fake:
    """vLLM's engine: it finishes what it is given, or does as ``step`` says."""

    def __init__(self, limit: int) -> None:
        model = SimpleNamespace(
            max_model_len=limit,
            get_diff_sampling_param=lambda: {"repetition_penalty": 1.1, "temperature": 0.7},
        )
        self.vllm_config = SimpleNamespace(
            model_config=model, scheduler_config=SimpleNamespace(max_num_seqs=2)
        )
        self.finish = "stop"
        self.asked: list[tuple[Any, ...]] = []
        self.waiting: list[str] = []

    def add_request(self, name: str, prompt: Any, params: Any, lora_request: Any) -> None:
        whole = prompt if len(prompt) > 1 else prompt["prompt_token_ids"]
        self.asked.append((whole, params, lora_request))
        self.waiting.append(name)

    def step(self) -> Any:
        output = SimpleNamespace(text="x", finish_reason=self.finish, token_ids=[1])
        found = {"outputs": [output], "prompt_token_ids": [1, 2, 3]}
        return [SimpleNamespace(request_id=self.waiting.pop(), **found)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``engine(problems, ...)``: what decodes them, and vLLM's engine in it."""
    from vllm_cold.vllm import availability

    monkeypatch.setattr(availability, "inactive", lambda: None)
    monkeypatch.setattr(decode, "prompt_maker", lambda llm: make)

    def start(*problems: Problem, grid: Any = GRID, limit: int = 30) -> tuple[Engine, Fake]:
        fake = Fake(limit)
        monkeypatch.setattr(decode, "start_llm", lambda *_, **__: SimpleNamespace(llm_engine=fake))
        options = SimpleNamespace(max_tokens=4, stop=["\n"], verbose=False)
        task: Any = SimpleNamespace(
            options=options, model="base", engine={}, adapters=ADAPTERS, expert="sql"
        )
        task.problems, task.grid = problems, grid
        task.plain = [Setting(plain=name) for name in problems[0].plain]
        task.combined = [Setting("cad", plain=one.plain) for one in task.plain[1:]]
        return Engine(task), fake

    return start


def asked(engine: Any, problem: Problem, setting: Setting | None) -> Any:
    """A prompt, its parameters and its adapter, as vLLM gets them."""
    made, fake = engine(problem, grid=[setting] if setting else GRID)
    made.run([Job(setting, problem)], lambda *_: None)
    (found,) = fake.asked
    return found


def test_each_job_is_done_once_and_no_more_wait_than_there_is_room_for(engine: Any) -> None:
    problems = [Problem(str(n), n, f"p{n}", ("a",)) for n in range(9)]
    made, fake = engine(*problems)
    step, most, done = fake.step, [0], []
    fake.step = lambda: most.append(len(fake.waiting)) or step()
    made.run([Job(None, problem) for problem in problems], lambda job, _: done.append(job.problem))
    assert sorted(done, key=lambda one: one.line) == problems and max(most) == 4


def test_greedy_is_greedy_whatever_the_defaults(engine: Any) -> None:
    _, params, adapter = asked(engine, ONE, None)
    assert params.extra_args == {"cold": 0} and adapter.lora_name == "sql"
    assert (params.temperature, params.max_tokens, params.stop) == (0.0, 4, ["\n"])
    assert params.repetition_penalty == 1.1  # of the model's generation_config.json


def test_plain_prompts_are_greedy_and_an_amateur_reads_what_it_read(engine: Any) -> None:
    plain = {"no text": Text("b"), "a better prompt": Text("please a b c d")}
    one = Problem("a", 1, "a b c", ("a",), args={"cold_part": [0, 2]}, plain=plain)
    made, fake = engine(one)
    better = Setting(plain="a better prompt")
    both = Setting("cad", plain="a better prompt")
    made.run([Job(s, one) for s in (None, better, GRID[0], both)], lambda *_: None)
    assert [len(prompt) for prompt, _, _ in fake.asked] == [4, 6, 4, 6]
    assert [params.extra_args for _, params, _ in fake.asked[:2]] == [{"cold": 0}] * 2
    read = [params.amateurs[0].prompt for _, params, _ in fake.asked[2:]]
    assert read == [make("", Text("b c")), make("", Text("b"))]
    assert {adapter.lora_name for _, _, adapter in fake.asked} == {"sql"}
    engine(one, limit=10)
    with pytest.raises(ToolError, match="its longest prompt has 6 tokens"):
        engine(one, limit=9)


def test_the_engine_is_asked_for_what_a_problem_says(engine: Any) -> None:
    messages = (("system", "Be brief."), ("user", "Why is it so?"))
    problem = Problem("a", 1, messages, ("a",), args={"cold_without": "system"})
    prompt, params, _ = asked(engine, problem, Setting("cad"))
    (amateur,) = params.amateurs
    assert prompt == [7, 2, 6, 5, 3, 2, 2, 3, 10] and amateur.prompt == [5, 3, 2, 2, 3, 10]
    assert amateur.lora_request.lora_name == "sql"  # its expert's
    assert (params.alpha, amateur.weight) == (0.0, -0.5)
    # Weights in place of beta, one of them a rule's, and the base model with another prompt.
    args = {
        "cold_amateur": ["base", "chat"],
        "cold_amateur_prompt": ["So what?", ""],
        "cold_weights": ["adaptive", 0.25],
    }
    (setting,) = make_grid({"alpha": "0.1", "beta_max": "2"}, weights=args["cold_weights"])
    _, params, _ = asked(engine, Problem("c", 3, "Why?", ("a",), args=args), setting)
    assert [a.prompt for a in params.amateurs] == [[0, 2, 5], None]
    assert [a.lora_request and a.lora_request.lora_name for a in params.amateurs] == [None, "chat"]
    assert params.combine()[1] == (None, 0.25)
    assert params.settings().rule_parameters == {"beta_max": 2.0}
    # A list is what one amateur does not read, and for a preset with two what each does not.
    problem = Problem(
        "d", 4, (*messages, messages[1]), ("a",), args={"cold_without": ["system", 1]}
    )
    for preset, lengths in (("cad", [6]), ("grounded", [11, 9])):
        _, params, _ = asked(engine, problem, make_grid({}, preset)[0])
        assert [len(one.prompt) for one in params.amateurs] == lengths
    _, params, _ = asked(engine, ONE, Setting(alpha=0.2, beta=2.0, expert_top_k=9))
    assert (params.alpha, params.expert_top_k, params.combine()[1]) == (0.2, 9, (-2.0,))
    assert params.repetition_penalty == 1.1


def test_images_are_the_streams_own(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the expert the file, of an amateur what it sees; and an answer that is shorter than it may
    be, for the length of its prompt, is none.
    """

    def media_prompt(llm: Any, field: str, media: Messages) -> dict[str, Any]:
        [message] = as_sent(media.value)
        urls = [part["image_url"]["url"] for part in message["content"][:-1]]
        return {"prompt_token_ids": [1, 2], "multi_modal_data": {"image": urls}}

    monkeypatch.setattr(tools_engine, "_media_prompt", media_prompt)
    picture = make_picture("a.png", file(pixels()))
    prompt, args = Pictured((("user", "Why?"),), (picture,)), {"cold_images": "blur:2"}
    problem = Problem("a", 1, prompt, ("a",), args=args)
    data, seen = ({"image": [one.url]} for one in (picture, replace(picture, view=Blur(2.0))))
    read, params, _ = asked(engine, problem, Setting("vcd"))
    assert read == {"prompt_token_ids": [1, 2], "multi_modal_data": data}
    assert params.amateurs[0].prompt == {"prompt_token_ids": [1, 2], "multi_modal_data": seen}
    made, fake = engine(problem)
    fake.finish = "length"
    said = r"problem 'a' \(line 1\): its longest prompt has 3 tokens, with --max-tokens 7 in all"
    with pytest.raises(ToolError, match=said):
        made.run([Job(None, problem)], lambda *_: None)


@pytest.mark.parametrize(
    ("prompt", "args", "said"),
    [
        ("a b c d e f", {}, "its longest prompt has 7 tokens, with --max-tokens 11 in all"),
        (
            TWICE,
            {"amateur_messages": json.dumps([{"role": r, "content": c} for r, c in TWICE])},
            "--amateur-messages=.*: gives the amateur the tokens that",
        ),
        ((("assistant", "x"),), {}, "prompt='x': no assistant first$"),
    ],
)
def test_what_cannot_be_decoded_is_said_first(
    engine: Any, prompt: Any, args: dict[str, str], said: str
) -> None:
    given = {f"cold_{name}": value for name, value in args.items()}
    with pytest.raises(ToolError, match=rf"problem 'a' \(line 7\): {said}"):
        engine(Problem("a", 7, prompt, ("a",), args=given), limit=10)


def test_what_the_engine_refuses_is_said_with_its_problem(engine: Any) -> None:
    made, fake = engine(ONE)
    fake.add_request = Mock(side_effect=ValueError("CoLD cannot be used in this engine: no LoRA."))
    with pytest.raises(ToolError, match=r"problem 'a' \(line 1\): CoLD cannot be used in this"):
        made.run([Job(GRID[0], ONE)], lambda *_: None)


def test_an_engine_that_fails_is_a_sentence(engine: Any) -> None:
    made, fake = engine(ONE)
    fake.step = Mock(side_effect=RuntimeError("the logits\nhold NaN"))
    with pytest.raises(ToolError, match=r"\(RuntimeError\): the logits hold NaN"):
        made.run([Job(None, ONE)], lambda *_: None)

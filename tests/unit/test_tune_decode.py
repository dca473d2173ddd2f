# SPDX-License-Identifier: Apache-2.0
"""What the engine is asked for, and what becomes of its errors."""

from __future__ import annotations

import dataclasses
import json
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.lora.request import LoRARequest

from vllm_cold.method.amateurs import Text
from vllm_cold.method.settings import ColdError
from vllm_cold.tools.adapters import Adapter
from vllm_cold.tools.contrast import Content
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.decode import Decoder, Job
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.problems import Problem

pytestmark = pytest.mark.unit

ONE = Problem("a", 1, "a", ("a",))
GRID = [Setting(alpha=0.1, beta=0.5)]
SETTINGS = [*GRID, Setting("cold"), *make_grid({"beta": "adaptive,2", "beta_max": "2"})]


def make(field: str, reads: Content) -> list[int]:
    """Words are tokens; the template fails for an assistant's message."""
    if isinstance(reads, Text):
        return [0, *map(len, reads.value.split())]
    if reads.value[0]["role"] == "assistant":
        raise ColdError(field, "x", "no assistant first")
    text = " ".join(f"{m['role']}: {m['content']}" for m in reads.value) + " assistant:"
    return [*map(len, text.split())]


def make_decoder(
    limit: int, max_tokens: int, chat: bool = False, expert: str | None = "sql", seats: int = 2
) -> Decoder:
    made = object.__new__(Decoder)
    made._make, made._chat = make, chat
    made._base, made._expert = "base", expert
    made._adapters = {n: LoRARequest(n, i, f"/{n}") for i, n in enumerate(("sql", "chat"), 1)}
    made._streams, made._prompts = {}, {}
    made._common = {"max_tokens": max_tokens}
    made._config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=limit),
        scheduler_config=SimpleNamespace(max_num_seqs=seats),
    )
    return made


def prompts_of(decoder: Decoder) -> dict[str, list[int]]:
    return {name: list(ids) for name, ids in decoder._prompts.items()}


class Failing:
    """A vLLM engine whose step fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.aborted = False

    def add_request(self, *_: Any, **__: Any) -> None:
        pass

    def step(self) -> Any:
        raise self.error

    def has_unfinished_requests(self) -> bool:
        return True

    def abort_request(self, _: Any) -> None:
        self.aborted = True
        raise RuntimeError("it is dead")


def failing_decoder(error: BaseException) -> Decoder:
    made = make_decoder(limit=8, max_tokens=4)
    made._engine = Failing(error)
    made.tokenize([ONE], SETTINGS)
    return made


def test_an_engine_that_fails_is_a_sentence() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    for error, said in (
        (
            RuntimeError("CoLD: the logits\nhold NaN"),
            r"\(RuntimeError\): CoLD: the logits hold NaN",
        ),
        (MemoryError(), r"the engine failed while it decoded \(MemoryError\)"),
        (EngineDeadError(), r"\(EngineDeadError\): EngineCore encountered an issue"),
    ):
        decoder = failing_decoder(error)
        with pytest.raises(ToolError, match=said):
            decoder.run([Job(None, ONE)], lambda *_: None)
        assert not decoder._engine.aborted  # there is nothing left to tell it
    decoder = failing_decoder(KeyError("a bug"))
    with pytest.raises(KeyError):
        decoder.run([Job(None, ONE)], lambda *_: None)


class Dropping:
    """Presses Ctrl-C in a destructor, where Python drops it."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_decoding_stops_at_a_dropped_interrupt() -> None:
    steps: list[Any] = []

    def step() -> list[Any]:
        assert not steps  # else it would go on for ever
        steps.append(1)
        Dropping()
        return []

    decoder = failing_decoder(KeyError())
    decoder._engine = SimpleNamespace(
        add_request=lambda *_, **__: None,
        step=step,
        has_unfinished_requests=lambda: True,
        abort_request=steps.append,
    )
    # Also where the tests were started in the background of a shell, which ignores Ctrl-C.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            decoder.run([Job(None, ONE)], lambda *_: None)
    finally:
        signal.signal(signal.SIGINT, former)
    assert steps == [1, ["0"]]


@pytest.mark.parametrize("finish", ["error", "abort"])
def test_an_answer_that_is_not_whole_is_never_judged(finish: str) -> None:
    decoder = failing_decoder(KeyError())
    completion = SimpleNamespace(text="x", finish_reason=finish)
    result = SimpleNamespace(request_id="0", outputs=[completion])
    decoder._engine = SimpleNamespace(
        add_request=lambda *_, **__: None,
        step=lambda: [result],
        has_unfinished_requests=lambda: False,
    )
    done: list[Any] = []
    with pytest.raises(ToolError, match=rf"\(line 1\): the engine ended it with '{finish}'"):
        decoder.run([Job(None, ONE)], lambda *args: done.append(args))
    assert not done


def test_greedy_is_greedy_whatever_the_engines_default() -> None:
    decoder = make_decoder(limit=8, max_tokens=4)
    assert decoder._params(Job(None, ONE)).extra_args == {"cold": 0}


def test_the_engine_is_asked_for_each_setting() -> None:
    decoder = failing_decoder(KeyError())
    for setting, alpha, weight in (
        (Setting(alpha=0.3, beta="adaptive", beta_max=2.0), 0.3, (-2.0, True)),
        (Setting(alpha=0.3, beta=2.0), 0.3, (-2.0, False)),
        (Setting(alpha=0.2, beta=0.5, expert_top_k=9), 0.2, (-0.5, False)),
        (Setting("cold"), 0.1, (-0.5, False)),
    ):
        params = decoder._params(Job(setting, ONE))
        assert (params.alpha, params.expert_top_k) == (alpha, setting.expert_top_k)
        assert params.combine()[1] == (weight,)


def test_the_engine_is_asked_for_what_a_problem_says() -> None:
    messages = (("system", "Be brief."), ("user", "Why is it so?"))
    problem = Problem("a", 1, messages, ("a",), args={"cold_without": "system"})
    decoder = make_decoder(limit=20, max_tokens=4)
    decoder.tokenize([problem], [Setting("cad")])
    assert decoder._prompts["a"] == (7, 2, 6, 5, 3, 2, 2, 3, 10)
    params = decoder._params(Job(Setting("cad"), problem))
    (amateur,) = params.amateurs
    assert amateur.prompt == [5, 3, 2, 2, 3, 10]
    assert amateur.lora_request is decoder._adapters["sql"]  # its expert's
    assert (params.alpha, amateur.weight) == (0.0, -0.5)
    # The base model towards one adapter and away from another.
    args = {"cold_amateur": ["sql", "chat"]}
    problem = Problem("b", 2, "Why?", ("a",), args=args)
    decoder = make_decoder(limit=20, max_tokens=4, expert=None, seats=3)
    (setting,) = make_grid({}, "dexperts")
    decoder.tokenize([problem], [setting])
    params = decoder._params(Job(setting, problem))
    assert [a.lora_request.lora_name for a in params.amateurs] == ["sql", "chat"]
    assert [w.weight for w in params.combine()[1]] == [1.0, -1.0]
    # Weights in place of beta, one of them adaptive, and the base model with another prompt.
    args = {"cold_amateur": ["base", "chat"], "cold_amateur_prompt": ["So what?", ""]}
    problem = Problem("c", 3, "Why?", ("a",), args=args)
    decoder = make_decoder(limit=20, max_tokens=4, seats=3)
    (setting,) = make_grid({"alpha": "0.1", "beta_max": "2"}, weights=("adaptive", 0.25))
    decoder.tokenize([problem], [setting])
    params = decoder._params(Job(setting, problem))
    assert [a.prompt for a in params.amateurs] == [[0, 2, 5], None]
    assert [a.lora_request and a.lora_request.lora_name for a in params.amateurs] == [None, "chat"]
    assert params.combine()[1] == ((-2.0, True), (0.25, False))
    # A list is what one amateur does not read, and for a preset with two what each does not.
    problem = Problem("d", 4, messages, ("a",), args={"cold_without": ["system", 1]})
    decoder.tokenize([dataclasses.replace(problem, prompt=(*messages, messages[1]))], both := [
        Setting("cad"), Setting("grounded")
    ])  # fmt: skip
    streams = [decoder._params(Job(setting, problem)).amateurs for setting in both]
    assert [[len(one.prompt) for one in amateurs] for amateurs in streams] == [[6], [11, 9]]


def test_streams_that_have_no_room_or_no_contrast() -> None:
    def refused(said: str, expert: str | None = "sql", grid: Any = GRID, **args: Any) -> None:
        given = {f"cold_{name}": value for name, value in args.items()}
        problem = Problem("a", 7, (("user", "Hi"), ("user", "you")), ("a",), args=given)
        decoder = make_decoder(limit=10, max_tokens=4, expert=expert)
        with pytest.raises(ToolError, match=rf"problem 'a' \(line 7\): {said}"):
            decoder.tokenize([problem], grid)

    refused("an amateur's prompt has 7 tokens, with", amateur_prompt="a b c d e f")
    said = "expert and amateurs take 3 sequences, and .* raise --max-num-seqs"
    refused(said, grid=[Setting("dexperts")], amateur=["chat", "base"])
    own = json.dumps([{"role": "user", "content": "Hi"}, {"role": "user", "content": "you"}])
    refused("--amateur-messages=.*: gives the amateur the tokens that", amateur_messages=own)
    refused("--amateur-messages=.*: gives the amateur", amateur_messages=own, expert=None)
    refused("--without='tool': the conversation has no such message", without="tool")
    problem = Problem("a", 7, (("user", "Hi"), ("user", "you")), ("a",))
    decoder = make_decoder(limit=10, max_tokens=4)
    decoder.tokenize(
        [dataclasses.replace(problem, args={"cold_amateur_messages": own, "cold_amateur": "base"})],
        GRID,
    )


@pytest.mark.parametrize(
    ("active", "said"),
    [
        (True, "CoLD cannot be used in this engine: no LoRA."),
        (False, "COLD_ENABLED=0 is set; unset"),
    ],
)
def test_an_engine_without_cold_decodes_nothing(
    monkeypatch: pytest.MonkeyPatch, active: bool, said: str
) -> None:
    from vllm_cold.vllm import availability
    from vllm_cold.vllm.frontend import config

    if active:
        monkeypatch.setattr(availability, "inactive", lambda: None)
    else:
        monkeypatch.setenv("COLD_ENABLED", "0")
    monkeypatch.setattr(config, "is_configured", lambda config: False)
    monkeypatch.setattr(config, "unsupported", lambda config: "no LoRA.")
    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=None))
    with pytest.raises(ToolError, match=said):
        Decoder(llm, "base", [Adapter("sql", "/sql", 8)], "sql", max_tokens=8)


def test_prompts_and_messages_become_tokens() -> None:
    text = Problem("text", 1, "one two", ("a",))
    chat = Problem("chat", 2, (("user", "one two"),), ("a",))
    decoder = make_decoder(limit=8, max_tokens=4)
    decoder.tokenize([text, chat], GRID)
    assert prompts_of(decoder) == {"text": [0, 3, 3], "chat": [5, 3, 3, 10]}
    decoder = make_decoder(limit=8, max_tokens=4, chat=True)
    decoder.tokenize([text], GRID)
    assert prompts_of(decoder) == {"text": [5, 3, 3, 10]}


def test_prompts_that_cannot_be_decoded() -> None:
    long = Problem("long", 3, "a b c d", ("a",))
    with pytest.raises(ToolError, match=r"'long' \(line 3\): its prompt has 5 tokens, with"):
        make_decoder(limit=8, max_tokens=4).tokenize([long], GRID)
    make_decoder(limit=9, max_tokens=4).tokenize([long], GRID)
    first = Problem("first", 4, (("assistant", "x"),), ("a",))
    said = r"'first' \(line 4\): prompt='x': no assistant first$"
    with pytest.raises(ToolError, match=said):
        make_decoder(limit=8, max_tokens=4).tokenize([first], GRID)

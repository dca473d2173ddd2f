# SPDX-License-Identifier: Apache-2.0
"""What comes with each token is told once, all of it, whatever vLLM does with outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import (
    OutputProcessor,
    RequestOutputCollector,
    RequestState,
)
from vllm.v1.engine.parallel_sampling import ParentRequest

from tests.contracts.source import find
from vllm_cold.compat.patching import bind
from vllm_cold.frontend import explain_output
from vllm_cold.scheduler.explain_steps import StepExplainer
from vllm_cold.wire import transfer_params
from vllm_cold.wire.step_stats import Explained, RowStats

pytestmark = pytest.mark.unit

WHERE = "vllm.v1.engine.output_processor:RequestState.make_request_output"


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        RequestState,
        "make_request_output",
        bind(explain_output.wrap_make_request_output, find(WHERE)),
    )


class Request:
    """One in a front end, which is told of steps that each give it some tokens.

    Attributes:
        seen: What a caller got, as he gets it.
    """

    def __init__(self, tiny: Path, interval: int = 1, late: bool = False, **asked: Any) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(tiny / "model")
        self.processor = OutputProcessor(self.tokenizer, log_stats=False, stream_interval=interval)
        params = SamplingParams(max_tokens=100, **asked)
        self.queue = RequestOutputCollector(params.output_kind, "r")
        self.late = late
        self.seen: list[Any] = []
        request = EngineCoreRequest(
            "r", [5], None, params, None, 0.0, None, None, None, external_req_id="r"
        )
        self.processor.add_request(request, None, queue=self.queue)

    def step(
        self,
        tokens: Sequence[int],
        rows: Any,
        finish: FinishReason | None = None,
        budget: Any = None,
    ) -> None:
        """``rows``: what comes with them; None for a request that does not ask. ``budget``: what
        all so far have cost.
        """
        told = {"theirs": 1} if finish else None
        if rows is not None:
            told = transfer_params.with_ours(told, steps=rows)
        if budget is not None:
            told = transfer_params.with_ours(told, budget=budget)
        output = EngineCoreOutput("r", list(tokens), finish_reason=finish, kv_transfer_params=told)
        self.processor.process_outputs([output])
        if not self.late:
            self.take()

    def take(self) -> None:
        """The caller looks at what there is."""
        if (output := self.queue.get_nowait()) is not None:
            self.seen.append(output)

    def told(self) -> list[Any]:
        """What comes with each."""
        return [
            transfer_params.told_in(output.kv_transfer_params).get("steps") for output in self.seen
        ]


kinds = pytest.mark.parametrize("kind", RequestOutputKind, ids=lambda kind: kind.name)


@pytest.mark.parametrize("late", [False, True], ids=["each", "merged"])
@pytest.mark.parametrize("interval", [1, 3])
@kinds
def test_all_steps_come_with_the_last_output(
    kind: RequestOutputKind, interval: int, late: bool, tiny: Path
) -> None:
    request = Request(tiny, interval, late, output_kind=kind)
    rows = [{"tokens": [step, 10**6]} for step in range(10)]
    for step in range(8):
        request.step([20 + step], rows[step : step + 1])
    request.step([30, 31], rows[8:], FinishReason.LENGTH)
    request.take()
    *before, last = request.seen
    assert last.finished and last.kv_transfer_params["theirs"] == 1
    steps = last.kv_transfer_params["cold"]["steps"]
    decoded = [request.tokenizer.decode([step]) for step in range(10)]
    assert [step["tokens"] for step in steps] == [row["tokens"] for row in rows]
    assert [step["texts"] for step in steps] == [[text, None] for text in decoded]
    assert all(output.kv_transfer_params is None for output in before)


@kinds
def test_at_a_stop_string_they_end_with_the_tokens(kind: RequestOutputKind, tiny: Path) -> None:
    """Which the engine does not see: it sends more, and does not say that this is the end."""
    request = Request(tiny, output_kind=kind, stop=["w7"])
    ids = request.tokenizer(" w3 w7 w9").input_ids
    steps = [{"tokens": [token]} for token in (1, 2, 3)]
    request.step(ids[:1], steps[:1])
    request.step(ids[1:], steps[1:])
    last = request.seen[-1]
    assert last.finished and last.outputs[0].finish_reason == "stop"
    tokens = [token for output in request.seen for token in output.outputs[0].token_ids]
    num = len(tokens if kind == RequestOutputKind.DELTA else last.outputs[0].token_ids)
    assert request.told()[-1] == steps[:num] and all(step["texts"] for step in steps[:num])


def test_an_abort_tells_what_there_is(tiny: Path) -> None:
    request = Request(tiny, output_kind=RequestOutputKind.DELTA)
    step = {"tokens": [4]}
    request.step([20], [step])
    request.processor.abort_requests(["r"], internal=True)
    request.take()
    assert request.seen[-1].finished and request.told() == [None, [step]]


def test_who_does_not_ask_is_told_nothing(tiny: Path) -> None:
    request = Request(tiny, output_kind=RequestOutputKind.DELTA)
    request.step([20], None)
    request.step([21], None, FinishReason.LENGTH)
    assert [output.kv_transfer_params for output in request.seen] == [None, {"theirs": 1}]


@kinds
def test_several_answers_have_a_list_each(kind: RequestOutputKind, tiny: Path) -> None:
    """In their order, whichever ends first."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny / "model")
    processor = OutputProcessor(tokenizer, log_stats=False)
    params = SamplingParams(n=2, max_tokens=100, output_kind=kind)
    queue = RequestOutputCollector(kind, "r")
    asked = "r", [5], None, params, None, 0.0, None, None, None
    parent = ParentRequest(EngineCoreRequest(*asked, external_req_id="r"))
    for index in range(2):
        name, own = parent.get_child_info(index)
        child = EngineCoreRequest(name, *asked[1:3], own, *asked[4:], external_req_id="r")
        processor.add_request(child, None, parent, index, queue)
    for name, token in (("1_r", 21), ("0_r", 20)):
        output = EngineCoreOutput(
            name,
            [token],
            finish_reason=FinishReason.LENGTH,
            kv_transfer_params=transfer_params.with_ours(
                None, steps=[{"tokens": [token]}], budget={"spent": [token]}
            ),
        )
        processor.process_outputs([output])
    last = queue.get_nowait()
    assert last is not None and last.finished
    found: Any = transfer_params.told_in(last.kv_transfer_params)["steps"]
    assert [[step["tokens"] for step in steps] for steps in found] == [[[20]], [[21]]]
    assert transfer_params.told_in(last.kv_transfer_params)["budget"] == [
        {"spent": [20]}, {"spent": [21]}
    ]  # fmt: skip


@pytest.mark.parametrize("explains", [False, True])
@kinds
def test_the_budget_is_that_of_the_last_token(
    kind: RequestOutputKind, explains: bool, tiny: Path
) -> None:
    """Whether the client asks for steps or not, also at a stop string and an abort."""
    for end in ("length", "stop", "abort"):
        request = Request(tiny, output_kind=kind, stop=["w7"])
        ids = request.tokenizer(" w3 w7").input_ids
        for number, token in enumerate(ids if end == "stop" else ids[:1], 1):
            steps = [{"tokens": [token]}] if explains else None
            finish = FinishReason.LENGTH if end == "length" else None
            request.step([token], steps, finish, {"spent": [0.5 * number]})
        if end == "abort":
            request.processor.abort_requests(["r"], internal=True)
            request.take()
        *before, last = request.seen
        assert last.finished and ("steps" in last.kv_transfer_params["cold"]) == explains
        spent = 1.0 if end == "stop" else 0.5
        assert last.kv_transfer_params["cold"]["budget"] == {"spent": [spent]}
        assert all(output.kv_transfer_params is None for output in before)


def explained(amateurs: int) -> Explained:
    """Of the amateurs that are there; what is said of tokens does not matter."""
    streams = 1 + amateurs
    return Explained(
        [1, 1], [0.5, 0.5], [[0.5, 0.5]] * streams, [1.0] * streams, [0.0] * amateurs,
        [0.1] * amateurs,
    )  # fmt: skip


def test_steps_of_a_rule_that_charges() -> None:
    """Of each amateur that the group had at first; worker's rows may have more columns."""
    explainer = StepExplainer(2, 1)
    here, gone = (
        RowStats(3, 0, 0, done, 0, present, explained(number), charges)
        for done, present, number, charges in (
            (1, 3, 2, [(0.25, 8.0, 0.0), (-0.5, 4.0, 1.0), (0.0, 0.0, 0.0)]),
            (0, 2, 1, [(0.0, 7.75, 0.0), (2.0, 4.0, 1.0), (0.0, 0.0, 0.0)]),
        )
    )
    first, second = explainer.explain([here, gone])
    assert (first["cost"], first["left"]) == ([0.25, -0.5], [8.0, 4.0])
    assert first["limited"] == [False, True]
    assert (second["cost"], second["left"]) == ([None, 2.0], [None, 4.0])
    assert second["limited"] == [None, True]
    [other] = StepExplainer(2, 1).explain([here._replace(charges=None)])
    assert not other.keys() & {"cost", "left", "limited"}

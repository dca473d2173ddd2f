# SPDX-License-Identifier: Apache-2.0
"""Weights that come with each token are told once, all of them, whatever vLLM does with outputs."""

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

from tests.contracts.source import find
from vllm_cold.group import results
from vllm_cold.vllm.frontend import weights

pytestmark = pytest.mark.unit

WHERE = "vllm.v1.engine.output_processor:RequestState.make_request_output"


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestState, "make_request_output", weights._make(find(WHERE)))


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

    def step(self, tokens: Sequence[int], rows: Any, finish: FinishReason | None = None) -> None:
        """``rows``: the weights that come with them; None for a request that does not ask."""
        told = {"theirs": 1} if finish else None
        if rows is not None:
            told = results.with_weights(told, rows)
        output = EngineCoreOutput("r", list(tokens), finish_reason=finish, kv_transfer_params=told)
        self.processor.process_outputs([output])
        if not self.late:
            self.take()

    def take(self) -> None:
        """The caller looks at what there is."""
        if (output := self.queue.get_nowait()) is not None:
            self.seen.append(output)

    def told(self) -> list[Any]:
        """The weights beside each."""
        return [results.weights_in(output.kv_transfer_params) for output in self.seen]


kinds = pytest.mark.parametrize("kind", RequestOutputKind, ids=lambda kind: kind.name)


@pytest.mark.parametrize("late", [False, True], ids=["each", "merged"])
@pytest.mark.parametrize("interval", [1, 3])
@kinds
def test_all_weights_come_with_the_last_output(
    kind: RequestOutputKind, interval: int, late: bool, tiny: Path
) -> None:
    request = Request(tiny, interval, late, output_kind=kind)
    rows = [[-0.5 - step, None] for step in range(10)]
    for step in range(8):
        request.step([20 + step], rows[step : step + 1])
    request.step([30, 31], rows[8:], FinishReason.LENGTH)
    request.take()
    *before, last = request.seen
    assert last.finished and last.kv_transfer_params == {"theirs": 1, "cold": {"weights": rows}}
    assert all(output.kv_transfer_params is None for output in before)


@kinds
def test_at_a_stop_string_they_end_with_the_tokens(kind: RequestOutputKind, tiny: Path) -> None:
    """Which the engine does not see: it sends more, and does not say that this is the end."""
    request = Request(tiny, output_kind=kind, stop=["w7"])
    ids = request.tokenizer(" w3 w7 w9").input_ids
    request.step(ids[:1], [[-1.0]])
    request.step(ids[1:], [[-2.0], [-3.0]])
    last = request.seen[-1]
    assert last.finished and last.outputs[0].finish_reason == "stop"
    tokens = [token for output in request.seen for token in output.outputs[0].token_ids]
    num = len(tokens if kind == RequestOutputKind.DELTA else last.outputs[0].token_ids)
    assert request.told()[-1] == [[-1.0], [-2.0], [-3.0]][:num]


def test_an_abort_tells_what_there_is(tiny: Path) -> None:
    request = Request(tiny, output_kind=RequestOutputKind.DELTA)
    request.step([20], [[-1.0]])
    request.processor.abort_requests(["r"], internal=True)
    request.take()
    assert request.seen[-1].finished and request.told() == [None, [[-1.0]]]


def test_who_does_not_ask_is_told_nothing(tiny: Path) -> None:
    request = Request(tiny, output_kind=RequestOutputKind.DELTA)
    request.step([20], None)
    request.step([21], None, FinishReason.LENGTH)
    assert [output.kv_transfer_params for output in request.seen] == [None, {"theirs": 1}]

# SPDX-License-Identifier: Apache-2.0
"""Why an engine does not start, as a command says it."""

from typing import Any

import pytest
from pydantic import BaseModel, Field

from vllm_cold.tools.engine import start_llm
from vllm_cold.tools.errors import ToolError

pytestmark = pytest.mark.unit

LITTLE = "Available memory (4.85/18.0 GiB) on startup is less than desired CPU memory utilization"
REMEDY = (
    "(change --gpu-memory-utilization, or on a CPU set VLLM_CPU_KVCACHE_SPACE to the GiB that the "
    "KV cache may have, such as 4)"
)


class Config(BaseModel):
    seats: int = Field(ge=1)
    tokens: int = Field(ge=1)


def invalid() -> Exception:
    try:
        Config(seats=0, tokens=0)
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            invalid(),
            "seats: Input should be greater than or equal to 1; tokens: Input should be greater "
            "than or equal to 1",
        ),
        (AssertionError(), "AssertionError"),
        (ImportError("no such symbol"), "ImportError: no such symbol"),
        (KeyError("rope"), "KeyError: 'rope'"),
        (ValueError(f"{LITTLE}\n(0.9)"), f"{LITTLE} (0.9) {REMEDY}"),
    ],
)
def test_why_it_does_not_start_is_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm

    def refuse(**_: Any) -> None:
        raise error

    monkeypatch.setattr(vllm, "LLM", refuse)
    with pytest.raises(ToolError) as caught:
        start_llm("org/model")
    assert str(caught.value) == f"--model='org/model': the engine does not start: {said}"

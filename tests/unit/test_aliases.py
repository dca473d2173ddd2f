# SPDX-License-Identifier: Apache-2.0
"""A preset after a model's name, with vLLM's own classes of requests and of errors."""

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_cold.compat.patching import bind, original_of
from vllm_cold.frontend import aliases

pytestmark = pytest.mark.unit


class Models:
    """What vLLM's server serves."""

    def __init__(self, *adapters: str, resolvable: str = "") -> None:
        self.base_model_paths = [SimpleNamespace(name=n) for n in ("base", "org/m:7b")]
        self.lora_requests: dict[str, Any] = dict.fromkeys(adapters)
        self.resolvable = resolvable
        self.looked_for: list[str] = []

    def is_base_model(self, name: str) -> bool:
        return any(path.name == name for path in self.base_model_paths)

    async def resolve_lora(self, name: str) -> Any:
        from vllm.lora.request import LoRARequest

        self.looked_for.append(name)
        if name != self.resolvable:
            return None
        self.lora_requests[name] = found = LoRARequest(name, 9, "/x")
        return found


def completion(model: str | None, xargs: dict[str, Any] | None = None) -> Any:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return CompletionRequest(model=model, prompt="a", vllm_xargs=xargs)


def check(models: Models, request: Any) -> Any:
    """The error; None where the model is served."""
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

    owner = next(c for c in OpenAIServingCompletion.__mro__ if "_check_model" in vars(c))
    original = vars(owner)["_check_model"]
    original = original_of(original)
    serving = object.__new__(OpenAIServingCompletion)
    serving.models, serving.request_logger = models, None  # type: ignore[assignment]
    return asyncio.run(bind(aliases.wrap_check_model, original)(serving, request))


OWN = {"cold_preset": "cfg", "cold_beta": 2, "mine": "x"}


@pytest.mark.parametrize(
    ("asked", "said", "name", "xargs"),
    [
        ("base:cold", None, "base", {"cold_preset": "cold"}),
        ("org/m:7b:cad", None, "org/m:7b", {"cold_preset": "cad"}),
        ("a:b:cfg", None, "a:b", {"cold_preset": "cfg"}),
        # What a request says itself wins.
        ("sql:vcd", OWN, "sql", OWN),
        # What vLLM serves is no alias: an adapter's own name may end as one does.
        *((name, OWN, name, OWN) for name in ("base", "org/m:7b", "sql:cad", None)),
    ],
)
def test_names_of_models(asked: str | None, said: Any, name: str | None, xargs: Any) -> None:
    request = completion(asked, said)
    assert check(Models("sql", "a:b", "sql:cad"), request) is None
    assert (request.model, request.vllm_xargs) == (name, xargs)


@pytest.mark.parametrize("name", ["sql:cda", "base:", "sql:cad:cad", "other:cad", ":cad"])
def test_unknown_models(name: str) -> None:
    request = completion(name)
    error = check(Models("sql"), request).error
    assert (error.code, error.type) == (404, "NotFoundError")
    assert f"The model `{name}` does not exist" in error.message.replace("'", "`")
    assert (request.model, request.vllm_xargs) == (name, None)


def test_adapters_that_are_loaded_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    for resolvable, name, xargs in (
        ("late", "late", {"cold_preset": "cold"}),
        ("late:cold", "late:cold", None),
    ):
        models, request = Models(resolvable=resolvable), completion("late:cold")
        assert check(models, request) is None
        assert (request.model, request.vllm_xargs) == (name, xargs)
    models = Models("sql")
    assert check(models, completion("sql:cold")) is None
    assert models.looked_for == ["sql:cold"]


def test_where_vllm_takes_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SKIP_MODEL_NAME_VALIDATION", "1")
    for asked, name, xargs in (
        ("whatever:cad", "whatever", {"cold_preset": "cad"}),
        ("llama:8b", "llama:8b", None),
    ):
        request = completion(asked)
        assert check(Models(), request) is None
        assert (request.model, request.vllm_xargs) == (name, xargs)


def test_an_adapter_that_cannot_be_loaded_is_no_unknown_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")

    class Broken(Models):
        async def resolve_lora(self, name: str) -> Any:
            from vllm.entrypoints.openai.completion import serving as vllm_serving

            protocol = sys.modules[vllm_serving.ErrorResponse.__module__]
            if name != self.resolvable:
                return None
            info = protocol.ErrorInfo(message="bad file", type="BadRequest", code=400)
            return protocol.ErrorResponse(error=info)

    for broken, name in (("late", "late:cad"), ("base:cad", "base:cad")):
        request = completion(name)
        error = check(Broken(resolvable=broken), request).error
        assert (error.code, error.message) == (400, "bad file")
        assert (request.model, request.vllm_xargs) == (name, None)

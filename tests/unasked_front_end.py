# SPDX-License-Identifier: Apache-2.0
"""A front end whose engine was not asked for a contrast, in a process of its own: which files of
the package each stage loads, and what those who ask are told.

``python -m tests.unasked_front_end KIND MODEL`` prints it as JSON; the kinds are in ``KINDS``.
Nothing of ours is imported here: what is loaded, the plugin and its hooks loaded.
"""

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.plugins import load_general_plugins
from vllm.sampling_params import BeamSearchParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.input_processor import InputProcessor

SIZES = {"dtype": "float32", "max_model_len": 64, "enforce_eager": True}


class Stages:
    """What was loaded, and said, by stage."""

    def __init__(self) -> None:
        self.loaded: dict[str, list[str]] = {}
        self.refusals: dict[str, str] = {}
        self._known: set[str] = set()

    def end(self, stage: str) -> None:
        """Note which of our files this stage has loaded."""
        ours = {name for name in sys.modules if name.partition(".")[0] == "vllm_cold"}
        self.loaded[stage] = sorted(ours - self._known)
        self._known |= ours

    def refused(self, who: str, ask: Callable[[], Any]) -> None:
        """Note what who asks is told."""
        try:
            ask()
        except ValueError as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            self.refusals[who] = f"{'400 ' * ('VLLMValidationError' in kinds)}{error}"


def offline(stages: Stages, model: str) -> None:
    """Engines of ``LLM``: one that pools and whose clients can name adapters; one without LoRA, a
    request, and those that ask for a contrast.
    """
    from vllm import LLM

    args = EngineArgs(model=model, **SIZES, runner="pooling", enable_lora=True)
    stages.end("plugins")
    args.create_engine_config(UsageContext.LLM_CLASS)
    stages.end("pooling")
    config = EngineArgs(model=model, **SIZES).create_engine_config(UsageContext.LLM_CLASS)
    stages.end("engine")
    processor = InputProcessor(config)
    llm: Any = SimpleNamespace(
        llm_engine=SimpleNamespace(vllm_config=config, input_processor=processor)
    )

    def process(params: Any) -> Any:
        (prompt,) = processor.renderer.render_cmpl([{"prompt": " w1"}])
        return processor.process_inputs("r", prompt, params, supported_tasks=("generate",))

    process(SamplingParams(extra_args={"mine": 1}))
    stages.end("request")
    stages.refused("extra_args", lambda: process(SamplingParams(extra_args={"cold_beta": 1})))
    from vllm_cold import ColdParams

    stages.refused("ColdParams", lambda: process(ColdParams()))
    stages.refused("beam search", lambda: LLM.beam_search(llm, [" w1"], ColdParams()))


def changed(stages: Stages, model: str) -> None:
    """An API server on a vLLM that has changed where our files look at it when they load."""
    server(stages, model, lost="vllm_cold.frontend.admission")


def server(stages: Stages, model: str, lost: str | None = None) -> None:
    """An API server without LoRA, up to what it gives its engine; ``lost``: a file of ours that
    cannot be imported.
    """
    load_general_plugins()
    stages.end("plugins")
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    given = ["--model", model, "--dtype", "float32", "--max-model-len", "64", "--enforce-eager"]
    args = AsyncEngineArgs.from_cli_args(parser.parse_args(given))
    stages.end("options")
    config = args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    stages.end("engine")

    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.renderers.online_renderer import OnlineRenderer

    processor = InputProcessor(config)
    engine: Any = SimpleNamespace(
        vllm_config=config,
        model_config=config.model_config,
        input_processor=processor,
        renderer=processor.renderer,
    )
    serving: Any = object.__new__(OpenAIServingCompletion)
    serving.models = OpenAIServingModels(engine, [BaseModelPath(name="base", model_path=model)])
    serving.request_logger = None
    arguments = {
        "model_config": config.model_config,
        "renderer": processor.renderer,
        "request_logger": None,
        "chat_template": None,
        "chat_template_content_format": "auto",
        "model_registry": None,
    }
    wanted = inspect.signature(OnlineRenderer).parameters
    renderer = OnlineRenderer(**{k: v for k, v in arguments.items() if k in wanted})

    def answer(name: str = "base", search: bool = False, **body: Any) -> Any:
        request = CompletionRequest(model=name, prompt=" w1", max_tokens=4, **body)

        async def prepare() -> list[Any]:
            assert await serving._check_model(request) is None
            return await renderer.preprocess_cmpl(request, [" w1"])

        (prompt,) = loop.run_until_complete(prepare())
        if search:
            return request.to_beam_search_params(4, {})
        params = request.to_sampling_params(4, {})
        return processor.process_inputs("r", prompt, params, supported_tasks=("generate",))

    loop = asyncio.new_event_loop()
    answer(vllm_xargs={"mine": 1, "coldness": 1}, coldness=1)
    assert isinstance(answer(search=True, use_beam_search=True), BeamSearchParams)
    stages.end("request")
    if lost is not None:
        sys.modules[lost] = None  # type: ignore[assignment]
        stages.refused("vllm_xargs", lambda: answer(vllm_xargs={"cold_beta": 1}))
        stages.refused("again", lambda: answer(vllm_xargs={"cold_beta": 1}))
        answer()
        return
    stages.refused("misplaced", lambda: answer(Cold_beta=1))
    stages.refused("vllm_xargs", lambda: answer(vllm_xargs={"cold_beta": 1}))
    stages.refused("wrong", lambda: answer(vllm_xargs={"cold_beta": -1}))
    stages.refused("name", lambda: answer("base:cad"))
    stages.refused(
        "beam search",
        lambda: answer(search=True, use_beam_search=True, vllm_xargs={"cold": 1}),
    )
    answer(vllm_xargs={"cold": 0})


KINDS = {"offline": offline, "server": server, "changed": changed}

if __name__ == "__main__":
    stages = Stages()
    KINDS[sys.argv[1]](stages, sys.argv[2])
    print(json.dumps([stages.loaded, stages.refusals]))

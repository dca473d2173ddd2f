# SPDX-License-Identifier: Apache-2.0
"""What a front end and an engine do in a process of their own, whose vLLM lacks something.

Imported by the process that others are forked from: it has loaded vLLM, and not the plugin.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vllm.entrypoints.openai.api_server  # noqa: F401 - so that those that are forked have it
import vllm.v1.worker.cpu_worker  # noqa: F401
from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import BeamSearchParams
from vllm.usage.usage_lib import UsageContext

PROMPTS = [[(13 * i + 7 * j) % 500 + 4 for j in range(5 + 9 * i)] for i in range(12)]
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True},
    {"temperature": 1.0, "max_tokens": 20, "ignore_eos": True, "seed": 3, "top_p": 0.9},
)


def run(
    task: str, tiny: Path, log: Path, lost: str, environment: dict[str, str], options: Any
) -> dict[str, Any]:
    """What a task finds; what it prints is in ``log``."""
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if lost:
        lose(lost)
    result = {"server": server, "engine": engine}[task](tiny, **options)
    sys.stdout.flush()
    return result | {"log": log.read_text()}


def lose(where: str) -> None:
    """To the package, vLLM has not this place; vLLM itself is whole, and goes on using it."""
    from vllm_cold.compat.patching import Place

    look = Place.problem

    def problem(self: Place) -> str | None:
        return f"{where.replace(':', '.')} is gone" if self.where == where else look(self)

    Place.problem = problem  # type: ignore[method-assign]


def said(call: Callable[[], Any]) -> str | None:
    """What is said when it is refused: an error, or a command line's; None if it is not."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            call()
    except ValueError as error:
        return f"ValueError: {error}"
    except SystemExit as error:
        return f"exit {error.code}: {printed.getvalue()}"
    finally:
        sys.stderr.write(printed.getvalue())  # into the log with it
    return None


def _lora(tiny: Path) -> LoRARequest:
    return LoRARequest("one", 1, str(tiny / "one"))


def _reason() -> str | None:
    from vllm_cold.compat import active

    return active.unavailable


def server(tiny: Path, arguments: tuple[str, ...] = (), own: Any = None) -> dict[str, Any]:
    """The front end of ``vllm serve``, up to a request's way into the engine.

    Args:
        tiny: The folder of the tiny model.
        arguments: Further words of the command line.
        own: The choices of an option ``--sampler`` that vLLM itself has.
    """
    from vllm.v1.engine.input_processor import InputProcessor

    from tests.vllm_parser import serve_parser
    from vllm_cold import ColdParams

    if own is not None:
        add = EngineArgs.add_cli_args

        def with_own(parser: Any) -> Any:
            parser.add_argument("--sampler", default="usual", choices=own)
            return add(parser)

        EngineArgs.add_cli_args = staticmethod(with_own)  # type: ignore[method-assign]
    parser = serve_parser()
    given = ["--model", str(tiny / "model"), "--dtype", "float32", "--enable-lora",
             "--max-lora-rank", "8", "--max-model-len", "128"]  # fmt: skip

    def config(*more: str) -> Any:
        options = parser.parse_args([*given, *more])
        made = AsyncEngineArgs.from_cli_args(options)
        return made.create_engine_config(UsageContext.OPENAI_API_SERVER), options

    result: dict[str, Any] = {"--sampler cold": said(lambda: config("--sampler", "cold"))}
    vllm_config, options = config(*arguments)
    result["own"] = getattr(options, "sampler", None)
    result["additional"] = vllm_config.additional_config
    processor = InputProcessor(vllm_config)
    for name, params, adapter in (
        ("base", SamplingParams(max_tokens=3), None),
        ("adapter", SamplingParams(max_tokens=3), _lora(tiny)),
        ("ColdParams", ColdParams(max_tokens=3), _lora(tiny)),
        ("extra_args", SamplingParams(max_tokens=3, extra_args={"cold_beta": 1}), _lora(tiny)),
    ):
        inputs: Any = {"type": "token", "prompt_token_ids": PROMPTS[0]}
        result[name] = said(
            lambda p=params, a=adapter, i=inputs: processor.process_inputs(
                "0", i, p, supported_tasks=("generate",), lora_request=a
            )
        )
    return result | {"reason": _reason()}


def engine(tiny: Path, **options: Any) -> dict[str, Any]:
    """An engine in this process."""
    from vllm_cold import ColdParams
    from vllm_cold.frontend.support import unsupported

    arguments: dict[str, Any] = {
        "model": str(tiny / "model"), "dtype": "float32", "enable_lora": True,
        "max_lora_rank": 8, "max_model_len": 128, "max_num_seqs": 8, "enforce_eager": True,
    } | options  # fmt: skip
    llm = LLM(**arguments)
    greedy = KINDS[0]

    def tokens(params: Any, adapter: Any) -> Any:
        prompts: Any = [{"prompt_token_ids": p} for p in PROMPTS]
        try:
            outputs = llm.generate(prompts, params, lora_request=adapter, use_tqdm=False)
        except ValueError as error:
            return f"ValueError: {error}"
        return [list(output.outputs[0].token_ids) for output in outputs]

    asked = {"cold_beta": 2.0, "cold_alpha": 0.05}
    beams: Any = llm.beam_search(
        [{"prompt_token_ids": PROMPTS[0]}], BeamSearchParams(beam_width=2, max_tokens=3)
    )
    # Base and adapter in batches of their own: mixed, stock gives base rows the adapter on CPU.
    core: Any = llm.llm_engine.engine_core.engine_core
    model = core.model_executor.driver_worker.worker.model_runner.model
    result = {
        "products": any(hasattr(module, "_vllm_cold_linears") for module in model.modules()),
        "base": [tokens(SamplingParams(**kind), None) for kind in KINDS],
        "adapter": [tokens(SamplingParams(**kind), _lora(tiny)) for kind in KINDS],
        "ColdParams": tokens(ColdParams(alpha=0.05, beta=2.0, **greedy), _lora(tiny)),
        "extra_args": tokens(SamplingParams(extra_args=asked, **greedy), _lora(tiny)),
        "scheduler": type(core.scheduler).__module__,
        "beam search": [list(s.tokens) for output in beams for s in output.sequences],
        "reason": _reason() or unsupported(llm.llm_engine.vllm_config),
        "compiled": int(llm.llm_engine.vllm_config.compilation_config.mode) != 0,
    }
    if result["reason"] is not None:
        again = arguments | {"additional_config": {"cold": True}}
        result["additional_config"] = said(lambda: LLM(**again))
    return result

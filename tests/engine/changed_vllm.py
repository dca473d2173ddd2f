# SPDX-License-Identifier: Apache-2.0
"""What a changed vLLM does, in processes of their own: ``python -m tests.engine.changed_vllm``.

Each request (a line of JSON on stdin) is answered by a child that imports vLLM anew. The parent
has imported what is not vLLM's, which takes most of the time; it never imports vLLM.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPTS = [[(13 * i + 7 * j) % 500 + 4 for j in range(5 + 11 * i)] for i in range(3)]
TOKENS = 12
# Most of what vLLM imports beside its own modules, by time.
PRELOADED = (
    "fastapi",
    "openai",
    "ray",
    "torch._inductor.compile_fx",
    "torchvision",
    "transformers.generation.utils",
    "transformers.processing_utils",
    "xgrammar",
)


def method(owner: Any, name: str) -> Any:
    """A method that may have been renamed."""
    found = getattr(owner, name, None)
    return found if found is not None else getattr(owner, name + "_renamed")


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


def _lora(tiny: Path) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("one", 1, str(tiny / "one"))


def _engine_args(tiny: Path) -> dict[str, Any]:
    return {
        "model": str(tiny / "model"),
        "dtype": "float32",
        "enable_lora": True,
        "max_lora_rank": 8,
        "max_model_len": 128,
        "max_num_seqs": 8,
        "enforce_eager": True,
    }


def _reason() -> str | None:
    from vllm_cold.vllm import availability

    return availability.unavailable()


def server(tiny: Path, **options: Any) -> dict[str, Any]:
    """The front end of ``vllm serve``, up to a request's way into the engine."""
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.input_processor import InputProcessor

    from tests.vllm_parser import serve_parser
    from vllm_cold import ColdParams

    parser = serve_parser()

    def config(*arguments: str) -> Any:
        given = ["--model", str(tiny / "model"), "--dtype", "float32", "--enable-lora",
                 "--max-lora-rank", "8", "--max-model-len", "128", *arguments]  # fmt: skip
        engine_args = method(AsyncEngineArgs, "from_cli_args")(parser.parse_args(given))
        made = method(engine_args, "create_engine_config")(UsageContext.OPENAI_API_SERVER)
        return made, engine_args

    printed = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(printed):
        parser.parse_args(["--help"])
    result: dict[str, Any] = {"help": "--model" in printed.getvalue()}
    result["--sampler cold"] = said(lambda: config("--sampler", "cold"))
    vllm_config, engine_args = config(*options.get("arguments", []))
    result["own sampler"] = getattr(engine_args, "sampler", None)
    result["additional"] = vllm_config.additional_config
    processor = InputProcessor(vllm_config)

    def process(params: Any, adapter: Any = None) -> Any:
        inputs = {"type": "token", "prompt_token_ids": PROMPTS[0]}
        return method(processor, "process_inputs")(
            "0", inputs, params, supported_tasks=("generate",), lora_request=adapter
        )

    for name, params, adapter in (
        ("base", SamplingParams(max_tokens=3), None),
        ("adapter", SamplingParams(max_tokens=3), _lora(tiny)),
        ("ColdParams", ColdParams(max_tokens=3), _lora(tiny)),
        ("extra_args", SamplingParams(max_tokens=3, extra_args={"cold_beta": 1}), _lora(tiny)),
    ):
        result[name] = said(lambda p=params, a=adapter: process(p, a))
    result["reason"] = _reason()
    return result


def engine(tiny: Path, **options: Any) -> dict[str, Any]:
    """An engine in this process."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import BeamSearchParams

    from vllm_cold import ColdParams

    arguments = _engine_args(tiny) | options
    llm = LLM(**arguments)
    common = {"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True}

    def tokens(params: Any, adapter: Any) -> Any:
        try:
            outputs = llm.generate(
                [{"prompt_token_ids": p} for p in PROMPTS],
                params,
                lora_request=adapter,
                use_tqdm=False,
            )
        except ValueError as error:
            return f"ValueError: {error}"
        return [list(output.outputs[0].token_ids) for output in outputs]

    # Base and adapter in batches of their own: mixed, stock gives base rows the adapter on CPU.
    result = {
        "base": tokens(SamplingParams(**common), None),
        "adapter": tokens(SamplingParams(**common), _lora(tiny)),
        "ColdParams": tokens(ColdParams(alpha=0.05, beta=2.0, **common), _lora(tiny)),
        "extra_args": tokens(
            SamplingParams(extra_args={"cold_beta": 2.0, "cold_alpha": 0.05}, **common),
            _lora(tiny),
        ),
        "beam search": [
            list(sequence.tokens)
            for output in method(llm, "beam_search")(
                [{"prompt_token_ids": PROMPTS[0]}], BeamSearchParams(beam_width=2, max_tokens=3)
            )
            for sequence in output.sequences
        ],
        "reason": _reason(),
        "compiled": int(llm.llm_engine.vllm_config.compilation_config.mode) != 0,
    }
    if result["reason"] is not None:
        again = arguments | {"additional_config": {"cold": True}}
        result["additional_config"] = said(lambda: LLM(**again))
    return result


def command(tiny: Path, arguments: list[str]) -> dict[str, Any]:
    """``vllm serve`` with a command line that it refuses; what it prints is in the log."""
    from vllm.entrypoints.cli.main import main

    sys.argv = ["vllm", "serve", str(tiny / "model"), *arguments]
    try:
        main()
    except SystemExit as error:
        return {"exit": error.code}
    raise AssertionError("it was not refused")


def _child(request: dict[str, Any], log: Path) -> dict[str, Any]:
    os.environ.update(request["environment"])
    if request["tree"] is not None:
        sys.path.insert(0, request["tree"])
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        import vllm

        assert request["tree"] is None or vllm.__file__.startswith(request["tree"])
        task = {"server": server, "engine": engine, "command": command}[request["task"]]
        return task(Path(request["tiny"]), **request["options"])
    except BaseException:
        return {"failed": traceback.format_exc()}


def main() -> None:
    sys.dont_write_bytecode = True
    for name in PRELOADED:
        importlib.import_module(name)
    assert "vllm" not in sys.modules
    for line in sys.stdin:
        request = json.loads(line)
        log = Path(request["log"])
        if (pid := os.fork()) == 0:
            result = _child(request, log)
            log.with_suffix(".json").write_text(json.dumps(result))
            os._exit(0)
        os.waitpid(pid, 0)
        print("done", flush=True)


if __name__ == "__main__":
    main()

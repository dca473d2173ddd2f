# SPDX-License-Identifier: Apache-2.0
"""Real models decode the workloads, and a second pass says what each model preferred.

vLLM decodes in float32, without speculation: by the contrast, by the expert alone and by the
amateur alone. Transformers then reads the contrast's answers, in one pass a stream.
"""

from __future__ import annotations

import argparse
from typing import Any, get_args

from benchmarks.accuracy.prompts.problem import ModelName, Prompt
from benchmarks.drafting.record import Answer, Record, load, save
from benchmarks.drafting.tasks import ADAPTERS, BASE, WORKLOADS, Request, Workload
from examples import gemma3, smollm2

MAX_LENGTH = 1024
KV_CACHE = 3 << 30  # bytes


def _encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt))
    return list(
        tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)
    )


def _params(workload: Workload, amateurs: list[list[int]], **common: Any) -> Any:
    from vllm_cold import Amateur, ColdParams

    if workload.preset is None:
        return ColdParams(**BASE, **common)
    given = [Amateur(prompt=ids) for ids in amateurs]
    return ColdParams.preset(workload.preset, amateurs=given, **common)  # type: ignore[arg-type]


def decode(llm: Any, workload: Workload) -> list[Record]:
    """Decode a workload three times."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    tokenizer = llm.get_tokenizer()
    requests: list[Request] = workload.make(workload.count)
    prompts = [_encode(tokenizer, request.prompt) for request in requests]
    amateurs = [[_encode(tokenizer, each) for each in request.amateurs] for request in requests]
    lora = None
    if workload.adapter is not None:
        number = sorted(path.name for path in ADAPTERS.iterdir()).index(workload.adapter) + 1
        lora = LoRARequest(workload.adapter, number, str(ADAPTERS / workload.adapter))
    common: dict[str, Any] = {
        "temperature": 0.0,
        "max_tokens": workload.max_tokens,
        "stop": list(workload.stop) or None,
    }

    def run(read: list[list[int]], params: Any, adapter: Any) -> list[Answer]:
        inputs = [{"prompt_token_ids": ids} for ids in read]
        outputs = llm.generate(inputs, params, lora_request=adapter, use_tqdm=True)
        kept = [output.outputs[0] for output in outputs]
        return [Answer(list(one.token_ids), one.finish_reason == "stop") for one in kept]

    plain = SamplingParams(**common)
    cold = run(prompts, [_params(workload, each, **common) for each in amateurs], lora)
    greedy = run(prompts, plain, lora)
    alone = run([each[0] for each in amateurs] if amateurs[0] else prompts, plain, None)
    return [Record(*found) for found in zip(prompts, amateurs, cold, greedy, alone, strict=True)]


def decode_all(model: ModelName) -> None:
    """Decode and keep the workloads of a model that are not kept yet."""
    missing = [w for w in WORKLOADS if w.model == model and load(w.name) is None]
    if not missing:
        return
    from vllm import LLM

    adapted = any(workload.adapter for workload in missing)
    llm = LLM(
        model=str({"smollm2": smollm2, "gemma": gemma3}[model].model_path()),
        dtype="float32",
        max_model_len=MAX_LENGTH,
        max_num_seqs=192,
        kv_cache_memory_bytes=KV_CACHE,
        block_size=32,
        use_tqdm_on_load=False,
        enable_lora=adapted,
        max_loras=2,
        max_lora_rank=16,
        additional_config={"cold": {"enabled": False}},
    )
    for workload in missing:
        save(workload.name, decode(llm, workload))


def score(workload: Workload, records: list[Record]) -> None:
    """Fill in what each model preferred at each step of the contrast's answers."""
    import torch
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM

    path = {"smollm2": smollm2, "gemma": gemma3}[workload.model].model_path()
    base: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    expert = base
    if workload.adapter is not None:
        from peft import PeftModel

        expert = PeftModel.from_pretrained(base, str(ADAPTERS / workload.adapter)).eval()

    def logits(model: Any, prompt: list[int], answer: list[int]) -> Any:
        ids = torch.tensor([prompt + answer])
        found = model(ids, logits_to_keep=len(answer) + 1).logits[0, :-1]
        return found.log_softmax(-1)

    with torch.inference_mode():
        for record in tqdm(records, desc=workload.name):
            answer = record.cold.tokens
            first = logits(expert, record.prompt, answer)
            if workload.adapter is not None:
                with expert.disable_adapter():
                    others = [logits(expert, record.prompt, answer)]
            else:
                others = [logits(base, prompt, answer) for prompt in record.amateurs]
            amateurs = record.amateurs or [record.prompt]
            settings, weights = _params(workload, amateurs).combine()
            total = first + sum(
                w.weight * (z - first) for w, z in zip(weights, others, strict=True)
            )
            low = first.exp() < settings.alpha * first.exp().amax(-1, keepdim=True)
            record.expert_best = first.argmax(-1).tolist()
            record.amateur_best = others[0].argmax(-1).tolist()
            record.rescored = total.masked_fill(low, -torch.inf).argmax(-1).tolist()


def score_all() -> None:
    """Score and keep the workloads that are not scored yet."""
    for workload in WORKLOADS:
        records = load(workload.name)
        if records is not None and not records[0].rescored:
            score(workload, records)
            save(workload.name, records)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=(*get_args(ModelName), "score"))
    chosen = parser.parse_args().what
    if chosen == "score":
        score_all()
    else:
        decode_all(chosen)

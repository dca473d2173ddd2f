# SPDX-License-Identifier: Apache-2.0
"""Which kernels the doctor finds in use here, for scoring and for LoRA, and whether they agree."""

from __future__ import annotations

import os

from vllm_cold.tools.doctor.report import Entry, Status, failure, without_home


def scoring() -> list[Entry]:
    """Which scoring backend serves which device, and why not another."""
    from vllm.platforms import current_platform

    from vllm_cold.ops import cpu_library, registry, scoring_cpu

    asked = os.environ.get(registry.ENV)
    here = current_platform.device_type
    entries = [Entry(registry.ENV, f"{asked}: asked for by hand" if asked else "not set")]
    reason = cpu_library.missing()
    if reason is None:
        what = f"{without_home(str(cpu_library.PATH))}, instruction set {scoring_cpu.best_isa()}"
        entries.append(Entry("C++ library", what, Status.OK))
    else:
        entries.append(Entry("C++ library", reason, Status.WARNING))
    for device in dict.fromkeys((here, *registry.AUTOMATIC)):
        entries.append(_picked(device, asked, in_use=device == here))
    try:
        entries.append(_agrees(here))
    except Exception as error:  # reported, beside which kernel it was
        entries.append(Entry("scores", failure(error), Status.PROBLEM))
    return entries


def _picked(device: str, asked: str | None, in_use: bool) -> Entry:
    """The backend for a type of device; a fallback matters only on the one in use."""
    import torch

    from vllm_cold.ops import registry

    order = (asked,) if asked else registry.AUTOMATIC.get(device, ("torch",))
    name = f"on {device}" + (" (in use)" if in_use else "")
    try:
        where = torch.device(device)
    except RuntimeError:  # "npu" is known to torch with torch_npu only
        return Entry(name, f"this torch has no such device (order: {', '.join(order)})")
    reasons: list[str] = []
    for candidate in order:
        try:
            reason = registry.load(candidate).missing(where)
        except Exception as error:  # reported: the next candidate may do
            reason = failure(error)
        if reason is None:
            text = f"{candidate}: {registry.BACKENDS[candidate]}"
            status = Status.OK if not reasons else Status.WARNING
            text = "; ".join([text, *reasons])
            return Entry(name, text, status if in_use else Status.FACT)
        reasons.append(f"not {candidate}: {reason}")
    return Entry(name, "; ".join(reasons), Status.PROBLEM if in_use else Status.FACT)


def _agrees(device: str) -> Entry:
    """Scores of a few random groups against the reference, on the device in use, in the form that
    the logits processors use: in place, with statistics.
    """
    from dataclasses import replace

    import torch

    from vllm_cold.ops import Groups, contrastive_scores, registry

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 1000, generator=generator) * 4
    groups = Groups(
        torch.tensor([[0, 3, -1], [1, 4, 6], [2, 5, -1]]),
        torch.tensor([[0.0, 0.0], [-0.5, 0.25], [-2.0, 0.0]]),
        torch.tensor([0.01, 0.1, 1.0]).log(),
    )
    right_counts = torch.zeros(3, 3, dtype=torch.int64)
    right = contrastive_scores(logits, groups, statistics=right_counts, backend="reference")

    moved = replace(
        groups,
        rows=groups.rows.to(device),
        weights=groups.weights.to(device),
        log_alpha=groups.log_alpha.to(device),
    )
    counts = torch.zeros_like(right_counts, device=device)
    got = contrastive_scores(logits.to(device, copy=True), moved, inplace=True, statistics=counts)
    got = got.cpu()
    chosen = registry.choose(counts.device)
    wrong = []
    if not bool(((got[:3] > -torch.inf) == (right > -torch.inf)).all()):
        wrong.append("other candidates than the reference")
    elif (error := float((got[:3] - right).nan_to_num(0.0).abs().max())) > 1e-4:
        wrong.append(f"scores off by {error:.3g}")
    if not torch.equal(got[3:], logits[3:]):
        wrong.append("an amateur's row was changed")
    if not torch.equal(counts.cpu(), right_counts):
        wrong.append("other statistics than the reference")
    if wrong:
        return Entry("scores", f"{chosen}: {'; '.join(wrong)}", Status.PROBLEM)
    return Entry("scores", f"{chosen}: those of the reference, within 1e-4", Status.OK)


def lora() -> list[Entry]:
    """What computes LoRA."""
    from vllm.platforms import current_platform

    from vllm_cold.cpu import cpu_platform
    from vllm_cold.npu import npu_platform

    if npu_platform.is_npu():
        if (named := npu_platform.named()) != npu_platform.STOCK:
            return [Entry("LoRA", f"not known to CoLD: {named}", Status.PROBLEM)]
        what = f"{npu_platform.choice()} in engines with CoLD, else {npu_platform.STOCK}"
        return [Entry("LoRA", what, Status.OK)]
    wrapper = current_platform.get_punica_wrapper()
    if not current_platform.is_cpu():
        return [Entry("LoRA", f"vLLM's own ({wrapper})")]
    from vllm_cold.cpu import lora_ops

    asked = os.environ.get(cpu_platform.ENV)
    chosen = cpu_platform.choice()
    missing = lora_ops.missing()
    entries = [
        Entry(cpu_platform.ENV, f"{asked}: asked for by hand" if asked else "not set"),
        Entry("wrapper", wrapper),
    ]
    if wrapper not in cpu_platform.WRAPPERS.values():
        return [*entries, Entry("LoRA", "the platform brings its own")]
    if chosen == "cpp":
        from vllm_cold.ops import cpu_library

        isa = cpu_library.ISAS[cpu_library.best_isa()]
        return [*entries, Entry("LoRA", f"C++ kernels, instruction set {isa}", Status.OK)]
    if chosen == "torch":
        why = "asked for" if asked else missing or ""
        return [*entries, Entry("LoRA", f"torch operations, slow: {why}", Status.WARNING)]
    return [*entries, Entry("LoRA", "vLLM's own; CoLD requests are refused", Status.PROBLEM)]

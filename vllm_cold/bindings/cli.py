# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``AsyncEngineArgs.add_cli_args`` and ``EngineArgs.from_cli_args``.

Why: ``vllm serve --sampler cold --cold-alpha ... --cold-beta ...``, which also makes them keys of
vLLM's ``--config`` YAML. The values end up in ``additional_config["cold"]``, vLLM's carrier for
settings of extensions. ``add_cli_args`` loads the plugins itself, so the first call in a process
runs before it is wrapped; hence the hook on what it calls right after that,
``EngineArgs.add_cli_args``. Since: 0.23 to 0.33. Can go: when plugins can add arguments.
"""

import argparse
from collections.abc import Callable
from typing import Any

from vllm_cold.bindings.patching import wrap
from vllm_cold.settings import ADAPTIVE, DEFAULT_ALPHA, DEFAULT_BETA, DEFAULT_BETA_MAX, beta_option


def install() -> None:
    """Wrap the two methods."""
    from vllm.engine.arg_utils import EngineArgs

    wrap(EngineArgs, "add_cli_args", _make_add)
    wrap(EngineArgs, "from_cli_args", _make_from)


def _make_add(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_cli_args(parser: Any) -> Any:
        parser = original(parser)
        group = parser.add_argument_group(
            title="Contrastive LoRA Decoding (vllm-cold)",
            description="Defaults for requests that name a LoRA adapter; each request can "
            "override them with vllm_xargs (cold, cold_alpha, cold_beta, cold_beta_max, "
            "cold_expert_top_k, cold_amateur).",
        )
        group.add_argument(
            "--sampler",
            choices=("cold",),
            default=None,
            help="'cold': decode every request that names an adapter with CoLD.",
        )
        group.add_argument(
            "--cold-alpha",
            type=float,
            default=None,
            help=f"Plausibility threshold in (0, 1], default {DEFAULT_ALPHA}.",
        )
        group.add_argument(
            "--cold-beta",
            type=beta_option,
            default=None,
            help=f"Contrast strength, >= 0, default {DEFAULT_BETA}; or '{ADAPTIVE}': chosen at "
            "each step.",
        )
        group.add_argument(
            "--cold-beta-max",
            type=float,
            default=None,
            help=f"The most that an adaptive beta reaches, >= 0, default {DEFAULT_BETA_MAX}.",
        )
        group.add_argument(
            "--cold-expert-top-k",
            type=int,
            default=None,
            help="Cap on the candidates: the expert's k most probable tokens; default none.",
        )
        return parser

    return add_cli_args


def _make_from(original: Callable[..., Any]) -> Callable[..., Any]:
    def from_cli_args(cls: type[Any], args: argparse.Namespace) -> Any:
        engine_args = original(cls, args)
        given = {
            key: value
            for key in ("alpha", "beta", "beta_max", "expert_top_k")
            if (value := getattr(args, f"cold_{key}", None)) is not None
        }
        sampler = getattr(args, "sampler", None)
        if sampler is None and not given:
            return engine_args
        additional = dict(engine_args.additional_config or {})
        base = additional.get("cold")
        if base is None or isinstance(base, bool):
            base = {"enabled": bool(base)}
        if not isinstance(base, dict):
            return engine_args  # refused with its own message when the engine is configured
        cold = dict(base)
        if sampler == "cold":
            cold["enabled"] = True
        additional["cold"] = {**cold, **given}
        engine_args.additional_config = additional
        return engine_args

    return from_cli_args

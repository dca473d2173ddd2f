# SPDX-License-Identifier: Apache-2.0
"""``vllm serve --sampler cold --cold-alpha ... --cold-beta ...``, for vLLM's parser and its engine
arguments. ``AsyncEngineArgs.add_cli_args`` loads the plugins itself, so the first call in a process
runs before it could be wrapped; it calls the one that is right after that. What reads values is
loaded with the first one.
"""

import argparse
import re
from collections.abc import Callable
from typing import Any

from vllm_cold.compat.engine import cold_setting
from vllm_cold.errors import ColdError
from vllm_cold.settings.table import ENGINE, REQUEST_KEYS, check, merge, read

_SAMPLER = "--sampler"
_RULE = "--cold-rule"
_MIDDLEWARE = "vllm_cold.frontend.serving.Header"


class RuleOption(argparse.Action):
    """A command line's option for the rule: its name, or "module:Class" for one of the user's own,
    which can then be named. The latter are listed at the option's ``dest`` with an s.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store one; argparse calls this."""
        if ":" in values:
            paths = f"{self.dest}s"
            setattr(namespace, paths, [*(getattr(namespace, paths) or ()), values])
        else:
            setattr(namespace, self.dest, values)


def _checked(name: str) -> Callable[[str], Any]:
    """Argparse's ``type`` of a setting; argparse puts the option's name in front of the error."""

    def checked(text: str) -> Any:
        try:
            value = check(name, read(name, text), "")
            if name == "without":
                from vllm_cold.settings.source_readers import read_without

                read_without("", value)
            return value
        except ColdError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error.problem}") from error

    return checked


def _option(name: str) -> str:
    return "--cold-" + name.replace("_", "-")


def add_options(parser: Any) -> Any:
    """Add vllm-cold's options to vLLM's parser, and return it."""
    group = parser.add_argument_group(
        title="contrastive decoding (vllm-cold)",
        description="Defaults for requests that name a LoRA adapter, or, with "
        f"{_option('without')}, for chats; each request can override them with vllm_xargs "
        f"({', '.join(REQUEST_KEYS)}).",
    )
    if _SAMPLER not in parser._option_string_actions:  # else it is vLLM's own
        group.add_argument(
            _SAMPLER,
            choices=("cold",),
            default=None,
            help="'cold': decode every request that names an adapter with a contrast.",
        )
    for name, setting in ENGINE.items():
        if name != "rule":
            option = _option(name)
            group.add_argument(option, type=_checked(name), default=None, help=setting.about)
            continue
        group.set_defaults(cold_rules=None)
        group.add_argument(
            _RULE,
            action=RuleOption,
            metavar="NAME or MODULE:CLASS",
            help=f"{setting.about} Or a rule of your own, which can then be named; may be "
            "given again.",
        )
    return parser


def _given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line has, by their keys. A parser may lack options of
    ours and of vLLM's: somebody else's may have made ``args``.
    """
    settings = {key: getattr(args, f"cold_{key}", None) for key in ENGINE}
    settings["rules"] = getattr(args, "cold_rules", None)
    settings["enabled"] = True if getattr(args, "sampler", None) == "cold" else None
    return {key: value for key, value in settings.items() if value is not None}


def add_middleware(args: argparse.Namespace) -> None:
    """Have the server tell clients what was used, if contrastive decoding may be used there."""
    cold = cold_setting(getattr(args, "additional_config", None))
    asks = _given_options(args) or cold not in (None, False)
    if not asks and not getattr(args, "enable_lora", False):
        return
    if isinstance(middleware := getattr(args, "middleware", None), list):
        args.middleware = [*(m for m in middleware if m != _MIDDLEWARE), _MIDDLEWARE]


def with_defaults(engine_args: Any, args: argparse.Namespace) -> Any:
    """Return vLLM's engine arguments with the command line's settings as the engine's defaults.

    Raises:
        SystemExit: one of them is wrong.
    """
    options = _given_options(args)
    additional = dict(engine_args.additional_config or {})
    base = additional.get("cold")
    if base is None or isinstance(base, bool):
        base = {"enabled": bool(base)}
    if not options or not isinstance(base, dict):
        return engine_args  # what is no mapping is refused when the engine is configured
    from vllm_cold.settings.arguments import parse_engine_defaults

    try:
        cold = merge(options, prefix="--cold-", defaults=base)
        if options.get("rules") and isinstance(base.get("rules"), list):
            cold["rules"] = [*base["rules"], *options["rules"]]
        parse_engine_defaults(cold)
    except ColdError as error:
        key = re.findall(r"\w+", error.field)[-1]  # of additional_config["cold"]["key"]
        option = _RULE if key == "rules" else _option(key)
        wrong = ColdError(option, error.value, error.problem)
        raise SystemExit(f"vllm: error: {wrong}") from error
    additional["cold"] = cold
    engine_args.additional_config = additional
    return engine_args

# SPDX-License-Identifier: Apache-2.0
"""Options that ``explain`` and ``tune`` have in common: what decodes, and what is contrasted."""

import argparse

from vllm_cold.settings.table import CONTRAST
from vllm_cold.tools.adapters import ENGINE_OPTIONS
from vllm_cold.tools.contrast_args import OPTIONS, option_of


def add_models(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Describe the options for models and adapters, or a server that has them; return the group
    of the server that is started.
    """
    models = parser.add_argument_group("model and adapters").add_argument
    models(
        "--model",
        help="the base model: a folder with config.json, or a hub name; with --url, its name on "
        "the server (default: the adapter's, or the first)",
    )
    models(
        "--adapter",
        metavar="[NAME=]FOLDER",
        help="the expert's LoRA adapter; with --url, its name on the server (default: none, the "
        "expert is the base model)",
    )
    models("--url", help="use this server, such as http://localhost:8000, instead of starting one")
    models(
        "--insecure-http",
        action="store_true",
        default=None,
        help="send a key or a password unencrypted (http://) to another machine",
    )
    group = parser.add_argument_group("the server that is started (without --url)")
    for name, option in ENGINE_OPTIONS.items():
        group.add_argument(option_of(name), **option)
    return group


def add_contrast(parser: argparse.ArgumentParser) -> None:
    """Describe the options that say what is contrasted with."""
    group = parser.add_argument_group(
        "what to contrast with",
        "By default the base model; with another prompt the adapter itself. As a request's cold_*\n"
        "keys, for all prompts that do not say it themselves. Repeated, an option has a value for\n"
        "each amateur, '' for none but in --weights; --without alone leaves out all that it names.",
    )
    for name in OPTIONS:
        metavar = "[NAME=]FOLDER" if name == "amateur" else name.split("_")[-1].upper()
        group.add_argument(
            option_of(name), action="append", metavar=metavar, help=CONTRAST[name].about
        )

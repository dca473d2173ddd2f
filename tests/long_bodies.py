# SPDX-License-Identifier: Apache-2.0
"""Flat arguments as long as a client likes: what they cost must be what their length costs."""

import json
from collections.abc import Mapping
from typing import Any


def long_arguments(size: int, amateurs: int) -> Mapping[str, dict[str, Any]]:
    """About ``size`` bytes of each kind, for so many amateurs, by what they are full of."""
    several = {"cold_weights": [-0.1] * amateurs} if amateurs > 1 else {}
    text = {"type": "text", "text": "a"}
    media = {"type": "image_url", "image_url": {"url": "http://localhost/1"}, "uuid": "1"}

    def messages(part: Any, length: int) -> str:
        return json.dumps([{"role": "user", "content": [part] * (length // len(json.dumps(part)))}])

    def texts(each: str) -> str:
        return each * (size // len(each))

    found = {
        "spans": {"cold_part": texts("0:1,")[:-1]},
        "blanks": {"cold_part": " " * size + "x"},
        "positions": {"cold_part": [0, 1] * (size // 6)},
        "indices": {"cold_without": texts("1,")[:-1]},
        "roles": {"cold_without": ["tool"] * (size // 8)},
        "messages": {"cold_amateur_messages": messages(text, size)},
        "media": {"cold_amateur_messages": messages(media, size)},
        "brackets": {"cold_amateur_messages": "[" * size},
        "prompt": {"cold_amateur_prompt": texts("a ")},
        "images": {"cold_images": texts("noise:1,")},
        "parameters": {
            "cold_rule": "mti",
            "cold_rule_parameters": json.dumps({f"p{i}": 1 for i in range(size // 12)}),
        },
        "rule": {"cold_beta": texts("mti ")},
        "adapter": {"cold_amateur": texts("one ")},
        "unknown": {"cold_" + texts("a"): 1},
        "keys": {f"cold_{i}": 1 for i in range(size // 12)},
    }
    if amateurs == 1:
        weights = {"weights": {"cold_weights": [0.5] * (size // 5)}}
        return found | weights | {"rules": {"cold_weights": ["mti"] * (size // 7)}}
    own = {
        "own messages": [messages(text, size // amateurs)] * amateurs,
        "own media": [
            messages({**media, "uuid": f"{i}"}, size // amateurs) for i in range(amateurs)
        ],
    }
    return {
        **{name: {**several, **said} for name, said in found.items()},
        **{name: {"cold_amateur_messages": said} for name, said in own.items()},
    }

# SPDX-License-Identifier: Apache-2.0
"""What was found: ``report.json``, the terminal, and the line that serves it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_cold.errors import ColdError
from vllm_cold.settings.arguments import parse_engine_defaults
from vllm_cold.settings.table import PREFIX
from vllm_cold.tools.adapters import Adapter
from vllm_cold.tools.contrast_args import ROW_KEYS, endpoint, request_args
from vllm_cold.tools.own_server import words_of
from vllm_cold.tools.tune.answers import Job
from vllm_cold.tools.tune.baselines import BETTER, STRONGER
from vllm_cold.tools.tune.grid import GREEDY, Setting
from vllm_cold.tools.tune.task import Task
from vllm_cold.tools.tune.verdict import Verdict, percent, points

FORMAT = 9  # of report.json


def server_defaults(args: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a request's flat arguments as a server's defaults, by the setting's name; None where a
    server has no defaults for them, and each request has to send them.
    """
    defaults = {key.removeprefix(PREFIX): value for key, value in args.items()}
    try:
        parse_engine_defaults(defaults)
    except ColdError:
        return None
    return defaults


def serve_line(
    model: str,
    adapters: Sequence[Adapter],
    engine: Mapping[str, Any],
    defaults: Mapping[str, Any] | None,
) -> str:
    """Return the command that serves what was measured, quoted for a shell. vllm-cold's defaults
    are those of ``server_defaults``; None for a server that decodes greedily.
    """
    # What is said of contrastive decoding there is for the server that tunes.
    words = ["vllm", "serve", model, *words_of({**engine, "additional_config": None})]
    if adapters:
        words += ["--lora-modules", *(adapter.module for adapter in adapters)]
    if defaults is not None:
        words += ["--sampler", "cold"]
        for path in engine.get("additional_config", {}).get("cold", {}).get("rules", ()):
            words += ["--cold-rule", path]
        for name, value in defaults.items():
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += ["--cold-" + name.replace("_", "-"), text]
    return shlex.join(words)


def _advice(task: Task, judged: Verdict) -> tuple[str, list[str]]:
    """Return what to paste, a command or the fields of a request's body, and what contrastive
    requests have to send in addition. Of a baseline it is a body with the prompt of a problem.
    """
    setting = judged.picked
    if not setting.args:
        use = GREEDY if judged.use is None else setting
        _, prompt = endpoint(Job(use, task.held_out[0]).reads)
        line = json.dumps({"model": task.expert or task.model, **prompt, "temperature": 0})
        if task.server is None:
            line = serve_line(task.model, task.adapters, task.engine, None)
        return line, []
    # Where a baseline shows nothing, there is nothing to contrast with.
    problem = next(each for each in task.problems if Job(setting, each).args)
    varies = setting.baseline is not None or any(p.row_keys for p in task.problems)
    args = request_args(Job(setting, problem).args, None if varies else task.model)
    rows = []
    if varies:
        of_rows = {*ROW_KEYS}.union(*(p.row_keys for p in task.problems)) - setting.args.keys()
        args = {key: value for key, value in args.items() if key not in of_rows}
        rows = [f"a prompt and {', '.join(ROW_KEYS)} as answers.jsonl has them for this setting"]
    must = [f'"vllm_xargs": {json.dumps(args)}', *rows]
    if task.server is not None:
        sent = args if judged.gain else {"cold": 0}
        line = json.dumps({"model": task.expert or task.model, "vllm_xargs": sent})
        return line, must if judged.only else must[1:]
    defaults = None if varies else server_defaults({**task.args, **setting.args})
    served = (defaults or {}) if judged.gain else None
    line = serve_line(task.model, task.adapters, task.engine, served)
    return line, [] if defaults is not None and not judged.only else must


def make_report(
    task: Task, first: list[str], judged: Verdict, changes: list[Any], more: list[str]
) -> dict[str, Any]:
    """Make the content of report.json, for msgspec: ``first`` is what the baselines showed,
    ``changes`` the held-out problems whose score changed, ``more`` further notes.
    """
    options, best = task.options, judged.best
    serve, must = _advice(task, judged)
    return {
        "format": FORMAT,
        "gain": judged.gain,
        "headline": judged.headline(),
        "first": first,
        "best": {"name": str(best.setting), **best.setting.values},
        "test": best,
        "settings": [
            {
                "name": str(setting),
                "picked": setting == judged.picked,
                "dev": row,
                "test": judged.held_out.get(setting),
            }
            for setting, row in judged.dev.items()
        ],
        "changes": changes,
        "notes": [*_notes(task, judged, must), *more],
        "serve": serve,
        "run": {
            "data": Path(options.data).name,
            "contrast": task.args,
            "match": options.match,
            "seed": options.seed,
            "test_fraction": options.test_fraction,
            **{name: what for name, what in task.made_with().items() if name != "files"},
        },
    }


def _notes(task: Task, judged: Verdict, must: Sequence[str]) -> list[str]:
    """Write what a reader has to know of the verdict; ``must`` is what requests must send."""
    options, best, score = task.options, judged.best, judged.best.answered
    notes = [
        f"On the {score.count} held-out problems greedy scores {percent(score.greedy)} and "
        f"{best.setting} {percent(score.cold)}: better on {score.better}, worse on {score.worse} "
        "(two-sided sign test, for right and wrong McNemar's exact one)."
    ]
    stop = f", stop {json.dumps(options.stop)}" if options.stop else ""
    notes.append(
        "Measured with temperature 0 in each request; sampling was not tested. The requests had "
        f"max_tokens {options.max_tokens}{stop}."
    )
    if must and judged.use is best:
        who = "Contrastive requests"
        if judged.only:
            who = "Where the text is known to answer, requests"
        notes.append(f"{who} must also send {' and '.join(must)}.")
    if task.server is not None and not task.server.has_cold:
        notes.append("The server has no vllm-cold, so that no contrast was tried.")
    if task.repeated:
        notes.append(f"Rows that repeat an earlier prompt and were left out: {task.repeated}.")
    if task.lacks is not None and Setting(baseline=STRONGER) in task.baselines:
        text = json.dumps(options.better or BETTER[task.lacks])
        notes.append(f"The stronger prompt has {text} before the question (--better).")
    return notes


def show(console: Console, report: Mapping[str, Any], judged: Verdict, path: str) -> None:
    """Print table, notes and the line to paste, and at the end the verdict."""
    if report["first"]:
        console.print()
    console.print(_table(judged))
    console.print()
    for note in report["notes"]:
        console.print(Text(f"Note: {note}", style="dim"))
    console.print()
    how = "Serve it" if report["run"]["server"] is None else "Ask for it"
    if judged.picked.args:
        how += f" {'with' if judged.gain else 'without'} contrastive decoding"
    console.print(Text(f"{how}:", style="bold"))
    # As it is, without wrapping: it is to be copied.
    console.print(Text(report["serve"]), soft_wrap=True)
    console.print()
    console.print(Text(f"Written: {path}"), soft_wrap=True)
    style = "bold green" if judged.gain else "bold yellow"
    console.print(Text(report["headline"], style=style), soft_wrap=True)


def _table(judged: Verdict) -> Table:
    """Return a table of all settings on the dev problems."""
    first = next(iter(judged.dev.values()))
    dev, silent = first.answered, first.silent
    title = f"{dev.count} dev problems, which pick a setting; greedy: {percent(dev.greedy)}"
    if silent:
        title += f"\n{silent.count} whose text does not answer; greedy: {percent(silent.greedy)}"
    table = Table(
        title=title,
        caption="points: difference to greedy; the best of several looks better than it is",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("setting", overflow="fold")
    more = ("no answer: points",) if silent else ()
    for name in ("score", "points", "better/worse", "95 % interval", *more):
        table.add_column(name, justify="right", overflow="fold")
    for setting, row in judged.dev.items():
        dev, silent = row.answered, row.silent
        is_picked = setting == judged.picked
        table.add_row(
            f"{setting} (picked)" if is_picked else str(setting),
            percent(dev.cold),
            points(dev.difference),
            f"{dev.better}/{dev.worse}",
            dev.interval,
            *([points(silent.difference)] if silent else []),
            style="bold" if is_picked else "",
        )
    return table

# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs nothing beside it: no script, no network."""

from __future__ import annotations

import base64
import re
import struct

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from vllm_cold.tools.tune.heatmap import DPI
from vllm_cold.tools.tune.report import (
    SHOWN_CHANGES,
    Report,
    interval,
    p_value,
    percent,
    points,
    size,
)

_COUNTS = ("problems", "outputs")  # of Report.run, with names of our own
_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'">
<title>CoLD or greedy: {{ r.run.data }}</title>
<style>
:root {
  --page: #f6f7f9; --card: #fff; --ink: #1f2328; --dim: #59636e; --line: #d7dce2;
  --good: #116329; --good-bg: #e3f6e8; --flat: #7a4b00; --flat-bg: #fdf3dc; --code: #eef1f4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1318; --card: #171c23; --ink: #e3e8ee; --dim: #9aa5b1; --line: #303842;
    --good: #7ee2a0; --good-bg: #12301d; --flat: #f3c969; --flat-bg: #33270d; --code: #0f1318;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 0 0 .75rem; }
p { margin: 0 0 .6rem; max-width: 46rem; }
p, li, summary { overflow-wrap: anywhere; }
.dim, caption { color: var(--dim); font-size: .9rem; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.25rem 1.4rem; margin-top: 1.1rem;
}
.verdict { border-left: 6px solid var(--flat); background: var(--flat-bg); }
.verdict strong { color: var(--flat); font-size: 1.12rem; }
.verdict.gain { border-left-color: var(--good); background: var(--good-bg); }
.verdict.gain strong { color: var(--good); }
.verdict p:last-child { margin-bottom: 0; }
pre {
  background: var(--code); border: 1px solid var(--line); border-radius: 6px; margin: 0 0 .6rem;
  padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
pre.copy { user-select: all; }
pre span { white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
thead th { color: var(--dim); font-weight: 600; font-size: .85rem; white-space: normal;
  vertical-align: bottom; }
th:first-child, td[colspan] { text-align: left; }
tbody th { font-weight: 500; }
tr.best > * { font-weight: 700; background: var(--code); }
tr:last-child > * { border-bottom: 0; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 6px; background: #fff;
  margin: 0 auto; }
figcaption { color: var(--dim); font-size: .9rem; margin-top: .6rem; }
.bar { position: relative; height: 2.4rem; margin: 1rem 0 .3rem; }
.bar svg { width: 100%; height: 100%; display: block; }
details { border-top: 1px solid var(--line); padding: .55rem 0; }
details:first-of-type { border-top: 0; }
summary { cursor: pointer; }
summary .good { color: var(--good); } summary .bad { color: var(--flat); }
dl.run { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0; }
dl.run dt { color: var(--dim); } dl.run dd { margin: 0; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 1.2rem; } li { margin-bottom: .4rem; max-width: 46rem; }
</style>
</head>
<body>
<main>
<h1>CoLD or greedy?</h1>
<p class="dim">{{ r.run.data }}, adapter {{ r.run.adapter }}{% if r.run.amateur %} against \
{{ r.run.amateur }}{% endif %}, {{ r.run.model }}</p>

<section class="verdict{{ ' gain' if r.gain }}" aria-label="Verdict">
<p><strong>{{ r.headline }}</strong></p>
{% for text in r.details %}<p>{{ text }}</p>
{% endfor %}
</section>

<section>
<h2>{{ 'Serve it with CoLD' if r.gain else 'Serve it without CoLD' }}</h2>
<pre class="copy">{{ command(r.serve) }}</pre>
{% if not r.gain %}
<p class="dim">With the best setting, for which there is no evidence, it would be:</p>
<pre>{{ command(r.serve_best) }}</pre>
{% endif %}
</section>

<section>
<h2>{{ r.test.count }} held-out problems, which judge the setting</h2>
<div class="scroll">
<table>
<caption>They had no part in picking the setting. Test: {{ r.test.test }}, two-sided.</caption>
<thead><tr><th scope="col">decoding</th><th scope="col">score</th>
<th scope="col">to greedy, points</th><th scope="col">{{ confidence }} % interval</th>
<th scope="col">better / worse</th><th scope="col">p</th></tr></thead>
<tbody>
<tr><th scope="row">greedy</th><td>{{ percent(r.test.greedy) }}</td><td></td><td></td><td></td>
<td></td></tr>
<tr><th scope="row">CoLD, {{ r.best }}</th><td>{{ percent(r.test.cold) }}</td>
<td>{{ points(r.test.difference) }}</td><td>{{ interval(r.test) }}</td>
<td>{{ r.test.better }} / {{ r.test.worse }}</td><td>{{ p_value(r.test.p) }}</td></tr>
</tbody>
</table>
</div>
</section>

<section>
<h2>{{ dev.count }} dev problems, which pick the setting</h2>
<figure>
<img src="data:image/png;base64,{{ png }}" width="{{ width }}" height="{{ height }}" \
alt="Heat map of the difference to greedy for every \
alpha and beta; the table below has the same figures.">
<figcaption>The best of several settings looks better here than it is: it was picked for it. \
That is why held-out problems judge it.</figcaption>
</figure>
<div class="scroll" style="margin-top:1.2rem">
<table>
<caption>Greedy: {{ percent(dev.greedy) }}. Holm's correction allows for {{ compared }} settings \
having been looked at; * is significant after it.</caption>
<thead><tr><th scope="col">setting</th><th scope="col">score</th>
<th scope="col">to greedy, points</th><th scope="col">{{ confidence }} % interval</th>
<th scope="col">better / worse</th><th scope="col">p</th><th scope="col">p (Holm)</th></tr></thead>
<tbody>
{% for row in r.rows %}
{% if row.dev %}
<tr{% if row.setting == r.best %} class="best"{% endif %}>\
<th scope="row">{{ row.setting }}{{ ' (best)' if row.setting == r.best }}</th>
<td>{{ percent(row.dev.cold) }}</td>
<td>{{ points(row.dev.difference) }}{{ ' *' if row.significant }}</td>
<td>{{ interval(row.dev) }}</td><td>{{ row.dev.better }} / {{ row.dev.worse }}</td>
<td>{{ p_value(row.dev.p) }}</td><td>{{ p_value(row.p_holm) }}</td></tr>
{% else %}
<tr><th scope="row">{{ row.setting }}</th><td colspan="6" class="dim">\
is greedy decoding itself</td></tr>
{% endif %}
{% endfor %}
</tbody>
</table>
</div>
</section>

<section>
<h2>How much these data can show</h2>
<p>The smallest true difference that comes out significant four times in five, at the rate at \
which the two kinds of decoding differ here:</p>
<div class="scroll">
<table>
<thead><tr><th scope="col">held-out problems</th>
{% for count, _ in r.ladder %}<th scope="col">{{ count }}</th>{% endfor %}</tr></thead>
<tbody><tr><th scope="row">points</th>
{% for _, difference in r.ladder %}<td>{{ size(difference) if difference else 'none' }}</td>\
{% endfor %}</tr></tbody>
</table>
</div>
</section>

{% if r.changes %}
<section>
<h2>Where the two part</h2>
<p class="dim">Held-out problems on which the scores differ; at most {{ shown }} of each kind.\
</p>
{% for change in r.changes %}
<details>
<summary><span class="{{ 'good' if change.cold_score > change.greedy_score else 'bad' }}">\
{{ 'CoLD better' if change.cold_score > change.greedy_score else 'CoLD worse' }}</span>: \
{{ change.id }} <span class="dim">({{ score(change.greedy_score) }} to \
{{ score(change.cold_score) }})</span></summary>
<p class="dim">Prompt</p><pre>{{ change.prompt }}</pre>
<p class="dim">Answer</p><pre>{{ change.answers | join('\\n') }}</pre>
<p class="dim">Greedy</p><pre>{{ change.greedy }}</pre>
<p class="dim">CoLD</p><pre>{{ change.cold }}</pre>
</details>
{% endfor %}
</section>
{% endif %}

{% if r.notes %}
<section>
<h2>Notes</h2>
<ul>{% for note in r.notes %}<li>{{ note }}</li>{% endfor %}</ul>
</section>
{% endif %}

<section>
<h2>What was run</h2>
<dl class="run">
{% for name, value in run %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
</section>
</main>
</body>
</html>
"""


def render(report: Report, heatmap: bytes) -> str:
    """The page, with the heat map (PNG) inside."""
    # Names, prompts and outputs are anybody's text: escaped wherever they stand.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    width, height = _size(heatmap)
    compared = [row for row in report.rows if row.dev is not None]
    return environment.from_string(_TEMPLATE).render(
        r=report,
        dev=compared[0].dev,
        compared=len(compared),
        confidence=f"{100 * report.confidence:g}",
        png=base64.b64encode(heatmap).decode(),
        width=width,
        height=height,
        size=size,
        command=_command,
        percent=percent,
        points=points,
        interval=interval,
        p_value=p_value,
        score=lambda value: f"{value:.3g}",
        shown=SHOWN_CHANGES,
        run=[(name.replace("_", " "), _plain(name, value)) for name, value in report.run.items()],
    )


def _size(png: bytes) -> tuple[int, int]:
    """Width and height in CSS pixels: the picture has more of its own, and stays sharp."""
    width, height = struct.unpack(">II", png[16:24])
    return round(width * 96 / DPI), round(height * 96 / DPI)


def _command(line: str) -> Markup:
    """The line, escaped, with options that do not break at their hyphens."""
    return Markup(re.sub(r"(?<= )--[a-z0-9-]+", r"<span>\g<0></span>", str(escape(line))))  # noqa: S704


def _plain(name: str, value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        text = ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
        return text.replace("_", " ") if name in _COUNTS else text
    if isinstance(value, (list, tuple)):
        return ", ".join(repr(item) for item in value) or "none"
    return str(value)

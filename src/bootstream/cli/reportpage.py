"""The page of a report: one HTML file that needs nothing else, for light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from bootstream.block.stats import DeviceStats
from bootstream.cli import reportcharts as charts
from bootstream.cli.output import human_size, percent

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --soft: #57606a;
  --line: #d8dee4; --empty: #edf0f3; --cache: #848d97; --prefetch: #1f6feb; --demand: #c8420b; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0f1419; --text: #e6edf3; --soft: #9aa6b2; --line: #2d3640; --empty: #1d252e;
    --cache: #8b96a2; --prefetch: #58a6ff; --demand: #ff8a4c; } }
body { background: var(--page); color: var(--text); margin: 2rem auto; padding: 0 1rem;
  max-width: 52rem; font: 15px/1.5 system-ui, sans-serif; }
body.two { max-width: 100rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .2rem; }
p { margin: .2rem 0 .6rem; color: var(--soft); }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr));
  gap: 1rem 2rem; }
figure { margin: 0; }
figcaption { font-weight: 600; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; }
td.number, th.number { text-align: right; white-space: nowrap; }
.key span { display: inline-block; margin-right: 1.4rem; }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }
i.cache { background: var(--cache); } i.prefetch { background: var(--prefetch); }
i.demand { background: var(--demand); } i.untouched { background: var(--empty); }
text { font: 11px system-ui, sans-serif; fill: var(--soft); }
text.label { font-size: 12px; fill: var(--text); }
.grid { stroke: var(--line); fill: none; } .axis { stroke: var(--soft); fill: none; }
.untouched { fill: var(--empty); }
.cache { fill: var(--cache); } .prefetch { fill: var(--prefetch); } .demand { fill: var(--demand); }
.mark { fill: none; stroke-width: 3; } .bar { fill: none; stroke-width: 3; stroke-opacity: .65; }
.mark.cache, .bar.cache { stroke: var(--cache); }
.mark.prefetch, .bar.prefetch { stroke: var(--prefetch); }
.mark.demand, .bar.demand { stroke: var(--demand); }
.wait { fill: var(--demand); fill-opacity: .45; stroke: var(--demand); stroke-width: .5; }
"""


@dataclass(frozen=True, slots=True)
class Boot:
    """A device of a server, as a report shows it; texts are not escaped yet."""

    title: str
    template: str
    build: str
    artifact: str
    when: str
    trace: str
    stats: DeviceStats


def page(boots: Sequence[Boot]) -> str:
    """Return the page of one boot, or of several side by side on common scales."""
    scale = charts.scale_of(boot.stats for boot in boots)
    title = "Boot report: " + " and ".join(
        dict.fromkeys(f"{boot.template} {boot.artifact}" for boot in boots)
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>",
        f'<body class="{"one" if len(boots) == 1 else "two"}">',
        f"<h1>{escape(title)}</h1>",
        "<p>Time counts from the first read or request. Chunks of zeros are left out.</p>",
        _facts(boots),
        "<h2>Totals</h2>",
        _totals(boots),
        "<h2>Where in the image</h2>",
        "<p>Each square is a region, row by row from the image's start. Its colour says where "
        "most of what was touched of it came from; the stronger, the more of it was touched.</p>",
        _key(),
        _figures(boots, charts.map_chart, _region),
        "<h2>When</h2>",
        "<p>First touches: when, and where in the image.</p>",
        _figures(boots, lambda stats: charts.touches_chart(stats, scale)),
        "<h2>Waits</h2>",
        "<p>Reads that waited 10 ms or longer, from when to when.</p>",
        _figures(boots, lambda stats: charts.waits_chart(stats, scale)),
        "<h2>Requests</h2>",
        "<p>From when to when, and how many bytes of the image each brought. Demand: a reader "
        "waited when it began.</p>",
        _figures(boots, lambda stats: charts.requests_chart(stats, scale)),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _key() -> str:
    words = {
        "cache": "was in the cache",
        "prefetch": "prefetched",
        "demand": "fetched on demand",
        "untouched": "not touched",
    }
    items = "".join(f'<span><i class="{name}"></i>{text}</span>' for name, text in words.items())
    return f'<p class="key">{items}</p>'


def _region(stats: DeviceStats) -> str:
    return f"a square is {human_size(charts.region_of(stats) * stats.chunk_size)}"


def _figures(
    boots: Sequence[Boot],
    draw: Callable[[DeviceStats], str],
    note: Callable[[DeviceStats], str] = lambda _: "",
) -> str:
    figures = []
    for boot in boots:
        said = [escape(boot.title)] if len(boots) > 1 else []
        said += [text] if (text := note(boot.stats)) else []
        caption = f"<figcaption>{'; '.join(said)}</figcaption>" if said else ""
        figures.append(f"<figure>{caption}{draw(boot.stats)}</figure>")
    return f'<div class="side">{"".join(figures)}</div>'


def _facts(boots: Sequence[Boot]) -> str:
    rows = (
        ("template", [boot.template for boot in boots]),
        ("build", [boot.build for boot in boots]),
        ("artifact", [_artifact(boot) for boot in boots]),
        ("written", [boot.when for boot in boots]),
        ("trace", [boot.trace for boot in boots]),
    )
    head = _head(boots, "") if len(boots) > 1 else ""
    body = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>"
        for name, texts in rows
    )
    warned = "".join(
        f"<p>{escape(boot.title)}: there were more events than are kept; the totals are whole.</p>"
        for boot in boots
        if not boot.stats.complete
    )
    return f"<table>{head}{body}</table>{warned}"


def _artifact(boot: Boot) -> str:
    size = human_size(boot.stats.size)
    return f"{boot.artifact}, {size}, in chunks of {human_size(boot.stats.chunk_size)}"


def _head(boots: Sequence[Boot], kind: str) -> str:
    cells = "".join(f'<th class="{kind}">{escape(boot.title)}</th>' for boot in boots)
    return f"<tr><th></th>{cells}</tr>"


def _totals(boots: Sequence[Boot]) -> str:
    columns = [dict(_figures_of(boot.stats)) for boot in boots]
    rows = []
    for name in columns[0]:
        cells = "".join(f'<td class="number">{column[name]}</td>' for column in columns)
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    head = _head(boots, "number") if len(boots) > 1 else ""
    return f"<table>{head}{''.join(rows)}</table>"


def _figures_of(stats: DeviceStats) -> Iterator[tuple[str, str]]:
    """Yield names and values of the totals."""
    counters = stats.counters
    asked, fetched = counters["touched_bytes"], counters["fetched_bytes"]
    chunks = counters["touched_chunks"]
    yield "asked for (each chunk once)", f"{human_size(asked)} ({percent(asked, stats.size)})"
    for name, key in (
        ("of these, in the cache before", "cache_hits"),
        ("of these, prefetched", "prefetch_hits"),
        ("of these, fetched on demand", "demanded"),
    ):
        yield name, f"{counters[key]:.0f} chunks ({percent(counters[key], chunks)})"
    yield "fetched", human_size(fetched)
    yield "fetched, as stored", human_size(counters["stored_bytes"])
    wasted = counters["wasted_bytes"]
    yield "prefetched and not asked for", f"{human_size(wasted)} ({percent(wasted, fetched)})"
    yield "requests on demand", f"{counters['requests']:.0f}"
    yield "requests ahead", f"{counters['prefetches']:.0f}"
    yield "requests sent twice", f"{counters['hedges']:.0f}"
    yield "reads that waited", f"{counters['waits']:.0f}"
    yield "waited, all together", f"{counters['wait_ms'] / 1000:.2f} s"
    for name, key in (
        ("half of the waits within", "wait_p50_ms"),
        ("9 of 10 within", "wait_p90_ms"),
        ("99 of 100 within", "wait_p99_ms"),
        ("the longest wait", "wait_max_ms"),
    ):
        yield name, f"{counters[key]:.1f} ms"

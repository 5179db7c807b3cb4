"""A report's text and tables, as Markdown and as one self-contained page."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import isnan
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from spinup_plugins.runs.files import file_name
from spinup_plugins.runs.references import Reference, relation
from spinup_plugins.runs.statistics import RESAMPLES, Estimate

if TYPE_CHECKING:
    from spinup_plugins.runs.report import Comparison

__all__ = ["Block", "Heading", "Image", "Table", "blocks", "markdown", "page"]


class Heading(NamedTuple):
    """A heading.

    :param text: what it says
    :param level: 1 for the title
    """

    text: str
    level: int = 2


class Table(NamedTuple):
    """A table.

    :param caption: what it shows
    :param header: names of columns
    :param rows: texts of cells
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Image(NamedTuple):
    """A figure.

    :param file: its name
    :param caption: what it shows
    """

    file: str
    caption: str

    @property
    def title(self) -> str:
        """The caption's first sentence."""
        return self.caption.partition(". ")[0]


Block: TypeAlias = str | Heading | Table | Image
"""A piece of the report; a text is a paragraph."""

_INTERVAL = f"95 % interval of the bootstrap over seeds, stratified by environment ({RESAMPLES:,} resamples, percentiles)"


def blocks(comparison: "Comparison", images: Mapping[str, bytes], fractions: Sequence[float]) -> list[Block]:
    """Say everything that a comparison comes to.

    :param comparison: the comparison
    :param images: the figures that there are, by name of file
    :param fractions: normalised scores of the table of sample efficiency
    """
    found: list[Block] = [Heading("Comparison of training runs", 1), _summary(comparison)]
    found.append(
        "IQM is the interquartile mean over seeds: of the middle half of them, of all where there are fewer than four. "
        f"Intervals, in brackets, and bands are the {_INTERVAL}; a single seed has none. "
        "After Agarwal et al. 2021, arXiv:2108.13264."
    )
    if any(run.measure == "training" for group in comparison.groups for run in group.runs):
        found.append(
            "Those marked (training) are returns of training episodes, with exploration: they are compared with their like "
            "alone, and aggregates are of evaluations where there are any."
        )
    found += _overall(comparison, images)
    for env in comparison.envs:
        found += _environment(comparison, env, images, fractions)
    found += [Heading("Sources"), _sources(comparison)]
    return found


def _summary(comparison: "Comparison") -> str:
    runs = sum(len(group.runs) for group in comparison.groups)
    numbers = ((len(comparison.labels), "algorithm"), (len(comparison.envs), "environment"), (runs, "run"))
    return ", ".join(f"{n} {name}{'s' if n > 1 else ''}" for n, name in numbers) + "."


def _overall(comparison: "Comparison", images: Mapping[str, bytes]) -> Iterator[Block]:
    yield Heading("All environments")
    rows: list[Sequence[str]]
    rows = [(env, _return(scale.low), _return(scale.high), scale.source) for env, scale in comparison.scales.items()]
    yield Table("Normalised scores: returns that are 0 and 1.", ("environment", "0", "1", "from what to what"), rows)
    envs = comparison.common
    if not envs:
        yield "No environment has runs of all: there is no aggregate and no performance profile."
    else:
        where = ", ".join(envs) + (" (those that all have)" if len(envs) < len(comparison.envs) else "")
        rows = []
        for label, estimate in comparison.aggregates.items():
            seeds = [len(group.runs) for group in comparison.groups if group.label == label and group.env in envs]
            rows.append((label, str(sum(seeds)), _score(estimate)))
        yield Table(f"IQM of normalised final scores on {where}.", ("algorithm", "runs", "IQM"), rows)
        if "profile.png" in images:
            caption = "Performance profile. Fraction of runs that score more than τ (normalised final return)"
            yield Image("profile.png", f"{caption} on {where}; runs as in the table above. Band: {_INTERVAL}.")
    if comparison.pairs:
        rows = [(pair.x, pair.y, ", ".join(pair.envs), _score(pair.probability)) for pair in comparison.pairs]
        caption = "Probability that a run of X ends higher than one of Y, over the environments that both have; ties are half."
        yield Table(caption, ("X", "Y", "environments", "P(X > Y)"), rows)
        caption = "Probability of improvement. By final returns of as many seeds as in the tables below"
        yield Image("improvement.png", f"{caption}. Bar: {_INTERVAL}.")


def _environment(
    comparison: "Comparison", env: str, images: Mapping[str, bytes], fractions: Sequence[float]
) -> Iterator[Block]:
    groups, scale = comparison.on(env), comparison.scales[env]
    yield Heading(env)
    rows: list[Sequence[str]]
    rows = [
        (
            group.label,
            str(len(group.runs)),
            group.steps,
            str(group.final) + (" (one seed: no interval)" if len(group.runs) == 1 else ""),
            _return(float(group.finals.mean())) + (f" ± {_return(float(group.finals.std()))}" if len(group.runs) > 1 else ""),
            group.of,
        )
        for group in groups
    ]
    yield Table(
        "Final returns. ±: standard deviation over seeds.", ("algorithm", "seeds", "steps", "IQM", "mean", "mean of"), rows
    )
    name = f"curves-{file_name(env)}.png"
    if name in images:
        seeds = _seeds({group.label: group.curve.n for group in groups if group.curve is not None})
        yield Image(
            name,
            f"Returns on {env} over environment steps. IQM over seeds (solid) and mean (dotted), interpolated between "
            f"evaluations, as far as all seeds go; seeds: {seeds}. Band: {_INTERVAL}. Horizontal: published numbers, as "
            "in the table.",
        )
    name = f"wallclock-{file_name(env)}.png"
    if name in images:
        seeds = _seeds({group.label: group.wall_clock.n for group in groups if group.wall_clock is not None})
        yield Image(
            name,
            f"Returns on {env} over wall-clock time. In seconds of training, on whatever machines the runs were on; lines and "
            f"bands as above; seeds whose times are known: {seeds}.",
        )
    rows = []
    for group in groups:
        if group.curve is not None:
            reached = (comparison.reached(group, fraction) for fraction in fractions)
            rows.append((group.label, *("not reached" if isnan(steps) else _count(int(steps)) for steps in reached)))
    if rows:
        header = [f"{fraction:g} ({_return(scale.low + fraction * (scale.high - scale.low))})" for fraction in fractions]
        yield Table("Environment steps until the IQM first has a normalised score (return).", ("algorithm", *header), rows)
    references = list(dict.fromkeys(each for group in groups for each in comparison.references(group)))
    if references:
        yield Table(
            "Published: the best mean over seeds at no more steps, or at the fewest, and Spinning Up's curve. "
            "†: another version, which pays about the same. Numbers of other versions without the mark are not comparable.",
            ("algorithm", "return", "spread", "seeds", "steps", "environment", "measure", "source"),
            [_reference(each, env) for each in references],
        )


def _reference(each: Reference, env: str) -> tuple[str, ...]:
    mark = {"same": "", "comparable": " †", "other": " (another version)"}[relation(each.env, env) or "same"]
    spread = f"{each.spread} ({each.spread_of or 'of what is not stated'})" if each.spread else ""
    return (
        each.algo.upper(),
        _return(each.value),
        spread,
        "not stated" if each.n_seeds is None else str(each.n_seeds),
        "not stated" if each.timesteps is None else _count(each.timesteps),
        each.env + mark,
        each.metric,
        f"{each.source}, {each.url}",
    )


def _seeds(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{label} {n}{' (no band)' if n == 1 else ''}" for label, n in counts.items())


def _sources(comparison: "Comparison") -> Table:
    rows = [
        (group.label, group.env, "?" if run.seed is None else str(run.seed), run.origin, run.variant, str(run.folder))
        for group in comparison.groups
        for run in group.runs
    ]
    return Table(
        "Runs that were found.", ("algorithm", "environment", "seed", "written by", "settings that differ", "folder"), rows
    )


def _return(value: float) -> str:
    return str(Estimate(value, None))


def _score(estimate: Estimate) -> str:
    interval = "" if estimate.interval is None else f" [{estimate.interval[0]:.2f}, {estimate.interval[1]:.2f}]"
    return f"{estimate.value:.2f}{interval}"


def _count(n: int) -> str:
    return f"{n:,}"


def _numeric(table: Table) -> list[bool]:
    """Whether a column's cells begin with a digit or a minus sign."""
    columns = zip(*table.rows, strict=True)
    return [all(cell[:1].isdigit() or cell[:1] == "-" for cell in column) for column in columns]


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(found: Sequence[Block]) -> str:
    """Return blocks as Markdown that refers to the figures beside it."""
    return "\n\n".join(map(_as_markdown, found)) + "\n"


def _as_markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain(block.text)}"
    if isinstance(block, Image):
        return f"![{_plain(block.title)}]({block.file})\n\n{_plain(block.caption)}"
    if isinstance(block, Table):
        rule = ["--:" if numeric else "---" for numeric in _numeric(block)]
        lines = [f"| {' | '.join(map(_plain, row))} |" for row in (block.header, *block.rows)]
        return "\n".join([_plain(block.caption), "", lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
    return _plain(block)


def _plain(text: str) -> str:
    for character in "\\|*_`<[":
        text = text.replace(character, f"\\{character}")
    return text


# --- HTML ------------------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d5d9de; --quiet: #57606a; --stripe: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --paper: #14171a; --line: #3a4047; --quiet: #9aa4af; --stripe: #1c2024; }
}
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; margin: 2.2rem 0 .8rem; }
h1 { margin-top: 0; }
h2 { border-top: 1px solid var(--line); padding-top: 1.4rem; }
nav a { margin-right: 1rem; }
a { color: inherit; }
div.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; color: var(--quiet); padding-bottom: .4rem; }
th, td { padding: .3rem .8rem; text-align: left; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
tbody tr:nth-child(even) { background: var(--stripe); }
.n { text-align: right; white-space: nowrap; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
figcaption { color: var(--quiet); font-size: .9rem; }
"""


def page(found: Sequence[Block], images: Mapping[str, bytes]) -> str:
    """Return blocks as one HTML page that needs no other file.

    :param found: the blocks
    :param images: PNG files by the names that they go by in ``found``
    """
    headings = [block.text for block in found if isinstance(block, Heading)]
    links = "\n".join(f'<a href="#{_anchor(text)}">{escape(text)}</a>' for text in headings[1:])
    body = "\n".join(_as_html(block, images) for block in found)
    first, rest = body.split("</h1>", 1)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(headings[0])}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{first}</h1>\n<nav>\n{links}\n</nav>{rest}\n</body>\n</html>\n"
    )


def _as_html(block: Block, images: Mapping[str, bytes]) -> str:
    if isinstance(block, Heading):
        return f'<h{block.level} id="{_anchor(block.text)}">{escape(block.text)}</h{block.level}>'
    if isinstance(block, Image):
        data = b64encode(images[block.file]).decode("ascii")
        caption = escape(block.caption)
        image = f'<img alt="{escape(block.title)}" src="data:image/png;base64,{data}">'
        return f"<figure>\n{image}\n<figcaption>{caption}</figcaption>\n</figure>"
    if isinstance(block, Table):
        classes = [' class="n"' if numeric else "" for numeric in _numeric(block)]
        head = "".join(f"<th{c} scope=col>{escape(text)}</th>" for text, c in zip(block.header, classes, strict=True))
        rows = "\n".join(
            f"<tr>{''.join(f'<td{c}>{escape(text)}</td>' for text, c in zip(row, classes, strict=True))}</tr>"
            for row in block.rows
        )
        caption = f"<caption>{escape(block.caption)}</caption>"
        return f'<div class="wide"><table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
    return f"<p>{escape(block)}</p>"


def _anchor(text: str) -> str:
    return file_name(text).lower()

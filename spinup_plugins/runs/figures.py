"""The figures of a report, as PNG files whose bytes depend on nothing but the data and matplotlib's version."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from spinup_plugins.runs.references import Reference, relation
from spinup_plugins.runs.speed import pyplot
from spinup_plugins.runs.statistics import Estimate

if TYPE_CHECKING:
    from spinup_plugins.runs.report import Comparison, Curve

__all__ = ["Drawing"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which remain apart to colour-blind eyes."""
MARKERS = "os^Dv<>P*X"
LONGER = 3
"""A published number of more than so many times the steps would flatten the curves beside it: the table alone has it."""
SETTINGS: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "savefig.dpi": 130,
    "text.parse_math": False,  # a label is what a user calls it, dollars and all
}


class Drawing:
    """Draws with matplotlib.

    :raises ConfigError: it is not installed
    """

    def __init__(self) -> None:
        self.plt = pyplot("a report")

    def curves(
        self,
        comparison: "Comparison",
        env: str,
        curves: "Mapping[str, Curve]",
        axis: str,
        steps: int,
        published: Sequence[tuple[str, str, Reference]],
    ) -> bytes:
        """Draw interquartile means with their bands, means, and published numbers as horizontal lines."""
        import matplotlib as mpl

        with mpl.rc_context(SETTINGS):
            figure, axes = self.plt.subplots(figsize=(8.2, 4), layout="constrained")
            for label, curve in curves.items():
                colour, marker = self._style(comparison, label)
                every = max(1, len(curve.points) // 8)
                name = f"{label}, {curve.n} seed{'s' if curve.n > 1 else ', no interval'}"
                axes.plot(curve.points, curve.iqm, color=colour, marker=marker, markevery=every, ms=4, lw=1.4, label=name)
                if curve.band is not None:
                    axes.plot(curve.points, curve.mean, color=colour, lw=0.8, ls=":")
                    axes.fill_between(curve.points, *curve.band, color=colour, alpha=0.16, lw=0)
            drawn: set[Reference] = set()
            for label, _, each in published:
                if each not in drawn and (each.timesteps is None or each.timesteps <= LONGER * max(steps, 1)):
                    drawn.add(each)
                    colour, _ = self._style(comparison, label)
                    dashes = (0, (6, 2)) if each.source.startswith("Spinning Up") else (0, (2, 2))
                    mark = {"comparable": " †", "other": " (not comparable)"}.get(relation(each.env, env) or "", "")
                    name = (
                        f"{each.algo.upper()}, {each.source}:\n{Estimate(each.value, None)} on {each.env}{mark}, {each.budget}"
                    )
                    axes.axhline(each.value, color=colour, lw=0.9, ls=dashes, alpha=0.8, label=name)
            axes.set(title=env, xlabel=axis, ylabel="return")
            axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
            self._legend(figure, axes)
            return self._png(figure)

    def profile(self, comparison: "Comparison") -> bytes:
        """Draw the fraction of runs that score more than each threshold."""
        import matplotlib as mpl

        with mpl.rc_context(SETTINGS):
            figure, axes = self.plt.subplots(figsize=(8.2, 3.6), layout="constrained")
            thresholds, profiles = comparison.profiles()
            for label, (fractions, band) in profiles.items():
                colour, marker = self._style(comparison, label)
                n = sum(
                    len(group.runs) for group in comparison.groups if group.label == label and group.env in comparison.common
                )
                name = f"{label}, {n} run{'s' if n > 1 else ''}"
                axes.step(
                    thresholds, fractions, color=colour, marker=marker, markevery=12, ms=4, where="post", lw=1.4, label=name
                )
                if band is not None:
                    axes.fill_between(thresholds, *band, color=colour, alpha=0.16, lw=0, step="post")
            axes.set(xlabel="normalised score τ", ylabel="fraction of runs with score > τ", ylim=(-0.02, 1.02))
            self._legend(figure, axes)
            return self._png(figure)

    def improvement(self, comparison: "Comparison") -> bytes:
        """Draw the probability of improvement of each pair, with its interval."""
        import matplotlib as mpl

        pairs = comparison.pairs
        with mpl.rc_context(SETTINGS):
            figure, axes = self.plt.subplots(figsize=(8.2, 1.1 + 0.36 * len(pairs)), layout="constrained")
            for row, pair in enumerate(reversed(pairs)):
                value, interval = pair.probability
                if interval is not None:
                    axes.plot(interval, (row, row), color=COLOURS[0], lw=5, alpha=0.35, solid_capstyle="butt")
                axes.plot(value, row, color=COLOURS[0], marker="|", ms=11, mew=2)
            axes.axvline(0.5, color="black", lw=0.8, ls="--")
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(pairs) - 0.4), xlabel="P(X > Y)")
            names = [
                f"{_wrapped(pair.x)} > {_wrapped(pair.y)}{' (no interval)' if pair.probability.interval is None else ''}"
                for pair in reversed(pairs)
            ]
            axes.set_yticks(np.arange(len(pairs)), names, fontsize=7.5)
            return self._png(figure)

    def _style(self, comparison: "Comparison", label: str) -> tuple[str, str]:
        index = comparison.labels.index(label)
        return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]

    def _legend(self, figure: Any, axes: Any) -> None:
        """Put a legend beside the axes, and make the figure high enough for it."""
        handles, names = axes.get_legend_handles_labels()
        names = ["\n".join(map(_wrapped, name.splitlines())) for name in names]
        lines = sum(name.count("\n") + 1 for name in names)
        figure.set_figheight(max(4.0, 0.6 + 0.16 * lines + 0.03 * len(names)))
        axes.legend(handles, names, loc="center left", bbox_to_anchor=(1.0, 0.5))

    def _png(self, figure: Any) -> bytes:
        """Draw with 256 colours, in which a page of many figures takes well under half of the space."""
        from PIL import Image  # comes with matplotlib, an extra

        drawn, small = BytesIO(), BytesIO()
        figure.savefig(drawn, format="png")
        self.plt.close(figure)
        Image.open(drawn).convert("RGB").quantize(dither=Image.Dither.NONE).save(small, format="png", optimize=True)
        return small.getvalue()


def _wrapped(text: str) -> str:
    return fill(text, 42)

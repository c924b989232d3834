"""The picture of a search, as a matplotlib figure; see nnlite.plots for the style and for `png`."""

import math

import numpy as np

from nnlite.plots import BLUE, GREY, INK, VERMILION, new_figure, plain
from nnlite.space import Range, spell

COLOURS = {"coarse": BLUE, "fine": VERMILION}
MOST_ACROSS = 3     # panels beside each other
LOG_FROM = 3        # a range of logarithms whose ends differ by less than this factor is drawn on a linear axis
ANNOTATED = 12      # values of a heat map's axis; of more the cells are too small for numbers
SPREAD = 0.28       # how far to both sides the trials of one value lie, of the distance between two values
GOLDEN = 0.618034   # multiples of it, modulo 1, fill a line evenly


def search(trials, space, fine, *, grid, title):
    """Accuracy over each setting of the space, and the learning curves; of a grid of two settings a heat map.

    trials: of nnlite.trials, the best first, failed ones last; fine: the narrowed space, or None.
    """
    names = [*space]
    wide = 2 if grid and len(names) == 2 else 1          # a heat map has the place of two panels
    panels = 1 + (1 if wide == 2 else len(names))
    across = 2 if wide == 2 else min(MOST_ACROSS, panels)
    down = math.ceil(panels / across)
    figure = new_figure(3.9 * across + 1.2 * (wide == 2) + 0.4, 3.3 * down + 0.7 + 0.8 * (wide == 2))
    cells = figure.subplots(down, across, squeeze=False, width_ratios=[1.25, 1] if wide == 2 else None).reshape(-1)
    limits = _limits(trials)
    if wide == 2:
        _heat_map(figure, cells[0], trials, space)
    else:
        for name, axes in zip(names, cells):
            _setting(axes, trials, name, space[name], fine and fine[name], limits)
    best = INK if wide == 1 else VERMILION               # black would not stand out on a heat map
    _curves(cells[panels - 1], trials, limits if wide == 1 else None, best)
    for axes in cells[:panels:across] if wide == 1 else cells[1:2]:
        axes.set_ylabel("validation accuracy")
    for axes in cells[panels:]:
        axes.axis("off")
    figure.suptitle(title, fontsize=12)
    _legend(figure, trials, fine, best)
    return figure


def _setting(axes, trials, name, part, fine, limits):
    """Accuracy over one setting; failed trials as crosses at the lower edge."""
    if isinstance(part, Range):
        if fine is not None:
            axes.axvspan(fine.low, fine.high, color=VERMILION, alpha=0.1, linewidth=0)
        _range_axis(axes, part)
    else:
        labels = list(map(spell, part.values))
        _name_ticks(axes, labels, 30)
        axes.set_xlim(-0.5, len(labels) - 0.5)
    for stage, colour in COLOURS.items():
        some = [t for t in trials if t.stage == stage and t.score is not None]
        axes.scatter([_place(t, name, part) for t in some], [t.score for t in some], s=26, c=colour, alpha=0.75,
                     edgecolors="white", linewidths=0.5)
    failed = [t for t in trials if t.score is None]
    axes.scatter([_place(t, name, part) for t in failed], [0.025] * len(failed), marker="x", s=26, c=GREY,
                 transform=axes.get_xaxis_transform())
    if trials and trials[0].score is not None:
        axes.scatter(_place(trials[0], name, part), trials[0].score, s=95, facecolors="none", edgecolors=INK,
                     linewidths=1.4)
    axes.set_xlabel(name)
    axes.set_ylim(limits)
    _accuracy_axis(axes)


def _name_ticks(axes, labels, letters):
    """Labels at 0, 1, 2, ...; slanted where they are more letters than fit."""
    slanted = dict(rotation=30, ha="right", rotation_mode="anchor") if sum(map(len, labels)) > letters else {}
    axes.set_xticks(range(len(labels)), labels, **slanted)


def _short(value):
    return f"{value:.3g}" if isinstance(value, float) else spell(value)


def _range_axis(axes, part):
    if part.log and part.high >= LOG_FROM * part.low:
        margin = (part.high / part.low) ** 0.04
        axes.set_xscale("log")
        axes.set_xlim(part.low / margin, part.high * margin)
        axes.xaxis.set_minor_formatter(lambda *_: "")
        if part.high < 100 * part.low:   # too few powers of ten to read it by
            axes.set_xticks([value for value in _round_numbers(part.low) if part.low <= value <= part.high])
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        margin = 0.04 * (part.high - part.low)
        axes.set_xlim(part.low - margin, part.high + margin)


def _round_numbers(low):
    """1, 2 and 5 times powers of ten, from below low for three powers."""
    first = math.floor(math.log10(low))
    return [digit * 10.0 ** power for power in range(first, first + 4) for digit in (1, 2, 5)]


def _place(trial, name, part):
    """Where a trial lies: at its value; of a choice beside the others of that value."""
    value = trial.settings[name]
    if isinstance(part, Range):
        return value
    return part.values.index(value) + SPREAD * (2 * (trial.number * GOLDEN % 1) - 1)


def _curves(axes, trials, limits, colour):
    """Validation accuracy over the epochs of every trial, the best one on top in a colour of its own."""
    for trial in reversed(trials):
        best = trial is trials[0] and trial.score is not None
        epochs = range(1, len(trial.accuracy) + 1)
        axes.plot(epochs, trial.accuracy, color=colour if best else COLOURS[trial.stage],
                  linewidth=2 if best else 1, alpha=1 if best else 0.45, marker="o", markersize=4 if best else 2.5)
    longest = max((len(trial.accuracy) for trial in trials), default=1)
    axes.set_xlim(1 - 0.04 * longest, longest + 0.04 * longest)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if limits is not None:
        axes.set_ylim(limits)
    axes.set_xlabel("epoch")
    _accuracy_axis(axes)


def _accuracy_axis(axes):
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    plain(axes)


def _limits(trials):
    """The range of all accuracies, with room for the crosses of failed trials below."""
    values = [value for trial in trials for value in trial.accuracy] or [0, 1]
    margin = max(0.06 * (max(values) - min(values)), 0.005)
    return min(values) - (2 if any(trial.score is None for trial in trials) else 1) * margin, max(values) + margin


def _heat_map(figure, axes, trials, space):
    """Accuracy over the two axes of a grid; cells without a trial stay white, those of failed ones say so."""
    (down, across), (rows, columns) = space, (part.axis() for part in space.values())
    scores = np.full((len(rows), len(columns)), np.nan)
    for trial in trials:
        place = rows.index(trial.settings[down]), columns.index(trial.settings[across])
        scores[place] = np.nan if trial.score is None else trial.score
        if trial.score is None:
            axes.text(place[1], place[0], "failed", ha="center", va="center", fontsize=8, color=GREY)
    if np.isfinite(scores).any():
        low, high = np.nanmin(scores), np.nanmax(scores)
        image = axes.imshow(scores, cmap="Blues", aspect="auto", origin="lower",
                            vmin=low - max((high - low) / 4, 0.005), vmax=high + 0.001)   # the lowest is not white
        bar = figure.colorbar(image, ax=axes, format=lambda value, _: f"{100 * value:.3g} %")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
    if max(scores.shape) <= ANNOTATED:
        for (i, j), value in np.ndenumerate(scores):
            if np.isfinite(value):
                axes.text(j, i, f"{100 * value:.1f}", ha="center", va="center", fontsize=9,
                          color="white" if image.norm(value) > 0.55 else INK)
    if trials and trials[0].score is not None:
        from matplotlib.patches import Rectangle

        i, j = rows.index(trials[0].settings[down]), columns.index(trials[0].settings[across])
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.5))
    _name_ticks(axes, list(map(_short, columns)), 20)
    axes.set_yticks(range(len(rows)), map(_short, rows))
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5), xlabel=across, ylabel=down)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _legend(figure, trials, fine, best):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def dot(label, **style):
        return Line2D([], [], linestyle="", markersize=6, label=label, **style)

    present = {trial.stage for trial in trials}
    names = dict(zip(COLOURS, COLOURS)) if fine is not None else {"coarse": "trial"}
    handles = [dot(name, marker="o", color=COLOURS[stage]) for stage, name in names.items() if stage in present]
    if fine is not None:
        handles.append(Patch(color=VERMILION, alpha=0.1, linewidth=0, label="range of the fine stage"))
    if trials and trials[0].score is not None:
        handles.append(Line2D([], [], color=best, marker="o", markersize=8, markerfacecolor="none", label="best"))
    if any(trial.score is None for trial in trials):
        handles.append(dot("failed", marker="x", color=GREY))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)

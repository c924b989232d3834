"""The pictures of a search, as matplotlib figures; see nnlite.plots for the style and for `png`.

trials: everywhere those of nnlite.trials, the best first, failed ones last. Accuracy is that of the validation part, at
the epoch by which a trial is judged.
"""

import math

import numpy as np

from nnlite.plots import BLUE, GREY, INK, VERMILION, new_figure, plain
from nnlite.space import Choice, spell

COLOURS = {"coarse": BLUE, "fine": VERMILION}
MOST_ACROSS = 3     # panels beside each other
LOG_FROM = 3        # a range of logarithms whose ends differ by less than this factor is drawn on a linear axis
ANNOTATED = 12      # values of a heat map's axis; of more the cells are too small for numbers
SPREAD = 0.28       # how far to both sides the trials of one value lie, of the distance between two values
GOLDEN = 0.618034   # multiples of it, modulo 1, fill a line evenly
FAILED_AT = -0.09   # where failed trials end below the last of parallel axes, which are from 0 to 1


def search(trials, space, fine, *, grid, title):
    """Accuracy over each setting of the space, and the learning curves; of a grid of two settings a heat map.

    fine: the narrowed space, or None.
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


def curves(trials, fine, *, grid, title):
    """The learning curves of all trials; beside them, but for a grid, the trials in their order and the best so far."""
    figure = new_figure(7.6 if grid else 12.2, 5.2)
    if grid:
        left, right = figure.subplots(), None
    else:
        left, right = figure.subplots(1, 2, width_ratios=[1.45, 1])
    best = trials[0] if trials and trials[0].score is not None else None
    _curves(left, trials, None, VERMILION if fine is None else INK)
    left.set_ylabel("validation accuracy")
    if best is not None:
        left.scatter(best.best_epoch, _height(best), s=95, facecolors="none", edgecolors=INK, linewidths=1.4, zorder=3)
    if right is not None:
        _history(right, trials)
    figure.suptitle(title, fontsize=12)
    _legend(figure, trials, fine, VERMILION if fine is None else INK)
    return figure


def _history(axes, trials):
    """Accuracy of each trial in the order in which they were begun, and the best so far as a line."""
    order = sorted(trials, key=lambda trial: ([*COLOURS].index(trial.stage), trial.number))
    places = {id(trial): place for place, trial in enumerate(order, 1)}
    for stage, colour in COLOURS.items():
        some = [t for t in order if t.stage == stage and t.score is not None]
        axes.scatter([places[id(t)] for t in some], [_height(t) for t in some], s=26, c=colour, alpha=0.75,
                     edgecolors="white", linewidths=0.5, zorder=2)
    best, line = None, []
    for trial in order:
        if trial.score is not None and (best is None or trial.score > best.score):
            best = trial
        line.append(math.nan if best is None else _height(best))
    axes.step(range(1, len(line) + 1), line, where="post", color=INK, linewidth=1.2, zorder=1.5)
    if best is not None:
        axes.scatter(places[id(best)], _height(best), s=95, facecolors="none", edgecolors=INK, linewidths=1.4)
    _crosses(axes, [places[id(t)] for t in order if t.score is None])
    axes.set_xlim(0.5, len(order) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("trial, in the order begun; line: the best so far")
    axes.set_ylabel("accuracy at its best epoch")
    _accuracy_axis(axes)


def parallel(trials, space, *, title):
    """Parallel coordinates (Inselberg 1985): an axis for each setting, logarithmic where its range is, and accuracy at
    the right; every trial is a line, the darker the better, failed ones end below the last axis."""
    from matplotlib.lines import Line2D

    names, scored = [*space], [t for t in trials if t.score is not None]
    heights = [_height(t) for t in scored]
    low, high = (min(heights), max(heights)) if heights else (0, 1)
    low, high = (low, high) if high > low else (low - 0.01, high + 0.01)
    last = len(names)
    figure = new_figure(max(2.0 * (last + 1) + 1.2, 6.5), 5.6)
    axes = figure.subplots()
    for trial in reversed(trials):   # the best on top
        failed = trial.score is None
        share = 0 if failed else (_height(trial) - low) / (high - low)
        ends = [_share(trial, name, space[name]) for name in names] + [FAILED_AT if failed else share]
        best = trial is trials[0] and not failed
        axes.plot(*_rounded_line(ends), color=VERMILION if best else GREY if failed else _shade(share),
                  linewidth=2.6 if best else 1.3, alpha=1 if best else 0.5 if failed else 0.8,
                  linestyle=":" if failed else "-", solid_capstyle="round", zorder=3 if best else 1 if failed else 2)
    for place, name in enumerate(names):
        _upright(axes, place, *_marks(space[name]))
    _upright(axes, last, [(value - low) / (high - low) for value in _even(low, high)],
             [f"{100 * value:.3g} %" for value in _even(low, high)], side="left")
    if len(scored) < len(trials):
        axes.text(last, FAILED_AT - 0.025, "failed", ha="center", va="top", fontsize=9, color=GREY)
    axes.set_xticks(range(last + 1), [*names, "accuracy"], fontsize=11)
    axes.xaxis.tick_top()
    axes.set_xlim(-0.35, last + 0.2)
    axes.set_ylim(2 * FAILED_AT if len(scored) < len(trials) else -0.03, 1.03)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=12)
    if scored:
        lines = [(VERMILION, 2.6, "best"), (_shade(1), 1.3, "better"), (_shade(0), 1.3, "worse")]
        figure.legend(handles=[Line2D([], [], color=colour, linewidth=width, label=label)
                               for colour, width, label in lines],
                      loc="outside lower center", ncols=len(lines), frameon=False, fontsize=10)
    return figure


def _rounded_line(ends):
    """Points of a line through (0, ends[0]), (1, ends[1]), ... that crosses each axis level, so that lines can be
    followed across."""
    t = np.linspace(0, 1, 24, endpoint=False)
    smooth = t * t * (3 - 2 * t)
    y = np.concatenate([a + (b - a) * smooth for a, b in zip(ends, ends[1:])] + [ends[-1:]])
    return np.arange(len(y)) / len(t), y


def _share(trial, name, part):
    """Where on its axis, from 0 to 1, a trial crosses it; of a choice beside the others of that value."""
    value = trial.settings[name]
    if isinstance(part, Choice):
        spread = 0.16 * (2 * (trial.number * GOLDEN % 1) - 1)
        return (part.values.index(value) + 0.5 + spread) / len(part.values)
    low, high, value = (math.log(v) if part.log else v for v in (part.low, part.high, value))
    return (value - low) / (high - low) if high > low else 0.5


def _marks(part):
    """Places from 0 to 1 and texts of an axis' marks."""
    if isinstance(part, Choice):
        return [(i + 0.5) / len(part.values) for i in range(len(part.values))], list(map(_short, part.values))
    if part.log and part.high >= LOG_FROM * part.low:
        powers = [10.0 ** p for p in range(math.floor(math.log10(part.low)), math.ceil(math.log10(part.high)))]
        inner = [v for v in (powers if len(powers) > 2 else _round_numbers(part.low)) if part.low < v < part.high]
        values = [part.low, *inner, part.high]
    else:
        values = _even(part.low, part.high)
    scale = math.log if part.log else float
    places = [(scale(v) - scale(part.low)) / (scale(part.high) - scale(part.low)) for v in values]
    kept = [i for i, place in enumerate(places) if place in (0, 1) or min(place, 1 - place) > 0.05]
    return [places[i] for i in kept], [_short(values[i]) for i in kept]


def _even(low, high):
    """low, high and round numbers between them, evenly spaced."""
    from matplotlib.ticker import MaxNLocator

    margin = 0.06 * (high - low)
    inner = [value for value in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
             if low + margin < value < high - margin]
    return [low, *(float(f"{value:.6g}") for value in inner), high]


def _upright(axes, place, places, texts, side="left"):
    """An axis of parallel coordinates, its marks with white edges to be read among the lines."""
    from matplotlib.patheffects import withStroke

    axes.plot([place, place], [0, 1], color=INK, linewidth=1.2, zorder=4)
    for y, text in zip(places, texts):
        axes.plot([place - 0.025, place], [y, y], color=INK, linewidth=1, zorder=4)
        axes.text(place - 0.045, y, text, ha="right", va="center", fontsize=9, color=INK, zorder=5,
                  path_effects=[withStroke(linewidth=3, foreground="white", alpha=0.9)])


def _shade(share):
    """The colour of a trial at this share of the way from the worst to the best."""
    import matplotlib

    return matplotlib.colormaps["Blues"](0.2 + 0.75 * share)


def importances(shares, *, what, preset):
    """Bars of what each setting explains by itself, {setting: share} as nnlite.study gives it, the largest on top."""
    rest = max(0.0, 1 - sum(shares.values()))
    names, values = [*shares, "several together"], [*shares.values(), rest]
    figure = new_figure(7.4, 0.5 * len(names) + 1.9)
    axes = figure.subplots()
    places = np.arange(len(names))[::-1]
    axes.barh(places, values, color=[BLUE] * len(shares) + [GREY], height=0.66)
    for place, value in zip(places, values):
        axes.text(value + 0.012 * max(values), place, f"{100 * value:.1f} %", va="center", fontsize=10, color=INK)
    axes.set_yticks(places, names, fontsize=11)
    axes.set_xlim(0, 1.14 * max(values))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.set_xlabel("share of the variance over the space (functional ANOVA on a random forest)")
    plain(axes, "x")
    axes.tick_params(axis="y", length=0)
    figure.suptitle(f"{preset}: what decides the {what}", fontsize=12)
    return figure


def _height(trial):
    return trial.measures["validation_accuracy"]


def _crosses(axes, places):
    """Failed trials, at the lower edge."""
    axes.scatter(places, [0.025] * len(places), marker="x", s=26, c=GREY, transform=axes.get_xaxis_transform())


def _setting(axes, trials, name, part, fine, limits):
    """Accuracy over one setting; failed trials as crosses at the lower edge."""
    if not isinstance(part, Choice):
        if fine is not None:
            axes.axvspan(fine.low, fine.high, color=VERMILION, alpha=0.1, linewidth=0)
        _range_axis(axes, part)
    else:
        labels = list(map(spell, part.values))
        _name_ticks(axes, labels, 30)
        axes.set_xlim(-0.5, len(labels) - 0.5)
    for stage, colour in COLOURS.items():
        some = [t for t in trials if t.stage == stage and t.score is not None]
        axes.scatter([_place(t, name, part) for t in some], [_height(t) for t in some], s=26, c=colour, alpha=0.75,
                     edgecolors="white", linewidths=0.5)
    _crosses(axes, [_place(t, name, part) for t in trials if t.score is None])
    if trials and trials[0].score is not None:
        axes.scatter(_place(trials[0], name, part), _height(trials[0]), s=95, facecolors="none", edgecolors=INK,
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
    if not isinstance(part, Choice):
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
        scores[place] = np.nan if trial.score is None else _height(trial)
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

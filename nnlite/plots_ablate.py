"""The picture of an ablation, as a matplotlib figure; see nnlite.plots for the style and for `png`."""

import numpy as np

from nnlite.plots import BLUE, GREY, INK, VERMILION, new_figure, plain
from nnlite.space import spell

PARTS = "validation", "test"


def table(cells, axes, *, title):
    """Of two axes heat maps of accuracy on the validation and the test part, with macro F1 in each cell; of one axis
    bars of both. The best is framed, or marked.

    cells: dicts as of nnlite.ablate.cells; axes: {setting: values}, the first the rows.
    """
    return _maps(cells, axes, title) if len(axes) == 2 else _bars(cells, axes, title)


def _maps(cells, axes, title):
    from matplotlib.patches import Rectangle

    (down, rows), (across, columns) = axes.items()
    figure = new_figure(2 * (1.15 * len(columns) + 0.9) + 1.2, 0.72 * len(rows) + 1.9)
    panels = figure.subplots(1, 2, sharey=True)
    known = [cell[f"{part}_accuracy"] for cell in cells for part in PARTS if cell["epoch"] is not None] or [0, 1]
    low, high = min(known), max(known)
    for panel, part in zip(panels, PARTS):
        values = np.full((len(rows), len(columns)), np.nan)
        for cell in cells:
            i, j = rows.index(cell[down]), columns.index(cell[across])
            if cell["epoch"] is None:
                panel.text(j, i, "failed", ha="center", va="center", fontsize=9, color=GREY)
                continue
            values[i, j] = cell[f"{part}_accuracy"]
            if cell["best"]:
                panel.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.5,
                                          zorder=3, clip_on=False))
        image = panel.imshow(values, cmap="Blues", aspect="auto", vmin=low - max((high - low) / 4, 0.005),
                             vmax=high + 0.001)   # the lowest is not white
        for cell in cells:
            if cell["epoch"] is not None:
                i, j = rows.index(cell[down]), columns.index(cell[across])
                colour = "white" if image.norm(values[i, j]) > 0.55 else INK
                panel.text(j, i - 0.13, f"{100 * values[i, j]:.1f} %", ha="center", va="center", fontsize=11,
                           color=colour)
                panel.text(j, i + 0.22, f"F1 {cell[f'{part}_f1']:.3f}", ha="center", va="center", fontsize=8.5,
                           color=colour)
        panel.set_xticks(range(len(columns)), map(spell, columns))
        panel.set_yticks(range(len(rows)), map(spell, rows))
        panel.set_xlabel(across)
        panel.set_title(f"accuracy on the {part} part", fontsize=11, loc="left")
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
    panels[0].set_ylabel(down)
    figure.suptitle(f"{title}; framed: the best on validation", fontsize=12)
    return figure


def _bars(cells, axes, title):
    (name, values), = axes.items()
    figure = new_figure(max(2 * (0.85 * len(values) + 0.9), 7.4) + 0.4, 4.2)
    for panel, (measure, word) in zip(figure.subplots(1, 2), (("accuracy", "Accuracy"), ("f1", "Macro F1"))):
        tops = [cell[f"{part}_{measure}"] for cell in cells for part in PARTS if cell["epoch"] is not None] or [1]
        top = max(tops)
        for cell in cells:
            place = values.index(cell[name])
            if cell["epoch"] is None:
                panel.text(place, 0, "failed", ha="center", va="bottom", fontsize=9, color=GREY)
                continue
            for side, part, colour in ((-0.2, "validation", BLUE), (0.2, "test", VERMILION)):
                value = cell[f"{part}_{measure}"]
                panel.bar(place + side, value, width=0.38, color=colour, alpha=1 if cell["best"] else 0.55)
                panel.text(place + side, value + 0.012 * top, f"{100 * value:.1f}" if measure == "accuracy" else
                           f"{value:.3f}"[1:], ha="center", fontsize=8.5, color=INK,
                           fontweight="bold" if cell["best"] else "normal")
        panel.set_xticks(range(len(values)), map(spell, values))
        panel.set_xlim(-0.6, len(values) - 0.4)
        panel.set_ylim(0, 1.1 * top)
        if measure == "accuracy":
            panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        panel.set_xlabel(name)
        panel.set_title(word, loc="left")
        plain(panel)
    _legend(figure)
    figure.suptitle(f"{title}; full colour: the best on validation", fontsize=12)
    return figure


def _legend(figure):
    from matplotlib.patches import Patch

    figure.legend(handles=[Patch(color=BLUE, label="validation"), Patch(color=VERMILION, label="test")],
                  loc="outside lower center", ncols=2, frameon=False, fontsize=10)

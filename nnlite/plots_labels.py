"""The pictures of a classifier's report, as matplotlib figures; see nnlite.plots for the style and for `png`."""

import numpy as np

from nnlite.plots import BLUE, GREY, INK, VERMILION, new_figure, plain

ANNOTATED = 30    # classes; of more the cells are too small for numbers
MARKED_FALLS = 8  # of the learning rate; one that falls more often is seen in its own panel alone
CELL = 1.1        # inches that an image of the saliency picture is wide
PAIR = 2 * CELL + 0.16   # an image, its map, and the space to the next
VERMILION_DARK, BLUE_DARK = "#A84300", "#00537F"  # readable as small text


def confusion(matrix, classes, images, title, *, shares=False):
    """A confusion matrix (C, C), rows = true class, with its numbers in the cells; images (C,): how many of each class.

    Counts, or with shares=True each row's shares (nan: a class without images), written in per cent.
    """
    C = len(classes)
    cells, names = min(0.62 * C + 0.8, 14), 0.085 * max(map(len, classes))
    figure = new_figure(cells + names + 1.1, cells + 0.6 * names + 0.9)
    axes = figure.subplots()
    matrix = np.asarray(matrix, dtype=np.float64)
    top = 1.0 if shares else max(1.0, matrix.max())
    # aspect "auto": with square cells the layout is found for other places of the labels than those drawn.
    axes.imshow(np.nan_to_num(matrix), cmap="Blues", vmin=0, vmax=top, aspect="auto")
    if C <= ANNOTATED:
        _annotate(axes, matrix, top, shares, size=float(np.interp(C, [7, 10, 30], [11, 10, 5.5])))
    _name_cells(axes, classes, images)
    axes.set_title(title, fontsize=12, loc="left")
    return figure


def learning(curves, watch):
    """Loss, accuracy and learning rate over the epochs of a run, whose final model has the best validation `watch`.

    curves: {"epoch", "loss", "validation_loss", "training_accuracy", "validation_accuracy", "learning_rate": (n,) each,
    nan where nothing was measured, "best": index of the final model or None}. A learning rate is that of the steps up
    to its epoch.
    """
    figure = new_figure(10, 8.2)
    loss, accuracy, rate = panels = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.2])
    epoch, best = curves["epoch"], curves["best"]
    _pair(loss, epoch, curves["loss"], curves["validation_loss"])
    loss.set_title("Loss (nats)", loc="left")
    _pair(accuracy, epoch, curves["training_accuracy"], curves["validation_accuracy"])
    accuracy.set_title("Accuracy", loc="left")
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    seen = np.isfinite(curves["learning_rate"])
    _learning_rate(panels, epoch[seen], curves["learning_rate"][seen])
    rate.set_xlabel("epoch")
    rate.xaxis.get_major_locator().set_params(integer=True)
    if best is not None:
        for axes in panels:
            axes.axvline(epoch[best], color=INK, linewidth=0.8, linestyle="--", zorder=0.6)
        value, why = 100 * curves["validation_accuracy"][best], "" if watch == "accuracy" else f", of the best {watch}"
        accuracy.set_title(f"final model: epoch {epoch[best]:.4g}{why}, validation accuracy {value:.1f} %",
                           loc="right", fontsize=10)
    return figure


def changes(rows, flagged):
    """Precision, recall and F1 of each class on the test part and on production images, a panel each, with the change;
    flagged classes by name.

    rows: [{"class", "precision", "recall", "f1": {"test", "production", "change"}}], None where undefined.
    """
    names = [row["class"] for row in rows]
    places = np.arange(len(rows))[::-1]
    figure = new_figure(12, 0.52 * len(rows) + 1.9)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (measure, title) in zip(panels, (("f1", "F1"), ("precision", "Precision"), ("recall", "Recall"))):
        for side, key, colour in ((0.2, "test", BLUE), (-0.2, "production", VERMILION)):
            axes.barh(places + side, [row[measure][key] or 0 for row in rows], height=0.37, color=colour, label=key)
        for place, row in zip(places, rows):
            change, ends = row[measure]["change"], [row[measure][key] or 0 for key in ("test", "production")]
            fell = measure == "f1" and row["class"] in flagged
            axes.text(max(ends) + 0.015, place, "undefined" if change is None else f"{change:+.3f}", va="center",
                      fontsize=9, color=VERMILION_DARK if fell else INK, fontweight="bold" if fell else "normal")
        axes.set_title(title, loc="left")
        axes.set_xlim(0, 1.17)
        axes.set_xticks(np.linspace(0, 1, 6))
        plain(axes, "x")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(places, names, fontsize=11)
    for label, name in zip(panels[0].get_yticklabels(), names):
        if name in flagged:
            label.set(color=VERMILION_DARK, fontweight="bold")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False,
                  fontsize=10)
    figure.suptitle("Production against the test part" + ("; bold: F1 fell most" if flagged else ""), fontsize=12)
    return figure


def saliency(rows, *, title, groups):
    """Images and their saliency maps, a row a class.

    rows: a list of (class name, groups of examples); an example is (image (H, W) or (H, W, 3) of 8 bits, map (H, W),
    predicted class, its probability, whether that is right). groups: (title, places) of each group.
    """
    shape = next(example[0].shape for _, parts in rows for part in parts for example in part)
    tall = CELL * shape[0] / shape[1]
    starts, x = [], 0.42    # inches from the left, of each group
    for _, places in groups:
        starts.append(x)
        x += places * PAIR + 0.2
    width, height = x - 0.24, len(rows) * (tall + 0.3) + 0.72
    figure = new_figure(width, height)
    figure.set_layout_engine("none")

    def axes(left, top):
        cell = figure.add_axes((left / width, 1 - (top + tall) / height, CELL / width, tall / height))
        cell.axis("off")
        return cell

    figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=11)
    for (text, _), left in zip(groups, starts):
        figure.text(left / width, 1 - 0.47 / height, text, va="center", fontsize=10, fontweight="bold")
    for number, (name, parts) in enumerate(rows):
        top = 0.85 + number * (tall + 0.3)
        middle = 1 - (top + tall / 2) / height
        figure.text(0.2 / width, middle, name, rotation=90, ha="center", va="center", fontsize=10)
        for part, left in zip(parts, starts):
            if not part:
                figure.text(left / width, middle, "none", color=GREY, va="center", fontsize=10)
            for place, example in enumerate(part):
                at = left + place * PAIR
                _example(axes(at, top), axes(at + CELL + 0.03, top), *example)
    return figure


def one_saliency(image, heat, caption):
    """One image and its saliency map side by side, the caption above."""
    height, width = image.shape[:2]
    figure = new_figure(6.2, 3 * height / width + 0.45)
    left, right = figure.subplots(1, 2)
    _show(left, image)
    _show_map(right, heat)
    figure.suptitle(caption, fontsize=11)
    return figure


def _name_cells(axes, classes, images):
    C = len(classes)
    size = float(np.interp(C, [10, 30], [11, 7]))
    slanted = dict(rotation=35, ha="right", rotation_mode="anchor") if C <= 12 else dict(rotation=90)
    axes.set_xticks(np.arange(C), classes, fontsize=size, **slanted)
    axes.set_yticks(np.arange(C), [f"{name} ({count})" for name, count in zip(classes, images)], fontsize=size)
    axes.set_xlabel("predicted class", fontsize=12)
    axes.set_ylabel("true class (images)", fontsize=12)
    axes.spines[:].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):   # white lines between the cells
        axis.set_ticks(np.arange(C + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)


def _annotate(axes, matrix, top, shares, size):
    for i, j in np.ndindex(matrix.shape):
        value = matrix[i, j]
        text = "–" if np.isnan(value) else f"{100 * value:.1f}" if shares else f"{value:.0f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=size, color="white" if value > 0.55 * top else INK,
                  fontweight="bold" if i == j else "normal")


def _learning_rate(panels, epoch, rates):
    loss, _, rate = panels
    plain(rate)
    rate.set_title("Learning rate", loc="left")
    if not len(rates):
        return
    rate.step([0, *epoch], [rates[0], *rates], where="pre", color=INK, linewidth=1.4)
    if rates.min() > 0 and rates.max() > 10 * rates.min():
        rate.set_yscale("log")
        rate.yaxis.set_minor_formatter(lambda *_: "")
    else:
        rate.set_ylim(0, 1.25 * max(rates.max(), 1e-12))
    falls = epoch[:-1][rates[1:] < rates[:-1]]
    if not 0 < len(falls) <= min(MARKED_FALLS, len(rates) // 2):
        return
    for axes in panels:
        for place in falls:
            axes.axvline(place, color=GREY, linewidth=1, linestyle=":", zorder=0.5)
    loss.text(falls[0], 0.985, " learning rate falls", transform=loss.get_xaxis_transform(), fontsize=8, color=GREY,
              va="top")


def _pair(axes, epoch, training, validation):
    for values, colour, label, marker in ((training, BLUE, "training", None),
                                          (validation, VERMILION, "validation", "o")):
        seen = np.isfinite(values)
        if seen.any():
            axes.plot(epoch[seen], values[seen], color=colour, linewidth=1.5, marker=marker, markersize=3.5,
                      label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    plain(axes)


def _example(left, right, image, heat, predicted, probability, correct):
    _show(left, image)
    _show_map(right, heat)
    left.text(1.02, 1.03, f"{predicted} {100 * probability:.0f} %", transform=left.transAxes, fontsize=8.5,
              ha="center", va="bottom", color=BLUE_DARK if correct else VERMILION_DARK)


def _show(axes, image):
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.axis("off")


def _show_map(axes, heat):
    # A few pixels far above all others would leave the rest black.
    axes.imshow(heat, cmap="magma", vmin=0, vmax=max(float(np.percentile(heat, 99.5)), 1e-30), interpolation="nearest")
    axes.axis("off")

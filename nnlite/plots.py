"""The pictures of a report, as matplotlib figures without any global state.

Every function takes plain arrays and gives a `Figure`; `png` turns one into the bytes of a file. Faces are (P, 3)
points seen from the front: x to the right, y up. Matplotlib belongs to the extra `report` and is imported inside.
"""

import io

import numpy as np

from nnlite.errors import NnliteError

# Lines of a face per number of points: (first point, number of points, whether the line closes).
FACE_LINES = {
    83: ((0, 8, True), (8, 8, True), (16, 10, True), (26, 10, True), (48, 12, True), (60, 8, True), (68, 15, False)),
    68: ((0, 17, False), (17, 5, False), (22, 5, False), (27, 4, False), (31, 5, False), (36, 6, True), (42, 6, True),
         (48, 12, True), (60, 8, True)),
}

# The 12 nose points of the 83 come in two orders: one line around the nose, or ridge, base, wings and the point below
# the tip. The shorter drawing is the right one.
NOSES_83 = (
    (tuple(range(36, 48)),),
    ((36, 37, 38, 39, 47), (45, 40, 41, 42, 43, 44, 46)),
)

# Parts of the 83 points, for the axis of neutral weights.
PARTS_83 = (("eyes", 16), ("brows", 20), ("nose", 12), ("mouth", 20), ("contour", 15))

# Colours that people with any colour vision tell apart (Okabe and Ito 2008).
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
CLASS_COLOURS = (VERMILION, GREEN, BLUE, ORANGE, PURPLE, SKY, BLACK, YELLOW)
GREY, INK, PALE = "#9A9A9A", "#222222", "#E4E4E4"
DOT = dict(edgecolors=INK, linewidths=0.2)
MARKERS = "os^DvP"  # after as many classes as colours, the next marker
SIDES = (0, 90, 180, 270)  # degrees around the third component
DPI = 120


def png(figure):
    """The bytes of a PNG file of the figure, the same for the same figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def draw_face(axes, points, *, colour=INK, width=1.3):
    """Draws points (P, 3) from the front: lines where the layout of P points is known, dots otherwise."""
    if len(points) not in FACE_LINES:
        axes.plot(points[:, 0], points[:, 1], ".", color=colour, markersize=3)
        return
    lines = [list(range(start, start + count)) + [start] * closed for start, count, closed in FACE_LINES[len(points)]]
    if len(points) == 83:
        lines += min(NOSES_83, key=lambda nose: sum(_length(points[list(line)]) for line in nose))
    for line in lines:
        axes.plot(*points[list(line), :2].T, color=colour, linewidth=width, solid_joinstyle="round")


def dimensions(kl, latent_norms, neutral_norms, threshold):
    """Mean KL (K,) and weight norm (K,) of each latent dimension; below, the norms of the neutral numbers (D,)."""
    figure = new_figure(10, 8 if len(neutral_norms) else 5.6)
    panels = figure.subplots(3 if len(neutral_norms) else 2, 1)
    active = kl > threshold
    order = np.arange(len(kl))
    _bars(panels[0], order, kl, active, "mean KL (nats)")
    panels[0].set_yscale("log")
    panels[0].set_ylim(threshold / 10, max(2 * kl.max(), 10 * threshold))
    panels[0].axhline(threshold, color=INK, linewidth=0.8, linestyle="--")
    panels[0].set_title(f"{active.sum()} of {len(kl)} latent dimensions are active (mean KL > {threshold:g} nats)",
                        loc="left")
    _bars(panels[1], order, latent_norms, active, "weight norm")
    panels[1].set_title("Norm of each latent dimension's weights in the first decoding layer", loc="left")
    panels[1].set_xlabel("latent dimension")
    if len(neutral_norms):
        _neutral_norms(panels[2], neutral_norms)
    figure.align_ylabels(panels)
    return figure


def reconstructions(columns, *, neutral):
    """Faces beside their reconstructions: a column each of (title, neutral, face, reconstruction), all (P, 3).

    The last row lays the reconstruction over the face, with the root mean square distance of their points in
    per cent of the distance between the eyes. `neutral` says whether the model saw the neutral face, and so shows it.
    """
    names = ["neutral"] * neutral + ["face", "reconstruction", "both"]
    limits = _limits([face for column in columns for face in column[1:]])
    figure = new_figure(1.8 * len(columns) + 0.4, 1.8 * len(names) * _tallness(limits) + 0.9)
    grid = figure.subplots(len(names), len(columns), squeeze=False)
    for cells, (title, rest, face, made) in zip(grid.T, columns):
        cells = _faces_only(cells, limits)
        if neutral:
            draw_face(cells[0], rest, colour=GREY)
        draw_face(cells[-3], face)
        draw_face(cells[-2], made, colour=VERMILION)
        draw_face(cells[-1], face)
        draw_face(cells[-1], made, colour=VERMILION, width=1)
        cells[0].set_title(title, fontsize=11)
        error = np.sqrt(np.mean(np.sum((face - made) ** 2, axis=1)))
        cells[-1].set_xlabel(f"distance {100 * error:.1f} %", fontsize=9)
    for name, cell in zip(names, grid[:, 0]):
        cell.set_ylabel(name, fontsize=11)
    figure.suptitle("Test faces and their reconstruction; distance in % of that between the eyes", fontsize=12)
    return figure


def scatter_2d(spaces, classes):
    """First two principal components of each space, side by side.

    spaces: a list of (title, z (n, 2 or more), explained share (2 or more,)); classes: (label (n,), names, size (n,)),
    where label -1 is drawn first, in grey, under the name that stands last.
    """
    figure = new_figure(6.1 * len(spaces), 6.4)
    for axes, (title, z, explained) in zip(figure.subplots(1, len(spaces), squeeze=False)[0], spaces):
        for colour, marker, rows, size in _groups(classes):
            axes.scatter(z[rows, 0], z[rows, 1], s=size, c=colour, marker=marker, alpha=0.8, **DOT)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(title, fontsize=12)
        axes.set_xlabel(f"component 1 ({100 * explained[0]:.0f} % of the variance)")
        axes.set_ylabel(f"component 2 ({100 * explained[1]:.0f} %)")
        plain(axes, grid="both")
    _legend(figure, classes)
    return figure


def scatter_3d(spaces, classes):
    """First three principal components of each space (a row each), seen from four sides; arguments as scatter_2d."""
    figure = new_figure(14, 3.45 * len(spaces) + 0.5)
    for row, (title, z, _) in enumerate(spaces):
        for column, side in enumerate(SIDES):
            axes = figure.add_subplot(len(spaces), len(SIDES), row * len(SIDES) + column + 1, projection="3d")
            for colour, marker, rows, size in _groups(classes):
                axes.scatter(*z[rows, :3].T, s=0.45 * size, c=colour, marker=marker, alpha=0.8, **DOT)
            _box(axes, z[:, :3], side)
            axes.set_title(f"{title}, {side}°", fontsize=11, y=1.03)
    _legend(figure, classes)
    return figure


def generated(faces, values, across, down, neutral):
    """Faces (V, V, P, 3) over two latent dimensions: rows go down from the largest value, columns from the smallest.

    across, down: the dimensions' numbers; neutral (P, 3): the given neutral face, or None for a model without one.
    """
    count = len(values)
    given = [] if neutral is None else [neutral]
    limits = _limits(list(faces.reshape(count * count, *faces.shape[2:])) + given)
    figure = new_figure(1.5 * (count + 1.5 * len(given)) + 0.7, 1.5 * count * _tallness(limits) + 0.9)
    grid = figure.add_gridspec(count, count + len(given), width_ratios=[1] * count + [1.5] * len(given))
    for row in range(count):
        for column in range(count):
            cell = _faces_only([figure.add_subplot(grid[row, column])], limits)[0]
            centre = values[column] == 0 and values[count - 1 - row] == 0
            draw_face(cell, faces[row, column], colour=VERMILION if centre else INK, width=1.2)
            if row == count - 1:
                cell.set_xlabel(f"{values[column]:g}", fontsize=11)
            if column == 0:
                cell.set_ylabel(f"{values[count - 1 - row]:g}", fontsize=11, rotation=0, labelpad=16, va="center")
    for face in given:
        cell = _faces_only([figure.add_subplot(grid[1:-1, count])], limits)[0]
        draw_face(cell, face, colour=BLUE)
        cell.set_title("given neutral face", fontsize=11, color=BLUE)
    figure.suptitle(f"Generated faces: latent dimension {across} across, {down} upwards, all others 0", fontsize=12)
    return figure


def learning(records):
    """Loss, validation ELBO and speed over the iterations, from the objects of a run's metrics.jsonl."""
    figure = new_figure(10, 8)
    loss, elbo, speed = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.3])
    _curve(loss, *series(records, "loss"), BLUE)
    loss.set_title("Training loss per face", loc="left")
    steps, values = series(records, "validation_elbo")
    _curve(elbo, steps, values, VERMILION, marker="o")
    elbo.set_title("Validation ELBO per face (nats)", loc="left")
    if len(values):
        best = int(np.argmax(values))
        elbo.axvline(steps[best], color=INK, linewidth=0.8, linestyle="--")
        elbo.set_title(f"best {values[best]:.1f} at {steps[best]:.0f}: the final model", loc="right", fontsize=10)
    steps, values = series(records, "iterations_per_second")
    speed.fill_between(steps, values, color=GREEN, alpha=0.35, linewidth=0)
    plain(speed)
    speed.set_ylim(bottom=0)
    speed.set_title("Iterations per second", loc="left")
    speed.set_xlabel("iteration")
    speed.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", " "))
    return figure


def new_figure(width, height):
    """An empty Figure of width x height inches; raises NnliteError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NnliteError('the report: expected matplotlib, got none: pip install -e ".[report]" brings it') from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain(axes, grid="y"):
    """Takes the frame down to two sides and lays a pale grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)


def _bars(axes, order, values, active, label):
    axes.bar(order, values, color=np.where(active, BLUE, GREY), width=0.75)
    axes.set_xticks(order if len(order) <= 60 else order[::5])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(-0.8, len(order) - 0.2)
    axes.set_ylabel(label)
    plain(axes)


def _neutral_norms(axes, norms):
    points = len(norms) // 3
    for axis, name, colour in zip(range(3), "xyz", (BLUE, VERMILION, GREEN)):
        axes.plot(norms.reshape(points, 3)[:, axis], color=colour, linewidth=1.4, label=name)
    axes.set_xlim(-1, points)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("landmark of the neutral face")
    axes.set_ylabel("weight norm")
    axes.set_title("The same for each number of the neutral face", loc="left")
    axes.legend(loc="upper right", ncols=3, frameon=False, bbox_to_anchor=(1, 1.2))
    plain(axes)
    if points == sum(count for _, count in PARTS_83):
        ends = np.cumsum([count for _, count in PARTS_83])
        axes.set_xticks((ends - [count / 2 for _, count in PARTS_83]) - 0.5, [name for name, _ in PARTS_83])
        axes.tick_params(axis="x", length=0)
        for end in ends[:-1]:
            axes.axvline(end - 0.5, color=GREY, linewidth=0.8, linestyle=":")


def _length(line):
    """Length of a line through points (m, 3)."""
    return float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())


def _tallness(limits):
    """Height of a cell for a face over its width."""
    (left, bottom), (right, top) = limits
    return (top - bottom) / (right - left)


def _limits(faces):
    points = np.concatenate([face[:, :2] for face in faces])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _faces_only(cells, limits):
    (left, bottom), (right, top) = limits
    for cell in cells:
        cell.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
        cell.spines[:].set_color(PALE)
    return cells


def _style(label):
    colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
    return colour, MARKERS[label // len(CLASS_COLOURS) % len(MARKERS)]


def _groups(classes):
    """Rows in the order to draw: label -1 below all, then everything mixed in 8 layers, so that no class hides others.

    Yields (colour, marker, rows, sizes) with one marker each.
    """
    label, _, size = classes
    rest = np.flatnonzero(label < 0)
    if len(rest):
        yield GREY, "o", rest, size[rest]
    layer = np.arange(len(label)) * 5 % 8
    for part in range(8):
        for value in np.unique(label[label >= 0]):
            rows = np.flatnonzero((label == value) & (layer == part))
            if len(rows):
                colour, marker = _style(int(value))
                yield colour, marker, rows, size[rows]


def _legend(figure, classes):
    from matplotlib.lines import Line2D

    label, names, _ = classes
    styles = [_style(value) for value in range(len(names) - 1)] + [(GREY, "o")]
    present = [value in label for value in range(len(names) - 1)] + [bool((label < 0).any())]
    handles = [Line2D([], [], linestyle="", marker=marker, markersize=8, color=colour, markeredgecolor=INK,
                      markeredgewidth=0.4, label=name)
               for (colour, marker), name, there in zip(styles, names, present) if there]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 9), frameon=False, fontsize=11,
                  handletextpad=0.1)


def _box(axes, z, side):
    """Equal units along all three axes, seen from `side` degrees around the third component."""
    low, high = np.percentile(z, (0.5, 99.5), axis=0)  # a few far faces must not make all others small
    middle, reach = (low + high) / 2, (high - low).max() / 2 * 1.1
    axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach),
             zlim=(middle[2] - reach, middle[2] + reach))
    axes.set_box_aspect((1, 1, 1), zoom=1.14)
    axes.view_init(elev=18, azim=side + 35)
    axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
    axes.set_xlabel("component 1", fontsize=9, labelpad=-12)
    axes.set_ylabel("component 2", fontsize=9, labelpad=-12)
    axes.set_zlabel("component 3", fontsize=9, labelpad=-12)


def series(records, key):
    """(iterations, values) of the records that hold a finite number under `key`."""
    pairs = [(record["iteration"], record[key]) for record in records if record.get(key) is not None]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _curve(axes, steps, values, colour, marker=None):
    axes.plot(steps, values, color=colour, linewidth=1.5, marker=marker, markersize=4)
    plain(axes)
    late = values[max(1, len(values) // 10):]
    if len(late) > 1 and np.ptp(values) > 3 * np.ptp(late) > 0:
        # The first values are far off and would press the rest into a line.
        margin = 0.08 * np.ptp(late)
        axes.set_ylim(late.min() - margin, late.max() + margin)
        axes.text(0.005, 0.5, "first values outside", transform=axes.transAxes, rotation=90, va="center", fontsize=8,
                  color=GREY)

"""Command lines and config.json of the face VAEs: which faces and triplets, which settings."""

import pathlib
from typing import NamedTuple

from .. import presets, settings as settings_
from ..data import collection, landmarks, synthetic, triplets
from ..errors import expected
from .options import QUICK, check_batch_size, check_count, sizes, whole_path

BUILT_IN = {"built-in posed": synthetic.posed, "built-in spontaneous": synthetic.spontaneous}
BUILT_IN_ITERATIONS = 20_000   # without a data file: a few minutes on two cores instead of the presets' 100 000


class FaceData(NamedTuple):
    """Faces, and split -> Triplets."""

    faces: object
    triplets: dict


def load_faces(data):
    """The prepared Faces of a file or folder, or of a name in BUILT_IN."""
    return landmarks.prepare(BUILT_IN[data]() if data in BUILT_IN else landmarks.read(pathlib.Path(data)), data)


def load_triplets(source, faces):
    """split -> Triplets: from a file; without one artificial triplets for posed faces, for spontaneous ones the
    collection with simulated workers."""
    if source:
        return triplets.read(pathlib.Path(source), faces)
    if faces.landmarks.kind == "posed":
        return triplets.artificial_splits(faces)
    return collection.collected_splits(faces)


def load(config):
    """The FaceData that a run was begun with."""
    data, features = config["data"], config["settings"]["decoder"][-1]
    faces = load_faces(data)
    if len(faces.x) != config.get("faces", len(faces.x)):
        raise expected(data, f"the {config['faces']} faces that the run was begun with", f"{len(faces.x)}")
    if faces.x.shape[1] != features:
        raise expected(data, f"faces of {features} numbers, as the run was begun with", f"{faces.x.shape[1]}")
    return FaceData(faces, load_triplets(config["triplets"], faces))


def resolve(options, model):
    """(preset, what config.json says about the data, settings, FaceData) of a command line; NnliteError for what does
    not fit together."""
    wanted = presets.PRESETS.get(options.preset, {})
    data = f"built-in {wanted.get('kind', 'posed')}" if options.data is None else options.data
    faces = load_faces(data)
    kind = faces.landmarks.kind
    preset = options.preset or presets.BEST[model, kind]
    chosen = settings_.choose_preset(preset, model)
    if chosen["kind"] != kind:
        raise expected("--preset", f"a preset for {kind} data", f"'{preset}' for {chosen['kind']} data")
    assigned = {}
    given = settings_.apply(model, assigned, options.assignments)
    shorten(chosen, iterations_asked(options, assigned, data))
    chosen["checkpoint_every"] = chosen["validate_every"]
    if options.quick:
        chosen.update(QUICK, iterations=chosen["iterations"])
    chosen.update(assigned)
    settings_.fit_to_data(chosen, faces.x.shape[1], given)
    check_batch_size(chosen, len(faces.split["train"]), "faces")
    task = {"data": whole_path(data, BUILT_IN), "faces": len(faces.x), "triplets": whole_path(options.triplets)}
    return preset, task, chosen, FaceData(faces, load_triplets(options.triplets, faces))


def iterations_asked(options, assigned, data):
    """The number of iterations that the options ask for; None: the preset's."""
    asked = check_count(assigned.get("iterations", options.iterations), "--iterations")
    if asked is None and options.quick:
        return QUICK["iterations"]
    if asked is None and data in BUILT_IN:
        return BUILT_IN_ITERATIONS
    return asked


def shorten(chosen, iterations):
    """Fewer iterations than the preset's shorten annealing and validation in proportion."""
    if iterations is None:
        return
    share = iterations / chosen["iterations"]
    chosen["iterations"] = iterations
    if share < 1:
        chosen["anneal"] = round(chosen["anneal"] * share)
        chosen["validate_every"] = max(1, min(iterations, round(chosen["validate_every"] * max(share, 0.2))))


def list_presets(names):
    """The presets of these names as a table: a head, then a line each."""
    yield f"{'preset':24}{'model':7}{'encoder':34}{'decoder':30}{'s^2':>8}{'lambda':>8}{'anneal':>8}  mode"
    for name in names:
        p = presets.PRESETS[name]
        topological = f"{p['topological_variance']:g}" if p["model"] == "vae3" else "-"
        yield (f"{name:24}{p['model']:7}{sizes(p['encoder']):34}{sizes(p['decoder']):30}"
               f"{p['reconstruction_variance']:8g}{topological:>8}{p['anneal']:8}  {p['anneal_mode']}")

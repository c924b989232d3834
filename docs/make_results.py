"""Makes docs/results.md: `python docs/make_results.py [FOLDER ...]`.

Each evaluated run folder is first brought home as docs/runs/PRESET.json (its configuration, metrics and evaluation, no
weights), a run of the procedure for nets that are tuned finely as PRESET-DATA.json, the folder of an ablation as
ablation-PRESET-DATA-AXES.json; the tables are then made from all files there, measured beside published.
"""

import json
import pathlib
import statistics
import sys

from nnlite.presets import PUBLISHED

HERE = pathlib.Path(__file__).resolve().parent
RUNS = HERE / "runs"

# Published test figures: posed (accuracy, triplets); spontaneous (F1, AUC, triplets of confidence 5, 3, 1).
PUBLISHED_TEST = {
    "posed": {"raw": (.720, .593), "PCA-30": (.676, .592), "vae1": (.640, .592), "vae2": (.720, .670),
              "vae3": (.736, .798)},
    "spontaneous": {"raw": (.633, .766, .747, .615, .549), "PCA-30": (.646, .771, .743, .608, .549),
                    "vae1": (.637, .753, .706, .593, .494), "vae2": (.644, .752, .647, .584, .495),
                    "vae3": (.658, .764, .849, .716, .556)},
}
MEASURES = {"posed": ("accuracy", "triplets"), "spontaneous": ("F1", "AUC", "conf. 5", "conf. 3", "conf. 1")}

# What picks the best parameters -> its name in metrics.jsonl, and whether the largest or the smallest is the best.
CRITERIA = {"elbo": ("validation_elbo", 1), "accuracy": ("validation_accuracy", 1), "f1": ("validation_f1", 1),
            "loss": ("validation_loss", -1)}
PARTS = "train", "validation", "test"


def bring_home(path):
    path = pathlib.Path(path)
    RUNS.mkdir(exist_ok=True)
    if (path / "table.json").exists():
        return bring_ablation_home(json.loads((path / "table.json").read_text()))
    config = json.loads((path / "config.json").read_text())
    config["data"] = pathlib.Path(config["data"]).name
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((path / "report" / "metrics.json").read_text())
    evaluation["data"] = config["data"]
    criterion, sign = CRITERIA[config["settings"].get("watch", "accuracy")] if "classes" in config else CRITERIA["elbo"]
    best = max(records, key=lambda record: sign * record[criterion])
    for name in ("init_from", "teacher"):   # run folders of somebody's machine
        if config.get(name):
            config[name] = pathlib.Path(config[name]).name
    if "production" in evaluation:
        source = evaluation["production"]["source"]
        evaluation["production"]["source"] = pathlib.Path(source.partition("(")[2].rstrip(")") or source).name
    content = {"config": config, "best": best, "metrics": records, "evaluation": evaluation}
    name = config["preset"] + (f"-{short(config['data'])}" if config["settings"].get("split") else "")
    write(name, content)


def bring_ablation_home(found):
    found["data"] = pathlib.Path(found["data"]).name
    write(f"ablation-{found['preset']}-{short(found['data'])}-{'-'.join(found['axes'])}", found)


def short(data):
    """fer2013 for fer2013.csv.gz, faces for the built-in ones."""
    return data.rpartition(" ")[2].partition(".")[0]


def write(name, content):
    (RUNS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def scores(row, split, kind):
    part = row[split]
    if kind == "posed":
        return part["accuracy"], part["triplets"]["all"]
    return part["f1"], part["auc"], *(part["triplets"][level] for level in "531")


def numbers(values):
    return " | ".join(f"{value:.3f}" for value in values)


def table(kind, runs):
    """Test part: measured beside published, raw and PCA-30 from the first run, then each model."""
    lines = ["| representation | preset | " + " | ".join(f"{m}, measured | published" for m in MEASURES[kind]) + " |",
             "|---|---|" + "---|---|" * len(MEASURES[kind])]
    rows = {row["name"]: row for row in runs[0]["evaluation"]["representations"]}
    entries = [(name, "", rows[name]) for name in ("raw", "PCA-30")]
    entries += [(run["config"]["model"], run["config"]["preset"], run["evaluation"]["representations"][-1])
                for run in runs]
    for name, preset, row in entries:
        pairs = zip(scores(row, "test", kind), PUBLISHED_TEST[kind][name])
        lines.append(f"| {name} | {preset} | " + " | ".join(f"**{a:.3f}** | {b:.3f}" for a, b in pairs) + " |")
    return lines


def preset_table(runs):
    """Validation part and the run itself, per preset."""
    lines = ["| preset | iterations | best at | validation: measured | published | active dimensions: measured | "
             "published | iterations/s, median |", "|---|---|---|---|---|---|---|---|"]
    for run in runs:
        kind, preset = run["evaluation"]["kind"], run["config"]["preset"]
        first, second, active = PUBLISHED[preset]
        measured = scores(run["evaluation"]["representations"][-1], "validation", kind)
        shown = (measured[0], measured[1]) if kind == "posed" else (measured[0], measured[2])
        published = " / ".join("-" if value is None else f"{value:.3f}" for value in (first, second))
        used = run["evaluation"]["active"]
        rate = statistics.median(record["iterations_per_second"] for record in run["metrics"])
        lines.append(f"| {preset} | {run['config']['iterations']} | {run['best']['iteration']} | "
                     f"{shown[0]:.3f} / {shown[1]:.3f} | {published} | {used['count']} of {used['of']} | "
                     f"{'-' if active is None else active} | {rate:.0f} |")
    return lines


def part_of(run, part, measure="accuracy"):
    """A figure of the evaluation as text; "-" where there is none."""
    value = run["evaluation"]["parts"].get(part, {}).get(measure)
    return "-" if value is None else f"{100 * value:.1f}"


def label_table(runs):
    """A line for each classifier: measured and published accuracies in percent, and the run itself."""
    lines = ["| preset | optimiser, rate | epochs, best | train | validation | **test** | published | macro recall, "
             "precision, F1, test | published | last epoch: training accuracy, loss |", "|" + "---|" * 10]
    for run in runs:
        preset, settings, epochs = run["config"]["preset"], run["config"]["settings"], run["metrics"][-1]["epoch"]
        known = PUBLISHED[preset]
        published = ", ".join(f"{100 * known[part]:.1f} ({part})" for part in PARTS if part in known) or "-"
        measures = [f"{known[name]:.3f}" for name in ("recall", "precision", "f1") if name in known]
        test = run["evaluation"]["parts"]["test"]
        collapsed = f" (all '{test['collapsed_to']}')" if test["collapsed_to"] else ""
        lines.append(
            f"| {preset} | {settings['optimiser']}, {settings['learning_rate']:g} | {epochs:.0f}, "
            f"{run['best']['epoch']:.0f} | {part_of(run, 'train')} | {part_of(run, 'validation')} | "
            f"**{part_of(run, 'test')}**{collapsed} | {published} | "
            f"{', '.join(text_of(test['macro'][name]) for name in ('recall', 'precision', 'f1'))} | "
            f"{', '.join(measures) or '-'} | "
            f"{100 * run['metrics'][-1]['training_accuracy']:.1f}, {run['metrics'][-1]['loss']:.3f} |")
    return lines


def text_of(value):
    return "undefined" if value is None else f"{value:.3f}"


def class_table(run):
    """Each class of the test part."""
    lines = ["| class | images | recall | precision | F1 |", "|---|---|---|---|---|"]
    for row in run["evaluation"]["parts"]["test"]["per_class"]:
        cells = [text_of(row[name]) for name in ("recall", "precision", "f1")]
        lines.append(f"| {row['class']} | {row['images']} | " + " | ".join(cells) + " |")
    return lines


def label_lines(runs):
    lines = []
    groups = {1: "Expressions in pictures (fer2013.csv.gz)", 3: "CIFAR-10 (cifar-10-batches-py)"}
    for channels, title in groups.items():
        chosen = [run for run in runs if run["config"]["shape"][2] == channels]
        if not chosen:
            continue
        lines += [f"## {title}", "",
                  "Accuracy in percent. Epochs and settings were chosen on the validation part, held out of the images",
                  "for training; test is PublicTest, or the half of CIFAR-10's test batch that is at hand.", ""]
        lines += label_table(chosen) + [""]
        best = max(chosen, key=lambda run: run["evaluation"]["parts"]["validation"]["accuracy"])
        if best["config"]["shape"][2] == 1:
            lines += [f"`{best['config']['preset']}`, class by class, on the test part:", "", *class_table(best), "",
                      "![confusion matrix](confusion.png)", "![learning curves](learning.png)", ""]
    return lines


def procedure_lines(runs, ablations):
    """Nets that go through the whole procedure of the fine-tuned ones: split, F1 rule, production check, ablations."""
    lines = ["## Small nets through the whole procedure of ViT and ResNet", "",
             "`vit-tiny` and `resnet-small` begin with random weights. The split is 70/20/10, class by class, the",
             "parameters kept are those of the best validation F1, and the learning rate falls by a fifth where F1",
             "fell by more than a tenth. Production is the other data set (`python -m nnlite.evaluate RUN --data",
             "OTHER`).", "",
             "| preset | data | images for training | epochs, best | last learning rate | validation F1 | test "
             "accuracy, F1 | production | accuracy, F1 there | F1 fell most |", "|" + "---|" * 10]
    for run in runs:
        config, evaluation = run["config"], run["evaluation"]
        test, production = evaluation["parts"]["test"], evaluation["production"]
        fell = min(production["changes"], key=lambda row: row["f1"]["change"])
        lines.append(
            f"| {config['preset']} | {config['data']} | {evaluation['parts']['train']['images']} | "
            f"{run['metrics'][-1]['epoch']:.0f}, {run['best']['epoch']:.0f} | "
            f"{run['metrics'][-1]['learning_rate']:.3g} | {run['best']['validation_f1']:.3f} | "
            f"{test['accuracy']:.3f}, {test['macro']['f1']:.3f} | {production['source']} | "
            f"{production['accuracy']:.3f}, {production['macro']['f1']:.3f} | "
            f"{fell['class']} ({fell['f1']['change']:+.3f}) |")
    lines += ["", "Ablations (`python -m nnlite.ablate`), each cell a training from the beginning: accuracy,",
              "validation / test, and in brackets macro F1 of the test part; in bold the best validation F1."]
    for found in ablations:
        subset, (rows, *columns) = found["set"].get("subset"), found["axes"]
        lines += ["", f"`{found['preset']}` on {found['data']}, {subset[0]} images" + (
            "" if "epochs" in found["axes"] else f", {found['epochs']} epochs") + ":", "",
            "| " + " \\ ".join([rows, *columns]) + " | " + " | ".join(
                f"{value:g}" for value in found["axes"][columns[0]]) + " |" if columns else f"| {rows} | measured |",
            "|---|" + "---|" * (len(found["axes"][columns[0]]) if columns else 1)]
        for value in found["axes"][rows]:
            cells = [cell for cell in found["cells"] if cell[rows] == value]
            lines.append(f"| {value} | " + " | ".join(map(cell_text, cells)) + " |")
    return lines + [""]


def cell_text(cell):
    text = f"{cell['validation_accuracy']:.3f} / {cell['test_accuracy']:.3f} ({text_of(cell['test_f1'])})"
    return f"**{text}**" if cell["best"] else text


def main(paths):
    for path in paths:
        bring_home(path)
    everything = [json.loads(path.read_text()) for path in sorted(RUNS.glob("*.json"))]
    ablations = [found for found in everything if "axes" in found]
    everything = [run for run in everything if "axes" not in run]
    order = list(PUBLISHED)
    everything.sort(key=lambda run: order.index(run["config"]["preset"]))
    runs = [run for run in everything if "kind" in run["evaluation"]]
    lines = ["# Results", "",
             "Measured beside published. Made by `python docs/make_results.py RUN ...` from the run folders; what was",
             "found on the way stands in [findings.md](findings.md). Every run is one command:", "",
             "    python -m nnlite.train --preset PRESET --data FILE", ""]
    for kind, what in (("posed", "accuracy of a linear SVM on 7 emotions, share of satisfied artificial triplets"),
                       ("spontaneous", "F1 and AUC of linear SVMs on 12 action units, share of satisfied triplets by "
                                       "confidence; the votes are those of simulated workers")):
        chosen = [run for run in runs if run["evaluation"]["kind"] == kind]
        if chosen:
            lines += [f"## {kind.capitalize()} faces ({chosen[0]['config']['data']})", "", f"Test part: {what}.", ""]
            lines += table(kind, chosen)
            second = "triplets" if kind == "posed" else "triplets of confidence 5"
            lines += ["", f"Validation part ({MEASURES[kind][0]} / {second}), and the runs:", ""]
            lines += preset_table(chosen) + [""]
    pictures = [run for run in everything if "parts" in run["evaluation"]]
    tuned = [run for run in pictures if run["config"]["settings"].get("split")]
    lines += label_lines([run for run in pictures if run not in tuned])
    if tuned:
        lines += procedure_lines(tuned, ablations)
    (HERE / "results.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])

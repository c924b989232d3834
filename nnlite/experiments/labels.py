"""Classifiers of images: a batch of images and labels in, one optimiser step out."""

import math
from fnmatch import fnmatchcase

import numpy as np

from .. import checkpoint, losses, metrics, report_labels
from ..data import images as image_data
from ..data.batches import Batches, images_at_once
from ..errors import expected
from ..models import MODELS
from ..optim import OPTIMISERS, InverseTime, StepDecay
from ..settings import SHAPES
from . import label_options, micro_batches
from .label_images import LabelImages, seen_shape

CHUNK = 200     # small images evaluated at once
FALL = 0.1      # of the validation F1, above which f1_decay applies


class LabelExperiment:
    """data: ImageSet, its classes those of the model; settings: see nnlite.settings.

    init_from: the folder of a run of the same model whose best parameters (and running statistics) restart() begins
    with; grown: its output layer is one unit smaller. weights: a file of published parameters that restart() begins
    with (see nnlite.weights). teacher: the folder of a run of a classifier, whose probabilities are learnt beside the
    labels, these with the weight settings["alpha"]. pixels: mean and deviation of the training pixels, each (C,), in
    units of full scale, where they are known.

    A batch larger than settings["micro_batch"] is done in micro-batches (gradient accumulation): their gradients add up
    to that of the whole batch's mean loss. What belongs to a micro-batch alone is its batch norm, by the mean and
    variance of its images, and its dropout.
    """

    options = "epochs", "resize", "init_from", "add_class", "teacher", "weights", "skip_broken"
    criterion_sign = 1
    zero_sums = {"loss_sum": 0.0, "steps": 0, "hits": 0}
    config_later = {"weights": None, "skip_broken": False}
    config_kinds = {"images": int, "shape": [int], "resized": bool, "classes": [str],
                    **dict.fromkeys(("pixel_mean", "pixel_std"), (list, type(None))),
                    **dict.fromkeys(("init_from", "add_class", "teacher", "weights"), (str, type(None))),
                    "skip_broken": bool}
    resolve, load = staticmethod(label_options.resolve), staticmethod(label_options.load)
    list_presets = staticmethod(label_options.list_presets)

    @classmethod
    def from_config(cls, config, data, ops):
        return cls(config["settings"], data, ops, dtype=config["dtype"], seed=config["seed"],
                   init_from=config["init_from"], grown=config["add_class"] is not None, weights=config["weights"],
                   teacher=config["teacher"], pixels=(config["pixel_mean"], config["pixel_std"]))

    def __init__(self, settings, data, ops, *, dtype="float32", seed=0, init_from=None, grown=False, weights=None,
                 teacher=None, pixels=(None, None)):
        image_data.validate_labels(data.labels, data.classes, data.source)
        self.settings, self.data, self.ops, self.classes = settings, data, ops, tuple(data.classes)
        self.init_from, self.grown, self.weights, self.teacher = init_from, grown, weights, teacher
        self._watch(settings["watch"])
        name, shape = settings["model"], seen_shape(settings, data.images.shape[1:])
        self.model = MODELS[name](shape=shape, classes=len(self.classes),
                                  **{key: settings[key] for key in SHAPES[name]}).build(ops, dtype=dtype, seed=seed)
        self._scale_weights()
        momentum = {"momentum": settings["momentum"]} if settings["optimiser"] == "sgd" else {}
        self.optimiser = OPTIMISERS[settings["optimiser"]](
            self.model.parameters, lr=settings["learning_rate"], decay=settings["l2"],
            frozen=frozen(self.model, settings["freeze"]), **momentum)
        self.images = LabelImages(settings, data, ops, dtype=dtype, seed=seed, pixels=pixels)
        self._place_labels(dtype, seed)
        self.carried = {"rate_factor": 1.0, "last_f1": 0.0}   # of the F1 rule, from one validation to the next
        self.told = []                                        # what restart() found out, in lines for people
        self._step = ops.capture(self._forward_backward_update)   # a list of kernel calls, or a CUDA graph

    def _watch(self, name):
        """Which validation value picks the best parameters; the loss with its sign turned, so that the largest is."""
        self.criterion, self.criterion_label = f"validation_{name}", name
        if name == "loss":
            self.criterion, self.criterion_sign = "validation_minus_loss", -1

    def _place_labels(self, dtype, seed):
        """Buffers at fixed places for what changes from step to step, and how the batches are drawn."""
        ops, data, settings = self.ops, self.data, self.settings
        self.train_rows = data.split["train"]
        B = settings["batch_size"]
        self.steps_per_epoch = label_options.steps_per_epoch(settings, len(self.train_rows))
        self.rates = (StepDecay(settings["learning_rate"], factor=settings["lr_decay"], every=self.steps_per_epoch),
                      InverseTime(1.0, decay=settings["inverse_decay"]))
        self.batches = Batches(len(self.train_rows), B, seed=seed, name="batches")
        self.labels = ops.zeros((B,), "int32")
        self.weights_of_classes, self.class_weight = np.ones(len(self.classes)), None
        if settings["class_weights"] == "balanced" and len(self.train_rows):
            self.weights_of_classes = balanced(data.labels[self.train_rows], len(self.classes))
            self.class_weight = ops.asarray(self.weights_of_classes, dtype)
        self.soft = ops.zeros((B, len(self.classes)), dtype) if self.teacher else None
        self._teachers_probabilities = None   # (n_train, K), when they are needed
        self.share = ops.zeros((B,), dtype)   # of the batch's loss, for each image that of its micro-batch
        self._cut(settings["micro_batch"] or B)

    def _cut(self, size):
        """From now on a batch is done in micro-batches of this many images."""
        self.micro_batches = micro_batches.slices(self.settings["batch_size"], size)
        self.shares = [1.0] * len(self.micro_batches)

    def restart(self):
        """Everything as it was before the first step. Where settings["micro_batch"] is 0 it becomes what the memory
        holds, and stays that, also in a run's config.json: batch norm and the order of sums depend on it."""
        model, settings, self.told = self.model, self.settings, []
        for array in (model.parameters.grads, *self.optimiser.state().values()):
            array[...] = 0   # and what was written to does not count as free memory any more
        if not settings["micro_batch"]:
            settings["micro_batch"], reason = micro_batches.largest(settings["batch_size"], self.ops, self._try)
            self._cut(settings["micro_batch"])
            self.told.append(f"memory: {reason}")
        model.rng.set_step(0)
        model.parameters.initialise(model.rng)
        self._scale_weights()
        for _, layer in model.walk():
            for attribute, (_, fill) in layer.state_specs.items():
                getattr(layer, attribute)[...] = fill
        self.carried.update(rate_factor=1.0, last_f1=0.0)
        if self.weights is not None:
            from .. import weights   # here: most runs have none
            self.told += weights.load(self.weights, model, settings["model"], classes=self.classes,
                                      pixels=self.images.about()).lines()
        if self.init_from is not None:
            output = model.layers[-1].name
            checkpoint.load(f"{self.init_from}/best.h5", model,
                            growing=(f"{output}.W", f"{output}.b") if self.grown else ())
        if self.teacher is not None:
            self._ask_teacher()

    def _try(self, count):
        """Forward and backward of so many images, for the memory that they take."""
        self.model.zero_grad()
        self._part(slice(0, count))

    def _scale_weights(self):
        """Smaller or larger first weights than the layers' own; biases and norms stay."""
        for entry in self.model.parameters.table:
            if len(entry.shape) > 1:
                self.model.parameters.value(entry)[...] *= self.settings["init_scale"]

    # -- a step --------------------------------------------------------------------------------------------------

    def step(self, iteration):
        """One training step; returns the loss of its batch and how many of its images were called right."""
        self.prepare(iteration)
        return self._step()

    def _forward_backward_update(self):
        terms = self.forward_backward()
        self.optimiser.step()
        return terms

    def prepare(self, iteration):
        """Put everything that depends on the iteration where forward_backward() finds it."""
        chosen, ops, B = self.batches.rows(iteration), self.ops, self.settings["batch_size"]
        rows = self.train_rows[chosen]
        labels = self.data.labels[rows]
        self.images.prepare(iteration, rows, (iteration * B + np.arange(B)) // len(self.train_rows))
        ops.copy_into(self.labels, labels)
        if self.teacher is not None:
            ops.copy_into(self.soft, self._ask_teacher()[chosen])
        if len(self.micro_batches) > 1:
            weight = self.weights_of_classes[labels]
            self.shares = [weight[part].sum() / weight.sum() for part in self.micro_batches]
            ops.copy_into(self.share, np.repeat(self.shares, [part.stop - part.start for part in self.micro_batches]))
        self.model.rng.set_step(iteration * len(self.micro_batches))
        self.optimiser.set_lr(self.rate(iteration))

    def rate(self, iteration):
        """The learning rate: of the epoch, falling with 1/t, and with the falls of the validation F1."""
        return self.carried["rate_factor"] * math.prod(rate(iteration) for rate in self.rates)

    def forward_backward(self):
        """Loss and hits of the prepared batch, and the gradients of the loss; of several micro-batches the terms of
        each."""
        self.model.zero_grad()
        if len(self.micro_batches) == 1:
            return self._part(self.micro_batches[0])
        terms = {}
        for number, part in enumerate(self.micro_batches, 1):
            terms.update({f"{name} of micro-batch {number}": value for name, value in self._part(part).items()})
            self.ops.increment(self.model.rng.step)   # dropout draws anew for each
        return terms

    def _part(self, part):
        """Loss and hits of a slice of the prepared batch; its gradients are added, by its share of the batch's loss."""
        ops, settings, labels = self.ops, self.settings, self.labels[part]
        logits = self.model.forward(self.images.batch(part), train=True)
        soft, alpha = (None, 1.0) if self.soft is None else (self.soft[part], settings["alpha"])
        loss, dlogits = losses.softmax_cross_entropy(
            ops, logits, labels, class_weight=self.class_weight, smoothing=settings["smoothing"], soft=soft,
            alpha=alpha)
        hits = ops.hits(logits, labels)
        if len(self.micro_batches) > 1:
            dlogits = ops.scale_samples(dlogits, self.share[part])
        self.model.backward(dlogits, need_dx=False)
        return {"loss": loss, "hits": hits}

    def _ask_teacher(self):
        """(n_train, K) float32: the teacher's probabilities for the training images, unflipped; asked once."""
        if self._teachers_probabilities is None:
            from ..runs import open_run   # here: runs builds on the experiments
            label_options.read_classifier(self.teacher)
            run = open_run(self.teacher, self.ops.name, label_options.without_images)
            run.load_best()
            if run.experiment.classes != self.classes:
                raise expected(self.teacher, "a teacher of the classes " + ", ".join(self.classes),
                               ", ".join(run.experiment.classes))
            self._teachers_probabilities = run.experiment.probabilities(self.data.images[self.train_rows])
        return self._teachers_probabilities

    # -- what a run tells ----------------------------------------------------------------------------------------

    def sums(self, terms):
        """What a step adds to zero_sums; terms: of the step that was prepared last."""
        values = list(map(float, terms.values()))
        loss = math.fsum(share * value for share, value in zip(self.shares, values[::2]))
        return {"loss_sum": loss, "steps": 1, "hits": int(sum(values[1::2]))}

    def line(self, done, sums):
        """What metrics.jsonl says about the steps since the last validation."""
        steps = max(sums["steps"], 1)
        return {"iteration": done, "epoch": done / self.steps_per_epoch, "loss": sums["loss_sum"] / steps,
                "training_accuracy": sums["hits"] / (steps * self.settings["batch_size"]),
                "learning_rate": self.rate(done - 1)}

    def over(self, done, best_iteration):
        """Whether the run has come to its end, or has not become better for `patience` epochs."""
        patience = self.settings["patience"] * self.steps_per_epoch
        return done >= self.settings["iterations"] or 0 < patience <= done - best_iteration

    def validate(self, split="validation"):
        """Cross entropy (plain, whatever the training loss is), accuracy and macro F1 of a split: {name: number}; where
        the loss is watched also what is watched, its negative."""
        rows, loss, predicted = self.data.split[split], 0.0, []
        for chunk in self._chunks(len(rows)):
            some = rows[chunk]
            logits = self.model.forward(self.normalise(self.data.images[some]))
            value, _ = losses.softmax_cross_entropy(self.ops, logits, self.ops.asarray(self.data.labels[some]))
            loss += float(value) * len(some) / len(rows)
            predicted.append(self.ops.to_host(logits).argmax(1))
        truth, predicted = self.data.labels[rows], np.concatenate(predicted)
        f1 = metrics.per_class(metrics.confusion_matrix(truth, predicted, len(self.classes)))[2]
        values = {f"{split}_loss": loss, f"{split}_accuracy": metrics.accuracy(truth, predicted),
                  f"{split}_f1": metrics.mean_of_defined(f1)}
        return {**values, f"{split}_minus_loss": -loss} if self.settings["watch"] == "loss" else values

    def _chunks(self, count):
        """Slices of so many images that are evaluated at once: as many as are trained on at once; where that is a whole
        batch also more, if they are small, since nothing is kept for a backward."""
        size = self.micro_batches[0].stop
        if len(self.micro_batches) == 1:
            size = max(size, images_at_once(CHUNK, (*self.images.size, self.images.channels)))
        return micro_batches.slices(count, min(CHUNK, size))

    def validated(self, values):
        """Learn from what validate() found: where the F1 fell by more than 10 %, the learning rate falls too."""
        if values["validation_f1"] < (1 - FALL) * self.carried["last_f1"]:
            self.carried["rate_factor"] *= self.settings["f1_decay"]
        self.carried["last_f1"] = values["validation_f1"]

    def normalise(self, images):
        """uint8 images (n, H, W, C) as the array that model.forward takes."""
        return self.images.plain(images)

    def probabilities(self, images):
        """(n, K) float32 NumPy: softmax of the model for uint8 images (n, H, W, C)."""
        found = np.empty((len(images), len(self.classes)), np.float32)
        for chunk in self._chunks(len(images)):
            z = self.ops.to_host(self.model.forward(self.normalise(images[chunk]))).astype(np.float64)
            e = np.exp(z - z.max(1, keepdims=True))
            found[chunk] = e / e.sum(1, keepdims=True)
        return found

    def describe(self, run):
        """Lines about data and training, for people."""
        s, config = self.settings, run.config
        counts = ", ".join(f"{len(rows)} {name}" for name, rows in self.data.split.items())
        shape = "x".join(map(str, self.data.images.shape[1:]))
        parted = "" if not s["split"] else "; parts drawn anew, {:.0%} / {:.0%} / {:.0%}".format(*s["split"])
        lines = [f"data: {config['data']}: images {shape} of {len(self.classes)} classes ({counts}{parted})",
                 f"training: {s['epochs']} epochs of {self.steps_per_epoch} batches of {s['batch_size']}, "
                 f"{s['optimiser']}, learning rate {s['learning_rate']:g}", *self.images.describe(), *self._rules()]
        if self.weights is not None:
            lines.append(f"begins with the parameters in {self.weights}")
        if self.init_from is not None:
            lines.append(f"begins with the parameters of {self.init_from}" +
                         (f", and the new class '{self.classes[-1]}'" if self.grown else ""))
        if self.teacher is not None:
            lines.append(f"teacher: {self.teacher}, with weight {1 - s['alpha']:g}")
        if len(self.micro_batches) > 1:
            own = ", each with its own batch norm" if self.model.state else ""
            lines.append(f"gradient accumulation: a batch is done in {len(self.micro_batches)} micro-batches of "
                         f"{s['micro_batch']} images{own}")
        return lines + self.told

    def _rules(self):
        """What picks the best parameters, ends the run, moves the learning rate and does not learn, in lines."""
        s, lines = self.settings, []
        if s["watch"] != "accuracy" or s["patience"]:
            ends = f", which ends the run after {s['patience']} epochs without a better one" if s["patience"] else ""
            lines.append(f"the best epoch is that of the best validation {s['watch']}{ends}")
        if s["f1_decay"] < 1:
            lines.append(f"learning rate x {s['f1_decay']:g} where the validation F1 fell by more than {FALL:.0%}")
        if s["class_weights"] == "balanced":
            lines.append("class weights: " + ", ".join(
                f"{name} {weight:.3g}" for name, weight in zip(self.classes, self.weights_of_classes)))
        if s["freeze"]:
            learning = sum((stop - start) * int(moves) for start, stop, (_, moves) in self.optimiser.ranges)
            lines.append(f"frozen: {', '.join(s['freeze'])}; {learning:,} parameters learn")
        return lines

    @staticmethod
    def missing_extra():
        """Tables can always be made; report_labels itself says what pictures lack."""
        return None

    @staticmethod
    def evaluate(run, other=None, skip_broken=False):
        """Tables and pictures of a trained run; other: a path to more images, measured beside its own, without the
        files that are no images if skip_broken."""
        if other is None:
            report_labels.evaluate(run)
        else:
            found = label_options.load_others(other, run.config["shape"], skip_broken)
            report_labels.evaluate(run, data=found)


def frozen(model, patterns):
    """entry -> whether a pattern names that parameter of the model; marks the layers that do not learn at all, below
    which no gradient is computed. Running statistics go on following the images."""
    table = model.parameters.table
    for pattern in patterns:
        if not any(fnmatchcase(entry.name, pattern) for entry in table):
            raise expected("--set freeze", f"patterns of names of parameters, as {table[0].name}",
                           f"'{pattern}', which none has")
    names = {entry.name for entry in table if any(fnmatchcase(entry.name, pattern) for pattern in patterns)}
    if len(names) == len(table):
        raise expected("--set freeze", "patterns that leave something to learn", ", ".join(patterns))
    for entry in table:
        entry.owner.frozen = all(other.name in names for other in table if other.owner is entry.owner)
    return lambda entry: entry.name in names


def balanced(labels, classes):
    """(K,) weights in inverse proportion to the classes' frequencies, their mean over the labels 1."""
    counts = np.bincount(labels, minlength=classes)
    there = counts > 0
    return np.where(there, len(labels) / (there.sum() * np.maximum(counts, 1)), 1.0)


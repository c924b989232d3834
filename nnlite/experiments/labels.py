"""Classifiers of images: a batch of images and labels in, one optimiser step out."""

import math

import numpy as np

from .. import checkpoint, losses, metrics, report_labels
from ..data import images as image_data
from ..data.batches import Batches
from ..errors import expected
from ..models import MODELS
from ..ops.reference import ReferenceOps
from ..optim import OPTIMISERS, InverseTime, StepDecay
from ..rng import Rng
from ..settings import SHAPES
from . import label_options

CHUNK = 200      # images evaluated at once
HALF = 2 ** 31   # of the 32-bit words: a word below flips an image


class LabelExperiment:
    """data: ImageSet, its classes those of the model; settings: see nnlite.settings.

    init_from: the folder of a run of the same model whose best parameters (and running statistics) restart() begins
    with; grown: its output layer is one unit smaller. teacher: the folder of a run of a classifier, whose probabilities
    are learnt beside the labels, these with the weight settings["alpha"]. pixels: mean and deviation of the training
    pixels, each (C,), in units of full scale, where they are known.
    """

    options = "epochs", "resize", "init_from", "add_class", "teacher"
    criterion, criterion_label = "validation_accuracy", "accuracy"
    zero_sums = {"loss_sum": 0.0, "steps": 0, "hits": 0}
    config_kinds = {"images": int, "shape": [int], "resized": bool, "classes": [str],
                    **dict.fromkeys(("pixel_mean", "pixel_std"), (list, type(None))),
                    **dict.fromkeys(("init_from", "add_class", "teacher"), (str, type(None)))}
    resolve, load = staticmethod(label_options.resolve), staticmethod(label_options.load)

    @classmethod
    def from_config(cls, config, data, ops):
        return cls(config["settings"], data, ops, dtype=config["dtype"], seed=config["seed"],
                   init_from=config["init_from"], grown=config["add_class"] is not None, teacher=config["teacher"],
                   pixels=(config["pixel_mean"], config["pixel_std"]))

    def __init__(self, settings, data, ops, *, dtype="float32", seed=0, init_from=None, grown=False, teacher=None,
                 pixels=(None, None)):
        self.settings, self.data, self.ops, self.classes = settings, data, ops, tuple(data.classes)
        self.init_from, self.grown, self.teacher, self.pixels = init_from, grown, teacher, pixels
        name = settings["model"]
        self.model = MODELS[name](shape=data.images.shape[1:], classes=len(self.classes),
                                  **{key: settings[key] for key in SHAPES[name]}).build(ops, dtype=dtype, seed=seed)
        self._scale_weights()
        momentum = {"momentum": settings["momentum"]} if settings["optimiser"] == "sgd" else {}
        self.optimiser = OPTIMISERS[settings["optimiser"]](
            self.model.parameters, lr=settings["learning_rate"], decay=settings["l2"], **momentum)
        self._place_data(dtype, seed)
        self._step = ops.capture(self._forward_backward_update)   # a list of kernel calls, or a CUDA graph

    def _place_data(self, dtype, seed):
        """Images on the device, and buffers at fixed places for what changes from step to step."""
        ops, data, settings = self.ops, self.data, self.settings
        self.train_rows = data.split["train"]
        B = settings["batch_size"]
        self.steps_per_epoch = label_options.steps_per_epoch(settings, len(self.train_rows))
        self.rates = (StepDecay(settings["learning_rate"], factor=settings["lr_decay"], every=self.steps_per_epoch),
                      InverseTime(1.0, decay=settings["inverse_decay"]))
        self.batches = Batches(len(self.train_rows), B, seed=seed, name="batches")
        self.chances = Rng(ReferenceOps(), seed)   # of flips and moves, drawn on the host
        self.images = ops.asarray(data.images)
        self.shift, self.scale = (ops.asarray(part, dtype) for part in self._normalisation())
        self.rows, self.labels = ops.zeros((B,), "int32"), ops.zeros((B,), "int32")
        self.flip, self.moves = ops.zeros((B,), "uint8"), ops.zeros((B, 2), "int32")
        self.class_weight = None
        if settings["class_weights"] == "balanced" and len(self.train_rows):
            self.class_weight = ops.asarray(balanced(data.labels[self.train_rows], len(self.classes)), dtype)
        self.soft = ops.zeros((B, len(self.classes)), dtype) if self.teacher else None
        self._teachers_probabilities = None   # (n_train, K), when they are needed

    def _normalisation(self):
        """(shift, scale), each (C,): pixels 0-255 as x = (pixel - shift) scale."""
        channels = self.data.images.shape[3]
        if self.settings["normalise"] == "raw":
            return np.zeros(channels), np.ones(channels)
        known = self.pixels if self.pixels[0] else image_data.statistics(self.data.images, self.train_rows)
        mean, std = (np.asarray(part, np.float64) for part in known)
        return 255 * mean, 1 / (255 * std) if self.settings["normalise"] == "standard" else np.ones(channels)

    def restart(self):
        """Everything as it was before the first step."""
        model = self.model
        model.rng.set_step(0)
        model.parameters.initialise(model.rng)
        self._scale_weights()
        for _, layer in model.walk():
            for attribute, (_, fill) in layer.state_specs.items():
                getattr(layer, attribute)[...] = fill
        for array in self.optimiser.state().values():
            array[...] = 0
        if self.init_from is not None:
            output = model.layers[-1].name
            checkpoint.load(f"{self.init_from}/best.h5", model,
                            growing=(f"{output}.W", f"{output}.b") if self.grown else ())
        if self.teacher is not None:
            self._ask_teacher()

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
        chosen, ops = self.batches.rows(iteration), self.ops
        rows = self.train_rows[chosen]
        ops.copy_into(self.rows, rows)
        ops.copy_into(self.labels, self.data.labels[rows])
        self.chances.set_step(iteration)
        if self.settings["flip"]:
            words = self.chances.ops.random_words(1, len(rows), self.chances.key("flips"))[0]
            ops.copy_into(self.flip, words < HALF)
        if self.settings["move"]:
            words, most = self.chances.ops.random_words(len(rows), 2, self.chances.key("moves")), self.settings["move"]
            ops.copy_into(self.moves, (words.astype(np.uint64) * (2 * most + 1) >> 32).astype(np.int32) - most)
        if self.teacher is not None:
            ops.copy_into(self.soft, self._ask_teacher()[chosen])
        self.model.rng.set_step(iteration)
        self.optimiser.set_lr(self.rate(iteration))

    def rate(self, iteration):
        """The learning rate: of the epoch, and falling with 1/t."""
        return math.prod(rate(iteration) for rate in self.rates)

    def forward_backward(self):
        """Loss and hits of the prepared batch, and the gradients of the loss."""
        ops, settings = self.ops, self.settings
        self.model.zero_grad()
        x = ops.image_batch(self.images, self.rows, self.flip, self.moves, self.shift, self.scale, self.model.dtype)
        logits = self.model.forward(x, train=True)
        loss, dlogits = losses.softmax_cross_entropy(
            ops, logits, self.labels, class_weight=self.class_weight, smoothing=settings["smoothing"], soft=self.soft,
            alpha=1.0 if self.soft is None else settings["alpha"])
        hits = ops.hits(logits, self.labels)
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
        """What a step adds to zero_sums."""
        return {"loss_sum": float(terms["loss"]), "steps": 1, "hits": int(terms["hits"])}

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
        """Cross entropy (plain, whatever the training loss is), accuracy and macro F1 of a split: {name: number}."""
        rows, loss, predicted = self.data.split[split], 0.0, []
        for start in range(0, len(rows), CHUNK):
            some = rows[start:start + CHUNK]
            logits = self.model.forward(self.normalise(self.data.images[some]))
            value, _ = losses.softmax_cross_entropy(self.ops, logits, self.ops.asarray(self.data.labels[some]))
            loss += float(value) * len(some) / len(rows)
            predicted.append(self.ops.to_host(logits).argmax(1))
        truth, predicted = self.data.labels[rows], np.concatenate(predicted)
        f1 = metrics.per_class(metrics.confusion_matrix(truth, predicted, len(self.classes)))[2]
        return {f"{split}_loss": loss, f"{split}_accuracy": metrics.accuracy(truth, predicted),
                f"{split}_f1": metrics.mean_of_defined(f1)}

    def normalise(self, images):
        """uint8 images (n, H, W, C) as the array that model.forward takes."""
        ops, n = self.ops, len(images)
        return ops.image_batch(ops.asarray(images), ops.asarray(np.arange(n, dtype=np.int32)), ops.zeros((n,), "uint8"),
                               ops.zeros((n, 2), "int32"), self.shift, self.scale, self.model.dtype)

    def probabilities(self, images):
        """(n, K) float32 NumPy: softmax of the model for uint8 images (n, H, W, C)."""
        found = np.empty((len(images), len(self.classes)), np.float32)
        for start in range(0, len(images), CHUNK):
            z = self.ops.to_host(self.model.forward(self.normalise(images[start:start + CHUNK]))).astype(np.float64)
            e = np.exp(z - z.max(1, keepdims=True))
            found[start:start + CHUNK] = e / e.sum(1, keepdims=True)
        return found

    def describe(self, run):
        """Lines about data and training, for people."""
        s, config = self.settings, run.config
        counts = ", ".join(f"{len(rows)} {name}" for name, rows in self.data.split.items())
        shape = "x".join(map(str, self.data.images.shape[1:]))
        lines = [f"data: {config['data']}: images {shape} of {len(self.classes)} classes ({counts})",
                 f"training: {s['epochs']} epochs of {self.steps_per_epoch} batches of {s['batch_size']}, "
                 f"{s['optimiser']}, learning rate {s['learning_rate']:g}"]
        if self.init_from is not None:
            lines.append(f"begins with the parameters of {self.init_from}" +
                         (f", and the new class '{self.classes[-1]}'" if self.grown else ""))
        if self.teacher is not None:
            lines.append(f"teacher: {self.teacher}, with weight {1 - s['alpha']:g}")
        return lines

    @staticmethod
    def missing_extra():
        """Tables can always be made; report_labels itself says what pictures lack."""
        return None

    @staticmethod
    def evaluate(run, other=None):
        """Tables and pictures of a trained run; other: a path to more images, measured beside its own."""
        if other is None:
            report_labels.evaluate(run)
        else:
            size = run.config["shape"][:2] if run.config["resized"] else None
            report_labels.evaluate(run, data=image_data.read(other, size=size))


def balanced(labels, classes):
    """(K,) weights in inverse proportion to the classes' frequencies, their mean over the labels 1."""
    counts = np.bincount(labels, minlength=classes)
    there = counts > 0
    return np.where(there, len(labels) / (there.sum() * np.maximum(counts, 1)), 1.0)


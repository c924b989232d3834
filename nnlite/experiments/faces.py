"""Face VAEs on landmarks: batches of faces and triplets in, one optimiser step out."""

import math

import numpy as np

from .. import report
from ..data.batches import Batches
from ..errors import expected
from ..models import MODELS
from ..models.vae import Batch
from ..optim import Adam
from . import face_options

VALIDATION_STEP = 2 ** 62   # random numbers of a validation: the same each time, and none of training's
CHUNK = 1000                # rows of a validation evaluated at once


class FaceExperiment:
    """faces: Faces; triplets: split -> Triplets, needed by vae3; settings: see nnlite.settings."""

    options = ("triplets",)
    criterion, criterion_label, criterion_sign = "validation_elbo", "ELBO", 1
    zero_sums = {"loss_sum": 0.0, "steps": 0}
    carried = {}
    config_later = {}
    config_kinds = {"triplets": (str, type(None))}
    resolve, load = staticmethod(face_options.resolve), staticmethod(face_options.load)
    list_presets = staticmethod(face_options.list_presets)

    @classmethod
    def from_config(cls, config, data, ops):
        return cls(config["settings"], *data, ops, dtype=config["dtype"], seed=config["seed"])

    def __init__(self, settings, faces, triplets, ops, *, dtype="float32", seed=0):
        self.settings, self.faces, self.ops = settings, faces, ops
        self.triplets = triplets if settings["model"] == "vae3" else {}
        self.model = MODELS[settings["model"]](
            settings["encoder"], settings["decoder"], reconstruction_variance=settings["reconstruction_variance"],
            topological_variance=settings["topological_variance"], samples=settings["samples"],
            triplet_samples=settings["triplet_samples"], keep_prob=settings["keep_prob"],
        ).build(ops, dtype=dtype, seed=seed)
        self.optimiser = Adam(self.model.parameters, lr=settings["learning_rate"])
        self._place_data(dtype, seed)
        self._step = ops.capture(self._forward_backward_update)   # a list of kernel calls, or a CUDA graph

    def _place_data(self, dtype, seed):
        """Faces on the device, and buffers at fixed places for what changes from step to step."""
        ops, faces, settings = self.ops, self.faces, self.settings
        inputs = np.concatenate([faces.x, faces.x[faces.neutral]], 1) if self.model.conditional else faces.x
        self.inputs = ops.asarray(inputs, dtype)             # (n, 2D) = [x, y], or (n, D) = x for model 1
        self.train_rows = faces.split["train"]
        self.batches = Batches(len(self.train_rows), settings["batch_size"], seed=seed, name="batches")
        B, V = settings["batch_size"], settings["triplet_batch"] if self.triplets else 0
        self.rows = ops.zeros((B + 3 * V,), "int32")       # data rows, references, plus faces, minus faces
        self.weight = ops.zeros((V,), dtype) if V else None
        if V:
            if not len(self.triplets["train"].rows):
                raise expected("triplets", "at least one in the training part", "none")
            self.triplet_batches = Batches(len(self.triplets["train"].rows), V, seed=seed, name="triplet batches")

    def restart(self):
        """Parameters and optimiser as they were before the first step."""
        self.model.rng.set_step(0)
        self.model.parameters.initialise(self.model.rng)
        for array in self.optimiser.state().values():
            array[...] = 0

    def step(self, iteration):
        """One training step; returns the loss terms of its batch, {name: value}."""
        self.prepare(iteration)
        return self._step()

    def sums(self, terms):
        """What a step adds to zero_sums."""
        return {"loss_sum": math.fsum(float(value) for value in terms.values()), "steps": 1}

    def line(self, done, sums):
        """What metrics.jsonl says about the steps since the last validation."""
        return {"iteration": done, "loss": sums["loss_sum"] / max(sums["steps"], 1)}

    def over(self, done, best_iteration):
        """Whether the run has come to its end."""
        return done >= self.settings["iterations"]

    def _forward_backward_update(self):
        terms = self.forward_backward()
        self.optimiser.step()
        return terms

    def prepare(self, iteration):
        """Put everything that depends on the iteration where forward_backward() finds it."""
        rows = self.train_rows[self.batches.rows(iteration)]
        if self.triplets:
            chosen = self.triplet_batches.rows(iteration)
            part = self.triplets["train"]
            rows = np.concatenate([rows, part.rows[chosen].T.reshape(-1)])
            self.ops.copy_into(self.weight, part.weight[chosen])
        self.ops.copy_into(self.rows, rows)
        self.model.rng.set_step(iteration)
        self._set_weights(iteration)

    def forward_backward(self):
        """The loss terms of the prepared batch, and the gradients of their sum."""
        self.model.zero_grad()
        return self.model.terms(self._batch(self.rows, self.settings["batch_size"], self.weight), train=True)

    def _batch(self, rows, B, weight):
        """The Batch of these rows, of which the first B are data rows."""
        ops, D = self.ops, self.model.features
        inputs = ops.take_rows(self.inputs, rows)                                    # [x, y], or x for model 1
        y = ops.contiguous(inputs[:B, D:]) if self.model.conditional else None
        return Batch(inputs, ops.contiguous(inputs[:B, :D]), y, weight)

    def _set_weights(self, iteration):
        settings = self.settings
        beta = min(1.0, iteration / settings["anneal"]) if settings["anneal"] else 1.0
        self.model.set_weights(
            points=len(self.train_rows), batch_size=settings["batch_size"], beta=beta,
            triplets=len(self.triplets["train"].rows) if self.triplets else 0,
            triplet_batch=settings["triplet_batch"],
            triplet_beta=beta if settings["anneal_mode"] == "prior" else 1.0)

    def validate(self, split="validation"):
        """The ELBO of a split per point (beta = 1, no dropout, L samples each) and its parts, {name: number}.

            ELBO = -(D/2) ln(2 pi s^2) - reconstruction - KL - triplets
        """
        ops, model, rows = self.ops, self.model, self.faces.split[split]
        parts = {"reconstruction": 0.0, "kl": 0.0}
        for chunk, start in enumerate(range(0, len(rows), CHUNK)):
            model.rng.set_step(VALIDATION_STEP + chunk)
            some = rows[start:start + CHUNK].astype(np.int32)
            model.set_weights(points=1, batch_size=len(some))
            batch = self._batch(ops.asarray(some), len(some), None)
            for name, value in model.terms(batch, train=False).items():
                parts[name] += float(value) * len(some) / len(rows)
        if self.triplets:
            parts["triplets"] = self._validate_triplets(self.triplets[split], len(rows))
        elbo = model.elbo_constant() - sum(parts.values())
        return {f"{split}_elbo": elbo, **{f"{split}_{name}": value for name, value in parts.items()}}

    def validated(self, values):
        """Nothing is learnt from a validation."""

    def _validate_triplets(self, triplets, points):
        """phi(Z, S) / lambda per point, the mean over M samples."""
        ops, model, total = self.ops, self.model, 0.0
        scale = 1 / (points * model.triplet_samples * model.topological_variance)
        for chunk, start in enumerate(range(0, len(triplets.rows), CHUNK // 3)):
            model.rng.set_step(VALIDATION_STEP + chunk)
            rows = triplets.rows[start:start + CHUNK // 3].T.reshape(-1).astype(np.int32)
            h = model.encoder.forward(ops.take_rows(self.inputs, ops.asarray(rows)))
            weight = ops.asarray(triplets.weight[start:start + CHUNK // 3], model.dtype)
            value, _ = ops.triplet_softplus(model.sample_triplets.forward(h), weight, scale)
            total += float(value)
        return total

    def describe(self, run):
        """Lines about data and triplets, for people."""
        config, faces = run.config, self.faces
        counts = ", ".join(f"{len(rows)} {name}" for name, rows in faces.split.items())
        lines = [f"data: {config['data']}: {faces.landmarks.kind} faces of {faces.x.shape[1]} numbers ({counts})"]
        if self.triplets:
            kind = "from " + config["triplets"] if config["triplets"] else \
                "artificial" if faces.landmarks.kind == "posed" else "answered by simulated workers"
            counts = ", ".join(f"{len(part.rows)} {name}" for name, part in self.triplets.items())
            lines.append(f"triplets: {kind} ({counts})")
        return lines

    @staticmethod
    def missing_extra():
        """What evaluate() lacks, in a sentence, or None."""
        return report.missing_extra()

    @staticmethod
    def evaluate(run, other=None, skip_broken=False):
        """Tables and pictures of a trained run; needs the extra `report`."""
        if other is not None:
            raise expected("--data", "a run of a classifier", f"one of {run.config['model']}")
        report.evaluate(run)

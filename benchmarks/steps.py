"""Contestants of a training step: nnlite's own experiment, and PyTorch on the same batches."""

import gc
import itertools
import tempfile
from typing import Callable, NamedTuple
from unittest import mock

import common
from cases import OURS, PUBLISHED, gflop, is_vae, seen_shape, warm_up_of

FER2013_TRAINING = 28_709
GPU_BLOCK = 10   # steps between two looks at the clock on a GPU, which runs behind
CHECKED = 3      # steps whose losses are compared,
CHECKED_RATE = 1e-6   # of this learning rate in the published nets
WARPS = "rotate", "shift", "zoom", "contrast", "brightness"


class Training(NamedTuple):
    """What a contestant does. ready(i), outside of the clock: what run() takes for step i; run(...): the step;
    read(what it returns): its loss."""

    facts: dict
    ready: Callable
    run: Callable
    read: Callable


def make_experiment(settings, device):
    """What `python -m nnlite.train --preset ...` would run, on the built-in faces; for a classifier as many as FER2013
    has."""
    from nnlite.experiments import FaceExperiment, LabelExperiment, face_options
    from nnlite.ops import get_ops
    if not is_vae(settings):
        return LabelExperiment(settings, many_faces(), get_ops(device))
    faces = face_options.load_faces(f"built-in {settings['kind']}")
    triplets = face_options.load_triplets(None, faces) if settings["model"] == "vae3" else {}
    return FaceExperiment(settings, faces, triplets, get_ops(device))


def many_faces():
    """The built-in pictures, again and again: a training part of FER2013's size."""
    import numpy as np

    from nnlite.data.images import ImageSet
    from nnlite.data.synthetic_images import faces
    few = faces()
    rows = np.resize(few.split["train"], FER2013_TRAINING)
    everything = np.arange(len(rows), dtype=np.int32)
    return ImageSet(few.images[rows], few.labels[rows], few.classes, {"train": everything}, few.source)


def itself(i):
    return i


def nnlite_training(settings, device):
    experiment = make_experiment(settings, device)
    return Training({"what": experiment.ops.device_line()}, itself, experiment.step,
                    lambda terms: experiment.sums(terms)["loss_sum"])


def torch_training(settings, device, way):
    """The same batches from the same experiment, trained by PyTorch."""
    import peers
    facts, experiment = peers.facts(device), make_experiment(settings, "reference")
    return Training(facts, *(torch_vae if is_vae(settings) else torch_classifier)(settings, experiment, device, way))


def torch_vae(settings, experiment, device, way):
    import torch

    import peers
    torch.manual_seed(0)
    options = {name: settings[name] for name in ("reconstruction_variance", "samples", "triplet_samples", "keep_prob")}
    conditional, B = settings["model"] != "vae1", settings["batch_size"]
    model = peers.Vae(settings["encoder"], settings["decoder"], conditional=conditional, **options).to(device)
    loss_of = peers.compile_as(way, model)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"], fused=way != "adam")
    inputs, D = torch.tensor(experiment.inputs, device=device), experiment.model.features
    scales = torch.ones(2, device=device)   # tensors, so that a new value does not mean a new compilation

    def run(i):
        experiment.prepare(i)
        rows = torch.from_numpy(experiment.rows).to(device, non_blocking=True)
        batch = inputs[rows]
        y = batch[:B, D:].contiguous() if conditional else None
        weight = None if experiment.weight is None else torch.from_numpy(experiment.weight).to(device)
        scales[0] = float(experiment.model.kl_scale)
        scales[1] = float(experiment.model.triplet_scale)
        optimiser.zero_grad()
        loss = loss_of(batch, batch[:B, :D].contiguous(), y, weight, *scales)
        loss.backward()
        optimiser.step()
        return loss
    return itself, run, lambda loss: loss.item()


def torch_classifier(settings, experiment, device, way):
    import torch

    import peers
    mode, implementation, memory = way.split("-")
    torch.manual_seed(0)
    memory = torch.channels_last if memory == "channels_last" else torch.contiguous_format
    class_weight = None if experiment.class_weight is None else torch.tensor(experiment.class_weight)
    model = peers.Classifier(make_net(settings, experiment.model),
                             *(torch.tensor(part) for part in (experiment.images.shift, experiment.images.scale)),
                             class_weight=class_weight, smoothing=settings["smoothing"])
    model = model.to(device, memory_format=memory)
    loss_of, optimiser = peers.compile_as(mode, model), peers.optimiser(settings, model, implementation)
    given = prepared_batch if is_prepared(settings) else gathered_batch
    ready, batch = given(settings, experiment, device, memory)

    def run(i):
        for group in optimiser.param_groups:
            group["lr"] = experiment.rate(i[0])
        optimiser.zero_grad()
        loss, hits = loss_of(*batch(i))
        loss.backward()
        optimiser.step()
        return loss, hits

    def read(terms):
        loss, _ = (value.item() for value in terms)
        return loss
    return ready, run, read


def is_prepared(settings):
    """Whether PyTorch is given finished images: they are turned, moved or resized, which is nnlite's own business."""
    return bool(settings["move"] or settings["size"] or any(settings[name] for name in WARPS))


def prepared_batch(settings, experiment, device, memory):
    """ready(i), batch(...) of images that are already in the net's size, warped and normalised, in its format."""
    import torch

    def ready(i):
        experiment.prepare(i)
        images = torch.from_numpy(experiment.images.batch(slice(0, settings["batch_size"]))).permute(0, 3, 1, 2)
        return (i, images.to(device).contiguous(memory_format=memory),
                torch.tensor(experiment.labels, device=device).long())
    return ready, lambda given: given[1:]


def gathered_batch(settings, experiment, device, memory):
    """ready(i), batch(...) of bytes, gathered in the step and mirrored and normalised by the peer."""
    import torch
    images = torch.tensor(experiment.data.images).permute(0, 3, 1, 2).to(device, memory_format=memory)
    labels = torch.tensor(experiment.data.labels).long().to(device)

    def batch(given):
        experiment.prepare(*given)
        rows = torch.from_numpy(experiment.images.rows).to(device, non_blocking=True)
        flip = torch.from_numpy(experiment.images.flip).bool().to(device) if settings["flip"] else None
        return images[rows], labels[rows], flip
    return lambda i: (i,), batch


def make_net(settings, model):
    """PyTorch's net of the settings with the parameters of nnlite's model, of the reference ops."""
    import peers
    from cases import CLASSES
    if settings["model"] not in PUBLISHED:
        net = peers.classifier(settings, seen_shape(settings), CLASSES)
        peers.copy_parameters(model.parameters, net)
        return net
    import torch_peers
    from nnlite import weights
    from nnlite.models import efficientnet
    net = torch_peers.net(settings, seen_shape(settings), CLASSES, efficientnet.DROPPED)
    with tempfile.TemporaryDirectory() as folder:
        weights.save(f"{folder}/first.safetensors", model, settings["model"])
        peers.load_weights(net, f"{folder}/first.safetensors")
    return net


def make_training(settings, device, name):
    return nnlite_training(settings, device) if name == "nnlite" else torch_training(settings, device, name)


def first_losses(settings, device, name):
    """The first steps' losses, which every contestant must find. Without dropout and stochastic depth, whose masks are
    everybody's own, and with small steps: the first ones of Adam are as long whatever the gradient, and rounding alone
    may turn them. (In ResNet-50 steps of 1e-4 lead PyTorch's own two memory formats apart by half a percent.) Not
    compiled: another net would have to be."""
    from nnlite.models import efficientnet
    rate = CHECKED_RATE if settings["model"] in PUBLISHED else settings["learning_rate"] / 10
    settings = {**settings, "keep_prob": 1.0, "learning_rate": rate}
    name = name.replace("compiled", "eager").replace("graphs", "eager")
    with mock.patch.object(efficientnet, "DROPPED", 0):
        training = make_training(settings, device, name)
    return [training.read(training.run(training.ready(i))) for i in range(CHECKED)]


def worker(name, settings, device):
    def prepare():
        if name == "sgemm":
            return common.sgemm_worker(device)
        losses = {} if is_vae(settings) else {"losses": first_losses(settings, device, name)}
        gc.collect()   # an experiment is a ring; a large net is not to be there twice
        training = make_training(settings, device, name)
        wait, numbers = waiter(name, device), itertools.count()

        def steps(given):
            for batch in given:
                terms = training.run(batch)
                if device == "cpu":   # on a GPU training looks at the loss only now and then
                    training.read(terms)
            wait()

        def answer(count):
            each = 1 if device == "cpu" else GPU_BLOCK
            blocks = [[training.ready(next(numbers)) for _ in range(each)] for _ in range(-(-count // each))]
            times = common.times_of(steps, count=len(blocks), before=iter(blocks).__next__)
            return {"times": [t / each for t in times]}
        answer(warm_up_of(gflop(settings)))
        return {**training.facts, **losses}, answer
    common.serve(prepare)


def waiter(name, device):
    if device == "cpu":
        return lambda: None
    if name in OURS:
        from nnlite.ops import get_ops
        return get_ops("cuda").synchronize
    import peers
    return peers.waiter(device)

"""Every documented experiment, as data: settings, and what was published for them.

A preset is a dict of settings (see nnlite.settings) over what its family has in common. PUBLISHED holds the figures of
the sources. Face VAEs (a master's thesis on representation learning of facial expressions), on validation: posed:
accuracy, satisfied triplets, active dimensions; spontaneous: F1, share of satisfied triplets of confidence 5, active
dimensions; None where the source gives none. Classifiers (courseworks and theses on FER2013 and others): {part:
accuracy}, and other measures of the test part by name.
"""

COMMON = {"learning_rate": 1e-4, "keep_prob": 0.9, "triplet_batch": 10, "samples": 3, "triplet_samples": 10,
          "iterations": 100_000, "validate_every": 2_500}
DATA = {"posed": {"batch_size": 200}, "spontaneous": {"batch_size": 250}}

ENCODERS = {"A": [498, 240, 120, 60, 30], "B": [498, 480, 240, 120, 60, 30], "C": [498, 600, 400, 200, 100, 50],
            "E": [498, 400, 200, 100, 50]}
DECODERS = {"a": [279, 300, 400, 300, 249], "b": [279, 300, 500, 300, 249], "c": [299, 300, 400, 300, 249]}
PLAIN = {"small": [249, 120, 60, 30], "medium": [249, 240, 120, 60, 30], "large": [249, 300, 200, 100, 50]}

# (encoder, s^2, annealing in thousands of iterations, published); the decoder is the encoder reversed
POSED_M1 = [
    ("small", 1e-4, 0, (.544, .563, 30)), ("small", 1e-4, 50, (.520, .571, 30)), ("small", 1e-4, 100, (.544, .565, 30)),
    ("medium", 1e-4, 0, (.544, .565, 30)), ("medium", 1e-4, 50, (.556, .575, 30)),
    ("medium", 1e-4, 100, (.536, .572, 30)),
    ("small", 1e-3, 0, (.536, .572, 20)), ("small", 1e-3, 50, (.544, .557, 25)), ("small", 1e-3, 100, (.544, .560, 29)),
    ("medium", 1e-3, 0, (.512, .556, 17)), ("medium", 1e-3, 50, (.524, .554, 21)),
    ("medium", 1e-3, 100, (.516, .557, 27)),
]
SPONTANEOUS_M1 = [
    ("small", 1e-4, 0, (.576, None, None)), ("small", 1e-4, 50, (.591, None, None)),
    ("small", 1e-4, 100, (.594, None, None)),
    ("medium", 1e-4, 0, (.584, None, None)), ("medium", 1e-4, 50, (.589, None, None)),
    ("medium", 1e-4, 100, (.597, None, None)),
    ("large", 1e-4, 0, (.580, None, None)), ("large", 1e-4, 50, (.588, None, None)),
    ("large", 1e-4, 100, (.586, None, None)),
]
# (encoder/decoder, s^2, annealing, published)
POSED_M2 = [
    ("A/a", 1e-4, 0, (.620, .594, 30)), ("A/a", 1e-4, 50, (.628, .598, 30)), ("A/a", 1e-4, 100, (.664, .595, 30)),
    ("A/a", 5e-4, 0, (.616, .593, 16)), ("A/a", 5e-4, 50, (.636, .580, 21)), ("A/a", 5e-4, 100, (.624, .572, 25)),
    ("A/a", 1e-3, 0, (.592, .606, 13)), ("A/a", 1e-3, 50, (.616, .581, 15)), ("A/a", 1e-3, 100, (.620, .572, 17)),
]
SPONTANEOUS_M2 = [
    ("A/a", 1e-4, 0, (.603, None, 30)), ("A/a", 1e-2, 0, (.576, None, 5)), ("A/a", 1e-2, 50, (.588, None, 9)),
    ("A/a", 1e-2, 100, (.587, None, 11)), ("A/a", 1e-3, 0, (.602, None, 13)), ("A/a", 1e-3, 50, (.594, None, 16)),
    ("A/a", 1e-3, 100, (.596, None, 19)),
]
# (encoder/decoder, s^2, lambda, annealing, published)
POSED_M3_KL = [
    ("A/a", 1e-3, .01, 0, (.620, .742, 30)), ("A/a", 1e-3, .01, 50, (.636, .748, 30)),
    ("A/a", 1e-3, .01, 100, (.644, .754, 30)),
    ("A/a", 1e-3, .04, 0, (.660, .741, 24)), ("A/a", 1e-3, .04, 50, (.604, .734, 22)),
    ("A/a", 1e-3, .04, 100, (.664, .750, 30)),
    ("B/a", 1e-3, .04, 100, (.724, .761, 30)), ("B/b", 1e-3, .04, 100, (.676, .751, 30)),
    ("C/c", 1e-3, .04, 100, (.708, .760, 39)),
    ("A/a", 5e-4, .04, 100, (.680, .750, 30)), ("A/a", 1e-4, .04, 100, (.656, .693, 30)),
]
POSED_M3_PRIOR = [
    ("A/a", 1e-3, .04, 50, (.676, .747, 22)), ("A/a", 1e-3, .04, 100, (.680, .730, 27)),
    ("B/a", 1e-3, .04, 50, (.676, .746, 25)), ("C/c", 1e-3, .04, 50, (.704, .729, 22)),
    ("E/c", 1e-3, .04, 50, (.700, .725, 26)), ("B/a", 1e-3, .04, 100, (.708, .760, 25)),
    ("B/b", 1e-3, .04, 100, (.704, .748, 27)), ("C/c", 1e-3, .04, 100, (.696, .740, 33)),
    ("B/a", 1e-3, .04, 100, (.696, .745, 27)),   # the same settings as row 6: the source lists both
    ("A/a", 5e-4, .04, 100, (.656, .714, 30)), ("A/a", 1e-4, .04, 100, (.648, .674, 30)),
]
SPONTANEOUS_M3_KL = [
    ("A/a", 1e-3, 1e-3, 0, (.624, .758, None)), ("A/a", 1e-3, 1e-3, 50, (.610, .741, None)),
    ("A/a", 1e-3, 1e-3, 100, (.618, .762, None)),
    ("A/a", 1e-3, 1e-4, 0, (.622, .837, None)), ("A/a", 1e-3, 1e-4, 50, (.618, .834, None)),
    ("A/a", 1e-3, 1e-4, 100, (.614, .848, None)),
]
SPONTANEOUS_M3_PRIOR = [
    ("A/a", 1e-3, 1e-3, 50, (.605, .730, None)), ("A/a", 1e-3, 1e-3, 100, (.606, .736, None)),
    ("A/a", 1e-3, 1e-4, 50, (.627, .839, None)), ("A/a", 1e-3, 1e-4, 100, (.620, .839, None)),
    ("A/a", 1e-3, 5e-4, 50, (.621, .779, None)),
    ("B/a", 1e-3, 5e-4, 50, (.603, .767, None)), ("C/c", 1e-3, 5e-4, 50, (.618, .756, None)),
    ("E/c", 1e-3, 5e-4, 50, (.620, .779, None)),
]

PRESETS, PUBLISHED = {}, {}


def _add(family, model, data, rows, mode="kl"):
    for number, (networks, variance, *topological, anneal, published) in enumerate(rows, 1):
        if model == "vae1":
            encoder, decoder = PLAIN[networks], PLAIN[networks][::-1]
        else:
            encoder, decoder = ENCODERS[networks[0]], DECODERS[networks[2]]
        PRESETS[f"{family}-{number}"] = {
            **COMMON, **DATA[data], "model": model, "kind": data, "encoder": list(encoder), "decoder": list(decoder),
            "reconstruction_variance": variance, "topological_variance": topological[0] if topological else 1.0,
            "anneal": anneal * 1000, "anneal_mode": mode}
        PUBLISHED[f"{family}-{number}"] = published


_add("posed-m1", "vae1", "posed", POSED_M1)
_add("posed-m2", "vae2", "posed", POSED_M2)
_add("posed-m3-kl", "vae3", "posed", POSED_M3_KL)
_add("posed-m3-prior", "vae3", "posed", POSED_M3_PRIOR, "prior")
_add("spontaneous-m1", "vae1", "spontaneous", SPONTANEOUS_M1)
_add("spontaneous-m2", "vae2", "spontaneous", SPONTANEOUS_M2)
_add("spontaneous-m3-kl", "vae3", "spontaneous", SPONTANEOUS_M3_KL)
_add("spontaneous-m3-prior", "vae3", "spontaneous", SPONTANEOUS_M3_PRIOR, "prior")

# -- classifiers: kind is the data they were published on, "faces" (FER2013's 48x48 grey ones) or "cifar" --------------

# Settings that came when runs without them had been made; with these values all is as it was, but that the micro-batch
# of such a run is its batch (see nnlite.runs).
LATER = {"f1_decay": 1.0, "watch": "accuracy", "micro_batch": 0, "freeze": [], "split": [], "size": [], "channels": 0,
         "rotate": 0.0, "shift": 0.0, "zoom": 0.0, "contrast": 0.0, "brightness": 0.0}
PLAIN_TRAINING = {"init_scale": 1.0, "optimiser": "sgd", "momentum": 0.0, "l2": 0.0, "lr_decay": 1.0,
                  "inverse_decay": 0.0, "patience": 0, "normalise": "standard", "flip": False, "move": 0,
                  "class_weights": "none", "smoothing": 0.0, "alpha": 0.8, "subset": [], **LATER}

# "Neural networks for classification of facial expressions" (2019). Both nets saw pixels 0-255 and predicted one class;
# the ones without -raw are the same on normalised pixels. Not given: how long the fully connected one was trained, and
# how weights began: on pixels 0-255 He's make the loss overflow within some ten steps; these shares of them do not, but
# the first steps leave ReLUs that are 0 for every image.
MLP = {**PLAIN_TRAINING, "model": "mlp", "kind": "faces", "hidden": [1000, 1000], "keep_prob": 1.0, "momentum": 0.5,
       "learning_rate": 1e-3, "inverse_decay": 1e-3, "batch_size": 10, "epochs": 30}
MLP_CIFAR = {**PLAIN_TRAINING, "init_scale": 0.4, "model": "mlp", "kind": "cifar", "hidden": [80, 80], "keep_prob": 1.0,
             "normalise": "centred", "learning_rate": 1e-3, "lr_decay": 0.9, "batch_size": 10, "epochs": 30}
CNN5 = {**PLAIN_TRAINING, "model": "cnn5", "kind": "faces", "hidden": [256, 128], "keep_prob": 0.5, "momentum": 0.9,
        "learning_rate": 1e-3, "inverse_decay": 1e-5, "batch_size": 32, "epochs": 50}

# A convolution-ReLU-pool net, with and without batch norm, with other optimisers, and taught by itself. Only Adam's
# learning rate is given; the others' are the usual ones.
CNN4 = {**PLAIN_TRAINING, "model": "cnn4", "kind": "faces", "filters": [32, 64, 96, 128], "hidden": 200,
        "batch_norm": True, "keep_prob": 1.0, "optimiser": "adam", "learning_rate": 0.00127, "l2": 0.00172,
        "lr_decay": 0.95, "batch_size": 50, "epochs": 40, "flip": True}
CNN3 = {**{key: value for key, value in CNN4.items() if key not in ("batch_norm", "keep_prob")}, "model": "cnn3",
        "filters": 32}
# Ours: what the published nets lacked against learning the training faces by heart.
MLP_MOVED = {**MLP, "move": 2, "flip": True, "keep_prob": 0.7, "momentum": 0.9, "l2": 0.0001, "learning_rate": 0.003,
             "lr_decay": 0.92, "inverse_decay": 0.0}
CNN4_MOVED = {**CNN4, "move": 4, "keep_prob": 0.75, "smoothing": 0.1, "l2": 0.0001, "learning_rate": 0.0015,
              "lr_decay": 0.94, "epochs": 60}

# EfficientNetV2-S on small faces, the best of 50 trials each ("Scaled-down EfficientNet for facial expression
# recognition", 2023). Not given: the batch size, how pixels are normalised, and the settings of the net without class
# weights.
EFFNET = {**PLAIN_TRAINING, "model": "effnetv2s", "kind": "faces", "width": 0.75, "depth": 1.25, "top_filters": 24,
          "keep_prob": 0.95, "optimiser": "adam", "learning_rate": 0.0009986, "batch_size": 32, "epochs": 100,
          "patience": 10, "watch": "loss", "class_weights": "balanced", "flip": True, "rotate": 10.0, "shift": 0.1,
          "zoom": 0.1, "contrast": 0.1, "brightness": 0.1}
EFFNET_SMALL = {**EFFNET, "model": "effnetv2s-small", "width": 1.3, "depth": 0.55, "keep_prob": 0.8,
                "learning_rate": 0.0001972}
# Ours: a learning rate that falls, and no class weights, for people without a GPU.
EFFNET_DECAYED = {**EFFNET_SMALL, "learning_rate": 0.001, "lr_decay": 0.9, "class_weights": "none",
                  "watch": "accuracy", "patience": 0, "epochs": 32}
# With --init-from a run of it: the rate rises again and falls once more (a warm restart, Loshchilov & Hutter 2017); and
# from there a second time, higher and for longer.
EFFNET_RESTARTED = {**EFFNET_DECAYED, "learning_rate": 0.0005, "lr_decay": 0.85, "epochs": 18}
EFFNET_RESTARTED_TWICE = {**EFFNET_DECAYED, "lr_decay": 0.92, "epochs": 36}
AFFECTNET = {**EFFNET_SMALL, "width": 1.0545, "depth": 1.2, "keep_prob": 0.85, "learning_rate": 0.0003622}

# Nets that begin with published weights (--weights), on six expressions ("Facial expression recognition in the wild -
# deep learning model analysis"). Not given: which epoch's parameters are kept; here those with the best F1.
VIT = {**PLAIN_TRAINING, "model": "vit-b16", "kind": "faces", "recompute": False, "optimiser": "adam",
       "learning_rate": 1e-3, "batch_size": 256, "epochs": 3, "f1_decay": 0.8, "watch": "f1",
       "class_weights": "balanced", "split": [0.7, 0.2, 0.1], "size": [224, 224], "channels": 3, "normalise": "half"}
RESNET = {**{key: value for key, value in VIT.items() if key != "recompute"}, "model": "resnet50",
          "normalise": "imagenet"}
# Ours: their small siblings, from the beginning, on faces of 48 pixels.
SMALL = {"batch_size": 64, "epochs": 30, "size": [], "channels": 0, "normalise": "standard", "flip": True,
         "rotate": 10.0, "shift": 0.1, "zoom": 0.1, "contrast": 0.1, "brightness": 0.1}
VIT_TINY = {**VIT, **SMALL, "model": "vit-tiny", "learning_rate": 3e-4}
RESNET_SMALL = {**RESNET, **SMALL, "model": "resnet-small"}

for _name, _preset, _published in [
    ("mlp-fer2013", MLP, {}),
    ("mlp-moved", MLP_MOVED, {}),
    ("mlp-raw", {**MLP, "normalise": "raw", "init_scale": 0.4}, {"validation": .25, "test": .248}),
    ("mlp-cifar", MLP_CIFAR, {"train": .61, "validation": .45}),
    ("mlp-cifar-overfit", {**MLP_CIFAR, "hidden": [40, 40], "batch_size": 20, "epochs": 20, "subset": [49, 1]},
     {"train": 1.0}),
    ("cnn5", CNN5, {}),
    ("cnn5-raw", {**CNN5, "normalise": "raw", "init_scale": 0.1}, {"test": .244}),
    ("cnn3", CNN3, {}),
    ("cnn4", CNN4, {"validation": .607}),
    ("cnn4-plain", {**CNN4, "batch_norm": False}, {}),
    ("cnn4-sgd", {**CNN4, "optimiser": "sgd", "learning_rate": 0.01, "momentum": 0.9}, {}),
    ("cnn4-adagrad", {**CNN4, "optimiser": "adagrad", "learning_rate": 0.01}, {}),
    ("cnn4-rmsprop", {**CNN4, "optimiser": "rmsprop", "learning_rate": 0.001}, {}),
    ("cnn4-distilled", {**CNN4, "distilled": True}, {}),
    ("cnn4-moved", CNN4_MOVED, {}),
    ("effnetv2s", EFFNET, {"test": .658, "loss": .963, "precision": .631, "recall": .649, "f1": .637}),
    ("effnetv2s-small", EFFNET_SMALL, {"test": .657, "loss": .959, "precision": .637, "recall": .649, "f1": .641}),
    ("effnetv2s-small-unweighted", {**EFFNET_SMALL, "class_weights": "none"}, {"test": .645}),
    ("effnetv2s-small-decayed", EFFNET_DECAYED, {}),
    ("effnetv2s-small-restarted", EFFNET_RESTARTED, {}),
    ("effnetv2s-small-restarted-twice", EFFNET_RESTARTED_TWICE, {}),
    ("effnetv2s-small-affectnet", AFFECTNET, {"test": .613, "f1": .611}),
    ("resnet50", RESNET, {"test": .895}),
    ("resnet-small", RESNET_SMALL, {}),
    ("vit-b16", VIT, {"test": .990}),
    ("vit-b16-slow", {**VIT, "learning_rate": 3e-5}, {"test": .998, "production": .971, "production f1": .946}),
    ("vit-tiny", VIT_TINY, {}),
]:
    PRESETS[_name] = {key: list(value) if isinstance(value, list) else value for key, value in _preset.items()}
    PUBLISHED[_name] = _published

# The published best of each model: what `--model` alone means.
BEST = {("vae1", "posed"): "posed-m1-5", ("vae2", "posed"): "posed-m2-3", ("vae3", "posed"): "posed-m3-kl-7",
        ("vae1", "spontaneous"): "spontaneous-m1-6", ("vae2", "spontaneous"): "spontaneous-m2-1",
        ("vae3", "spontaneous"): "spontaneous-m3-prior-3",
        ("mlp", "faces"): "mlp-fer2013", ("mlp", "cifar"): "mlp-cifar",
        **{(model, "faces"): model for model in ("cnn3", "cnn4", "cnn5", "effnetv2s", "effnetv2s-small", "resnet50",
                                                 "resnet-small", "vit-b16", "vit-tiny")}}

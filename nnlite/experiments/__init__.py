"""What a run does, data and model together: a step, a validation. The commands loop over them.

An experiment class is what train, evaluate and runs ask for all that depends on the task. Class attributes:

    options          options of the command that only this task has
    criterion        the validation value that is to be largest; `criterion_label` names it for people
    zero_sums        what is added up over the steps between two validations, the loss and the number of steps first
    config_kinds     what config.json says beside what all runs say: key -> types

Functions of the class: resolve (a command line -> settings and data), load (config.json -> data) and from_config.
Methods: restart, step, prepare and forward_backward (for nnlite.diagnose), sums, line, validate, over, describe,
evaluate; attributes: model, optimiser, ops.
"""

from .faces import FaceExperiment
from .labels import LabelExperiment

EXPERIMENTS = {**dict.fromkeys(("vae1", "vae2", "vae3"), FaceExperiment),
               **dict.fromkeys(("mlp", "cnn3", "cnn4", "cnn5"), LabelExperiment)}

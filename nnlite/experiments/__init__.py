"""What a run does, data and model together: a step, a validation. The commands loop over them.

An experiment class is what train, evaluate and runs ask for all that depends on the task. Class attributes:

    options          options of the command that only this task has
    criterion        the validation value that is to be largest; `criterion_label` names it for people, who are shown it
                     times `criterion_sign`
    zero_sums        what is added up over the steps between two validations, the loss and the number of steps first
    carried          numbers that one validation hands to the next, saved with every checkpoint
    config_kinds     what config.json says beside what all runs say: key -> types
    config_later     what of it came later, as it was for the runs before: key -> value

Functions of the class: resolve (a command line -> settings and data), load (config.json -> data), from_config, and
list_presets. Methods: restart, step, prepare and forward_backward (for nnlite.diagnose), sums, line, validate,
validated, over, describe, missing_extra, evaluate; attributes: model, optimiser, ops. criterion and carried may be the
object's own.
"""

from ..settings import SHAPES
from .faces import FaceExperiment
from .labels import LabelExperiment

EXPERIMENTS = {**dict.fromkeys(("vae1", "vae2", "vae3"), FaceExperiment),
               **dict.fromkeys(SHAPES, LabelExperiment)}

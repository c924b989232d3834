"""What a run does, data and model together: a step, a validation. The commands loop over them."""

from .faces import FaceExperiment

EXPERIMENTS = {"vae1": FaceExperiment, "vae2": FaceExperiment, "vae3": FaceExperiment}

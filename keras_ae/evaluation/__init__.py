"""Measures the quality of a model: its reconstructions, evidence, codes and samples.

    figures = evaluate(model, train, test)      # all figures, in one dict that json can write

`inputs` are what the model takes: images (N, H, W, C), uint8 or float in [0, 1], or for a CVAE the pair
(images, labels). Log-likelihoods and divergences are in nats per image. Networks are only used through
`model.posterior`, `model.decode` and `model.sample`. Everything else uses NumPy, SciPy and scikit-learn,
and is the same on every backend.
"""

from keras_ae.evaluation.distances import (
    Reference,
    closest_pairs,
    conditional_accuracy,
    frechet_distance,
    kernel_distance,
    manifold_overlap,
    nearest_training_images,
    sliced_wasserstein,
)
from keras_ae.evaluation.evidence import (
    active_units,
    bits_per_dimension,
    elbo,
    importance_weighted_log_likelihood,
    kl_per_latent,
    mutual_information,
)
from keras_ae.evaluation.features import OnnxFeatures, laplacian_patches, laplacian_pyramid
from keras_ae.evaluation.figures import evaluate, final_figures
from keras_ae.evaluation.intervals import mean_with_interval
from keras_ae.evaluation.reconstructions import psnr, reconstruction_error, ssim
from keras_ae.evaluation.scores import auroc, percentiles, score

__all__ = [
    "OnnxFeatures",
    "Reference",
    "active_units",
    "auroc",
    "bits_per_dimension",
    "closest_pairs",
    "conditional_accuracy",
    "elbo",
    "evaluate",
    "final_figures",
    "frechet_distance",
    "importance_weighted_log_likelihood",
    "kernel_distance",
    "kl_per_latent",
    "laplacian_patches",
    "laplacian_pyramid",
    "manifold_overlap",
    "mean_with_interval",
    "mutual_information",
    "nearest_training_images",
    "percentiles",
    "psnr",
    "reconstruction_error",
    "score",
    "sliced_wasserstein",
    "ssim",
]

"""SVD of latents, channel by channel: atoms, their mixing, Attribute Vector Integration."""

from lib.svd.atoms import (
    aligned_atom,
    bbp_overlap,
    compose,
    crossing_time,
    decompose,
    grassmann_distance,
    random_subspaces,
    rescale,
    track,
)
from lib.svd.avi import (
    WEIGHTS,
    AttributeVectorIntegration,
    atom_pair,
    best_values,
    integrate,
    losses,
    reference_values,
)
from lib.svd.mixing import interpolate, latent_pair, match_noise

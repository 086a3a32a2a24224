"""Every claim of the three papers, and what the embedded models must do, listed once.

`reported` is the number the paper gives, None where none is known. `needs` names what the embedded
models cannot replace: "sd" (Stable Diffusion weights), "celebahq" (CelebA-HQ, church or bedroom
weights), "users" (a study with people); "" needs nothing.
"""

from typing import NamedTuple


class Claim(NamedTuple):
    """One claim: its id, the notebook that tests it, its statement and the reported number."""

    id: str
    notebook: str
    statement: str
    reported: float | None = None
    unit: str = ""
    needs: str = ""


def _group(prefix: str, notebook: str, *rows: tuple) -> tuple[Claim, ...]:
    return tuple(Claim(f"{prefix}.{name}", notebook, *rest) for name, *rest in rows)


_ISING = _group(
    "hessian.ising",
    "01_ising",
    ("rmse_free_energy", "learned F = -T log Z / N matches the exact one (RMSE)", 0.0883, "J"),
    ("rmse_dF_dT", "its derivative in T matches the exact one (RMSE)", 0.1106, "1"),
    ("rmse_dF_dH", "its derivative in H matches the exact one (RMSE)", 0.1237, "1"),
    ("torus_rmse", "learned log Z / N matches the exact torus, L = 12 (RMSE)", None, "1"),
    ("ridge_L8", "the metric's ridge lies at the transition, L = 8 (relative error in beta)"),
    ("ridge_L16", "the metric's ridge lies at the transition, L = 16 (relative error in beta)"),
    ("ridge_L32", "the metric's ridge lies at the transition, L = 32 (relative error in beta)"),
    ("equilibrium", "samples are in equilibrium (largest deviation from exact, in errors)"),
)

_TASEP = _group(
    "hessian.tasep",
    "02_tasep",
    ("rmse_J", "learned potential matches the exact current J (RMSE)", 0.0112, "1"),
    ("rmse_dJ_dalpha", "its derivative in alpha matches the exact one (RMSE)", 0.1165, "1"),
    ("rmse_dJ_dbeta", "its derivative in beta matches the exact one (RMSE)", 0.1135, "1"),
    ("fisher_consistent", "it also beats the Fisher-consistent potential (RMSE of J)", None, "1"),
    ("triple_point", "three phases meet at alpha = beta = 1/2 (distance to it)", None, "1"),
    ("borders", "the three borders are where theory puts them (largest distance)", None, "1"),
    ("alphabeta_fit", "a fit in (alpha, beta) recovers J (RMSE)", None, "1"),
)

_THEORY_AND_GEODESICS = (
    *_group(
        "hessian",
        "01_ising",
        ("theorem31", "posterior of N samples tends to exp(-N D), D the Bregman divergence"),
        ("theorem32", "equal divergences give equal Hessians of log Z"),
        ("two_step.ising", "two-step route (posterior, then log Z): RMSE of F", 0.0883, "J"),
        ("two_step.bump_width", "the answer does not depend on the width of the bump"),
        ("two_step.convexity", "the unconstrained potential turns out convex (share of grid)"),
        ("baselines.mean_as_stat_ising", "Mean-as-Stat is worse, Ising (RMSE of F)", 0.0981, "J"),
        ("baselines.pca_vae_ising", "PCA-VAE is worse, Ising (RMSE of F)", 0.1669, "J"),
        ("geodesics.ising_within", "geodesics are nearly straight within a phase, Ising"),
        ("geodesics.ising_across", "geodesics bend between phases, Ising"),
        ("geodesics.frozen_metric", "the published script returns the shortest path"),
        ("curvature.ising", "the scalar curvature diverges at the critical point"),
    ),
    *_group(
        "hessian",
        "02_tasep",
        ("two_step.tasep", "two-step route (posterior, then log Z): RMSE of J", 0.0112, "1"),
        ("baselines.mean_as_stat_tasep", "Mean-as-Stat is worse, TASEP (RMSE of J)", 0.0529, "1"),
        ("baselines.pca_vae_tasep", "PCA-VAE is worse, TASEP (RMSE of J)", 0.0524, "1"),
        ("geodesics.tasep", "geodesics bend between phases, TASEP"),
    ),
)

_DIFFUSION = _group(
    "hessian.diffusion",
    "03_diffusion_phases",
    ("phases", "a slice of noise space falls into phases with sharp borders"),
    ("metric_posterior", "metric from posteriors agrees with the pullback (Spearman)"),
    ("metric_direct", "metric from fit_direct agrees with the pullback (Spearman)"),
    ("metric_baseline", "metrics beat plain neighbour differences (lead in Spearman)"),
    ("hessianity", "the metric is a Hessian in the slice's coordinates (defect)"),
    ("derivative_jumps", "first derivatives of log Z have plateaus and jump at borders"),
    ("lipschitz", "the Lipschitz constant of latent to image diverges at a border"),
    ("prop41", "reverse flow of two narrow modes stretches without bound (Proposition 4.1)"),
    ("fractal", "borders are fractal (box-counting dimension)"),
    ("fractal_scales", "a change of 1e-5 flips the image, structure repeats at 1e-6", 1e-5, "1"),
    ("geodesics_within", "geodesics are nearly straight within a phase"),
    ("geodesics_across", "geodesics bend at borders"),
    ("eta", "stochastic sampling (eta = 0.1) smooths the potential and hides borders", None, "1"),
    ("path_clip_length", "geodesics are shorter than linear paths in embedding space"),
    ("path_pixel_length", "geodesics and linear paths have equal pixel length"),
    ("path_perceptual_length", "geodesics are perceptually shorter than linear paths"),
    ("path_curvature", "geodesics curve less than pullback geodesics"),
    ("sd_phases", "Stable Diffusion 1.5: phases with sharp borders on a slice", None, "", "sd"),
    ("sd_path_clip_length", "geodesic, CLIP length (linear: 73.6)", 72.3, "1", "sd"),
    ("sd_path_pixel_length", "geodesic, pixel length (linear: 2.76e6)", 2.77e6, "1", "sd"),
    ("sd_path_perceptual_length", "geodesic, perceptual length (linear: 3.17)", 3.12, "1", "sd"),
    ("sd_path_curvature", "geodesic, curvature (pullback geodesic: 1.33)", 0.367, "1", "sd"),
)

_ASYRP = _group(
    "asyrp",
    "04_hspace",
    ("cancellation", "T1a: the same shift in both DDIM terms cancels as the theorem says"),
    ("symmetric_shift", "T1b: a symmetric shift does nothing (gain over asymmetric gain)"),
    ("symmetric_rescaled", "T1c: a symmetric shift, rescaled, equals the asymmetric one"),
    ("layer", "T2: the mid block edits best, neighbours do little or leave artefacts"),
    ("homogeneity", "T3: a shift found on some images works on others (gain ratio)"),
    ("homogeneity_epsilon", "T3: the same shift in epsilon distorts instead"),
    ("linearity", "T4: the attribute is linear in the strength (R squared)"),
    ("linearity_negative", "T4: negative strengths remove the attribute (slope)"),
    ("compositionality", "T5: the sum of shifts gives all attributes (gain in the sum / alone)"),
    ("interference", "T5: shifts do not interfere (mean off-diagonal over diagonal gain)"),
    ("robustness", "T6: random noise in h keeps images realistic (Frechet over unedited)"),
    ("robustness_epsilon", "T6: the same noise in epsilon distorts"),
    ("consistency", "T7: shifts at different times agree (mean cosine)"),
    ("consistency_mean", "T7: per-time mean edits like the per-sample shift (share of gain)"),
    ("consistency_global", "T7: one global vector edits like the per-sample shift (share of gain)"),
    ("strength", "T8a: an earlier end of editing weakens the edit (Spearman)"),
    ("boost", "T8b: the quality boost improves realism (Frechet over unboosted)"),
    ("boost_identity", "T8b: the boost keeps the image (distance)"),
    ("schedule", "the rule finds a usable window: t_edit lies above t_boost"),
    ("baselines", "at equal gain, edits in h leak less than the other methods"),
    ("steps", "more sampling steps improve the texture of edits"),
    ("unseen_domain", "attributes withheld from training can be reached"),
    ("celebahq_t_edit", "CelebA-HQ, smiling: end of the edit", 513.0, "t", "celebahq"),
    ("celebahq_t_boost", "CelebA-HQ: start of the boost", 167.0, "t", "celebahq"),
    ("church_t_boost", "LSUN church: start of the boost", 293.0, "t", "celebahq"),
    ("bedroom_t_boost", "LSUN bedroom: start of the boost", 221.0, "t", "celebahq"),
    ("celebahq_attributes", "CelebA-HQ: edits of the attribute table", None, "", "celebahq"),
    ("celebahq_sdir", "CelebA-HQ, smiling: directional score", 0.921, "1", "celebahq"),
    ("users_celebahq", "Asyrp is preferred, CelebA-HQ in domain", 94.92, "%", "users"),
    ("users_unseen", "Asyrp is preferred, CelebA-HQ unseen domain", 63.13, "%", "users"),
    ("users_church", "Asyrp is preferred, LSUN church", 76.81, "%", "users"),
)

_SVD = _group(
    "svd",
    "05_svd_editing",
    ("decomposition", "U1: per-channel SVD returns the latent (largest relative error)"),
    ("random_subspaces", "U1: distances of random subspaces match the table"),
    ("noise_threshold", "U2: an atom stands out of noise as the BBP law says (overlap error)"),
    ("interpolation_identity", "U3: with all atoms the closed form is plain interpolation"),
    ("mlp_oracle", "U4: the trained MLP reaches the closed-form optimum (closed gap)"),
    ("zero_strength", "U5: strength 0 returns the source (relative error)"),
    ("fidelity_bound", "U6: the edit is bounded by the change of coefficients (largest ratio)"),
    ("small_neighbourhood", "P1: subspaces of neighbouring steps stay close (of random)"),
    ("small_neighbourhood_excess", "P1: they stay closer than on a straight path (excess)"),
    ("distant_pairs", "P1b: the distance varies less for the text model than for the pixel model"),
    ("attributes", "P2a: single atoms carry attributes (response over random moves)"),
    ("dose_response", "P2b: an attribute follows its singular value (share of seeds)"),
    ("selectivity", "P2c: an atom moves its attribute alone (target over others)"),
    ("mobility", "P3a: fine attributes rise in rank as noise falls (Kendall tau)"),
    ("crossing_time", "P3b: coarse attributes appear first, at the predicted time"),
    ("edit_success", "A1: AVI adds the attribute at less side effect than other methods"),
    ("late_edit", "A1b: late, injection adds the attribute where a switch fails (success gained)"),
    ("ablation_target", "A2: without the target loss success falls"),
    ("ablation_source", "A2: without the source loss identity is lost"),
    ("ablation_target_values", "A2: without the target regulariser colours saturate"),
    ("ablation_source_values", "A2: without the source regulariser quality falls"),
    ("one_pair", "A3: what is learned from one pair holds on other seeds (success ratio)"),
    ("interpolation", "A4: the edit grows in order with its strength (Spearman)"),
    ("table_glasses", "table, with glasses: lead in score over the best other method"),
    ("table_no_glasses", "table, without glasses: lead in score over the best other method"),
    ("table_smiling", "table, smiling: lead in score over the best other method"),
    ("table_frowning", "table, frowning: lead in score over the best other method"),
    ("sd_female", "Stable Diffusion 2.1, Female: CLIP score (next method: 26.6)", 28.4, "", "sd"),
    ("sd_male", "Stable Diffusion 2.1, Male: best CLIP score", None, "", "sd"),
    ("sd_old", "Stable Diffusion 2.1, Old: best CLIP score", None, "", "sd"),
    ("sd_young", "Stable Diffusion 2.1, Young: best CLIP score", None, "", "sd"),
    ("sd_fidelity", "Stable Diffusion 2.1: FID and LPIPS competitive or better", None, "", "sd"),
    ("celebahq_atoms", "CelebA-HQ, LSUN: atoms change attributes", None, "", "celebahq"),
)

_MODELS = _group(
    "models",
    "00_models",
    ("ddpm_complete", "pixel model: samples are complete faces (share)", None, "1"),
    ("ddpm_saturated", "pixel model: at most twice as many washed out as faces (excess)"),
    ("ddpm_frechet", "pixel model: nearer to faces than faces blurred by 0.7 px (Frechet)"),
    ("ddpm_inversion", "pixel model: inversion returns the face, 50 steps (mean error)"),
    ("ddpm_inversion_100", "pixel model: inversion returns the face, 100 steps (mean error)"),
    ("ddpm_memory", "pixel model: samples are no copies (distance to training over held-out)"),
    ("sd_frechet", "text model: nearer to faces than faces blurred by 0.7 px (Frechet)"),
    ("sd_prompts", "text model: the asked attribute is there (share)", None, "1"),
    ("sd_couples", "text model: two asked attributes are both there (share)", None, "1"),
)

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in (*_MODELS, *_ISING, *_TASEP, *_THEORY_AND_GEODESICS, *_DIFFUSION, *_ASYRP, *_SVD)
}

//! Experiments: each is a function from a model and data to plain data.
//!
//! The methods have no state and no access to the model's internals. Each builds one plan of many
//! worlds, so the engine can share what they have in common, and your own method can do the same.
//! Where a method can mislead, its documentation says so.

mod ablation;
mod alignment_map;
pub mod attribution;
mod causal_scrubbing;
mod causal_trace;
pub mod causal_variables;
pub mod circuits;
mod dictionaries;
mod directions;
mod grid;
pub mod lens;
mod metric;
mod path_patching;
mod saved_result;
mod saved_site;
mod saved_tensor;
mod sweep;

pub use ablation::{Ablation, AblationError, ablate, mean_activations, resample_donors};
pub use alignment_map::{
    AlignmentData, AlignmentEvent, AlignmentGrid, AlignmentMap, AlignmentMapError, alignment_map,
    alignment_map_with,
};
pub use causal_scrubbing::{
    Donors, Feature, Hypothesis, NodeAblation, Part, Place, ScrubAblations, ScrubError,
    ScrubExplanation, ScrubNode, ScrubOptions, ScrubTree, Scrubbed, Unimportant, scrub,
    scrub_ablations,
};
pub use causal_trace::{CausalTrace, CausalTraceConfig, CausalTraceError, causal_trace};
pub use dictionaries::{
    DictionaryEvaluation, DictionaryTextError, DictionaryTextOptions, FeatureTop, SplicedLosses,
    TopActivation, evaluate_dictionary, top_activations,
};
pub use directions::{
    Activations, Direction, DirectionData, DirectionError, DirectionMethod, DirectionNorms,
    DirectionOptions, DirectionProvenance, PromptPositions, ReftR1Config, ReftR1Direction,
    ReftR1Error, ReftR1Text, Separation, collect_activations, collect_activations_at,
    find_direction, train_reft_r1,
};
pub use grid::Grid;
pub use metric::{cross_entropies, logit_difference, logit_differences, probability};
pub use path_patching::{
    Mlps, PathEffects, PathGrid, PathPatch, Receiver, ReceiverInput, Sender, head_effects,
    patch_paths, patch_streams, path_grid, path_patch,
};
pub use saved_result::{LoadResultError, SaveResultError};
pub use sweep::{SweepGrid, sweep, sweep_on_devices};

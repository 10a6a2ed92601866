//! What can go wrong when directions are built.

use burn_align_models::Site;

use crate::engine::PlanError;
use crate::interventions::counted;

/// Why a direction could not be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DirectionError {
    /// No rows, or rows without features.
    #[error("expected at least one activation with at least one feature, found none")]
    Empty,
    /// Activations of different widths.
    #[error("{what}: expected {expected} features, found {found}")]
    Width {
        /// What has another width.
        what: String,
        /// Number of features expected.
        expected: usize,
        /// Number of features found.
        found: usize,
    },
    /// An activation that is not a number.
    #[error(
        "activation {row}, feature {feature}: expected a finite number within the range of f32, \
         found {found}"
    )]
    NotFinite {
        /// Index of the activation.
        row: usize,
        /// Index of the feature.
        feature: usize,
        /// The value.
        found: f64,
    },
    /// Not one item for each activation.
    #[error("{what}: expected one for each of {expected} activations, found {found}")]
    Count {
        /// The items.
        what: &'static str,
        /// Number of activations.
        expected: usize,
        /// Number of items.
        found: usize,
    },
    /// Labels that are all the same.
    #[error("expected positive and negative activations, found no {missing} ones")]
    OneClass {
        /// The class without activations.
        missing: &'static str,
    },
    /// Pairs of activations from different prompts.
    #[error(
        "pair {pair}: expected activations of prompts with the same index, found {positive} and \
         {negative}; pass the prompts of both sides in the same order, or use sets instead of pairs"
    )]
    Unpaired {
        /// Index of the pair.
        pair: usize,
        /// Prompt of the positive activation.
        positive: usize,
        /// Prompt of the negative activation.
        negative: usize,
    },
    /// Too few prompts of a class to hold some out.
    #[error(
        "expected {class} activations of more prompts, so that some can be held out; found those \
         of {}; add prompts",
        counted(*found, "prompt")
    )]
    TooFew {
        /// The class.
        class: &'static str,
        /// Number of its prompts.
        found: usize,
    },
    /// A parameter out of range.
    #[error("{what}: expected {expected}, found {found}")]
    Parameter {
        /// The parameter.
        what: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// Its value.
        found: f64,
    },
    /// Nothing tells the classes apart.
    #[error(
        "{what}: expected positive and negative activations to differ, found no difference; were \
         they taken before the position at which the prompts differ?"
    )]
    NoDifference {
        /// What is the same for both.
        what: &'static str,
    },
    /// Two principal components with the same variance.
    #[error(
        "expected one direction along which differences vary most, found several with the same \
         variance; use more pairs, or the mean difference"
    )]
    Undetermined,
    /// A direction that activations do not determine.
    #[error(
        "expected a method that builds a direction from activations, found ReFT-r1, which is \
         trained on texts; use train_reft_r1"
    )]
    TrainedOnTexts,
    /// The fit of a probe came to a halt.
    #[error(
        "the probe did not converge in {steps} steps; scale the activations, or use a larger l2"
    )]
    NotConverged {
        /// Number of Newton steps.
        steps: usize,
    },
    /// Activations that cannot be compared with a direction.
    #[error("{site}: expected an activation with features, found one with key positions")]
    NoFeatures {
        /// The site.
        site: Site,
    },
    /// A prompt without any of the positions.
    #[error("example {example}: expected more than {from} tokens, found {found}")]
    NoPositions {
        /// Index of the prompt.
        example: usize,
        /// The first position.
        from: usize,
        /// Number of its tokens.
        found: usize,
    },
    /// The model cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

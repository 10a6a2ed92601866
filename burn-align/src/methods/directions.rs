//! Directions: vectors along which positive and negative activations differ.
//!
//! A direction is built from activations at one site ([`collect_activations`]) and measured on
//! others that were held out, next to a random direction.

mod activations;
mod control_vector;
mod data;
mod error;
mod files;
mod fit;
pub(super) mod matrix;
mod options;
mod probe;
mod reft_r1;
mod separation;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align_models::{AlignableTransformer, Site, SiteWidth};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use activations::{Activations, PromptPositions, collect_activations, collect_activations_at};
pub use data::DirectionData;
pub use error::DirectionError;
pub use options::DirectionOptions;
pub use reft_r1::{ReftR1Config, ReftR1Direction, ReftR1Error, ReftR1Text, train_reft_r1};
pub use separation::Separation;

use self::data::Rows;
use crate::engine::PlanError;

/// How a direction is built. Written x⁺ and x⁻ are positive and negative activations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DirectionMethod {
    /// `mean(x⁺) - mean(x⁻)` (Marks & Tegmark 2023, arXiv 2310.06824). With pairs of prompts that
    /// differ in their last token this is contrastive activation addition (Rimsky et al. 2023,
    /// arXiv 2312.06681).
    #[doc(alias = "DiffMean")]
    #[doc(alias = "CAA")]
    MeanDifference,
    /// The first principal component of the differences `x⁺ - x⁻` of pairs, of which the mean is
    /// *not* subtracted: the unit vector v with the largest `Σ (v·(x⁺ - x⁻))²`. Activations that
    /// are not pairs are paired at random. The sign is such that positive activations project
    /// further on average.
    ///
    /// This is repeng's `pca_center`, and what llama.cpp's `cvector-generator` computes. repeng's
    /// default, `pca_diff`, subtracts the mean of the differences first, and with it the part that
    /// all pairs share.
    #[doc(alias = "PCA")]
    PrincipalComponent,
    /// The first principal component of the differences of random pairs, each scaled to length 1
    /// and taken without regard to labels (linear artificial tomography, Zou et al. 2023, arXiv
    /// 2310.01405). Labels only set the sign. The mean of the differences is not subtracted; it
    /// vanishes but for chance, since their order is random.
    Lat,
    /// The weights w of a logistic regression: they minimise `Σ log(1 + exp(-y (w·x + b))) + l2/2
    /// ‖w‖²` over w and the bias b, with y = 1 for positive activations and -1 for negative ones
    /// (scikit-learn's `C` is `1/l2`). As `l2` grows, the direction approaches the mean difference.
    ///
    /// A probe reads best, and often steers worst: it follows any feature that happens to tell the
    /// classes apart, used by the model or not.
    Probe {
        /// Strength of the penalty, above 0. Longer activations need a larger one for the same
        /// effect.
        l2: f64,
    },
    /// A random direction, as a control for steering: each is equally likely, up to its sign, which
    /// is set as above.
    Random,
    /// Trained on texts, so that adding it makes the model predict them: rank-one representation
    /// finetuning (Wu et al. 2025, AxBench, arXiv 2501.17148). From [`train_reft_r1`] only.
    #[doc(alias = "AxBench")]
    ReftR1 {
        /// How many of the largest latents of a text give its steering strength.
        top_k: usize,
        /// Weight of the penalty on all other latents.
        l1: f64,
    },
}

impl DirectionMethod {
    /// A probe with an L2 penalty of 1.
    pub const PROBE: Self = Self::Probe { l2: 1.0 };
}

/// Lengths that a direction's strength is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectionNorms {
    /// The median norm of all activations, held-out ones included: the length of
    /// [`Direction::vector`].
    pub median_activation: f64,
    /// The length of the vector as its method gives it: of the mean difference, or of a probe's
    /// weights. 1 for principal components.
    pub unscaled: f64,
}

/// What a direction was built from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectionProvenance {
    /// The model's name.
    pub model: String,
    /// The positions of the activations.
    pub positions: String,
    /// What positive and negative activations stand for.
    pub labels: [String; 2],
    /// Number of positive and of negative activations that it was built from, without those held
    /// out.
    pub examples: [usize; 2],
    /// Whether these were pairs.
    pub pairs: bool,
    /// Seed of the split, of random pairs and of random directions.
    pub seed: u64,
}

/// A direction at a site of a model, with what it was built from and how well it tells held-out
/// activations apart.
///
/// # When it misleads
/// Separation shows that the classes can be *read* along the direction, not that the model uses it:
/// only steering does. A control far from an AUC of 0.5 means that the classes differ in almost any
/// direction, for instance in length or topic.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[doc(alias = "steering vector")]
#[doc(alias = "control vector")]
pub struct Direction {
    /// `[d_site]`, from negative to positive, as long as the median activation
    /// ([`DirectionNorms::median_activation`]). The median is robust to attention sinks, which can
    /// be a hundred times longer than other activations.
    pub vector: Vec<f32>,
    /// Where the activations are from.
    pub site: Site,
    /// How it was built.
    pub method: DirectionMethod,
    /// Its length, and that of the activations.
    pub norms: DirectionNorms,
    /// How well it tells held-out activations apart.
    pub separation: Separation,
    /// The same for a random direction, whose sign was also set by the training labels.
    pub control: Separation,
    /// What it was built from.
    pub provenance: DirectionProvenance,
}

impl Direction {
    /// The vector, scaled to length 1.
    pub fn unit(&self) -> Vec<f32> {
        let values: Vec<f64> = self.vector.iter().map(|value| f64::from(*value)).collect();
        unit(values).into_iter().map(|value| value as f32).collect()
    }

    /// How strongly activations have the direction, `ReLU(x·u)` with the unit vector u: AxBench's
    /// concept detector, for which a text is scored by the largest of its tokens' values.
    ///
    /// # Errors
    /// If the activations are of another width.
    pub fn latents(&self, activations: &Activations) -> Result<Vec<f64>, DirectionError> {
        if activations.width() != self.vector.len() {
            return Err(DirectionError::Width {
                what: "the activations".to_owned(),
                expected: self.vector.len(),
                found: activations.width(),
            });
        }
        let unit = unit(self.vector.iter().map(|value| f64::from(*value)).collect());
        let rows = activations.rows();
        Ok(rows.map(|row| matrix::dot(&unit, row).max(0.0)).collect())
    }

    /// The vector on a device, in f32.
    ///
    /// # Shapes
    /// - output: `[d_site]`
    pub fn to_tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 1> {
        let data = TensorData::new(self.vector.clone(), [self.vector.len()]);
        Tensor::from_data(data, (device, DType::F32))
    }

    /// Checks that a model has the site, and that it is as wide as the direction.
    ///
    /// # Errors
    /// If not.
    pub fn check<B: Backend, M: AlignableTransformer<B>>(
        &self,
        model: &M,
    ) -> Result<(), DirectionError> {
        let site = self.site;
        let dims = model.site(site).ok_or_else(|| PlanError::NoSuchSite {
            site,
            layers: model.dims().layers,
            lacks: model.layout().lacks(site),
        })?;
        match dims.width {
            SiteWidth::KeyPositions => Err(DirectionError::NoFeatures { site }),
            SiteWidth::Features(width) if dims.heads * width != self.vector.len() => {
                Err(DirectionError::Width {
                    what: format!("{site}: a direction for this model"),
                    expected: dims.heads * width,
                    found: self.vector.len(),
                })
            }
            SiteWidth::Features(_) => Ok(()),
        }
    }
}

/// Streams of a seed's random numbers, so that what is drawn for one purpose does not depend on
/// another.
const SPLIT: u64 = 0;
const FIT: u64 = 1;
const CONTROL: u64 = 2;

/// Builds a direction from some of the prompts and measures it on the others.
///
/// The vector returned is the one that was measured: held-out prompts do not contribute to it.
/// Activations are numbers on the host, and everything is computed in f64.
///
/// # Errors
/// If there are too few prompts to hold some out, a parameter is out of range, the classes do not
/// differ, or the method has no single answer.
///
/// ```
/// use burn_align::methods::{
///     Activations, DirectionData, DirectionMethod, DirectionOptions, find_direction,
/// };
/// use burn_align::models::{Component, Site};
///
/// let rows = |sign: f64| -> Vec<Vec<f64>> {
///     (0..8).map(|i| vec![sign * 3.0, f64::from(i % 3), f64::from(i % 4)]).collect()
/// };
/// let positive = Activations::from_rows(&rows(1.0))?;
/// let negative = Activations::from_rows(&rows(-1.0))?;
/// let data = DirectionData::pairs(&positive, &negative)?;
/// let site = Site::Block(2, Component::BlockOutput);
/// let options = DirectionOptions::default().with_labels("happy", "sad");
/// let found = find_direction(&data, site, DirectionMethod::MeanDifference, &options)?;
/// assert_eq!(found.unit(), [1.0, 0.0, 0.0]);
/// assert_eq!((found.separation.auc, found.separation.examples), (1.0, [2, 2]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn find_direction(
    data: &DirectionData,
    site: Site,
    method: DirectionMethod,
    options: &DirectionOptions,
) -> Result<Direction, DirectionError> {
    check_options(method, options)?;
    let is_held_out = data.held_out(options.held_out, &mut rng(options, SPLIT));
    let parts = data.split(&is_held_out)?;
    let found = fit::fit(&parts[0], method, &mut rng(options, FIT))?;
    described(found, (data, parts), site, method, options)
}

fn rng(options: &DirectionOptions, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    rng.set_stream(stream);
    rng
}

/// A direction along a vector, measured on held-out rows.
fn described(
    found: Vec<f64>,
    (data, [training, held_out]): (&DirectionData, [Rows<'_>; 2]),
    site: Site,
    method: DirectionMethod,
    options: &DirectionOptions,
) -> Result<Direction, DirectionError> {
    let control = fit::random(&training, &mut rng(options, CONTROL));
    let unscaled = matrix::norm(&found);
    if unscaled == 0.0 {
        return Err(DirectionError::NoDifference {
            what: "the activations",
        });
    }
    let [unit, control] = [found, control].map(unit);
    let median = median_norm(data)?;
    Ok(Direction {
        vector: unit.iter().map(|value| (value * median) as f32).collect(),
        site,
        method,
        norms: DirectionNorms {
            median_activation: median,
            unscaled,
        },
        separation: separation::separation(&unit, [&training, &held_out]),
        control: separation::separation(&control, [&training, &held_out]),
        provenance: DirectionProvenance {
            model: options.model.clone(),
            positions: options.positions.clone(),
            labels: options.labels.clone(),
            examples: training.counts(),
            pairs: data.is_paired(),
            seed: options.seed,
        },
    })
}

fn check_options(
    method: DirectionMethod,
    options: &DirectionOptions,
) -> Result<(), DirectionError> {
    let found = options.held_out;
    if !(found > 0.0 && found < 1.0) {
        return Err(DirectionError::Parameter {
            what: "held_out",
            expected: "a fraction between 0 and 1",
            found,
        });
    }
    if let DirectionMethod::Probe { l2: found } = method
        && !(found.is_finite() && found > 0.0)
    {
        return Err(DirectionError::Parameter {
            what: "l2",
            expected: "a finite number above 0",
            found,
        });
    }
    Ok(())
}

fn unit(vector: Vec<f64>) -> Vec<f64> {
    let length = matrix::norm(&vector);
    vector.into_iter().map(|value| value / length).collect()
}

/// The median norm of all activations; between the two in the middle if there is an even number.
fn median_norm(data: &DirectionData) -> Result<f64, DirectionError> {
    let mut norms: Vec<f64> = data.rows().map(matrix::norm).collect();
    norms.sort_by(f64::total_cmp);
    let middle = norms.len() / 2;
    let median = match norms.len() % 2 {
        1 => norms[middle],
        _ => (norms[middle - 1] + norms[middle]) / 2.0,
    };
    if median == 0.0 {
        return Err(DirectionError::Parameter {
            what: "the median norm of the activations",
            expected: "a number above 0",
            found: median,
        });
    }
    Ok(median)
}

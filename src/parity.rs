//! How far a backend's results are from those of `transformers`, in each dtype, on the checkpoints
//! of the test suite.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, ModelInput, Site, Tap,
};

use crate::backends::DTypeChoice;
use crate::fixtures::{checkpoints, read_tensors};

/// How far values are from the expected ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The checkpoint's name.
    pub checkpoint: String,
    /// Which values: `case2 logits`, or a case and a site.
    pub of: String,
    /// The largest absolute difference; NaN if any value is.
    pub absolute: f32,
    /// The largest absolute value among those expected.
    pub largest: f32,
}

impl Difference {
    /// The absolute difference relative to the largest value of the same tensor.
    pub fn relative(&self) -> f32 {
        self.absolute / self.largest
    }

    /// Whether it is within the tolerance of the tests; a NaN is not.
    pub fn is_within(&self, tolerance: Tolerance) -> bool {
        match tolerance {
            Tolerance::Absolute(most) => self.absolute <= most,
            Tolerance::Relative(most) => self.relative() <= most,
        }
    }
}

/// How large a [`Difference`] may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// A limit on the absolute difference.
    Absolute(f32),
    /// A limit on the difference relative to the largest value.
    Relative(f32),
}

/// The tolerance of the tests: an absolute difference for f32, and a number of roundings of the
/// largest value for 16 bits, since a few dozen follow one another (22.6 were measured for bf16 on
/// Flex).
pub fn tolerance(dtype: DTypeChoice) -> Tolerance {
    const ROUNDINGS: f32 = 32.0;
    match dtype {
        DTypeChoice::F32 => Tolerance::Absolute(1e-4),
        DTypeChoice::Bf16 => Tolerance::Relative(ROUNDINGS / 256.0),
        DTypeChoice::F16 => Tolerance::Relative(ROUNDINGS / 2048.0),
    }
}

/// Differences of a backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Differences {
    /// Differences of the logits of every case of every checkpoint.
    pub logits: Vec<Difference>,
    /// Differences of each activation, for checkpoints that include activations.
    pub activations: Vec<Difference>,
}

/// Runs all checkpoints, loaded in `dtype`, and compares logits and activations with those of
/// `transformers` in f32. So the rounding of weights to a smaller dtype counts.
///
/// # Errors
/// If the fixtures cannot be read or loaded, or shapes or sites differ.
pub fn measure<B: Backend>(dtype: DType, device: &B::Device) -> Result<Differences> {
    let mut differences = Differences::default();
    for (name, folder) in checkpoints()? {
        measure_checkpoint::<B>(&name, &folder, dtype, device, &mut differences)
            .with_context(|| name.clone())?;
    }
    Ok(differences)
}

fn measure_checkpoint<B: Backend>(
    name: &str,
    folder: &Path,
    dtype: DType,
    device: &B::Device,
    differences: &mut Differences,
) -> Result<()> {
    let options = LoadOptions::default().with_dtype(dtype);
    let model = Decoder::<B>::from_pretrained(folder, &options, device)?.model;
    let expected = read_tensors(&folder.join("expected.safetensors"), |_| true)?;
    let inputs = |case: &str| {
        let ids = expected.get(&format!("{case}.input_ids"))?;
        let ids = Tensor::<B, 2, Int>::from_data(ids.clone(), device);
        Some(ModelInput::Tokens(ids))
    };
    for case in (0..).map(|case| format!("case{case}")) {
        let Some(input) = inputs(&case) else {
            break;
        };
        let logits = expected
            .get(&format!("{case}.logits"))
            .ok_or_else(|| anyhow!("no logits of {case}"))?;
        let activations: BTreeMap<&str, &TensorData> = expected
            .iter()
            .filter_map(|(key, data)| Some((key.strip_prefix(&format!("{case}.act."))?, data)))
            .collect();
        let mut record = Record {
            wanted: !activations.is_empty(),
            seen: BTreeMap::new(),
        };
        let found = model.forward_tapped(input, &mut record);
        let difference = |of: String, found, expected| -> Result<Difference> {
            let (absolute, largest) = compare(found, expected)?;
            Ok(Difference {
                checkpoint: name.to_owned(),
                of,
                absolute,
                largest,
            })
        };
        let [batch, pos, vocab] = found.dims();
        let found = found.reshape([batch, 1, pos, vocab]);
        differences
            .logits
            .push(difference(format!("{case} logits"), found, logits)?);
        for (place, expected) in activations {
            let site = site(place)?;
            let found = record
                .seen
                .remove(&site)
                .ok_or_else(|| anyhow!("{site} was not reached"))?;
            let found = difference(format!("{case} {site}"), found, expected)?;
            differences.activations.push(found);
        }
        if let Some(site) = record.seen.keys().next() {
            return Err(anyhow!("{site}: no expected value"));
        }
    }
    Ok(())
}

/// Keeps every activation, if they are wanted.
struct Record<B: Backend> {
    wanted: bool,
    /// `[batch, head, pos, width]`
    seen: BTreeMap<Site, Tensor<B, 4>>,
}

impl<B: Backend> Tap<B> for Record<B> {
    fn wants(&self, _site: Site) -> bool {
        self.wanted
    }

    fn visit(&mut self, site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        let before = self.seen.insert(site, activation.clone());
        assert!(before.is_none(), "{site} was reached twice");
        activation
    }
}

/// The site of a name among the fixtures: `embedding`, `final_norm` or `<layer>.<component>`.
fn site(place: &str) -> Result<Site> {
    Ok(match place.split_once('.') {
        Some((layer, component)) => Site::Block(layer.parse()?, component.parse::<Component>()?),
        None if place == "embedding" => Site::Embedding,
        None => Site::FinalNorm,
    })
}

/// The largest absolute difference, and the largest value expected.
///
/// # Shapes
/// - found: `[batch, head, pos, width]`
/// - expected: the same, or `[batch, pos, head * width]`
fn compare<B: Backend>(found: Tensor<B, 4>, expected: &TensorData) -> Result<(f32, f32)> {
    let [batch, head, pos, width] = found.dims();
    let (found, shape) = if expected.shape.num_dims() == 3 {
        let merged = [batch, pos, head * width];
        (found.swap_dims(1, 2), merged.to_vec()) // [batch, pos, head, width]
    } else {
        (found, vec![batch, head, pos, width])
    };
    ensure!(
        expected.shape[..] == shape[..],
        "expected shape {:?}, found {shape:?}",
        expected.shape
    );
    let found: Vec<f32> = found
        .cast(DType::F32)
        .into_data()
        .to_vec()
        .map_err(|error| anyhow!("{error:?}"))?;
    let expected: Vec<f32> = expected.to_vec().map_err(|error| anyhow!("{error:?}"))?;
    let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    // A NaN must not pass as a small difference.
    let absolute = differences.fold(0.0, |max, d| if d <= max { max } else { d });
    let largest = expected.iter().fold(0_f32, |max, x| max.max(x.abs()));
    Ok((absolute, largest))
}

//! The state of a run in a file, so that an interrupted run ends with the same dictionary.
//!
//! `dictionary.safetensors` holds the parameters, Adam's moments, how long each feature has been
//! silent, and the history. Where the run is in the text follows from the number of steps, and so
//! do all random numbers.

use std::collections::BTreeMap;

use burn::optim::{AdamState, AdaptiveMomentumState};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{DictionaryHistory, DictionaryStep, DictionaryTrainer, DictionaryTrainingError};
use crate::engine::{PlanError, read_floats};
use crate::training::Checkpoints;
use crate::training::checkpoint_file::{MOMENTS, RunFile, RunKind, Stored};

const KIND: RunKind = RunKind {
    name: "dictionary.safetensors",
    key: "burn_align_dictionary_training",
};
/// Numbers of a step.
const NUMBERS: usize = 6;

/// Everything that is not a tensor.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// Number of steps so far.
    done: usize,
    /// The factor of the activations.
    scale: f64,
}

/// The file that a run writes and reads.
pub(super) struct DictionaryFile(RunFile);

type Tensors = BTreeMap<String, Stored>;
/// A parameter, and what Adam knows about it.
type WithState<B, const D: usize> = (Tensor<B, D>, Option<AdamState<B, D>>);

impl DictionaryFile {
    /// - run: everything that the numbers depend on
    pub(super) fn new(checkpoints: &Checkpoints, run: Value) -> Self {
        Self(RunFile::new(KIND, checkpoints, run))
    }

    pub(super) fn save<B: Backend>(
        &self,
        trainer: &DictionaryTrainer<B>,
        history: &DictionaryHistory,
        scale: f64,
    ) -> Result<(), DictionaryTrainingError> {
        let mut tensors = Tensors::new();
        let (of, moments) = (&trainer.parameters, &trainer.moments);
        put(&mut tensors, "encoder", &of.encoder, &moments.encoder)?;
        put(
            &mut tensors,
            "encoder_bias",
            &of.encoder_bias,
            &moments.encoder_bias,
        )?;
        put(&mut tensors, "decoder", &of.decoder, &moments.decoder)?;
        put(
            &mut tensors,
            "decoder_bias",
            &of.decoder_bias,
            &moments.decoder_bias,
        )?;
        if let Some(threshold) = &of.threshold {
            put(&mut tensors, "threshold", threshold, &moments.threshold)?;
        }
        let silent = trainer.silent.iter().map(|steps| *steps as u64);
        let silent = Stored {
            dtype: Dtype::U64,
            shape: vec![trainer.silent.len()],
            bytes: silent.flat_map(u64::to_le_bytes).collect(),
        };
        tensors.insert("silent".to_owned(), silent);
        let numbers = history.steps.iter().flat_map(DictionaryStep::numbers);
        let numbers = Stored {
            dtype: Dtype::F64,
            shape: vec![history.steps.len(), NUMBERS],
            bytes: numbers.flat_map(f64::to_le_bytes).collect(),
        };
        tensors.insert("history".to_owned(), numbers);
        let header = Header {
            done: trainer.done,
            scale,
        };
        Ok(self.0.write(&header, &tensors)?)
    }

    /// Reads the checkpoint, if there is one, into the trainer of a new run; gives the history and
    /// the factor of the activations.
    pub(super) fn load<B: Backend>(
        &self,
        trainer: &mut DictionaryTrainer<B>,
    ) -> Result<Option<(DictionaryHistory, f64)>, DictionaryTrainingError> {
        let Some((Header { done, scale }, bytes)) = self.0.read::<Header>()? else {
            return Ok(None);
        };
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| self.0.damaged(e))?;
        let from = Restore {
            tensors: &tensors,
            done,
        };
        let history = from
            .trainer(trainer)
            .and_then(|()| from.history(trainer.config.steps()));
        let history = history.map_err(|reason| self.0.damaged(reason))?;
        trainer.done = done;
        Ok(Some((history, scale)))
    }
}

/// Adds a parameter and its moments.
fn put<B: Backend, const D: usize>(
    tensors: &mut Tensors,
    name: &str,
    parameter: &Tensor<B, D>,
    state: &Option<AdamState<B, D>>,
) -> Result<(), PlanError> {
    tensors.insert(name.to_owned(), stored(parameter)?);
    let Some(AdamState { momentum }) = state else {
        return Ok(());
    };
    let moments = [
        Some(&momentum.moment_1),
        Some(&momentum.moment_2),
        momentum.max_moment_2.as_ref(),
    ];
    for (moment, tensor) in MOMENTS.into_iter().zip(moments) {
        if let Some(tensor) = tensor {
            tensors.insert(format!("{name}.{moment}"), stored(tensor)?);
        }
    }
    Ok(())
}

fn stored<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Result<Stored, PlanError> {
    let numbers = read_floats(tensor.clone())?;
    Ok(Stored {
        dtype: Dtype::F32,
        shape: tensor.dims().to_vec(),
        bytes: numbers.into_iter().flat_map(f32::to_le_bytes).collect(),
    })
}

/// A checkpoint that is being read.
struct Restore<'a> {
    tensors: &'a SafeTensors<'a>,
    /// Number of steps: that of the moments too.
    done: usize,
}

impl Restore<'_> {
    fn trainer<B: Backend>(&self, trainer: &mut DictionaryTrainer<B>) -> Result<(), String> {
        let (of, moments) = (&mut trainer.parameters, &mut trainer.moments);
        (of.encoder, moments.encoder) = self.parameter("encoder", &of.encoder)?;
        (of.encoder_bias, moments.encoder_bias) =
            self.parameter("encoder_bias", &of.encoder_bias)?;
        (of.decoder, moments.decoder) = self.parameter("decoder", &of.decoder)?;
        (of.decoder_bias, moments.decoder_bias) =
            self.parameter("decoder_bias", &of.decoder_bias)?;
        if let Some(threshold) = &of.threshold {
            let (threshold, state) = self.parameter("threshold", threshold)?;
            (of.threshold, moments.threshold) = (Some(threshold), state);
        }
        let silent = self.bytes("silent", Dtype::U64, &[trainer.silent.len()])?;
        let (silent, _) = silent.as_chunks::<8>();
        trainer.silent = silent
            .iter()
            .map(|it| u64::from_le_bytes(*it) as usize)
            .collect();
        Ok(())
    }

    fn history(&self, steps: usize) -> Result<DictionaryHistory, String> {
        let bytes = self.bytes("history", Dtype::F64, &[self.done, NUMBERS])?;
        let (numbers, _) = bytes.as_chunks::<8>();
        let numbers: Vec<f64> = numbers.iter().map(|it| f64::from_le_bytes(*it)).collect();
        let (of_steps, _) = numbers.as_chunks::<NUMBERS>();
        let of_steps = of_steps.iter().enumerate();
        let of_steps =
            of_steps.map(|(step, numbers)| DictionaryStep::of_numbers([step, steps], *numbers));
        Ok(DictionaryHistory {
            steps: of_steps.collect(),
        })
    }

    /// A parameter with the shape of `like`, and its moments.
    fn parameter<B: Backend, const D: usize>(
        &self,
        name: &str,
        like: &Tensor<B, D>,
    ) -> Result<WithState<B, D>, String> {
        let parameter = self.tensor(name, like)?;
        if self.done == 0 {
            return Ok((parameter, None));
        }
        let names = MOMENTS.map(|moment| format!("{name}.{moment}"));
        let max_moment_2 = match self.tensors.tensor(&names[2]) {
            Ok(_) => Some(self.tensor(&names[2], like)?),
            Err(_) => None,
        };
        let state = AdamState::new(AdaptiveMomentumState {
            time: self.done,
            moment_1: self.tensor(&names[0], like)?,
            moment_2: self.tensor(&names[1], like)?,
            max_moment_2,
        });
        Ok((parameter, Some(state)))
    }

    fn tensor<B: Backend, const D: usize>(
        &self,
        name: &str,
        like: &Tensor<B, D>,
    ) -> Result<Tensor<B, D>, String> {
        let bytes = self.bytes(name, Dtype::F32, &like.dims())?;
        let (numbers, _) = bytes.as_chunks::<4>();
        let numbers: Vec<f32> = numbers.iter().map(|it| f32::from_le_bytes(*it)).collect();
        let data = TensorData::new(numbers, like.dims());
        Ok(Tensor::from_data(data, (&like.device(), DType::F32)))
    }

    fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8], String> {
        let wanted = || format!("{name}: expected a tensor of {dtype} and shape {shape:?}");
        match self.tensors.tensor(name) {
            Ok(view) if view.dtype() == dtype && view.shape() == shape => Ok(view.data()),
            Ok(view) => {
                let (dtype, shape) = (view.dtype(), view.shape());
                Err(format!("{}, found {dtype} and {shape:?}", wanted()))
            }
            Err(_) => Err(format!("{}, found none", wanted())),
        }
    }
}

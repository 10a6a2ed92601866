//! Interventions in folders: in this crate's format, and in those of pyvene and pyreft
//! (`tests/fixtures/make_trainable.py`).

mod damaged;
mod differences;
mod formulas;
mod refused;
mod round_trip;
mod runs;

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use burn_align::front::{AlignableConfig, AlignableRepresentationConfig};
use burn_align::interventions::BuiltinIntervention;
use burn_align::saved::SavedInterventions;
use burn_align_models::Component;
use serde_json::Value;

use crate::support::{fixtures, message, values};

fn trainable() -> PathBuf {
    fixtures().join("trainable")
}

fn read_json(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).expect("the fixture")).expect("JSON")
}

fn tensor<B: Backend, const D: usize>(data: &TensorData, device: &B::Device) -> Tensor<B, D> {
    Tensor::from_data(data.clone(), (device, DType::F32))
}

/// The only intervention of a folder.
fn only<B: Backend>(folder: &Path, device: &B::Device) -> BuiltinIntervention<B> {
    let saved = SavedInterventions::<B>::load(folder, device);
    let saved = saved.unwrap_or_else(|error| panic!("{}: {}", folder.display(), message(&error)));
    let mut interventions = saved.interventions;
    assert_eq!(interventions.len(), 1, "{}", folder.display());
    interventions.remove(0)
}

/// All parameters of a module, bit by bit.
fn bits<B: Backend>(module: &impl Module<B>) -> Vec<(Vec<usize>, Vec<u32>)> {
    struct Bits(Vec<(Vec<usize>, Vec<u32>)>);
    impl<B: Backend> ModuleVisitor<B> for Bits {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let tensor = param.val();
            let shape = tensor.dims().to_vec();
            self.0
                .push((shape, values(tensor).iter().map(|x| x.to_bits()).collect()));
        }
    }
    let mut bits = Bits(Vec::new());
    module.visit(&mut bits);
    bits.0
}

/// A configuration for this many interventions.
fn config_of(count: usize) -> AlignableConfig {
    let component = Component::BlockOutput;
    AlignableConfig::new((0..count).map(|_| AlignableRepresentationConfig::new(0, component)))
}

/// A copy of a folder of the fixtures, or of another.
fn copy(from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in from.read_dir().expect("a folder") {
        let file = entry.expect("readable").path();
        fs::copy(&file, folder.path().join(file.file_name().expect("a name"))).expect("copied");
    }
    folder
}

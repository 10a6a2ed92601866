//! Directions from the command line, and how they steer a conversation.

use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align::engine::{Edit, Operand, Plan, Units, WorldInput};
use burn_align::generate::{GeneratedWorld, StepEdit, StepOperand};
use burn_align::methods::Direction;
use burn_align::saved::ControlVector;
use burn_align_models::{AlignableTransformer, Component, Decoder, Site};

use crate::applied::Push;

/// A direction and how strongly to add it.
#[derive(Clone, Debug)]
pub(crate) struct Steer {
    path: PathBuf,
    strength: Option<f64>,
}

impl FromStr for Steer {
    type Err = Error;

    /// `PATH` or `PATH:STRENGTH`.
    fn from_str(text: &str) -> Result<Self> {
        let (path, strength) = match text.rsplit_once(':') {
            Some((path, strength)) => match strength.parse::<f64>() {
                Ok(strength) => (path, Some(strength)),
                // Part of the path.
                Err(_) => (text, None),
            },
            None => (text, None),
        };
        ensure!(
            !path.is_empty(),
            "expected a folder or a .gguf file, found none"
        );
        ensure!(
            strength.is_none_or(f64::is_finite),
            "expected a finite strength, found {text}"
        );
        Ok(Self {
            path: path.into(),
            strength,
        })
    }
}

impl Steer {
    /// What is added, and where.
    ///
    /// # Errors
    /// If the direction cannot be loaded, or is for another model.
    pub(crate) fn load<B: Backend>(
        &self,
        model: &Decoder<B>,
        device: &B::Device,
    ) -> Result<Vec<Push<B>>> {
        let path = || format!("--steer {}", self.path.display());
        let is_gguf = self.path.extension().is_some_and(|it| it == "gguf");
        if !is_gguf || self.path.is_dir() {
            let direction = Direction::load(&self.path).with_context(path)?;
            direction.check::<B, Decoder<B>>(model).with_context(path)?;
            let vector = direction.to_tensor::<B>(device).unsqueeze::<3>();
            return Ok(vec![Push {
                site: direction.site,
                // A direction is as long as the median activation, which is more than texts bear.
                vector: vector * self.strength.unwrap_or(0.2),
            }]);
        }
        let vectors = ControlVector::load(&self.path).with_context(path)?;
        vectors.check(model.dims()).with_context(path)?;
        let vectors = vectors.directions().iter().map(|(layer, vector)| {
            let data = TensorData::new(vector.clone(), [1, 1, vector.len()]);
            let vector = Tensor::<B, 3>::from_data(data, (device, DType::F32));
            Push {
                site: Site::Block(*layer, Component::BlockOutput),
                vector: vector * self.strength.unwrap_or(1.0),
            }
        });
        Ok(vectors.collect())
    }
}

/// A world in which vectors are added at every position of a conversation but the first, and at
/// every generated token.
///
/// - computed: the positions that are computed; what is before them has been steered in an earlier
///   turn
/// - addition: index of `AdditionIntervention` among the interventions
pub(crate) fn steered<B: Backend>(
    plan: &mut Plan<B>,
    conversation: WorldInput<B>,
    computed: Range<usize>,
    pushes: &[Push<B>],
    addition: usize,
) -> GeneratedWorld<B> {
    let input = plan.input(conversation);
    let positions = computed.start.max(1)..computed.end;
    let mut edits = Vec::new();
    for push in pushes.iter().filter(|_| !positions.is_empty()) {
        let constant = plan.constant(push.vector.clone());
        let units = Units::positions(positions.clone());
        let edit = Edit::new(push.site, units, addition, Operand::Constant(constant));
        edits.push(edit);
    }
    let mut world = GeneratedWorld::new(plan.world(input, edits));
    for push in pushes {
        let operand = StepOperand::Constant(push.vector.clone());
        world = world.with_edit(StepEdit::new(push.site, addition, operand));
    }
    world
}

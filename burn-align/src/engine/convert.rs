//! The same plan for other examples, on another device, or on the autodiff backend.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use burn_align_models::TokensError;

use super::devices::moved;
use super::plan::{Edit, LogitPositions, Operand, Plan, Read, Resumed, World, WorldInput};
use super::{Indices, PlanError, Units};

impl<B: Backend> Plan<B> {
    /// The same plan for some of its examples, in this order.
    ///
    /// # Errors
    /// If the inputs have different numbers of examples, or `examples` is empty or names an unknown
    /// one.
    pub fn examples(&self, examples: &[usize]) -> Result<Self, PlanError> {
        let batch = self.inputs.first().map_or(0, WorldInput::batch);
        if let Some(found) = self.inputs.iter().find(|input| input.batch() != batch) {
            return Err(PlanError::WrongBatch {
                at: "inputs of a plan whose examples are chosen".to_owned(),
                batch,
                found: found.batch(),
            });
        }
        let wrong = match examples.iter().find(|example| **example >= batch) {
            Some(found) => Some(TokensError::NoSuchExample {
                found: *found,
                batch,
            }),
            None => examples.is_empty().then_some(TokensError::EmptyBatch),
        };
        if let Some(cause) = wrong {
            return Err(PlanError::Input { input: 0, cause });
        }
        let tensors = |x: &Tensor<B, 3>| match x.dims()[0] {
            size if size == batch => select(x.clone(), examples),
            _ => x.clone(),
        };
        let units = |units: &Units| Units {
            heads: indices(&units.heads, examples),
            positions: indices(&units.positions, examples),
        };
        let edit = |edit: &Edit| Edit {
            site: edit.site,
            units: units(&edit.units),
            features: indices(&edit.features, examples),
            intervention: edit.intervention,
            operand: match &edit.operand {
                Operand::Activation {
                    world,
                    site,
                    units: taken,
                } => Operand::Activation {
                    world: *world,
                    site: *site,
                    units: units(taken),
                },
                other => other.clone(),
            },
        };
        let inputs = self.inputs.iter().map(|input| match input {
            WorldInput::Tokens(tokens) => {
                WorldInput::Tokens(tokens.select(examples).expect("checked above"))
            }
            WorldInput::Features(x) => WorldInput::Features(select(x.clone(), examples)),
            WorldInput::Resumed(resumed) => WorldInput::Resumed(Resumed {
                stage: resumed.stage,
                x: {
                    let lengths = examples.iter().map(|e| resumed.lengths[*e]);
                    let x = select(resumed.x.clone(), examples);
                    match self.names_its_positions() {
                        true => x.narrow(1, 0, lengths.max().unwrap_or(0)),
                        false => x,
                    }
                },
                lengths: examples.iter().map(|e| resumed.lengths[*e]).collect(),
                past: resumed.past.as_ref().map(|past| {
                    let starts = examples.iter().map(|e| past.starts[*e]).collect();
                    past.map(starts, |x| select(x.clone(), examples))
                }),
            }),
        });
        let reads = self.reads.iter().map(|read| match read {
            Read::Activation {
                world,
                site,
                units: read,
            } => Read::Activation {
                world: *world,
                site: *site,
                units: units(read),
            },
            Read::Logits { world, positions } => Read::Logits {
                world: *world,
                positions: match positions {
                    LogitPositions::Each(each)
                        if examples.iter().all(|example| *example < each.len()) =>
                    {
                        LogitPositions::Each(examples.iter().map(|e| each[*e].clone()).collect())
                    }
                    other => other.clone(),
                },
            },
        });
        Ok(Self {
            inputs: inputs.collect(),
            constants: self.constants.iter().map(tensors).collect(),
            worlds: self
                .worlds
                .iter()
                .map(|world| World {
                    input: world.input,
                    edits: world.edits.iter().map(edit).collect(),
                    frozen: world.frozen,
                })
                .collect(),
            reads: reads.collect(),
            known: self
                .known
                .iter()
                .map(|value| value.as_ref().map(tensors))
                .collect(),
            marks: self.marks.clone(),
        })
    }

    /// The same plan on the autodiff backend. Its tensors are constants there.
    pub fn from_inner<A: AutodiffBackend<InnerBackend = B>>(&self) -> Plan<A> {
        self.with_tensors(|x| Tensor::from_inner(x.clone()))
    }

    /// The same plan with its tensors on another device.
    pub fn to_device(&self, device: &B::Device) -> Self {
        self.with_tensors(|x| moved(x.clone(), device))
    }

    fn with_tensors<A: Backend>(&self, tensor: impl Fn(&Tensor<B, 3>) -> Tensor<A, 3>) -> Plan<A> {
        Plan {
            inputs: self
                .inputs
                .iter()
                .map(|input| match input {
                    WorldInput::Tokens(tokens) => WorldInput::Tokens(tokens.clone()),
                    WorldInput::Features(x) => WorldInput::Features(tensor(x)),
                    WorldInput::Resumed(resumed) => WorldInput::Resumed(Resumed {
                        stage: resumed.stage,
                        x: tensor(&resumed.x),
                        lengths: resumed.lengths.clone(),
                        past: resumed
                            .past
                            .as_ref()
                            .map(|past| past.map(past.starts.clone(), &tensor)),
                    }),
                })
                .collect(),
            constants: self.constants.iter().map(&tensor).collect(),
            worlds: self.worlds.clone(),
            reads: self.reads.clone(),
            known: self
                .known
                .iter()
                .map(|value| value.as_ref().map(&tensor))
                .collect(),
            marks: self.marks.clone(),
        }
    }

    /// Number of bytes of the plan's tensors: residuals, keys and values, and constants.
    pub fn held_bytes(&self) -> usize {
        let bytes = |x: &Tensor<B, 3>| x.shape().num_elements() * x.dtype().size();
        let inputs = self.inputs.iter().map(|input| match input {
            WorldInput::Tokens(_) => 0,
            WorldInput::Features(x) => bytes(x),
            WorldInput::Resumed(resumed) => {
                let layers = resumed.past.iter().flat_map(|past| &past.layers);
                let past = layers.map(|kept| bytes(&kept.keys) + bytes(&kept.values));
                bytes(&resumed.x) + past.sum::<usize>()
            }
        });
        let tensors = self.constants.iter().chain(self.known.iter().flatten());
        inputs.sum::<usize>() + tensors.map(bytes).sum::<usize>()
    }
}

fn indices(indices: &Indices, examples: &[usize]) -> Indices {
    match indices {
        // A list of the wrong length is rejected when the plan is run.
        Indices::Each(each) if examples.iter().all(|example| *example < each.len()) => {
            Indices::Each(examples.iter().map(|e| each[*e].clone()).collect())
        }
        other => other.clone(),
    }
}

fn select<B: Backend>(x: Tensor<B, 3>, examples: &[usize]) -> Tensor<B, 3> {
    let rows: Vec<i64> = examples.iter().map(|example| *example as i64).collect();
    let rows = TensorData::new(rows, [examples.len()]);
    let device = x.device();
    x.select(0, Tensor::<B, 1, Int>::from_data(rows, &device))
}

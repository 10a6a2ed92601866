//! Text generation under interventions.
//!
//! A plan runs the prompts; then each row goes on from its cache, one token at a time, with edits
//! of its own, and all rows go through the network together ([`generate`]). Generated token `k`
//! (from 0) is at the position after the prompt's last one plus `k`; *step* `k` is the pass that
//! computes this position, so an edit at step `k` can change token `k + 1` and everything after it,
//! and one at the prompt's last position can change token 0. What an edit changes in keys and
//! values stays changed.
//!
//! | edits | where |
//! | --- | --- |
//! | at prompt positions | edits of the plan's worlds |
//! | at one step | [`StepEdit::at_step`] |
//! | at every step | [`StepEdit::new`] |
//! | at prompt and steps | both |
//! | at the tokens of a chat role | [`Chat::positions_of_role`], as prompt positions |
//!
//! [`Chat::positions_of_role`]: burn_align_models::Chat::positions_of_role
//!
//! A step's operand is nothing, a constant, what the prompts' plan computes somewhere, or what
//! another row has at the same step ([`StepOperand`]).
//! [`AlignableModel::generate`](crate::front::AlignableModel::generate) says all of this in the
//! vocabulary of pyvene.
//!
//! Rows on one prompt share what is cached of it, and [`explain_generation`] says how much memory
//! and computation it will take. With [`GenerateOptions::with_caches`] each row gives back its
//! cache: a conversation goes on from there without reading its beginning again
//! ([`CachedRow::then`](crate::engine::CachedRow::then)).
//!
//! ```
//! use burn_align::engine::{Edit, Operand, Plan, Units};
//! use burn_align::generate::{GenerateOptions, GeneratedWorld, StepEdit, StepOperand, generate};
//! use burn_align::interventions::AdditionIntervention;
//! use burn_align::models::{
//!     AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, Site,
//! };
//! # type B = burn::backend::Flex;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = Default::default();
//! let loaded =
//!     Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
//! let tokenizer = loaded.tokenizer()?;
//! let prompt = tokenizer.encode_batch(["The capital of Spain"])?;
//! let direction = loaded.model.token_embedding().narrow(0, 5, 1); // [1, d_model]
//! let direction = direction.unsqueeze() * 0.1; // [1, 1, d_model]
//!
//! // The same prompt twice: as it is, and with a direction added at the prompt and every step.
//! let site = Site::Block(1, Component::BlockOutput);
//! let mut plan = Plan::<B>::new();
//! let input = plan.tokens(&prompt);
//! let plain = plan.world(input, []);
//! let constant = plan.constant(direction.clone());
//! let everywhere = Edit::new(site, Units::ALL, 0, Operand::Constant(constant));
//! let steered = plan.world(input, [everywhere]);
//! let worlds = [
//!     GeneratedWorld::new(plain),
//!     GeneratedWorld::new(steered)
//!         .with_edit(StepEdit::new(site, 0, StepOperand::Constant(direction))),
//! ];
//! let options = GenerateOptions::new(3);
//! let texts = generate(&loaded.model, &[AdditionIntervention], &plan, &worlds, &options, |_| {})?;
//! assert_eq!(texts.rows.len(), 2);
//! assert_eq!(texts.rows[0].tokens.len(), 3);
//! # Ok(())
//! # }
//! ```

mod check;
mod edits;
mod error;
mod explain;
mod options;
mod run;
mod sampling;
mod text;
mod texts;

pub use edits::{GeneratedWorld, StepEdit, StepOperand};
pub use error::GenerateError;
pub use explain::{GenerationExplanation, explain_generation};
pub use options::{AtLimit, GenerateOptions};
pub use run::generate;
pub use sampling::{Sampler, Sampling, SamplingError};
pub use text::TextStream;
pub use texts::{Finish, Flow, GeneratedRow, GeneratedTexts, Token};

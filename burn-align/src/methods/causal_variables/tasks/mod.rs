//! The tasks of the track: their causal models, prompts, and counterfactuals.
//!
//! Those of the track's data sets are records of JSON: give each prompt and its values to the
//! function that makes an input. Arithmetic, IOI and the multiple-choice questions can also be
//! generated here, with the same differences between bases and counterfactuals. Generated examples
//! are not those of the leaderboard.
//!
//! | task | variables | sets of counterfactuals |
//! | --- | --- | --- |
//! | [`two_digit_addition`] | `ones_carry` | `random`, `ones_carry` |
//! | [`four_answer_mcqa`] | `answer_pointer`, `answer` | `answerPosition`, `randomLetter` |
//! | | | `answerPosition_randomLetter` |
//! | [`arc_easy`] | `answer_pointer`, `answer` | the same, from records |
//! | [`indirect_objects`] | `output_token`, `output_position` | `s1_io_flip`, `s2_io_flip` |
//! | | | `s1_ioi_flip_s2_ioi_flip` |
//! | [`city_attributes`] (RAVEL) | `Continent`, `Country`, `Language` | from records |

mod addition;
mod choices;
mod indirect_object;
mod ravel;

pub use addition::{AdditionCounterfactuals, addition_input, parse_addition, two_digit_addition};
pub use choices::{
    ChoiceCounterfactuals, ChoiceQuestion, arc_easy, arc_input, four_answer_mcqa, mcqa_input,
};
pub use indirect_object::{NameCounterfactuals, NamePrompt, indirect_objects, name_input};
pub use ravel::{CityAttributes, city_attributes, city_input};

//! Interchange scores: does swapping a unit's features do what the causal model says?

use std::collections::BTreeMap;

use burn::tensor::{DType, backend::Backend};
use burn_align_models::{AlignableTransformer, TokenBatch, Tokenizer};

use super::answers::{Texts, continuations};
use super::linear;
use super::located::{Located, located};
use super::{
    AnswerOptions, CausalVariableError, CounterfactualSet, LinearParameters, LogitMeasurement,
    NameTokens, Submission, SubmissionUnit, TaskPosition, VariableTask,
};
use crate::engine::{Edit, LogitPositions, Operand, Plan, WorldId, read_numbers};
use crate::interventions::BuiltinIntervention;

/// What is scored.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Measure {
    /// 1 if the text that the causal model expects is in the answer, else 0: interchange accuracy.
    Answers,
    /// The squared error of the difference of two names' logits after the prompt, as a linear model
    /// predicts it. Lower is better. For the task
    /// [`indirect_objects`](super::tasks::indirect_objects).
    LogitDifference(LinearParameters, NameTokens),
}

/// The scores of units that are swapped together, in one set.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GroupScores {
    /// The units: one residual stream, or all heads.
    pub units: Vec<SubmissionUnit>,
    /// The set.
    pub set: String,
    /// The score of each example.
    pub scores: Vec<f64>,
}

impl GroupScores {
    /// The mean of the scores.
    pub fn mean(&self) -> f64 {
        self.scores.iter().sum::<f64>() / self.scores.len() as f64
    }
}

/// Scores a submission on a task as the track does: in each set, residual streams are swapped one
/// by one, heads all at once, each from the counterfactual into the base; what the model then says
/// is compared with the causal model, in which the variables are swapped.
///
/// [Filter](VariableTask::filter) the task first. One plan has all units of a batch, so bases and
/// counterfactuals run once. [`VariableResults`](super::VariableResults) has the means.
///
/// - variables: those that the features are supposed to carry, swapped together
///
/// # When it misleads
/// Swapping whole vectors is right wherever base and counterfactual should give the
/// counterfactual's answer. What features add shows only in sets whose counterfactuals differ in
/// more than the variable: compare with [`Submission::whole_vectors`]. And the best of many layers
/// is high by chance as well.
///
/// # Errors
/// If there is nothing to score, if units, positions or prompts do not fit the model, the task or
/// each other, or if values stop being finite.
pub fn score_variables<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    tokenizer: &Tokenizer,
    task: &VariableTask,
    variables: &[&str],
    submission: &Submission<B>,
    measure: Measure,
    options: &AnswerOptions,
) -> Result<Vec<GroupScores>, CausalVariableError> {
    let run = Run::new(model, tokenizer, task, submission, options)?;
    let mut scores = Vec::new();
    for set in &task.sets {
        scores.extend(match measure {
            Measure::Answers => run.answers(set, variables)?,
            Measure::LogitDifference(parameters, names) => {
                run.squared_errors(set, variables, &parameters, names)?
            }
        });
    }
    Ok(scores)
}

/// Logit differences of names where units are swapped, for [`LinearParameters::fit`]: one for each
/// example and group of units, with the signals of the causal model in which token and position are
/// swapped.
///
/// # Errors
/// As [`score_variables`].
pub fn measure_logit_differences<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    tokenizer: &Tokenizer,
    task: &VariableTask,
    submission: &Submission<B>,
    names: NameTokens,
    options: &AnswerOptions,
) -> Result<Vec<LogitMeasurement>, CausalVariableError> {
    let run = Run::new(model, tokenizer, task, submission, options)?;
    let variables = ["output_token", "output_position"];
    let mut measurements = Vec::new();
    for set in &task.sets {
        let examples = set.examples.iter().enumerate();
        let signals = examples
            .map(|(index, example)| linear::signals(task, example, &variables, (&set.name, index)));
        let signals: Vec<[i64; 2]> = signals.collect::<Result<_, _>>()?;
        for differences in run.logit_differences(set, names)? {
            let pairs = signals.iter().zip(differences);
            measurements.extend(pairs.map(|(signals, difference)| LogitMeasurement {
                signals: *signals,
                difference,
            }));
        }
    }
    Ok(measurements)
}

/// A group of units, by their indices.
type Group = Vec<usize>;

struct Run<'a, B: Backend, M> {
    model: &'a M,
    tokenizer: &'a Tokenizer,
    task: &'a VariableTask,
    options: &'a AnswerOptions,
    units: Vec<&'a SubmissionUnit>,
    /// Those of the units.
    interventions: Vec<BuiltinIntervention<B>>,
    groups: Vec<Group>,
    positions: Vec<&'a TaskPosition>,
}

impl<'a, B: Backend, M: AlignableTransformer<B>> Run<'a, B, M> {
    fn new(
        model: &'a M,
        tokenizer: &'a Tokenizer,
        task: &'a VariableTask,
        submission: &'a Submission<B>,
        options: &'a AnswerOptions,
    ) -> Result<Self, CausalVariableError> {
        options.check()?;
        if task.sets.is_empty() {
            return Err(CausalVariableError::Nothing {
                expected: "at least one set of counterfactuals",
            });
        }
        if task.sets.iter().any(|set| set.examples.is_empty()) {
            return Err(CausalVariableError::Nothing {
                expected: "at least one example in each set",
            });
        }
        let mut run = Self {
            model,
            tokenizer,
            task,
            options,
            units: Vec::new(),
            interventions: Vec::new(),
            groups: Vec::new(),
            positions: Vec::new(),
        };
        let mut joint = Group::new();
        for (index, (unit, features)) in submission.units().enumerate() {
            let intervention = features.intervention();
            let intervention = intervention.ok_or_else(|| CausalVariableError::NoDictionary {
                unit: unit.to_string(),
            })?;
            let position = task.position(unit.position(), unit)?;
            if !run.positions.contains(&position) {
                run.positions.push(position);
            }
            match unit.is_joint() {
                true => joint.push(index),
                false => run.groups.push(vec![index]),
            }
            run.units.push(unit);
            run.interventions.push(intervention.clone());
        }
        if !joint.is_empty() {
            run.groups.push(joint);
        }
        match run.groups.is_empty() {
            true => Err(CausalVariableError::Nothing {
                expected: "at least one unit",
            }),
            false => Ok(run),
        }
    }

    fn answers(
        &self,
        set: &CounterfactualSet,
        variables: &[&str],
    ) -> Result<Vec<GroupScores>, CausalVariableError> {
        let expected = set.examples.iter();
        let expected = expected.map(|it| self.task.counterfactual_answer(it, variables));
        let expected: Vec<String> = expected.collect::<Result<_, _>>()?;
        let texts = Texts::new(self.tokenizer);
        self.by_batch(set, |examples, located| {
            let bases: Vec<Vec<u32>> = located.iter().map(|it| it.base.clone()).collect();
            let source = source(located)?;
            let edits = self.groups.iter();
            let edits = edits
                .map(|group| move |source: Option<WorldId>| self.edits(group, located, source));
            let edits: Vec<_> = edits.collect();
            let model = self.model;
            let interventions = &self.interventions[..];
            let options = self.options;
            let found =
                continuations(model, interventions, &bases, Some(&source), &edits, options)?;
            let mut scores = Vec::new();
            for answers in found {
                let mut of_group = Vec::new();
                for (example, tokens) in examples.iter().zip(answers) {
                    let text = texts.text(&tokens)?;
                    let is_right = text.contains(&expected[*example]);
                    of_group.push(f64::from(u8::from(is_right)));
                }
                scores.push(of_group);
            }
            Ok(scores)
        })
        .map(|scores| self.named(set, scores))
    }

    fn squared_errors(
        &self,
        set: &CounterfactualSet,
        variables: &[&str],
        parameters: &LinearParameters,
        names: NameTokens,
    ) -> Result<Vec<GroupScores>, CausalVariableError> {
        let examples = set.examples.iter().enumerate();
        let expected = examples.map(|(index, example)| {
            parameters.predict(self.task, example, variables, (&set.name, index))
        });
        let expected: Vec<f64> = expected.collect::<Result<_, _>>()?;
        let mut scores = self.logit_differences(set, names)?;
        for scores in &mut scores {
            for (score, expected) in scores.iter_mut().zip(&expected) {
                *score = (*score - expected).powi(2);
            }
        }
        Ok(self.named(set, scores))
    }

    /// The logit of the base's indirect object less that of its subject, `[group][example]`.
    fn logit_differences(
        &self,
        set: &CounterfactualSet,
        names: NameTokens,
    ) -> Result<Vec<Vec<f64>>, CausalVariableError> {
        self.by_batch(set, |examples, located| {
            let mut plan = Plan::<B>::new();
            let source = source(located)?;
            let source = plan.tokens(&source);
            let source = plan.world(source, []);
            let bases = located.iter().map(|it| it.base.clone());
            let base = plan.tokens(&TokenBatch::new(bases.collect())?);
            let mut reads = Vec::new();
            for group in &self.groups {
                let world = plan.world(base, self.edits(group, located, Some(source)));
                reads.push(plan.read_logits(world, LogitPositions::Last));
            }
            let tokens = examples
                .iter()
                .map(|it| names.of(self.task, &set.examples[*it], self.tokenizer));
            let tokens: Vec<[u32; 2]> = tokens.collect::<Result<_, _>>()?;
            let (objects, subjects): (Vec<u32>, Vec<u32>) = tokens
                .into_iter()
                .map(|[object, subject]| (object, subject))
                .unzip();
            let run = &self.options.run;
            let results = plan.run_with(self.model, &self.interventions, run)?;
            let mut differences = Vec::new();
            for read in reads {
                let logits = results.get(read).squeeze_dim::<2>(1);
                let [_batch, vocab] = logits.dims();
                let known = objects.iter().chain(&subjects);
                if let Some(token) = known.copied().find(|token| *token as usize >= vocab) {
                    return Err(CausalVariableError::Number {
                        what: "the token of a name",
                        expected: "one of the model's vocabulary",
                        found: token.to_string(),
                    });
                }
                let logits = crate::methods::logit_differences(logits, &objects, &subjects);
                let numbers = read_numbers(logits.cast(DType::F32))?;
                plan.check_finite(&numbers, self.model, &self.interventions, run)?;
                differences.push(numbers);
            }
            Ok(differences)
        })
    }

    /// Numbers of each group for each example of a set, `[group][example]`, from a function of a
    /// batch of examples.
    fn by_batch(
        &self,
        set: &CounterfactualSet,
        numbers: impl Fn(&[usize], &[&Located]) -> Result<Vec<Vec<f64>>, CausalVariableError>,
    ) -> Result<Vec<Vec<f64>>, CausalVariableError> {
        let located = located(self.task, set, &self.positions, self.tokenizer)?;
        let mut alike: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
        for (index, example) in located.iter().enumerate() {
            alike.entry(example.counts()).or_default().push(index);
        }
        let mut all = vec![vec![0.0; located.len()]; self.groups.len()];
        for examples in alike.into_values() {
            for examples in examples.chunks(self.options.batch_size) {
                let batch: Vec<&Located> = examples.iter().map(|it| &located[*it]).collect();
                for (all, found) in all.iter_mut().zip(numbers(examples, &batch)?) {
                    for (example, number) in examples.iter().zip(found) {
                        all[*example] = number;
                    }
                }
            }
        }
        Ok(all)
    }

    /// The edits of a group: every unit takes the source's activation.
    fn edits(&self, group: &Group, located: &[&Located], source: Option<WorldId>) -> Vec<Edit> {
        let Some(world) = source else {
            return Vec::new();
        };
        let edits = group.iter().map(|index| {
            let unit = self.units[*index];
            let site = unit.site();
            let [base, counterfactual] = [0, 1].map(|side| {
                let positions = located.iter();
                let positions = positions.map(|it| it.positions[unit.position()][side].clone());
                unit.units(positions.collect())
            });
            let operand = Operand::Activation {
                world,
                site,
                units: counterfactual,
            };
            Edit::new(site, base, *index, operand)
        });
        edits.collect()
    }

    fn named(&self, set: &CounterfactualSet, scores: Vec<Vec<f64>>) -> Vec<GroupScores> {
        let groups = self.groups.iter().zip(scores);
        let groups = groups.map(|(group, scores)| GroupScores {
            units: group.iter().map(|unit| self.units[*unit].clone()).collect(),
            set: set.name.clone(),
            scores,
        });
        groups.collect()
    }
}

fn source(located: &[&Located]) -> Result<TokenBatch, CausalVariableError> {
    let sources = located.iter().map(|it| it.counterfactual.clone());
    Ok(TokenBatch::new(sources.collect())?)
}

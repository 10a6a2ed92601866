//! A sampler under which every value of a variable is equally likely, drawn from the variable down
//! to the inputs.
//!
//! Uniform inputs are a poor test of an equality: with 1,000 values it holds once in 1,000 draws.

use std::collections::HashMap;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::{CausalModel, CausalModelError, Inputs, Value, Variable};

/// The most combinations of parents' values that are enumerated for one variable: 32 MiB of
/// numbers.
const MAX_COMBINATIONS: u128 = 1 << 22;

const REMEDY: &str = "list its values, or write a sampler";

/// Draws inputs under which every value of a variable is equally likely. Sampling runs from the
/// variable down to the inputs: first a value of the variable, uniformly from those it can take;
/// then values of its parents that produce it, uniformly; then values of their parents, and so on.
///
/// Under uniform inputs, equalities of inputs with many values are almost never true. The graph
/// above the variable must be a tree: no variable may have two children there. Inputs that are not
/// above it are drawn uniformly.
///
/// ```
/// # use burn_align::causal_models::{BalancedSampler, CausalModel, CausalModelError};
/// # use rand::SeedableRng;
/// let equality = CausalModel::<i64>::builder()
///     .input("a", 0..1000)
///     .input("b", 0..1000)
///     .variable("same", ["a", "b"], 0..=1, |[a, b]| a == b)
///     .build()?;
/// let same = equality.variable("same")?;
/// let sampler = BalancedSampler::new(&equality, same)?;
/// let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
/// let inputs: Vec<_> = (0..1000).map(|_| sampler.sample(&mut rng)).collect();
/// let equal = inputs.iter().filter(|inputs| inputs.values()[0] == inputs.values()[1]).count();
/// assert!((400..600).contains(&equal));
/// # Ok::<(), CausalModelError>(())
/// ```
#[doc(alias = "sample_input_tree_balanced")]
#[derive(Clone, Debug)]
pub struct BalancedSampler<V> {
    root: Variable,
    inputs: usize,
    /// Indexed by variable; `None` for a computed variable that is not above the root.
    choices: Vec<Option<Choices<V>>>,
}

/// How a variable can come to have each of its values.
#[derive(Clone, Debug)]
struct Choices<V> {
    /// The values it can reach.
    values: Vec<V>,
    parents: Vec<Variable>,
    /// For each value, the combinations of the parents' values that produce it, encoded as numbers
    /// whose digits are indices into the parents' `values`, the last parent fastest. Empty for an
    /// input.
    combinations: Vec<Vec<u32>>,
}

impl<V: Value> BalancedSampler<V> {
    /// A sampler that balances a variable, usually the output.
    ///
    /// # Errors
    /// If the model has no such variable, if a variable above it has two children there, if an
    /// input can have any value, if a variable's parents have more than 4,194,304 combinations of
    /// values, or if a function returns a value that its variable cannot have.
    pub fn new(model: &CausalModel<V>, root: Variable) -> Result<Self, CausalModelError> {
        let root = model.variable(root)?;
        let mut choices: Vec<Option<Choices<V>>> = vec![None; model.all_variables().len()];
        let above = above(model, root)?;
        for variable in model.all_variables() {
            if model.is_input(variable) {
                choices[variable.0] = Some(Choices {
                    values: model.listed(variable, REMEDY)?.to_vec(),
                    parents: Vec::new(),
                    combinations: Vec::new(),
                });
            } else if above[variable.0] {
                let computed = Choices::of_computed(model, variable, &choices)?;
                choices[variable.0] = Some(computed);
            }
        }
        Ok(Self {
            root,
            inputs: model.input_variables().len(),
            choices,
        })
    }

    /// Inputs drawn at random.
    pub fn sample<R: Rng + ?Sized>(&self, rng: &mut R) -> Inputs<V> {
        let value = rng.random_range(0..self.choices(self.root).values.len());
        self.sample_at(value, rng)
    }

    /// Inputs drawn at random from those under which the variable has this value; `None` if there
    /// are none.
    pub fn sample_of<R: Rng + ?Sized>(&self, value: &V, rng: &mut R) -> Option<Inputs<V>> {
        let mut values = self.choices(self.root).values.iter();
        let place = values.position(|reached| reached == value)?;
        Some(self.sample_at(place, rng))
    }

    fn choices(&self, variable: Variable) -> &Choices<V> {
        let choices = self.choices[variable.0].as_ref();
        choices.expect("inputs and variables above the root have choices")
    }

    /// Inputs that give the root the value at this index of its `values`.
    fn sample_at<R: Rng + ?Sized>(&self, place: usize, rng: &mut R) -> Inputs<V> {
        let mut inputs: Vec<Option<V>> = vec![None; self.inputs];
        let mut open = vec![(self.root, place)];
        while let Some((variable, place)) = open.pop() {
            let choices = self.choices(variable);
            if let Some(input) = inputs.get_mut(variable.0) {
                *input = Some(choices.values[place].clone());
                continue;
            }
            let combinations = &choices.combinations[place];
            let chosen = combinations.choose(rng);
            let mut combination = *chosen.expect("a reached value has combinations") as usize;
            for &parent in choices.parents.iter().rev() {
                let count = self.choices(parent).values.len();
                open.push((parent, combination % count));
                combination /= count;
            }
        }
        let inputs = inputs.into_iter().enumerate().map(|(input, value)| {
            value.unwrap_or_else(|| {
                let values = &self.choices(Variable(input)).values;
                values[rng.random_range(0..values.len())].clone()
            })
        });
        Inputs(inputs.collect())
    }
}

impl<V: Value> Choices<V> {
    fn of_computed(
        model: &CausalModel<V>,
        variable: Variable,
        choices: &[Option<Choices<V>>],
    ) -> Result<Self, CausalModelError> {
        let node = model.node(variable);
        let parents = node.parents.clone();
        let lists = parents.iter().map(|parent| {
            let choices = choices[parent.0].as_ref();
            choices.expect("parents come first").values.as_slice()
        });
        let lists: Vec<&[V]> = lists.collect();
        let count = lists.iter().map(|list| list.len() as u128);
        let count = count.fold(1, u128::saturating_mul);
        if count > MAX_COMBINATIONS {
            return Err(CausalModelError::TooManyCombinations {
                variable: node.name.clone(),
                found: count,
                limit: MAX_COMBINATIONS,
            });
        }
        let mut places: HashMap<V, usize> = HashMap::new();
        let (mut values, mut combinations) = (Vec::new(), Vec::<Vec<u32>>::new());
        let mut chosen: Vec<V> = Vec::with_capacity(lists.len());
        for combination in 0..count as u32 {
            chosen.clear();
            let mut rest = combination as usize;
            for list in lists.iter().rev() {
                chosen.push(list[rest % list.len()].clone());
                rest /= list.len();
            }
            chosen.reverse();
            let value = model.apply(variable, &chosen)?;
            let place = *places.entry(value).or_insert_with_key(|value| {
                values.push(value.clone());
                combinations.push(Vec::new());
                values.len() - 1
            });
            combinations[place].push(combination);
        }
        Ok(Self {
            values,
            parents,
            combinations,
        })
    }
}

/// Which variables the root depends on, and the root itself.
fn above<V: Value>(model: &CausalModel<V>, root: Variable) -> Result<Vec<bool>, CausalModelError> {
    let mut child: Vec<Option<Variable>> = vec![None; model.all_variables().len()];
    let mut open = vec![root];
    let mut above = vec![false; child.len()];
    above[root.0] = true;
    while let Some(variable) = open.pop() {
        for &parent in &model.node(variable).parents {
            if let Some(other) = child[parent.0].replace(variable) {
                return Err(CausalModelError::NotATree {
                    variable: model.node(parent).name.clone(),
                    root: model.node(root).name.clone(),
                    children: model.names([other, variable]),
                });
            }
            above[parent.0] = true;
            open.push(parent);
        }
    }
    Ok(above)
}

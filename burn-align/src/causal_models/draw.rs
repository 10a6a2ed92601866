//! Inputs: all of them, random ones, and classes of them.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::{
    CausalModel, CausalModelError, EquivalenceClasses, Inputs, Setting, Value, Values, Variable,
    VariableRef,
};

impl<V: Value> CausalModel<V> {
    /// The number of different inputs; `None` if an input can have any value, or if the number does
    /// not fit in a `u128`.
    pub fn input_count(&self) -> Option<u128> {
        let inputs = &self.nodes[..self.inputs];
        inputs
            .iter()
            .try_fold(1_u128, |count, node| match &node.values {
                Values::Any => None,
                Values::Listed(values) => count.checked_mul(values.len() as u128),
            })
    }

    /// Every possible input once, with the last variable changing fastest.
    ///
    /// # Errors
    /// If an input can have any value.
    pub fn all_inputs(&self) -> Result<AllInputs<'_, V>, CausalModelError> {
        Ok(AllInputs {
            next: Some(vec![0; self.inputs]),
            values: self.listed_inputs("enumerate a list of inputs of your own")?,
        })
    }

    /// The lists of values of the inputs.
    fn listed_inputs(&self, remedy: &'static str) -> Result<Vec<&[V]>, CausalModelError> {
        let inputs = self.input_variables();
        inputs.map(|input| self.listed(input, remedy)).collect()
    }

    /// The list of values of a variable.
    pub(super) fn listed(
        &self,
        variable: Variable,
        remedy: &'static str,
    ) -> Result<&[V], CausalModelError> {
        let node = self.node(variable);
        match &node.values {
            Values::Listed(values) => Ok(values),
            Values::Any => Err(CausalModelError::Unlisted {
                variable: node.name.clone(),
                remedy,
            }),
        }
    }

    /// Inputs drawn at random, each uniformly from its values.
    ///
    /// # Errors
    /// If an input can have any value.
    #[doc(alias = "sample_input")]
    pub fn sample_inputs<R: Rng + ?Sized>(
        &self,
        rng: &mut R,
    ) -> Result<Inputs<V>, CausalModelError> {
        let sample = |input| {
            let values = self.listed(input, "draw inputs with a sampler of your own")?;
            let value = values.choose(rng).expect("a list of values is not empty");
            Ok(value.clone())
        };
        let values = self.input_variables().map(sample);
        Ok(Inputs(values.collect::<Result<_, _>>()?))
    }

    /// Inputs drawn at random until their run is accepted.
    ///
    /// # Errors
    /// As [`sample_inputs`](Self::sample_inputs) and [`run`](Self::run), and if none of `max_tries`
    /// inputs is accepted.
    pub fn sample_inputs_where<R: Rng + ?Sized>(
        &self,
        rng: &mut R,
        max_tries: usize,
        accept: impl Fn(&Setting<V>) -> bool,
    ) -> Result<Inputs<V>, CausalModelError> {
        for _ in 0..max_tries {
            let inputs = self.sample_inputs(rng)?;
            if accept(&self.run(&inputs)?) {
                return Ok(inputs);
            }
        }
        Err(CausalModelError::NotAccepted { tries: max_tries })
    }

    /// Groups inputs by the value that a variable has under them. The inputs may be
    /// [all](Self::all_inputs) of them, or a list.
    ///
    /// # Errors
    /// If the model has no such variable, if there are no inputs, or as [`run`](Self::run).
    #[doc(alias = "generate_equiv_classes")]
    pub fn equivalence_classes<'a>(
        &self,
        variable: impl Into<VariableRef<'a>>,
        inputs: impl IntoIterator<Item = Inputs<V>>,
    ) -> Result<EquivalenceClasses<V>, CausalModelError> {
        let variable = self.variable(variable)?;
        let valued = inputs.into_iter().map(|inputs| {
            let value = self.run(&inputs)?.0.swap_remove(variable.0);
            Ok((value, inputs))
        });
        EquivalenceClasses::new(valued)
    }
}

/// Every possible input of a causal model: see [`CausalModel::all_inputs`].
#[derive(Clone, Debug)]
pub struct AllInputs<'a, V> {
    /// For each input, the index of its next value; `None` after the last input.
    next: Option<Vec<usize>>,
    values: Vec<&'a [V]>,
}

impl<V: Clone> Iterator for AllInputs<'_, V> {
    type Item = Inputs<V>;

    fn next(&mut self) -> Option<Inputs<V>> {
        let next = self.next.as_mut()?;
        let chosen = self.values.iter().zip(next.iter());
        let inputs = Inputs(
            chosen
                .map(|(values, &index)| values[index].clone())
                .collect(),
        );
        // Counts up, last digit fastest.
        let mut carry = true;
        for (values, index) in self.values.iter().zip(next.iter_mut()).rev() {
            *index += 1;
            carry = *index == values.len();
            if !carry {
                break;
            }
            *index = 0;
        }
        if carry {
            self.next = None;
        }
        Some(inputs)
    }
}

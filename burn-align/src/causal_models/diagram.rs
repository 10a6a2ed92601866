//! Causal models, and their runs, as pictures.

use super::{CausalModel, Setting, Value};
use crate::diagram::{Diagram, DiagramShape};

impl<V: Value> CausalModel<V> {
    /// The graph as a picture: inputs are boxes, outputs have two outlines, and arrows go from
    /// parent to child.
    ///
    /// ```
    /// # use burn_align::causal_models::{CausalModel, CausalModelError};
    /// let model = CausalModel::<i64>::builder()
    ///     .input("a", 0..4)
    ///     .input("b", 0..4)
    ///     .variable("same", ["a", "b"], 0..=1, |[a, b]| a == b)
    ///     .build()?;
    /// let dot = r#"digraph causal_model {
    ///   rankdir=LR;
    ///   "a" [shape=box];
    ///   "b" [shape=box];
    ///   "same" [shape=ellipse, peripheries=2];
    ///   "a" -> "same";
    ///   "b" -> "same";
    /// }
    /// "#;
    /// assert_eq!(model.diagram().to_dot(), dot);
    /// # Ok::<(), CausalModelError>(())
    /// ```
    #[doc(alias = "print_structure")]
    pub fn diagram(&self) -> Diagram {
        self.draw(None)
    }

    /// Like [`diagram`](Self::diagram), with the values of a run, for example `same = 1`.
    #[doc(alias = "print_setting")]
    pub fn run_diagram(&self, setting: &Setting<V>) -> Diagram {
        self.draw(Some(setting))
    }

    fn draw(&self, setting: Option<&Setting<V>>) -> Diagram {
        let mut diagram = Diagram::new("causal_model");
        let variables: Vec<_> = self.all_variables().collect();
        for &variable in &variables {
            let name = &self.node(variable).name;
            let value = setting.and_then(|setting| setting.get(variable));
            let label = match value {
                Some(value) => format!("{name} = {value:?}"),
                None => name.clone(),
            };
            let shape = match self.is_input(variable) {
                true => DiagramShape::Box,
                false => DiagramShape::Ellipse,
            };
            let node = diagram.node(name, label, shape);
            diagram.nodes[node].is_output = self.output_variables().contains(&variable);
        }
        for (child, &variable) in variables.iter().enumerate() {
            for parent in &self.node(variable).parents {
                let parent = variables.iter().position(|other| other == parent);
                let parent = parent.expect("a parent is a variable of the model");
                diagram.arrow(parent, child, None);
            }
        }
        diagram
    }
}

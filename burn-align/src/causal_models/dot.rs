use std::fmt::Write;

use super::{CausalModel, Setting, Value};

impl<V: Value> CausalModel<V> {
    /// The graph in the DOT language of Graphviz: inputs are boxes, outputs have two lines, and
    /// arrows go from parent to child.
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
    /// assert_eq!(model.to_dot(), dot);
    /// # Ok::<(), CausalModelError>(())
    /// ```
    #[doc(alias = "print_structure")]
    pub fn to_dot(&self) -> String {
        self.dot(None)
    }

    /// The same with the values of a run, such as `same = 1`.
    #[doc(alias = "print_setting")]
    pub fn run_to_dot(&self, setting: &Setting<V>) -> String {
        self.dot(Some(setting))
    }

    fn dot(&self, setting: Option<&Setting<V>>) -> String {
        let mut dot = String::from("digraph causal_model {\n  rankdir=LR;\n");
        let mut edges = String::new();
        for variable in self.all_variables() {
            let node = self.node(variable);
            let name = quoted(&node.name);
            let shape = if self.is_input(variable) {
                "box"
            } else {
                "ellipse"
            };
            let mut attributes = format!("shape={shape}");
            if self.output_variables().contains(&variable) {
                attributes.push_str(", peripheries=2");
            }
            if let Some(value) = setting.and_then(|setting| setting.get(variable)) {
                let label = quoted(&format!("{} = {value:?}", node.name));
                write!(attributes, ", label={label}").expect("writing to a string");
            }
            writeln!(dot, "  {name} [{attributes}];").expect("writing to a string");
            for &parent in &node.parents {
                let parent = quoted(&self.node(parent).name);
                writeln!(edges, "  {parent} -> {name};").expect("writing to a string");
            }
        }
        dot + &edges + "}\n"
    }
}

/// A string of the DOT language. Backslashes begin escape sequences in labels.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}

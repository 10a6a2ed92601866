//! The part of a layout that the model needs to know.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{KeysValues, Prefixes, Queries, SuffixClass, Suffixes};

use super::{Class, Layout, int_tensor};
use crate::engine::cache::Cache;
use crate::engine::past::PastLayer;
use crate::engine::plan::{InputId, Plan, WorldInput};

impl Layout {
    /// What the model has to know.
    ///
    /// - `queries`: from [`with_queries`](Self::with_queries)
    pub(in crate::engine) fn suffixes<B: Backend>(
        &self,
        queries: Option<&Self>,
        plan: &Plan<B>,
        device: &B::Device,
    ) -> Option<Suffixes<B>> {
        let classes = self.classes.as_ref()?;
        let positions = self.places().into_iter().map(|(_row, position)| position);
        let asking = queries.unwrap_or(self).classes.iter().flatten();
        let classes = classes
            .iter()
            .zip(asking)
            .map(|(class, asking)| SuffixClass {
                rows: class.rows.len(),
                start: class.start,
                queries: asking.start,
                pos: class.pos,
                prefixes: match class {
                    Class { start: 0, .. } => None,
                    Class { kept: true, .. } => Some(self.kept_prefixes(class, plan)),
                    Class { kept: false, .. } => Some(self.prefixes(class, device)),
                },
            });
        Some(Suffixes {
            positions: int_tensor(positions, device),
            classes: classes.collect(),
            queries: queries.map(|queries| {
                let places = queries.places();
                let tokens = places.iter().map(|(row, at)| self.token(*row, *at));
                Queries {
                    tokens: int_tensor(tokens, device),
                    positions: int_tensor(places.iter().map(|(_, at)| *at), device),
                }
            }),
        })
    }

    /// Cached keys and values before the suffixes of a class.
    fn kept_prefixes<B: Backend>(&self, class: &Class, plan: &Plan<B>) -> Prefixes<B> {
        let inputs = class.rows.iter().filter_map(|row| self.rows[*row].kept);
        let continued = inputs.filter_map(|(input, _)| match &plan.inputs[input.0] {
            WorldInput::Continued(row) => Some(&row.past),
            _ => None,
        });
        let continued: Vec<_> = continued.collect();
        if !continued.is_empty() {
            return Prefixes::Kept(Cache::prefixes(&continued));
        }
        // Neighbours on one input, with the rows of its tensors.
        let mut runs: Vec<(InputId, Vec<usize>)> = Vec::new();
        for row in &class.rows {
            let (input, example) = self.rows[*row].kept.expect("the class is of such rows");
            match runs.last_mut() {
                Some((last, examples)) if *last == input => examples.push(example),
                _ => runs.push((input, vec![example])),
            }
        }
        let pasts: Vec<_> = runs
            .iter()
            .filter_map(|(input, examples)| Some((plan.inputs[input.0].past()?, examples)))
            .collect();
        let layers = pasts.first().map_or(&[][..], |(past, _)| &past.layers);
        let kept = layers.iter().enumerate().map(|(index, kept)| {
            let take = |tensor: fn(&PastLayer<B>) -> &Tensor<B, 3>| {
                let parts = pasts.iter().map(|(past, examples)| {
                    let all = tensor(&past.layers[index]).clone();
                    let [batch, _start, width] = all.dims();
                    let all = all.narrow(1, 0, class.start);
                    let chosen = match examples.iter().copied().eq(0..batch) {
                        true => all,
                        false => {
                            let device = all.device();
                            all.select(0, int_tensor(examples.iter().copied(), &device))
                        }
                    };
                    let sizes = [
                        examples.len(),
                        class.start,
                        past.kv_heads,
                        width / past.kv_heads,
                    ];
                    chosen.reshape(sizes).swap_dims(1, 2)
                });
                join(parts.collect())
            };
            KeysValues {
                layer: kept.layer,
                keys: take(|kept| &kept.keys),
                values: take(|kept| &kept.values),
            }
        });
        Prefixes::Kept(kept.collect())
    }

    fn prefixes<B: Backend>(&self, class: &Class, device: &B::Device) -> Prefixes<B> {
        // Each trunk with the number of rows that continue it.
        let mut trunks: Vec<(usize, usize)> = Vec::new();
        for row in &class.rows {
            let trunk = self.rows[*row].trunk;
            match trunks.last_mut() {
                Some((last, count)) if *last == trunk => *count += 1,
                _ => trunks.push((trunk, 1)),
            }
        }
        // All prefixes must have the same number of suffixes.
        let each = trunks.iter().fold(0, |each, (_, count)| gcd(each, *count));
        let rows: Vec<usize> = trunks
            .iter()
            .flat_map(|(trunk, count)| std::iter::repeat_n(*trunk, count / each))
            .collect();
        let tokens = rows
            .iter()
            .flat_map(|row| (0..class.start).map(|position| self.token(*row, position)));
        Prefixes::Here {
            rows: rows.len(),
            tokens: int_tensor(tokens, device),
        }
    }
}

/// Stacks tensors along the batch axis.
fn join<B: Backend>(mut parts: Vec<Tensor<B, 4>>) -> Tensor<B, 4> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 0),
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

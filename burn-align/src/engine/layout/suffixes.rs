//! The part of a layout that the model needs to know.

use std::cell::OnceCell;

use burn::tensor::{Int, Tensor, backend::Backend};
use burn_align_models::{KeysValues, Prefixes, Queries, SuffixClass, Suffixes, Tables};

use super::{Class, Layout};
use crate::engine::cache::Cache;
use crate::engine::past::PastLayer;
use crate::engine::plan::{Plan, WorldInput};

impl Layout {
    /// What the model has to know.
    ///
    /// - `queries`: from [`with_queries`](Self::with_queries)
    pub(in crate::engine) fn suffixes<B: Backend>(
        &self,
        queries: Option<&Self>,
        plan: &Plan<B>,
        (tables, device): (&Tables, &B::Device),
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
                    Class { kept: true, .. } => Some(self.kept_prefixes(class, plan, tables)),
                    Class { kept: false, .. } => Some(self.prefixes(class, tables, device)),
                },
            });
        Some(Suffixes {
            positions: tables.indices::<B>(positions.collect(), device),
            classes: classes.collect(),
            queries: queries.map(|queries| {
                let places = queries.places();
                let tokens = places.iter().map(|(row, at)| self.token(*row, *at));
                Queries {
                    tokens: tables.indices::<B>(tokens.collect(), device),
                    positions: tables
                        .indices::<B>(places.iter().map(|(_, at)| *at).collect(), device),
                }
            }),
        })
    }

    /// Cached keys and values before the suffixes of a class.
    fn kept_prefixes<B: Backend>(
        &self,
        class: &Class,
        plan: &Plan<B>,
        tables: &Tables,
    ) -> Prefixes<B> {
        let inputs = class.rows.iter().filter_map(|row| self.kept[*row as usize]);
        let continued = inputs.filter_map(|(input, _)| match &plan.inputs[input] {
            WorldInput::Continued(row) => Some(&row.past),
            _ => None,
        });
        let continued: Vec<_> = continued.collect();
        if !continued.is_empty() {
            return Prefixes::Kept(Cache::prefixes(&continued));
        }
        // Neighbours on one input, with the rows of its tensors.
        let mut runs: Vec<(usize, Vec<usize>)> = Vec::new();
        for row in &class.rows {
            let (input, example) = self.kept[*row as usize].expect("the class is of such rows");
            match runs.last_mut() {
                Some((last, examples)) if *last == input => examples.push(example),
                _ => runs.push((input, vec![example])),
            }
        }
        let pasts: Vec<_> = runs
            .iter()
            .filter_map(|(input, examples)| {
                // Their indices are copied to the device once for all layers.
                let indices = OnceCell::<Tensor<B, 1, Int>>::new();
                Some((plan.inputs[*input].past()?, examples, indices))
            })
            .collect();
        let layers = pasts.first().map_or(&[][..], |(past, ..)| &past.layers);
        let kept = layers.iter().enumerate().map(|(index, kept)| {
            let take = |tensor: fn(&PastLayer<B>) -> &Tensor<B, 3>| {
                let parts = pasts.iter().map(|(past, examples, indices)| {
                    let all = tensor(&past.layers[index]).clone();
                    let [batch, _start, width] = all.dims();
                    let all = all.narrow(1, 0, class.start);
                    let chosen = match examples.iter().copied().eq(0..batch) {
                        true => all,
                        false => {
                            let device = all.device();
                            let copy = || tables.indices::<B>(examples.to_vec(), &device);
                            all.select(0, indices.get_or_init(copy).clone())
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

    fn prefixes<B: Backend>(
        &self,
        class: &Class,
        tables: &Tables,
        device: &B::Device,
    ) -> Prefixes<B> {
        // Each trunk with the number of rows that continue it.
        let mut trunks: Vec<(usize, usize)> = Vec::new();
        for row in &class.rows {
            let trunk = self.rows[*row as usize].trunk as usize;
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
            tokens: tables.indices::<B>(tokens.collect(), device),
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

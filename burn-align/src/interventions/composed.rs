//! A featurizer, an operation and a mask as one intervention.

use std::marker::PhantomData;

use burn::module::{Module, ParamId};
use burn::tensor::{Bool, DType, Tensor, TensorData, backend::Backend};

use super::featurizer::{Basis, Encoded};
use super::masks::{Mask, Unmasked};
use super::operation::{EncodedFeatures, Features, by_example};
use super::{
    Change, Featurizer, Identity, Intervention, Misfit, Operands, Operation, Orthonormal,
    TokenGrouping, counted,
};

/// Does something to some features: `decode(z + m ⊙ (o(z) - z))` with `z = encode(x)`, where the
/// featurizer encodes and decodes, `o` is the operation and `m` the mask.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_align::interventions::{Clamp, Composed, Directions, Intervention, Operands};
///
/// # type B = burn::backend::Flex;
/// # let device = Default::default();
/// // The coordinate along a direction stays below 2.
/// let direction = Directions::along(Tensor::<B, 1>::from_floats([0.6, 0.8], &device))?;
/// let capped = Composed::of(direction, Clamp::at_most(2.0));
/// let x = Tensor::<B, 3>::from_floats([[[3.0, 4.0]]], &device); // 5 along the direction
/// let new = capped.apply(x, Operands::new(None, None));
/// # let new: Vec<f32> = new.into_data().iter().collect();
/// # assert!((new[0] - 1.2).abs() < 1e-5 && (new[1] - 1.6).abs() < 1e-5);
/// # Ok::<(), burn_align::interventions::NoDirection>(())
/// ```
///
/// # Dtypes
/// Vectors are f32 whatever the model's dtype, and what changes is cast back. With [`Identity`] and
/// no mask, nothing is cast: the operation gets the activation as it is.
#[derive(Module, Debug)]
pub struct Composed<B: Backend, F, O, M = Unmasked> {
    /// What is changed.
    pub featurizer: F,
    /// How it is changed.
    pub operation: O,
    /// How much of each feature's change is made.
    pub mask: M,
    #[module(skip)]
    tokens: TokenGrouping,
    /// Which features are changed if no subspace is named; `None` for all.
    #[module(skip)]
    changed: Option<Vec<usize>>,
    backend: PhantomData<B>,
}

impl<B: Backend, F, O> Composed<B, F, O> {
    /// An operation on the features of a featurizer, of every token.
    pub fn of(featurizer: F, operation: O) -> Self {
        Self {
            featurizer,
            operation,
            mask: Unmasked,
            tokens: TokenGrouping::Each,
            changed: None,
            backend: PhantomData,
        }
    }
}

impl<B: Backend, O> Composed<B, Identity, O> {
    /// An operation on the site's own features. The crate's operations are interventions by
    /// themselves; this makes one of your own.
    pub fn alone(operation: O) -> Self {
        Self::of(Identity, operation)
    }
}

impl<B: Backend, F, O, M> Composed<B, F, O, M> {
    /// Sets the mask.
    pub fn with_mask<N>(self, mask: N) -> Composed<B, F, O, N> {
        Composed {
            featurizer: self.featurizer,
            operation: self.operation,
            mask,
            tokens: self.tokens,
            changed: self.changed,
            backend: PhantomData,
        }
    }

    /// Sets how tokens are grouped into vectors. Default: each is one.
    pub fn with_tokens(self, tokens: TokenGrouping) -> Self {
        Self { tokens, ..self }
    }

    /// Changes these features only, if no subspace is named.
    #[doc(alias = "interchange_dim")]
    pub fn with_changed(self, features: Vec<usize>) -> Self {
        Self {
            changed: Some(features),
            ..self
        }
    }

    /// How tokens are grouped into vectors.
    pub fn tokens(&self) -> TokenGrouping {
        self.tokens
    }

    /// Which features are changed if no subspace is named; `None` for all.
    pub fn changed(&self) -> Option<&[usize]> {
        self.changed.as_deref()
    }

    /// The same with other parts.
    pub(super) fn map_parts<G, P, N>(
        self,
        featurizer: impl FnOnce(F) -> G,
        operation: impl FnOnce(O) -> P,
        mask: impl FnOnce(M) -> N,
    ) -> Composed<B, G, P, N> {
        Composed {
            featurizer: featurizer(self.featurizer),
            operation: operation(self.operation),
            mask: mask(self.mask),
            tokens: self.tokens,
            changed: self.changed,
            backend: PhantomData,
        }
    }
}

impl<B: Backend, F, O, M: Mask<B>> Composed<B, F, O, M> {
    /// Sets the mask's temperature.
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.mask.set_temperature(temperature);
        self
    }

    /// The mask's temperature.
    pub fn temperature(&self) -> f64 {
        self.mask.temperature()
    }
}

impl<B: Backend, F: Featurizer<B>, O: Operation<B>, M: Mask<B>> Composed<B, F, O, M> {
    /// The width of a vector and the number of its features; `None` if the activation is used as it
    /// is.
    pub(crate) fn dims(&self) -> Option<[usize; 2]> {
        let masked = || self.mask.width().map(|d| [d, d]);
        self.featurizer.dims().or_else(masked)
    }

    /// The operation on the activation as it is.
    fn apply_as_it_is(&self, base: Tensor<B, 3>, mut operands: Operands<B>) -> Tensor<B, 3> {
        if let (None, Some(changed)) = (&operands.subspace, &self.changed) {
            let [_batch, _unit, d_site] = base.dims();
            operands.subspace = Some(only(changed, d_site, &base.device()));
        }
        apply_alone(&self.operation, base, operands)
    }
}

impl<B, F, O, M> Intervention<B> for Composed<B, F, O, M>
where
    B: Backend,
    F: Featurizer<B>,
    O: Operation<B>,
    M: Mask<B>,
{
    fn needs_source(&self) -> bool {
        self.operation.needs_source()
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        let misfit = |expected| Misfit {
            expected,
            units,
            d_site,
        };
        let features = match self.dims() {
            Some([d, features]) => {
                self.tokens.check(d, units, d_site)?;
                features
            }
            None => features_alone(&self.operation, units, d_site)?,
        };
        let changed = self.changed.iter().flatten();
        if let Some(changed) = changed.copied().find(|changed| *changed >= features) {
            let features = counted(features, "feature");
            return Err(misfit(format!("feature {changed} to be one of {features}")));
        }
        if self.dims().is_none() {
            return Ok(features);
        }
        let parts = [
            ("the operation", self.operation.width()),
            ("the mask", self.mask.width()),
        ];
        for (part, width) in parts {
            if let Some(width) = width
                && width != features
            {
                let found = counted(width, "feature");
                let expected = format!(
                    "{} in {part}, as many as the featurizer has, not {found}",
                    counted(features, "feature")
                );
                return Err(misfit(expected));
            }
        }
        Ok(features)
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let Some([_d, features]) = self.dims() else {
            return self.apply_as_it_is(base, operands);
        };
        let mut basis = self.featurizer.basis();
        let mut subspace = operands.subspace.clone();
        if let (None, Some(changed)) = (&subspace, &self.changed) {
            let fits_any = self.mask.width().or(self.operation.width()).is_none();
            basis = match (basis, first(changed, features)) {
                (Some(Basis::Columns(matrix)), Some(count))
                    if fits_any && self.operation.is_local() =>
                {
                    Some(Basis::Columns(matrix.narrow(1, 0, count)))
                }
                (basis, _) => {
                    subspace = Some(only(changed, features, &base.device()));
                    basis
                }
            };
        }

        let encode = |x: Tensor<B, 2>| match &basis {
            Some(basis) => basis.read(x),
            None => self.featurizer.encode(x),
        };
        let vectors = |x: &Tensor<B, 3>| self.tokens.join(x.clone());
        let joined = || Some(vectors(&base));
        let x = Encoded::lazy(&joined, &encode);
        let [batch, units, _d_site] = base.dims();
        let shape = [batch, self.tokens.vectors(units)];
        let source = || operands.source.as_ref().map(vectors);
        let difference = || {
            let source = operands.source().cast(DType::F32);
            encode(vectors(&(source - base.clone().cast(DType::F32))))
        };
        let has_source = operands.source.is_some();
        let z = Features::encoded(EncodedFeatures {
            shape,
            base: &x,
            source: has_source.then(|| Encoded::lazy(&source, &encode)),
            difference: (has_source && basis.is_some()).then_some(&difference),
            affine: basis.is_some() || self.featurizer.is_affine(),
            subspace: subspace.clone(),
        });

        let mut change = self.operation.change(&z);
        let shares = self.mask.shares();
        let whole = shares.is_none() && subspace.is_none();
        if !whole || basis.is_some() {
            let mut difference = change.difference(|| z.base());
            if let Some(shares) = shares {
                difference = by_example(by_row(difference) * shares, shape);
            }
            change = Change::Difference(within(difference, subspace));
        }
        match (change, &basis) {
            (Change::Difference(change), Some(basis)) => {
                self.tokens.add(base, basis.write(by_row(change)))
            }
            (change, _) => {
                let new = match change {
                    Change::Value(new) => new,
                    Change::Difference(change) => by_example(x.features(), shape) + change,
                };
                let new = self.featurizer.decode(by_row(new), &x);
                self.tokens.split(&base, new)
            }
        }
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        let mut matrices = self.featurizer.orthonormal();
        matrices.extend(self.operation.orthonormal());
        matrices
    }

    fn mask_parameters(&self) -> Vec<ParamId> {
        self.mask.parameters()
    }

    fn set_temperature(&mut self, temperature: f64) {
        self.mask.set_temperature(temperature);
    }

    fn penalty(&self) -> Option<Tensor<B, 1>> {
        self.mask.penalty()
    }
}

/// The number of features, if an operation is used by itself.
pub(super) fn features_alone<B: Backend>(
    operation: &impl Operation<B>,
    units: usize,
    d_site: usize,
) -> Result<usize, Misfit> {
    if let Some(d) = operation.width() {
        TokenGrouping::Each.check(d, units, d_site)?;
    }
    Ok(d_site)
}

/// An operation on the activation as it is.
pub(super) fn apply_alone<B: Backend>(
    operation: &impl Operation<B>,
    base: Tensor<B, 3>,
    operands: Operands<B>,
) -> Tensor<B, 3> {
    let changed = match operation.change(&Features::own(base.clone(), operands.clone())) {
        Change::Value(new) => new,
        Change::Difference(difference) => base.clone() + difference,
    };
    operands.within_subspace(base, changed)
}

/// How many features these are, if they are the first ones but not all.
fn first(changed: &[usize], features: usize) -> Option<usize> {
    let count = changed.len();
    let leading = (1..features).contains(&count) && changed.iter().copied().eq(0..count);
    leading.then_some(count)
}

/// A subspace of these features, the same for every example, `[1, 1, feature]`.
fn only<B: Backend>(changed: &[usize], features: usize, device: &B::Device) -> Tensor<B, 3, Bool> {
    let mut chosen = vec![false; features];
    for feature in changed {
        if let Some(chosen) = chosen.get_mut(*feature) {
            *chosen = true;
        }
    }
    Tensor::from_data(TensorData::new(chosen, [1, 1, features]), device)
}

/// The change in the subspace, and zeros outside of it.
///
/// # Shapes
/// - change, output: `[batch, vector, feature]`
/// - subspace: `[batch, 1, feature]`
fn within<B: Backend>(change: Tensor<B, 3>, subspace: Option<Tensor<B, 3, Bool>>) -> Tensor<B, 3> {
    match subspace {
        None => change,
        Some(subspace) => {
            let shape = change.shape();
            let zeros = change.zeros_like();
            zeros.mask_where(subspace.expand(shape), change)
        }
    }
}

/// `[batch, vector, feature]` → `[row, feature]`
fn by_row<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 2> {
    let [batch, vectors, features] = x.dims();
    x.reshape([batch * vectors, features])
}

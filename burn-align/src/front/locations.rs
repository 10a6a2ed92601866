//! Unit locations: which units of the sources replace which units of the base.

use std::collections::BTreeMap;

use burn_align_models::{Site, SiteDims};
use serde::Deserialize;
use serde_json::Value;

use super::{AlignError, AlignableRepresentationConfig, Unit};
use crate::engine::{Indices, Units};

/// Which units of the sources replace which units of the base.
///
/// Usually one value, or a pair of values, is enough:
///
/// | value | meaning |
/// | --- | --- |
/// | `4` | position 4 of the source goes to position 4 of the base |
/// | `1..4` | positions 1, 2 and 3 |
/// | `(3, 4)` | position 3 of the source goes to position 4 of the base |
/// | `Indices::one_each([4, 2])` | position 4 in the first example, and 2 in the second one |
/// | `(Indices::one_each([4, 2]), 4)` | from there to position 4 |
/// | `UnitLocations::base(4)` | position 4 of the base; no source is needed |
/// | `UnitLocations::Whole` | the whole representation |
///
/// These apply to every representation. Use [`Locations::each`] for separate ones.
///
/// ```
/// use burn_align::engine::Indices;
/// use burn_align::front::UnitLocations;
///
/// // One position, the same in both; and one for each of two examples, to the same in both bases.
/// let same = UnitLocations::from(4);
/// assert_eq!(same, UnitLocations::from((4, 4)));
/// let each = UnitLocations::from((Indices::one_each([4, 2]), 4));
/// assert_ne!(same, each);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitLocations {
    /// Whole representations; source and base must have the same lengths.
    Whole,
    /// From the sources to the base; in serial mode, the same for each link of the chain.
    SourcesToBase {
        /// Where representations are read in the sources; `None` if no intervention has a source.
        source: Option<Locations>,
        /// Where they are written in the base.
        base: Locations,
    },
    /// Serial mode: `(from, to)` of each link, `source_0 -> source_1`, …, `source_n -> base`.
    Chain(Vec<(Option<Locations>, Locations)>),
}

impl<T: Into<Locations>> From<T> for UnitLocations {
    /// The same units in the sources and in the base.
    fn from(both: T) -> Self {
        let base = both.into();
        Self::SourcesToBase {
            source: Some(base.clone()),
            base,
        }
    }
}

impl<S: Into<Locations>, T: Into<Locations>> From<(S, T)> for UnitLocations {
    fn from((source, base): (S, T)) -> Self {
        Self::SourcesToBase {
            source: Some(source.into()),
            base: base.into(),
        }
    }
}

impl UnitLocations {
    /// Units of the base, for interventions without a source.
    pub fn base(base: impl Into<Locations>) -> Self {
        Self::SourcesToBase {
            source: None,
            base: base.into(),
        }
    }

    /// Serial mode: `(from, to)` of each link; the last link ends in the base.
    pub fn chain<S: Into<Locations>, T: Into<Locations>>(
        links: impl IntoIterator<Item = (S, T)>,
    ) -> Self {
        let links = links.into_iter();
        Self::Chain(
            links
                .map(|(from, to)| (Some(from.into()), to.into()))
                .collect(),
        )
    }
}

/// The locations on one side, source or base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Locations {
    /// The same for every representation.
    Everywhere(RepresentationLocations),
    /// `[representation]`; `None` leaves the representation unchanged.
    Each(Vec<Option<RepresentationLocations>>),
}

impl Locations {
    /// Separate locations for each representation: `Locations::each([Some(1), Some(3)])`. `None`
    /// leaves a representation unchanged.
    pub fn each(
        representations: impl IntoIterator<Item = Option<impl Into<RepresentationLocations>>>,
    ) -> Self {
        let each = representations.into_iter();
        Self::Each(each.map(|it| it.map(Into::into)).collect())
    }
}

impl<T: Into<RepresentationLocations>> From<T> for Locations {
    fn from(everywhere: T) -> Self {
        Self::Everywhere(everywhere.into())
    }
}

/// The locations of one representation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepresentationLocations {
    /// Positions; for unit `h`, heads; for unit `t`, time steps.
    Units(Indices),
    /// For unit `h.pos`: heads and positions.
    HeadsAndPositions([Indices; 2]),
}

impl RepresentationLocations {
    /// For unit `h.pos`: these heads at these positions.
    pub fn heads_at(heads: impl Into<Indices>, positions: impl Into<Indices>) -> Self {
        Self::HeadsAndPositions([heads.into(), positions.into()])
    }
}

impl<T: Into<Indices>> From<T> for RepresentationLocations {
    fn from(units: T) -> Self {
        Self::Units(units.into())
    }
}

/// Where one side of a representation is.
#[derive(Clone)]
pub(super) struct Located {
    pub(super) site: Site,
    pub(super) units: Units,
}

impl Located {
    /// The whole representation.
    pub(super) fn whole(
        index: usize,
        representation: &AlignableRepresentationConfig,
    ) -> Result<Self, AlignError> {
        if representation.unit == Unit::Step {
            return Err(AlignError::LocationShape {
                representation: index,
                unit: Unit::Step,
                expected: ONE_STEP,
            });
        }
        Ok(Self {
            site: representation.place(),
            units: Units::ALL,
        })
    }
}

impl Locations {
    /// Where a representation is, one of `count`; `None` if it stays unchanged.
    pub(super) fn locate(
        &self,
        index: usize,
        representation: &AlignableRepresentationConfig,
        count: usize,
    ) -> Result<Option<Located>, AlignError> {
        let unit = representation.unit;
        let locations = match self {
            Self::Everywhere(locations) => locations,
            Self::Each(each) if each.len() != count => {
                return Err(AlignError::LocationCount {
                    expected: count,
                    found: each.len(),
                });
            }
            Self::Each(each) => match &each[index] {
                None => return Ok(None),
                Some(locations) => locations,
            },
        };
        let wrong_shape = |expected| AlignError::LocationShape {
            representation: index,
            unit,
            expected,
        };
        let site = representation.place();
        let (site, heads, positions) = match (unit, locations) {
            (Unit::Pos, RepresentationLocations::Units(positions)) => {
                (site, Indices::All, positions.clone())
            }
            (Unit::Head, RepresentationLocations::Units(heads)) => {
                (site, heads.clone(), Indices::All)
            }
            (Unit::Step, RepresentationLocations::Units(steps)) => {
                let step = single_index(steps).ok_or_else(|| wrong_shape(ONE_STEP))?;
                (representation.place_in(step), Indices::All, steps.clone())
            }
            (Unit::HeadPos, RepresentationLocations::HeadsAndPositions([heads, positions])) => {
                (site, heads.clone(), positions.clone())
            }
            (Unit::HeadPos, RepresentationLocations::Units(_)) => {
                return Err(wrong_shape(HEADS_AND_POSITIONS));
            }
            (_, RepresentationLocations::HeadsAndPositions(_)) => {
                return Err(wrong_shape("[batch][unit]"));
            }
        };
        Ok(Some(Located {
            site,
            units: Units { heads, positions },
        }))
    }
}

const ONE_STEP: &str = "one time step, the same in every example";
const HEADS_AND_POSITIONS: &str = "heads and positions, [[batch][unit], [batch][unit]]";

/// The index, if every example has exactly one and the same.
fn single_index(indices: &Indices) -> Option<usize> {
    match indices {
        Indices::Same(list) => match list[..] {
            [index] => Some(index),
            _ => None,
        },
        Indices::Each(examples) => {
            let first = examples.first()?;
            let all_same = first.len() == 1 && examples.iter().all(|list| list == first);
            all_same.then(|| first[0])
        }
        Indices::All => None,
    }
}

/// Whether a site can be addressed in a unit.
pub(super) fn has_unit(dims: SiteDims, unit: Unit) -> bool {
    match unit {
        Unit::Pos | Unit::Step => true,
        Unit::Head | Unit::HeadPos => dims.heads > 1,
    }
}

/// One side in JSON: one index for all, or a list with an entry for each representation.
#[derive(Deserialize)]
#[serde(untagged)]
enum SideJson {
    Everywhere(usize),
    Each(Vec<Option<RepresentationJson>>),
}

impl From<SideJson> for Locations {
    fn from(json: SideJson) -> Self {
        match json {
            SideJson::Everywhere(index) => index.into(),
            SideJson::Each(each) => Self::each(each),
        }
    }
}

/// The locations of one representation: `[batch][unit]`, or a pair of these for unit `h.pos`.
#[derive(Deserialize)]
#[serde(untagged)]
enum RepresentationJson {
    Units(Vec<Vec<usize>>),
    HeadsAndPositions([Vec<Vec<usize>>; 2]),
}

impl From<RepresentationJson> for RepresentationLocations {
    fn from(json: RepresentationJson) -> Self {
        match json {
            RepresentationJson::Units(units) => Indices::Each(units).into(),
            RepresentationJson::HeadsAndPositions([heads, positions]) => {
                Self::heads_at(Indices::Each(heads), Indices::Each(positions))
            }
        }
    }
}

/// Both sides, where the source's may be absent, or one index for both.
#[derive(Deserialize)]
#[serde(untagged)]
enum PairJson {
    Both(usize),
    Pair(Option<SideJson>, SideJson),
}

impl From<PairJson> for (Option<Locations>, Locations) {
    fn from(json: PairJson) -> Self {
        match json {
            PairJson::Both(index) => {
                let side = Locations::from(index);
                (Some(side.clone()), side)
            }
            PairJson::Pair(from, to) => (from.map(Into::into), to.into()),
        }
    }
}

impl TryFrom<&Value> for UnitLocations {
    type Error = AlignError;

    /// Reads pyvene's JSON: `null`, `{"sources->base": [source, base]}`, `{"base": base}` for
    /// interventions without a source, or in serial mode
    /// `{"source_0->source_1": [from, to], …, "source_n->base": [from, to]}`.
    ///
    /// A side is `[representation][batch][unit]`, or `[representation][2][batch][unit]` with heads
    /// and positions for unit `h.pos`, or one index for all. One index instead of a pair is used
    /// for both sides. Each link of a chain has exactly one representation.
    fn try_from(json: &Value) -> Result<Self, AlignError> {
        let malformed = |key: &str, found: &Value| AlignError::MalformedLocations {
            key: key.to_owned(),
            found: found.to_string(),
        };
        let map = match json {
            Value::Null => return Ok(Self::Whole),
            Value::Object(map) => map,
            other => return Err(malformed("unit_locations", other)),
        };
        if let [(key, value)] = &map.iter().collect::<Vec<_>>()[..]
            && *key == "base"
        {
            let base = SideJson::deserialize(*value).map_err(|_| malformed(key, value))?;
            return Ok(Self::SourcesToBase {
                source: None,
                base: base.into(),
            });
        }
        let mut pairs: BTreeMap<&str, (Option<Locations>, Locations)> = BTreeMap::new();
        for (key, value) in map {
            let pair = PairJson::deserialize(value).map_err(|_| malformed(key, value))?;
            pairs.insert(key, pair.into());
        }
        if let Some((source, base)) = pairs.remove("sources->base") {
            return match pairs.keys().next() {
                None => Ok(Self::SourcesToBase { source, base }),
                Some(key) => Err(malformed(key, &map[*key])),
            };
        }
        let links = pairs.len();
        let chain = (0..links).map(|link| {
            let key = match link + 1 == links {
                true => format!("source_{link}->base"),
                false => format!("source_{link}->source_{}", link + 1),
            };
            let pair = pairs.remove(key.as_str());
            pair.ok_or(AlignError::MissingLink { key })
        });
        let chain: Vec<_> = chain.collect::<Result<_, _>>()?;
        match chain.is_empty() {
            true => Err(malformed("unit_locations", json)),
            false => Ok(Self::Chain(chain)),
        }
    }
}

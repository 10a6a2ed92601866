use std::collections::BTreeMap;

use burn_align_models::SiteDims;
use serde::Deserialize;
use serde_json::Value;

use super::{AlignError, Unit};
use crate::engine::{Indices, Units};

/// Which units of the sources go where in the base.
///
/// Most often a number or a pair of numbers says it all:
///
/// | value | meaning |
/// | --- | --- |
/// | `4` | position 4 of the source goes to position 4 of the base |
/// | `(3, 4)` | position 3 of the source goes to position 4 of the base |
/// | `UnitLocations::base(4)` | position 4 of the base; no source is needed |
/// | `UnitLocations::Whole` | the whole representation |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitLocations {
    /// Whole representations; source and base must have the same lengths.
    Whole,
    /// From the sources to the base; in serial mode, the same for each link of the chain.
    SourcesToBase {
        /// Where the representations are taken; `None` if no intervention takes a source.
        source: Option<Locations>,
        /// Where they are put.
        base: Locations,
    },
    /// Serial mode: `(from, to)` of each link, `source_0 -> source_1`, …, `source_n -> base`.
    Chain(Vec<(Option<Locations>, Locations)>),
}

impl From<usize> for UnitLocations {
    fn from(position: usize) -> Self {
        Self::from((position, position))
    }
}

impl From<(usize, usize)> for UnitLocations {
    fn from((source, base): (usize, usize)) -> Self {
        Self::SourcesToBase {
            source: Some(Locations::Everywhere(source)),
            base: Locations::Everywhere(base),
        }
    }
}

impl UnitLocations {
    /// One index for every representation and example, for interventions that take no source.
    pub fn base(index: usize) -> Self {
        Self::SourcesToBase {
            source: None,
            base: Locations::Everywhere(index),
        }
    }
}

/// The locations on one side, source or base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Locations {
    /// One index for every representation and example: a position, or a head for unit `h`.
    Everywhere(usize),
    /// `[representation]`; `None` leaves the representation as it is.
    Each(Vec<Option<RepresentationLocations>>),
}

/// The locations of one representation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum RepresentationLocations {
    /// `[batch][unit]`: positions, or heads for unit `h`.
    Units(Vec<Vec<usize>>),
    /// For unit `h.pos`: heads and positions, each `[batch][unit]`.
    HeadsAndPositions([Vec<Vec<usize>>; 2]),
}

impl Locations {
    /// The units of one representation; `None` if it is left as it is.
    pub(super) fn units(
        &self,
        representation: usize,
        count: usize,
        unit: Unit,
    ) -> Result<Option<Units>, AlignError> {
        let (heads, positions) = match (self, unit) {
            (Self::Everywhere(index), Unit::Pos) => (Indices::All, Indices::Same(vec![*index])),
            (Self::Everywhere(index), Unit::Head) => (Indices::Same(vec![*index]), Indices::All),
            (Self::Everywhere(_), Unit::HeadPos) => {
                return Err(AlignError::LocationShape {
                    representation,
                    unit,
                    expected: "heads and positions, [[batch][unit], [batch][unit]]",
                });
            }
            (Self::Each(each), unit) => {
                if each.len() != count {
                    return Err(AlignError::LocationCount {
                        expected: count,
                        found: each.len(),
                    });
                }
                let Some(locations) = &each[representation] else {
                    return Ok(None);
                };
                match (locations, unit) {
                    (RepresentationLocations::Units(positions), Unit::Pos) => {
                        (Indices::All, Indices::Each(positions.clone()))
                    }
                    (RepresentationLocations::Units(heads), Unit::Head) => {
                        (Indices::Each(heads.clone()), Indices::All)
                    }
                    (
                        RepresentationLocations::HeadsAndPositions([heads, positions]),
                        Unit::HeadPos,
                    ) => (
                        Indices::Each(heads.clone()),
                        Indices::Each(positions.clone()),
                    ),
                    (_, Unit::HeadPos) => {
                        return Err(AlignError::LocationShape {
                            representation,
                            unit,
                            expected: "heads and positions, [[batch][unit], [batch][unit]]",
                        });
                    }
                    (_, Unit::Pos | Unit::Head) => {
                        return Err(AlignError::LocationShape {
                            representation,
                            unit,
                            expected: "[batch][unit]",
                        });
                    }
                }
            }
        };
        Ok(Some(Units { heads, positions }))
    }
}

/// Whether a site can be addressed in a unit.
pub(super) fn has_unit(dims: SiteDims, unit: Unit) -> bool {
    match unit {
        Unit::Pos => true,
        Unit::Head | Unit::HeadPos => dims.heads > 1,
    }
}

/// One side as JSON has it: an index for all, or a list with an entry for each representation.
#[derive(Deserialize)]
#[serde(untagged)]
enum SideJson {
    Everywhere(usize),
    Each(Vec<Option<RepresentationLocations>>),
}

impl From<SideJson> for Locations {
    fn from(json: SideJson) -> Self {
        match json {
            SideJson::Everywhere(index) => Self::Everywhere(index),
            SideJson::Each(each) => Self::Each(each),
        }
    }
}

/// Two sides, of which the source's may be absent, or one index for both.
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
                let side = Locations::Everywhere(index);
                (Some(side.clone()), side)
            }
            PairJson::Pair(from, to) => (from.map(Into::into), to.into()),
        }
    }
}

impl TryFrom<&Value> for UnitLocations {
    type Error = AlignError;

    /// Reads the JSON of pyvene: `null`, `{"sources->base": [source, base]}`, `{"base": base}` for
    /// interventions without a source, or in serial mode
    /// `{"source_0->source_1": [from, to], …, "source_n->base": [from, to]}`.
    ///
    /// A side is `[representation][batch][unit]`, for unit `h.pos` `[representation][2][batch][unit]`
    /// with heads and positions, or one index for all. One index instead of a pair is both sides.
    /// Each link of a chain has one representation, its own.
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
            let base: SideJson =
                serde_json::from_value((*value).clone()).map_err(|_| malformed(key, value))?;
            return Ok(Self::SourcesToBase {
                source: None,
                base: base.into(),
            });
        }
        let mut pairs: BTreeMap<&str, (Option<Locations>, Locations)> = BTreeMap::new();
        for (key, value) in map {
            let pair: PairJson =
                serde_json::from_value(value.clone()).map_err(|_| malformed(key, value))?;
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

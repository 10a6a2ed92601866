//! RAVEL's cities: an entity, what is asked about it, and its attributes.

use std::collections::BTreeMap;

use crate::causal_models::{CausalModel, Values};
use crate::methods::causal_variables::{
    CausalVariableError, TaskInput, TaskPosition, TaskValue, VariableTask,
};

/// The attributes of a city.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CityAttributes {
    /// Its continent.
    #[serde(rename = "Continent")]
    pub continent: String,
    /// Its country.
    #[serde(rename = "Country")]
    pub country: String,
    /// Its language.
    #[serde(rename = "Language")]
    pub language: String,
}

/// Attributes of cities, one of which is asked for, or none, by `wikipedia`: then the answer is
/// empty, and every output is right. RAVEL (Huang et al. 2024, arXiv 2402.17700) has these as JSON,
/// from which serde reads the argument.
///
/// # Errors
/// If there is no city.
///
/// ```
/// use burn_align::methods::causal_variables::tasks::{city_attributes, city_input};
///
/// let cities = r#"{"Rome": {"Continent": "Europe", "Country": "Italy", "Language": "Italian"}}"#;
/// let task = city_attributes(serde_json::from_str(cities)?)?;
/// let input = city_input(&task, "Rome is a city in the country of", "Rome", "Country")?;
/// assert_eq!(task.answer(&input)?, " Italy");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn city_attributes(
    cities: BTreeMap<String, CityAttributes>,
) -> Result<VariableTask, CausalVariableError> {
    let attributes = ["Continent", "Country", "Language"];
    let entities: Values<TaskValue> = cities.keys().map(|city| city.as_str().into()).collect();
    let queries = attributes.into_iter().chain(["wikipedia"]);
    let mut model = CausalModel::<TaskValue>::builder()
        .input("entity", entities)
        .input(
            "queried_attribute",
            queries.map(TaskValue::from).collect::<Values<_>>(),
        );
    let values: [fn(&CityAttributes) -> &str; 3] = [
        |city| city.continent.as_str(),
        |city| city.country.as_str(),
        |city| city.language.as_str(),
    ];
    for (attribute, value) in attributes.into_iter().zip(values) {
        let of: BTreeMap<String, TaskValue> = cities
            .iter()
            .map(|(city, attributes)| (city.clone(), value(attributes).into()))
            .collect();
        model = model.variable(attribute, ["entity"], Values::Any, move |[entity]| {
            let value = of.get(entity.text()).cloned();
            value.unwrap_or_else(|| "".into())
        });
    }
    let model = model
        .variable(
            "answer",
            ["queried_attribute", "Continent", "Country", "Language"],
            Values::Any,
            move |[query, values @ ..]| {
                let asked = attributes
                    .iter()
                    .position(|name| query.as_text() == Some(*name));
                asked.map_or_else(|| "".into(), |asked| values[asked].clone())
            },
        )
        .variable(
            "raw_output",
            ["answer"],
            Values::Any,
            |[answer]| match answer.text() {
                "" => String::new(),
                text => format!(" {text}"),
            },
        )
        .build()?;
    let positions = [
        TaskPosition::last("last_token"),
        TaskPosition::value_of("entity_last_token", "entity"),
    ];
    VariableTask::new("RAVEL", model, positions)
}

/// The input of a prompt about a city that asks for this attribute, or for `wikipedia`.
///
/// # Errors
/// If the task has no such city or attribute.
pub fn city_input(
    task: &VariableTask,
    prompt: impl Into<String>,
    entity: &str,
    queried_attribute: &str,
) -> Result<TaskInput, CausalVariableError> {
    task.input(
        prompt,
        [("entity", entity), ("queried_attribute", queried_attribute)],
    )
}

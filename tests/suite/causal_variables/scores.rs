//! Scores of submissions, and what is made of them.

use std::fs;

use burn::tensor::backend::Backend;
use burn_align::causal_models::CausalModel;
use burn_align::methods::causal_variables::tasks::{NameCounterfactuals, NamePrompt};
use burn_align::methods::causal_variables::{
    AnswerOptions, CausalVariableError, CounterfactualSet, GroupScores, LinearParameters, Measure,
    NameTokens, Submission, SubmissionUnit, TaskExample, TaskPosition, TaskValue, VariableResults,
    VariableTask, answer_prompts, measure_logit_differences, score_variables,
};

use super::{capitals_model, expected, folder, names_task, numbers};
use crate::support::message;

on_every_backend!(
    answers_score_as_in_the_track,
    squared_errors_are_those_of_the_track,
    examples_that_the_model_gets_wrong_are_left_out,
    whole_heads_measure_the_linear_parameters,
    misfits_are_refused,
);

const CITIES: [[&str; 3]; 6] = [
    ["Spain", "Madrid", "Spanish"],
    ["Italy", "Rome", "Italian"],
    ["France", "Paris", "French"],
    ["Germany", "Berlin", "German"],
    ["Poland", "Warsaw", "Polish"],
    ["Greece", "Athens", "Greek"],
];

/// The fixture's task: which country, and what about it.
fn capitals() -> VariableTask {
    let texts = |list: Vec<&'static str>| -> Vec<TaskValue> {
        list.into_iter().map(TaskValue::from).collect()
    };
    let answers = CITIES.iter().flat_map(|city| [city[1], city[2]]).collect();
    let model = CausalModel::<TaskValue>::builder()
        .input("entity", texts(CITIES.iter().map(|city| city[0]).collect()))
        .input("query", texts(vec!["capital", "language"]))
        .variable(
            "raw_output",
            ["entity", "query"],
            texts(answers),
            |[entity, query]| {
                let city = CITIES.iter().find(|city| entity.as_text() == Some(city[0]));
                let column = if query.as_text() == Some("capital") {
                    1
                } else {
                    2
                };
                city.map_or("", |city| city[column])
            },
        )
        .build();
    let positions = [
        TaskPosition::last("last_token"),
        TaskPosition::value_of("entity_last_token", "entity"),
    ];
    VariableTask::new("capitals", model.expect("a model"), positions).expect("a task")
}

fn example(task: &VariableTask, [base, counterfactual]: [[&str; 2]; 2]) -> TaskExample {
    let input = |[query, entity]: [&str; 2]| {
        let prompt = format!("The {query} of {entity} is");
        task.input(prompt, [("query", query), ("entity", entity)])
            .expect("an input")
    };
    TaskExample {
        base: input(base),
        counterfactual: input(counterfactual),
    }
}

/// With the fixture's sets.
fn capitals_with_sets() -> VariableTask {
    let task = capitals();
    let sets = [("country_test", "capital"), ("both_test", "language")].map(|(name, query)| {
        let mut examples = Vec::new();
        for [base, ..] in CITIES {
            for [other, ..] in CITIES.into_iter().filter(|city| city[0] != base) {
                examples.push(example(&task, [["capital", base], [query, other]]));
            }
        }
        CounterfactualSet::new(name, examples)
    });
    task.with_sets(sets)
}

fn units() -> Vec<SubmissionUnit> {
    let layers = [0, 1, 3].into_iter();
    let units = layers.flat_map(|layer| {
        ["last_token", "entity_last_token"]
            .map(|position| SubmissionUnit::residual_stream(layer, position))
    });
    units.collect()
}

fn answers_score_as_in_the_track<B: Backend>(device: &B::Device) {
    let (model, tokenizer) = capitals_model::<B>(device);
    let task = capitals_with_sets();
    let expected = expected();
    let submitted = Submission::<B>::load(folder().join("residual"), device).expect("a submission");
    let options = AnswerOptions::default().with_batch_size(7);
    let cases = [
        ("whole", Submission::whole_vectors(units())),
        ("residual", submitted),
    ];
    for (name, submission) in cases {
        // The variable is the country, also where the question differs.
        let scores = score_variables(
            &model,
            &tokenizer,
            &task,
            &["entity"],
            &submission,
            Measure::Answers,
            &options,
        )
        .expect("scores");
        assert_eq!(scores.len(), 12);
        for group in &scores {
            let [unit] = &group.units[..] else {
                panic!("one residual stream at a time: {group:?}");
            };
            let units = expected["answers"][name][&group.set]
                .as_object()
                .expect("units");
            let id = |key: &str| key.replace("Layer:", "Layer-").replace("Token:", "Token-");
            let found = units
                .iter()
                .find(|(key, _)| id(key).contains(&unit.to_string()));
            let (_, found) = found.expect("the unit");
            assert_eq!(
                group.scores,
                numbers(found),
                "{name}, {unit}, {}",
                group.set
            );
        }
        let results =
            VariableResults::new(["m", "GPT2LMHeadModel", "capitals"], &["entity"], &scores);
        let summary = results.summary(false).expect("scores");
        let aggregated = numbers(&expected["aggregated"][name]);
        assert!((summary.mean - aggregated[0]).abs() < 1e-12, "{summary:?}");
        assert_eq!(summary.best, aggregated[1]);
        assert_eq!(results.summary(true), None, "no private set");
        let again = VariableResults::from_json(&results.to_json()).expect("results");
        assert_eq!(again.summary(false), results.summary(false));
    }
    let file = "capitals_GPT2LMHeadModel_full_vector_entity__results.json";
    let text = fs::read_to_string(folder().join(file)).expect("the fixture");
    let results = VariableResults::from_json(&text).expect("the track's results");
    let summary = results.summary(false).expect("scores");
    assert_eq!(
        [summary.mean, summary.best].to_vec(),
        numbers(&expected["aggregated"]["whole"])
    );
    assert_eq!(results.file_name(), file);
}

const PAIRS: [[&str; 2]; 4] = [
    ["Spain", "Italy"],
    ["France", "Poland"],
    ["Greece", "Germany"],
    ["Italy", "France"],
];

fn names_with_sets(counterfactuals: &[NameCounterfactuals]) -> VariableTask {
    let task = names_task();
    let prompts = PAIRS.map(|names| NamePrompt {
        template: "{name_A} {name_B} capital of {name_C} is".to_owned(),
        names: names.map(str::to_owned),
    });
    let sets = counterfactuals.iter();
    let sets: Vec<_> = sets
        .map(|it| it.generate(&task, &prompts).expect("a set"))
        .collect();
    task.with_sets(sets)
}

fn squared_errors_are_those_of_the_track<B: Backend>(device: &B::Device) {
    let (model, tokenizer) = capitals_model::<B>(device);
    let task = names_with_sets(&NameCounterfactuals::ALL[1..]);
    let expected = expected();
    let linear: LinearParameters =
        serde_json::from_value(expected["linear"].clone()).expect("parameters");
    let submission = Submission::<B>::load(folder().join("heads"), device).expect("a submission");
    let measure = Measure::LogitDifference(linear, NameTokens::AsWritten);
    for variable in ["output_token", "output_position"] {
        let options = AnswerOptions::default().with_batch_size(3);
        let scores = score_variables(
            &model,
            &tokenizer,
            &task,
            &[variable],
            &submission,
            measure,
            &options,
        )
        .expect("scores");
        for GroupScores {
            units, set, scores, ..
        } in &scores
        {
            assert_eq!(units.len(), 3, "all heads at once");
            let expected = numbers(&expected["squared_errors"][variable][set]);
            for (found, expected) in scores.iter().zip(&expected) {
                let off = (found - expected).abs();
                assert!(
                    off < 2e-3 * (1.0 + expected),
                    "{variable}, {set}: {found} {expected}"
                );
            }
            assert_eq!(scores.len(), expected.len());
        }
        let results = VariableResults::new(["DAS", "GPT2LMHeadModel", "ioi"], &[variable], &scores);
        let summary = results.summary(false).expect("scores");
        let aggregated = numbers(&expected["aggregated"][variable]);
        assert!((summary.mean - aggregated[0]).abs() < 1e-2, "{summary:?}");
        assert_eq!(summary.layers.keys().copied().collect::<Vec<_>>(), [1]);
    }
}

fn examples_that_the_model_gets_wrong_are_left_out<B: Backend>(device: &B::Device) {
    let (model, tokenizer) = capitals_model::<B>(device);
    let options = AnswerOptions::default();
    let task = capitals();
    let right = example(&task, [["capital", "Spain"], ["language", "Italy"]]);
    let mut wrong = right.clone();
    wrong.counterfactual.prompt = "The capital of France is".to_owned();
    let sets = [
        CounterfactualSet::new("some_test", [wrong.clone(), right.clone()]),
        CounterfactualSet::new("none_test", [wrong.clone()]),
    ];
    let task = task.with_sets(sets);
    let filtered = task
        .filter(&model, &tokenizer, &options)
        .expect("an example");
    assert_eq!(
        filtered.task.sets,
        [CounterfactualSet::new("some_test", [right])]
    );
    let kept = [
        ("some_test".to_owned(), 1, 2),
        ("none_test".to_owned(), 0, 1),
    ];
    assert_eq!(filtered.kept, kept);
    let none = task.with_sets([CounterfactualSet::new("none_test", [wrong])]);
    let error = none
        .filter(&model, &tokenizer, &options)
        .expect_err("no example");
    assert!(
        matches!(error, CausalVariableError::Nothing { .. }),
        "{error}"
    );

    let prompts = ["The capital of Spain is", "The language of Italy is"];
    let answers = answer_prompts(&model, &tokenizer, &prompts, &options).expect("answers");
    assert_eq!(answers, ["Madrid", "Italian"]);
    // The second token ends the text, which adds nothing.
    let options = options.with_new_tokens(2);
    let longer = answer_prompts(&model, &tokenizer, &prompts, &options).expect("answers");
    for (longer, answer) in longer.iter().zip(&answers) {
        assert!(longer.starts_with(answer.as_str()), "{longer}");
    }
    // Prompts of different lengths, some of whose answers end before the others; as transformers
    // 4.57 answers them.
    let prompts = ["Spain has", "Rome is the", "The capital of Italy"];
    let options = options.with_new_tokens(4).with_batch_size(2);
    let answers = answer_prompts(&model, &tokenizer, &prompts, &options).expect("answers");
    assert_eq!(
        answers,
        ["its capital in Madrid", "capital of Italy", "is Rome"]
    );
}

fn whole_heads_measure_the_linear_parameters<B: Backend>(device: &B::Device) {
    let (model, tokenizer) = capitals_model::<B>(device);
    let task = names_with_sets(&NameCounterfactuals::ALL);
    let heads = [(1, 2), (2, 0)];
    let heads = heads.map(|(layer, head)| SubmissionUnit::attention_head(layer, head, "all"));
    let heads = Submission::<B>::whole_vectors(heads);
    let options = AnswerOptions::default();
    let names = NameTokens::AsWritten;
    let measured = measure_logit_differences(&model, &tokenizer, &task, &heads, names, &options);
    let measured = measured.expect("differences");
    assert_eq!(measured.len(), 16);
    let found = LinearParameters::fit(&measured).expect("parameters");
    // The mean squared error of both variables is what the fit leaves.
    let both = ["output_token", "output_position"];
    let measure = Measure::LogitDifference(found, names);
    let scores = score_variables(&model, &tokenizer, &task, &both, &heads, measure, &options);
    let scores = scores.expect("scores");
    let errors: Vec<f64> = scores
        .iter()
        .flat_map(|group| group.scores.clone())
        .collect();
    let left = measured
        .iter()
        .map(|it| it.difference - found.difference(it.signals));
    let left = left.map(|off| off * off).sum::<f64>();
    assert!(
        (errors.iter().sum::<f64>() - left).abs() < 1e-2 * left,
        "{left}"
    );
}

fn misfits_are_refused<B: Backend>(device: &B::Device) {
    let (model, tokenizer) = capitals_model::<B>(device);
    let task = capitals_with_sets();
    let options = AnswerOptions::default();
    let score = |task: &VariableTask, units: &[SubmissionUnit], options: &AnswerOptions| {
        let whole = Submission::<B>::whole_vectors(units.iter().cloned());
        let measure = Measure::Answers;
        let found = score_variables(
            &model,
            &tokenizer,
            task,
            &["entity"],
            &whole,
            measure,
            options,
        );
        message(&found.expect_err("a misfit"))
    };
    let nowhere = [SubmissionUnit::residual_stream(0, "nowhere")];
    let found = score(&task, &nowhere, &options);
    assert!(
        found.contains("no position `nowhere`; it has last_token, entity_last_token"),
        "{found}"
    );
    let found = score(&task, &[], &options);
    assert!(found.contains("at least one unit"), "{found}");
    let deep = [SubmissionUnit::residual_stream(9, "last_token")];
    let found = score(&task, &deep, &options);
    assert!(found.contains('9'), "{found}");
    let last = [SubmissionUnit::residual_stream(0, "last_token")];
    let found = score(&task, &last, &AnswerOptions::default().with_new_tokens(0));
    assert!(found.contains("new_tokens: expected at least 1"), "{found}");
    let found = score(&task.clone().with_sets([]), &last, &options);
    assert!(found.contains("at least one set"), "{found}");
    let empty = task
        .clone()
        .with_sets([CounterfactualSet::new("none_test", [])]);
    let found = score(&empty, &last, &options);
    assert!(found.contains("one example in each set"), "{found}");

    // Every token of prompts of different lengths.
    let names = names_with_sets(&[NameCounterfactuals::Same]);
    let mut set = names.sets[0].clone();
    set.examples[0].counterfactual.prompt = "Spain Italy Spain is".to_owned();
    let heads = Submission::<B>::whole_vectors([SubmissionUnit::attention_head(1, 2, "all")]);
    let measure =
        Measure::LogitDifference(LinearParameters::new(0.0, 0.0, 0.0), NameTokens::AsWritten);
    let names = names.with_sets([set]);
    let found = score_variables(
        &model,
        &tokenizer,
        &names,
        &["output_token"],
        &heads,
        measure,
        &options,
    );
    let found = message(&found.expect_err("other lengths"));
    assert!(found.contains("found 6 and 4"), "{found}");
}

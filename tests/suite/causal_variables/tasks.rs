//! Causal models and counterfactuals of the track's tasks.

use burn_align::methods::causal_variables::tasks::{
    AdditionCounterfactuals, ChoiceCounterfactuals, ChoiceQuestion, NameCounterfactuals,
    NamePrompt, addition_input, arc_easy, arc_input, four_answer_mcqa, mcqa_input, name_input,
    parse_addition, two_digit_addition,
};
use burn_align::methods::causal_variables::{
    LinearParameters, LogitMeasurement, TaskExample, TaskInput, TaskValue, VariableTask,
};

use super::{expected, names_task};
use crate::support::message;

fn value(task: &VariableTask, input: &TaskInput, variable: &str) -> TaskValue {
    let setting = task.model().run(&input.inputs).expect("it runs");
    setting[task.model().variable(variable).expect("a variable")].clone()
}

#[test]
fn additions_are_those_of_the_track() {
    let task = two_digit_addition().expect("a task");
    for case in expected()["settings"]["arithmetic"]
        .as_array()
        .expect("a list")
    {
        let number = |of: usize, side: usize| case[of][side].as_u64().expect("a number") as u32;
        let [base, counterfactual] = [0, 1].map(|side| {
            addition_input(&task, [number(0, side), number(1, side)]).expect("an input")
        });
        assert_eq!(base.prompt, case[2]);
        assert_eq!(parse_addition(&task, &base.prompt).expect("an input"), base);
        assert_eq!(task.answer(&base).expect("an answer"), case[3]);
        let example = TaskExample {
            base,
            counterfactual,
        };
        let answer = task.counterfactual_answer(&example, &["ones_carry"]);
        assert_eq!(answer.expect("an answer"), case[4]);
    }
    let error = parse_addition(&task, "What is 5?").expect_err("one number");
    assert!(message(&error).contains("expected two numbers, found 1"));
    assert!(addition_input(&task, [100, 1]).is_err());
}

#[test]
fn counterfactuals_of_additions_differ_in_the_carry_alone() {
    let task = two_digit_addition().expect("a task");
    let set = AdditionCounterfactuals::OnesCarry
        .generate(&task, 100, 3)
        .expect("examples");
    assert_eq!(
        (set.name.as_str(), set.examples.len()),
        ("ones_carry_test", 100)
    );
    for TaskExample {
        base,
        counterfactual,
    } in &set.examples
    {
        for same in ["op1_tens", "op2_tens", "ones_out"] {
            assert_eq!(value(&task, base, same), value(&task, counterfactual, same));
        }
        let carries = [base, counterfactual].map(|input| value(&task, input, "ones_carry"));
        assert_ne!(carries[0], carries[1]);
    }
    let again = AdditionCounterfactuals::OnesCarry
        .generate(&task, 100, 3)
        .expect("examples");
    assert_eq!(set, again);
    let random = AdditionCounterfactuals::Random
        .generate(&task, 100, 3)
        .expect("examples");
    let differs = |it: &TaskExample| it.base != it.counterfactual;
    assert!(random.examples.iter().filter(|it| differs(it)).count() > 90);
}

fn question(right: &str, choices: [&str; 4], symbols: [&str; 4]) -> ChoiceQuestion {
    ChoiceQuestion {
        text: format!("The thing is {right}. What color is the thing?"),
        right: right.to_owned(),
        choices: choices.map(str::to_owned),
        symbols: symbols.map(str::to_owned),
    }
}

#[test]
fn choices_are_those_of_the_track() {
    let task = four_answer_mcqa().expect("a task");
    let base = question(
        "green",
        ["red", "blue", "green", "black"],
        ["A", "B", "C", "D"],
    );
    let other = question(
        "green",
        ["blue", "red", "black", "green"],
        ["W", "X", "Y", "Z"],
    );
    let input = |question: &ChoiceQuestion| {
        mcqa_input(&task, question.prompt(), question).expect("an input")
    };
    let example = TaskExample {
        base: input(&base),
        counterfactual: input(&other),
    };
    for case in expected()["settings"]["mcqa"].as_array().expect("a list") {
        let variable = case[0][0].as_str().expect("a name");
        let answer = task
            .counterfactual_answer(&example, &[variable])
            .expect("an answer");
        assert_eq!(answer, case[1], "{variable}");
    }
    let lines: Vec<String> = base.prompt().lines().map(str::to_owned).collect();
    assert_eq!(lines[3], "C. green");

    let sets = [
        (ChoiceCounterfactuals::AnswerPosition, [false, true]),
        (ChoiceCounterfactuals::RandomLetter, [true, false]),
        (
            ChoiceCounterfactuals::AnswerPositionRandomLetter,
            [true, true],
        ),
    ];
    for (counterfactuals, [letters, position]) in sets {
        let set = counterfactuals.generate(&task, &[base.clone(), other.clone()], 1);
        for example in set.expect("examples").examples {
            let sides = [&example.base, &example.counterfactual];
            let of = |variable| sides.map(|input| value(&task, input, variable));
            let [before, after] = of("answer_pointer");
            assert_eq!(before != after, position, "{counterfactuals:?}");
            let [before, after] = of("symbol0");
            assert_eq!(before != after, letters, "{counterfactuals:?}");
        }
    }

    let nothing = question(
        "pink",
        ["red", "blue", "green", "black"],
        ["A", "B", "C", "D"],
    );
    let set = ChoiceCounterfactuals::AnswerPosition.generate(&task, &[nothing], 1);
    let error = set.expect_err("no right choice");
    assert!(message(&error).contains("expected the choice \"pink\""));

    let arc = arc_easy().expect("a task");
    let input = arc_input(&arc, "…", 2, ["1", "2", "3", "4"]).expect("an input");
    assert_eq!(arc.answer(&input).expect("an answer"), " 3");
    assert!(arc_input(&arc, "…", 4, ["1", "2", "3", "4"]).is_err());
}

#[test]
fn names_and_their_logit_differences_are_those_of_the_track() {
    let task = names_task();
    let expected = expected();
    let linear: LinearParameters =
        serde_json::from_value(expected["linear"].clone()).expect("parameters");
    for case in expected["settings"]["names"].as_array().expect("a list") {
        let order = case[0].as_str().expect("an order");
        let name = |letter| if letter == 'A' { "Spain" } else { "Italy" };
        let names: Vec<&str> = order.chars().map(name).collect();
        let input = |names| name_input(&task, "…", names).expect("an input");
        let example = TaskExample {
            base: input(["Spain", "Italy", "Spain"]),
            counterfactual: input([names[0], names[1], names[2]]),
        };
        let variables = case[1].as_array().expect("a list").iter();
        let variables: Vec<&str> = variables.filter_map(|it| it.as_str()).collect();
        let answer = task.counterfactual_answer(&example, &variables);
        assert_eq!(answer.expect("an answer"), case[2], "{case}");
        let setting = task.interchange(&example, &variables).expect("a setting");
        let signals = ["token_signal", "position_signal"].map(|name| {
            let variable = task.model().variable(name).expect("a variable");
            setting[variable].as_number().expect("a number")
        });
        assert_eq!(Some(linear.difference(signals)), case[3].as_f64(), "{case}");
    }
    let prompt = NamePrompt {
        template: "{name_A} {name_B} capital of {name_C} is".to_owned(),
        names: ["Spain", "Italy"].map(str::to_owned),
    };
    for counterfactuals in NameCounterfactuals::ALL {
        let set = counterfactuals.generate(&task, std::slice::from_ref(&prompt));
        let example = set.expect("examples").examples.remove(0);
        assert_eq!(example.base.prompt, "Spain Italy capital of Spain is");
        let both = ["output_token", "output_position"];
        let setting = task.interchange(&example, &both).expect("a setting");
        let signals = ["token_signal", "position_signal"].map(|name| {
            let variable = task.model().variable(name).expect("a variable");
            setting[variable].as_number().expect("a number")
        });
        assert_eq!(signals, counterfactuals.signals(), "{counterfactuals:?}");
    }
    let other = name_input(&task, "…", ["Rome", "Paris", "Oslo"]).expect("an input");
    assert!(task.answer(&other).is_err(), "neither name is repeated");
}

#[test]
fn linear_parameters_are_those_that_the_measurements_have() {
    let truth = LinearParameters::new(0.5, 1.25, -0.75);
    let measure = |signals| LogitMeasurement {
        signals,
        difference: truth.difference(signals),
    };
    let all = NameCounterfactuals::ALL.map(|it| measure(it.signals()));
    let found = LinearParameters::fit(&[&all[..], &all[1..2]].concat()).expect("parameters");
    let off = [
        found.bias - truth.bias,
        found.token - truth.token,
        found.position - truth.position,
    ];
    assert!(off.iter().all(|off| off.abs() < 1e-12), "{found:?}");
    assert!((found.explained(&all) - 1.0).abs() < 1e-12);
    // Noise that no signal explains leaves the parameters, and lowers what is explained.
    let noisy = all.iter().flat_map(|it| {
        [-0.5, 0.5].map(|noise| LogitMeasurement {
            difference: it.difference + noise,
            ..*it
        })
    });
    let noisy: Vec<_> = noisy.collect();
    let again = LinearParameters::fit(&noisy).expect("parameters");
    assert!((again.token - truth.token).abs() < 1e-12);
    let explained = 1.0 - 0.25 / (0.25 + 1.25_f64.powi(2) + 0.75_f64.powi(2));
    assert!((again.explained(&noisy) - explained).abs() < 1e-12);
    let error = LinearParameters::fit(&all[..2]).expect_err("two combinations");
    assert!(message(&error).contains("at least 3 of the 4"));
    let signals = [1, 0];
    let other = LogitMeasurement { signals, ..all[0] };
    let error = LinearParameters::fit(&[&all[..], &[other]].concat()).expect_err("no signal");
    assert!(message(&error).contains("a signal: expected 1 or -1, found 0"));
}

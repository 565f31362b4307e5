//! Renderings against `transformers`' own: `fixtures/make_templates.py` wrote the goldens.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anaphora_text::{ChatTemplate, Message, Rewrite, TemplateError, TemplateInput};
use common::{fixture, json};
use serde_json::{Map, Value as Json, json};

/// 2025-03-01 14:05:09, the time of the goldens.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_740_837_909)
}

fn render(
    template: &ChatTemplate,
    messages: &Json,
    mut given: Map<String, Json>,
) -> Result<String, TemplateError> {
    let tools = given.remove("tools");
    let mut flag = |name| given.remove(name) == Some(json!(true));
    let (add_generation_prompt, continue_final_message) =
        (flag("add_generation_prompt"), flag("continue_final_message"));
    template.render(&TemplateInput {
        messages: &chat(messages),
        tools: tools.as_ref(),
        add_generation_prompt,
        continue_final_message,
        kwargs: &given,
        now: Some(now()),
    })
}

fn chat(messages: &Json) -> Vec<Arc<Message>> {
    let messages = messages.as_array().unwrap().iter();
    messages.map(|message| Arc::new(message.as_object().unwrap().clone().into())).collect()
}

/// Renders a template over one user message.
fn render_source(source: &str, given: Json) -> Result<String, TemplateError> {
    let template = ChatTemplate::new(source, Some("<s>"), None)?;
    render(&template, &json!([{"role": "user", "content": "Hi"}]), given.as_object().unwrap().clone())
}

#[test]
fn renderings_equal_those_of_transformers() {
    for case in json("templates/goldens.json").as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(fixture(&format!("templates/{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(&source, Some("<s>"), Some("</s>")).unwrap();
        let given = case["given"].as_object().unwrap().clone();
        let what = format!("{name} {:?}", given.keys().collect::<Vec<_>>());
        match (render(&template, &case["messages"], given), case["text"].as_str()) {
            (Ok(text), Some(expected)) => {
                for (line, (ours, theirs)) in text.split('\n').zip(expected.split('\n')).enumerate() {
                    assert_eq!(ours, theirs, "{what}, line {line}");
                }
                assert_eq!(text, expected, "{what}");
            }
            (Err(TemplateError::Raised(message)), None) => assert_eq!(message, case["refused"], "{what}"),
            (Err(TemplateError::CannotContinue(_)), None) => {}
            (result, expected) => panic!("{what}: {result:?}, transformers: {expected:?}"),
        }
    }
}

#[test]
fn expressions_print_as_in_jinja2() {
    let expressions = json("templates/expressions.json");
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]);
    let given = expressions["given"].as_object().unwrap();
    for case in expressions["cases"].as_array().unwrap() {
        let source = case[0].as_str().unwrap();
        let template = ChatTemplate::new(source, Some("<s>"), Some("</s>"));
        let text = template.and_then(|template| render(&template, &messages, given.clone()));
        assert_eq!(text.as_deref().ok(), case[1].as_str(), "{source}: {text:?}");
    }
}

/// A sum that is written at once goes another way than one that is kept first.
#[test]
fn sums_are_texts_or_errors() {
    let given = json!({"a": " b ", "n": 1, "list": ["x"], "none": null, "object": {"k": "v"}});
    for sum in [
        "'x' + a + 'y'",
        "a + 'x' + a",
        "'x' + a | trim + 'y'",
        "'x' + a | trim | upper",
        "'x' + object.k + list[0] + messages[0]['content']",
        "'x' + ('' if n == 1 else a)",
        "'+' + \"'\" + '\\n'",
        "'x' + n",
        "n + n + 'x'",
        "list + list + 'x'",
        "'x' + none",
        "'x' + missing",
        "'x' + object",
        "'x' + list",
        "'x' + (n | string) + 'y'",
        "'x' + a + bos_token",
    ] {
        let at_once = render_source(&format!("[{{{{- {sum} -}}}} ]"), given.clone()).ok();
        let kept = render_source(&format!("{{% set sum = {sum} %}}[{{{{ sum }}}}]"), given.clone()).ok();
        assert_eq!(at_once, kept, "{sum}");
    }
}

#[test]
fn a_missing_token_is_empty_and_a_given_one_wins() {
    assert_eq!(render_source("[{{ bos_token }}|{{ eos_token }}]", json!({})).unwrap(), "[<s>|]");
    assert_eq!(render_source("[{{ bos_token }}]", json!({"bos_token": "<b>"})).unwrap(), "[<b>]");
    // The chat itself cannot be replaced.
    assert_eq!(render_source("{{ messages | length }}", json!({"messages": []})).unwrap(), "1");
}

#[test]
fn failures_tell_what_went_wrong() {
    let failure = |source| render_source(source, json!({})).unwrap_err();
    assert!(matches!(failure("{% if %}"), TemplateError::Syntax(_)));
    assert!(matches!(failure("{{ messages[0].a.b }}"), TemplateError::Undefined(_)));
    assert!(matches!(failure("{{ 1 | nonsense }}"), TemplateError::Render(_)));
    assert!(matches!(failure("{% include 'etc/passwd' %}"), TemplateError::Render(_)));
    assert_eq!(failure("{{ raise_exception('no ' ~ 'way') }}"), TemplateError::Raised("no way".to_owned()));
    let nested =
        "{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{% for x in [1] %}{{ m() }}{% endfor %}";
    assert_eq!(failure(nested), TemplateError::Raised("deep".to_owned()));
    assert_eq!(
        failure("a\n{{ strftime_now('%Q') }}").to_string(),
        "invalid operation: strftime_now does not know %Q (line 2 of the chat template)"
    );
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let failure = |source| render_source(source, json!({})).unwrap_err();
    let lines = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert!(matches!(failure(lines), TemplateError::OutOfFuel(_)));
    let doubling = "{% set ns = namespace(s='0123456789abcdef') %}\
                    {% for a in range(18) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}\
                    {% for a in range(20) %}{{ ns.s }}{% endfor %}";
    assert!(matches!(failure(doubling), TemplateError::TooLong(_)));
    // On a thread with the stack of a worker's.
    let recursion = "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}";
    let result = std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(move || render_source(recursion, json!({})))
        .unwrap()
        .join()
        .unwrap();
    assert!(matches!(result, Err(TemplateError::Render(_) | TemplateError::OutOfFuel(_))), "{result:?}");
}

#[test]
fn a_long_chat_has_the_steps_it_needs() {
    let source = std::fs::read_to_string(fixture("templates/qwen3.jinja")).unwrap();
    let template = ChatTemplate::new(&source, None, None).unwrap();
    let turn = [json!({"role": "user", "content": "Hi"}), json!({"role": "assistant", "content": "Hello"})];
    let messages = Json::Array(turn.iter().cycle().take(4000).cloned().collect());
    assert!(render(&template, &messages, Map::new()).unwrap().len() > 100_000);
}

#[test]
fn there_is_no_time_without_a_clock() {
    let template = ChatTemplate::new("{{ strftime_now('%Y') }}", None, None).unwrap();
    let kwargs = Map::new();
    let input = TemplateInput {
        messages: &[],
        tools: None,
        add_generation_prompt: false,
        continue_final_message: false,
        kwargs: &kwargs,
        now: None,
    };
    assert!(matches!(template.render(&input), Err(TemplateError::Render(_))));
}

#[test]
fn what_templates_rewrite() {
    for (name, expect) in [
        ("chatml", vec![]),
        ("llama3", vec![Rewrite::Date]),
        ("gemma", vec![]),
        ("mistral", vec![]),
        ("qwen3", vec![Rewrite::LastAnswer]),
        ("dates", vec![Rewrite::Date]),
    ] {
        let source = std::fs::read_to_string(fixture(&format!("templates/{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(&source, Some("<s>"), Some("</s>")).unwrap();
        assert_eq!(template.rewrites(), expect, "{name}");
    }
    let counting = "{{ messages | length }}{% for message in messages %}<{{ message.content }}>{% endfor %}";
    let template = ChatTemplate::new(counting, None, None).unwrap();
    assert_eq!(template.rewrites(), [Rewrite::History, Rewrite::LastAnswer]);
    let refusing = ChatTemplate::new("{{ raise_exception('no') }}", None, None).unwrap();
    assert_eq!(refusing.rewrites(), []);
}

//! Whether a template lets a conversation grow: what it wrote of earlier turns must stand when the next one comes.
//!
//! A prefix cache, of tokens or of keys and values, reuses a text up to where it first differs. A few probes show whether a
//! template keeps to that. They prove nothing about every conversation, and nothing relies on them: they say why
//! a model's cache does less than it could.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, json};

use super::{ChatTemplate, Message, TemplateInput};

/// What a template does to a conversation that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrite {
    /// It writes earlier turns differently.
    History,
    /// It writes the last answer differently from how the model gave it: it drops the thinking, or how the answer opened.
    LastAnswer,
    /// It writes what depends on the day.
    Date,
}

impl fmt::Display for Rewrite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::History => {
                "it writes earlier turns differently as a conversation goes on, so each turn is computed again from there"
            }
            Self::LastAnswer => {
                "it writes an answer differently once the next message follows (thinking left out, for example), so each \
                 answer is computed once more"
            }
            Self::Date => "it writes the date, so that caches are of no use on the next day",
        })
    }
}

/// The day of the probes: 2025-03-01.
const DAY: Duration = Duration::from_secs(1_740_837_909);
/// To the next month.
const MONTH: Duration = Duration::from_secs(31 * 24 * 60 * 60);

impl ChatTemplate {
    /// What this template is seen to rewrite, by probes. Empty for one that refuses them.
    pub fn rewrites(&self) -> Vec<Rewrite> {
        let probes = [false, true].map(|thinking| Probe { template: self, thinking });
        let tests = [
            (Rewrite::History, probes.each_ref().map(Probe::rewrites_history)),
            (Rewrite::LastAnswer, probes.each_ref().map(Probe::rewrites_last_answer)),
            (Rewrite::Date, probes.each_ref().map(Probe::writes_the_date)),
        ];
        tests.into_iter().filter(|(_, seen)| seen.contains(&Some(true))).map(|(rewrite, _)| rewrite).collect()
    }
}

/// A conversation of questions and answers, with thinking before the answers or without.
struct Probe<'a> {
    template: &'a ChatTemplate,
    thinking: bool,
}

impl Probe<'_> {
    /// Whether the prompt of the third question differs from that of the second before the end of the second.
    fn rewrites_history(&self) -> Option<bool> {
        let (second, third) = (self.render(3, DAY)?, self.render(5, DAY)?);
        let question = question(2);
        let end = second.rfind(&question)? + question.len();
        Some(!third.starts_with(&second[..end]))
    }

    /// Whether the prompt of the third question begins with the second and its answer.
    fn rewrites_last_answer(&self) -> Option<bool> {
        let (second, answered) = (self.render(3, DAY)?, self.render(4, DAY)?);
        let third = self.render(5, DAY)?;
        Some(!third.starts_with(&second) || !third.starts_with(answered.trim_end()))
    }

    fn writes_the_date(&self) -> Option<bool> {
        Some(self.render(1, DAY)? != self.render(1, DAY + MONTH)?)
    }

    /// The first `count` messages, and the opening of an answer after a question; `None` if the template refuses.
    fn render(&self, count: usize, since_1970: Duration) -> Option<String> {
        let messages = (0..count).map(|index| self.message(index)).collect::<Vec<_>>();
        let input = TemplateInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: count % 2 == 1,
            continue_final_message: false,
            kwargs: &Map::new(),
            now: Some(SystemTime::UNIX_EPOCH + since_1970),
        };
        self.template.render(&input).ok()
    }

    fn message(&self, index: usize) -> Arc<Message> {
        let number = index / 2 + 1;
        let message = match (index % 2, self.thinking) {
            (0, _) => json!({"role": "user", "content": question(number)}),
            (_, false) => json!({"role": "assistant", "content": format!("Answer {number}.")}),
            (_, true) => {
                let thinking = format!("Thought {number}.");
                json!({"role": "assistant", "content": format!("Answer {number}."), "reasoning_content": thinking})
            }
        };
        Arc::new(message.as_object().cloned().unwrap_or_default().into())
    }
}

fn question(number: usize) -> String {
    format!("Question {number}?")
}

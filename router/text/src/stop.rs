//! Stop strings: where a text ends because it says so.
//!
//! A stop string may begin in one token and end inside another, so text that could still become one is held back until
//! the next token tells. The string that is *complete first* wins; of several that are complete at the same character,
//! the longest. That makes the result independent of how the text is cut into tokens.

/// Watches the text of one sequence.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    include_in_output: bool,
    /// The end of the text so far: at least everything that a stop string could begin in.
    tail: String,
    /// How much of `tail` has been given out.
    shown: usize,
    stopped: bool,
}

/// What one piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopStep {
    /// Text that is safe to show now. What could still become a stop string is held back.
    pub text: String,
    /// The stop string that ended the text, if one did. Nothing follows it.
    pub stopped: Option<String>,
}

impl StopStrings {
    /// Watches for `stops`; empty strings among them are ignored. `include_in_output` shows the string that stopped the
    /// text as part of it, as TGI's own API does; OpenAI's leaves it out.
    pub fn new(stops: Vec<String>, include_in_output: bool) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, include_in_output, tail: String::new(), shown: 0, stopped: false }
    }

    /// Takes the next piece of text. After a stop everything is ignored.
    pub fn push(&mut self, text: &str) -> StopStep {
        if self.stopped || text.is_empty() {
            return StopStep::default();
        }
        if self.stops.is_empty() {
            return StopStep { text: text.to_owned(), stopped: None };
        }
        self.tail.push_str(text);
        if let Some((start, stop)) = self.first_match() {
            self.stopped = true;
            let end = if self.include_in_output { start + stop.len() } else { start };
            let text = self.tail[self.shown.min(end)..end].to_owned();
            self.tail.clear();
            return StopStep { text, stopped: Some(stop) };
        }
        let open = self.tail.len() - self.open_length();
        let safe = if self.include_in_output { self.tail.len() } else { open };
        let text = self.tail[self.shown..safe].to_owned();
        self.shown = safe - open;
        self.tail.drain(..open);
        StopStep { text, stopped: None }
    }

    /// The text held back, now that nothing follows. Empty after a stop.
    pub fn finish(&mut self) -> String {
        let text = self.tail[self.shown.min(self.tail.len())..].to_owned();
        self.tail.clear();
        self.shown = 0;
        text
    }

    /// Start and text of the stop string that is complete first in `tail`.
    fn first_match(&self) -> Option<(usize, String)> {
        let matches = self.stops.iter().filter_map(|stop| self.tail.find(stop).map(|start| (start, stop)));
        let (start, stop) = matches.min_by_key(|(start, stop)| (start + stop.len(), *start))?;
        Some((start, stop.clone()))
    }

    /// Bytes at the end of `tail` that could be the beginning of a stop string.
    fn open_length(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0).saturating_sub(1);
        let from = self.tail.len().saturating_sub(longest);
        let starts = (from..self.tail.len()).filter(|&start| self.tail.is_char_boundary(start));
        let mut open = starts.map(|start| &self.tail[start..]);
        open.find(|suffix| self.stops.iter().any(|stop| stop.starts_with(suffix))).map_or(0, str::len)
    }
}

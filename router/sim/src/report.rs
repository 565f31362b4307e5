//! What the users saw.

use std::fmt;

/// One turn, as its user saw it. Times in microseconds.
#[derive(Clone, Debug)]
pub struct TurnRecord {
    /// Whose.
    pub session: usize,
    /// The so-many-th of its session.
    pub turn: usize,
    /// When it came.
    pub arrived_us: u64,
    /// When each token came.
    pub tokens_us: Vec<u64>,
    /// Prompt tokens.
    pub num_prompt_tokens: usize,
    /// How many of them were cached when it was started.
    pub num_cached_tokens: Option<u32>,
}

/// Figures over turns.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Time to first token, in milliseconds: median, 95th percentile.
    pub ttft_ms: (f64, f64),
    /// Time between two tokens of a turn, in milliseconds: median, 99th percentile.
    pub itl_ms: (f64, f64),
    /// Share of the prompt tokens that came from the cache.
    pub hit_rate: f64,
    /// Jain's index of the sessions' mean times to first token: 1 if all wait alike, 1/n if one waits alone.
    pub fairness: f64,
    /// When the last turn ended, in seconds.
    pub makespan_s: f64,
}

impl Report {
    /// Of all `turns` for which `counts`.
    #[must_use]
    pub fn new(turns: &[TurnRecord], counts: impl Fn(&TurnRecord) -> bool) -> Self {
        let turns: Vec<&TurnRecord> = turns.iter().filter(|turn| counts(turn)).collect();
        let ttft = |turn: &TurnRecord| turn.tokens_us[0] - turn.arrived_us;
        let mut ttfts: Vec<u64> = turns.iter().map(|turn| ttft(turn)).collect();
        let gaps =
            |turn: &&TurnRecord| turn.tokens_us.windows(2).map(|two| two[1] - two[0]).collect::<Vec<_>>();
        let mut itls: Vec<u64> = turns.iter().flat_map(gaps).collect();
        let num_prompt: usize = turns.iter().map(|turn| turn.num_prompt_tokens).sum();
        let num_cached: u64 = turns.iter().map(|turn| u64::from(turn.num_cached_tokens.unwrap_or(0))).sum();
        let num_sessions = turns.iter().map(|turn| turn.session + 1).max().unwrap_or(0);
        let mut sums = vec![(0.0, 0.0); num_sessions];
        for turn in &turns {
            let (sum, count) = &mut sums[turn.session];
            *sum += ttft(turn) as f64;
            *count += 1.0;
        }
        let means: Vec<f64> = sums.iter().filter(|(_, n)| *n > 0.0).map(|(sum, n)| sum / n).collect();
        let last = turns.iter().filter_map(|turn| turn.tokens_us.last()).max();
        Self {
            ttft_ms: (percentile(&mut ttfts, 0.5), percentile(&mut ttfts, 0.95)),
            itl_ms: (percentile(&mut itls, 0.5), percentile(&mut itls, 0.99)),
            hit_rate: num_cached as f64 / num_prompt as f64,
            fairness: means.iter().sum::<f64>().powi(2)
                / (means.len() as f64 * means.iter().map(|mean| mean * mean).sum::<f64>()),
            makespan_s: last.copied().unwrap_or(0) as f64 / 1e6,
        }
    }
}

/// In milliseconds.
fn percentile(times_us: &mut [u64], share: f64) -> f64 {
    times_us.sort_unstable();
    let index = ((times_us.len().saturating_sub(1)) as f64 * share) as usize;
    times_us.get(index).copied().unwrap_or(0) as f64 / 1e3
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ttft_ms, itl_ms, hit_rate, fairness, makespan_s } = self;
        write!(
            f,
            "| {:.0} | {:.0} | {:.1} | {:.1} | {:.1} % | {fairness:.2} | {makespan_s:.0} |",
            ttft_ms.0,
            ttft_ms.1,
            itl_ms.0,
            itl_ms.1,
            100.0 * hit_rate,
        )
    }
}

/// The titles of the columns of a printed report.
pub const COLUMNS: &str = "TTFT p50, ms | p95 | ITL p50, ms | p99 | cached | fairness | all done, s";

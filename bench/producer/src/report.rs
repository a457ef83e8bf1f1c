//! The table: the median of the runs, and in brackets the lowest and the highest.

use std::time::Duration;

use crate::load::Told;
use crate::side::Side;

/// One run of one side.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Which side.
    pub side: Side,
    /// How many connections sent.
    pub connections: u32,
    /// What wrk told.
    pub told: Told,
    /// Events in a request.
    pub events: u32,
    /// Processor time of the side's process meanwhile.
    pub processor_time: Duration,
    /// The most memory that it had.
    pub peak_memory_bytes: u64,
}

/// The table of all runs, a line for each side and number of connections.
pub fn table(runs: &[Run], connections: &[u32], sides: &[Side]) -> String {
    let mut text = "| connections | side | events/s | p50 ms | p99 ms | CPU µs/event | peak MB |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    for number in connections {
        for side in sides {
            let same: Vec<&Run> =
                runs.iter().filter(|run| run.connections == *number && run.side == *side).collect();
            let column = |value: fn(&Run) -> f64, decimals| {
                spread(same.iter().map(|run| value(run)).collect(), decimals)
            };
            text.push_str(&format!(
                "| {number} | {} | {} | {} | {} | {} | {} |\n",
                side.title(),
                column(|run| run.rate(), 0),
                column(|run| run.told.p50.as_secs_f64() * 1e3, 2),
                column(|run| run.told.p99.as_secs_f64() * 1e3, 2),
                column(|run| run.processor_time.as_secs_f64() * 1e6 / run.sent(), 1),
                column(|run| run.peak_memory_bytes as f64 / 1e6, 0),
            ));
        }
    }
    text
}

impl Run {
    fn sent(&self) -> f64 {
        self.told.requests as f64 * f64::from(self.events)
    }

    /// Events a second.
    pub fn rate(&self) -> f64 {
        self.sent() / self.told.time.as_secs_f64()
    }
}

fn spread(mut values: Vec<f64>, decimals: usize) -> String {
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(low), Some(middle), Some(high)) => {
            format!("{middle:.decimals$} ({low:.decimals$} to {high:.decimals$})")
        }
        _ => "not measured".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_before_the_ends() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0], 1), "2.0 (1.0 to 3.0)");
        assert_eq!(spread(Vec::new(), 1), "not measured");
    }
}

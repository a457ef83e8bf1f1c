//! The results as Markdown.

use std::fmt::Write;

use crate::drain::Drain;
use crate::side::Side;
use crate::statistics::Spread;
use crate::workload::Workload;

/// All drains of one side and one workload.
#[derive(Debug)]
pub struct Series {
    /// What was drained.
    pub workload: Workload,
    /// By whom.
    pub side: Side,
    /// One for each run.
    pub drains: Vec<Drain>,
}

impl Series {
    fn spread(&self, value: impl Fn(&Drain) -> f64) -> Option<Spread> {
        Spread::of(self.drains.iter().map(value))
    }

    fn median(&self, value: impl Fn(&Drain) -> f64) -> f64 {
        self.spread(value).map_or(f64::NAN, |spread| spread.median)
    }

    fn is_bare(&self) -> bool {
        matches!(self.side, Side::Bare { .. })
    }
}

/// The table: the median of all runs, and in parentheses the lowest and the highest.
pub fn table(series: &[Series]) -> String {
    let mut text = "| workload | side | records/s | CPU µs a record | peak memory, MB | whole, s |\n\
                    |---|---|--:|--:|--:|--:|\n"
        .to_owned();
    for one in series {
        let (workload, side) = (one.workload.text(), one.side.title());
        let rate = cell(one.spread(Drain::rate), 0);
        let processor = cell(one.spread(Drain::processor_us), 1);
        let (memory, whole) = if one.is_bare() {
            // It holds the whole topic, and reading that is no part of the measurement.
            ("–".to_owned(), "–".to_owned())
        } else {
            (cell(one.spread(megabytes), 0), cell(one.spread(|drain| drain.whole.as_secs_f64()), 1))
        };
        _ = writeln!(text, "| {workload} | {side} | {rate} | {processor} | {memory} | {whole} |");
    }
    text
}

/// How the consumer compares to each other side, by the medians.
pub fn comparison(series: &[Series]) -> String {
    let mut text = String::new();
    for ours in series.iter().filter(|one| one.side == Side::Slipstream) {
        let others =
            series.iter().filter(|one| one.workload == ours.workload && one.side != Side::Slipstream);
        let (bare, others): (Vec<&Series>, Vec<&Series>) = others.partition(|one| one.is_bare());
        let best = bare
            .into_iter()
            .max_by(|one, other| one.median(Drain::rate).total_cmp(&other.median(Drain::rate)));
        for other in best.into_iter().chain(others) {
            _ = writeln!(text, "- {}: {}", ours.workload.text(), against(ours, other));
        }
    }
    text
}

fn against(ours: &Series, other: &Series) -> String {
    let ratio = |value: fn(&Drain) -> f64| ours.median(value) / other.median(value);
    let title = other.side.title();
    if other.side == Side::Deletes {
        return format!("{title} has {:.2} of the rate without deletes", 1.0 / ratio(Drain::rate));
    }
    if other.is_bare() {
        return format!("{:.0} % of the rate of {title}", 100.0 * ratio(Drain::rate));
    }
    format!(
        "{:.1} times the rate of {title}, {:.2} of its CPU a record, {:.2} of its memory",
        ratio(Drain::rate),
        ratio(Drain::processor_us),
        ratio(megabytes)
    )
}

fn megabytes(drain: &Drain) -> f64 {
    drain.peak_memory_bytes as f64 / 1e6
}

fn cell(spread: Option<Spread>, digits: usize) -> String {
    let Some(Spread { median, min, max }) = spread else { return "–".to_owned() };
    format!("{} ({}–{})", number(median, digits), number(min, digits), number(max, digits))
}

/// With a comma between thousands.
fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) =
        text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (position, digit) in whole.chars().enumerate() {
        if position > 0 && (whole.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    rest.map_or_else(|| grouped.clone(), |rest| format!("{grouped}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Method;
    use std::time::Duration;

    fn series(side: Side, seconds: [u64; 3]) -> Series {
        let drain = |seconds| Drain {
            records: 30_000,
            clock: Duration::from_secs(seconds),
            whole: Duration::from_secs(seconds + 1),
            processor: Duration::from_millis(300),
            peak_memory_bytes: 20_000_000,
        };
        Series { workload: Workload::New, side, drains: seconds.map(drain).into() }
    }

    #[test]
    fn a_row_has_the_median_and_the_ends() {
        let text = table(&[series(Side::Slipstream, [3, 1, 2])]);
        let row =
            "| new | slipstream | 15,000 (10,000–30,000) | 10.0 (10.0–10.0) | 20 (20–20) | 3.0 (2.0–4.0) |\n";
        assert!(text.ends_with(row), "{text}");
    }

    #[test]
    fn ours_is_compared_with_the_best_of_the_bare_clients_and_with_each_other_side() {
        let bare = |connections| Side::Bare { method: Method::Insert, connections };
        let text = comparison(&[
            series(Side::Slipstream, [2, 2, 2]),
            series(bare(1), [4, 4, 4]),
            series(bare(6), [1, 1, 1]),
            series(Side::Original, [20, 20, 20]),
        ]);
        let expected = "- new: 50 % of the rate of bare insert, 6 connections\n\
                        - new: 10.0 times the rate of original, 1.00 of its CPU a record, 1.00 of its memory\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!((number(999.4, 0), number(1_234_567.0, 0)), ("999".into(), "1,234,567".into()));
        assert_eq!(number(1234.56, 1), "1,234.6");
    }
}

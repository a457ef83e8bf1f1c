//! What the kernel knows of this process, under the names that every Prometheus client gives it: `process_cpu_seconds_total`,
//! `process_resident_memory_bytes`, `process_open_fds`, `process_start_time_seconds`. Read from `/proc` when metrics are
//! asked for; a system without it shows none of them, and never a wrong one.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// Linux tells times in these, whatever its own clock's rate is.
const TICKS_PER_SECOND: f64 = 100.0;

/// A registry of its own, because these names carry no prefix.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process));
    registry
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let times = read("/proc/self/stat").as_deref().and_then(Times::of);
        if let Some(times) = &times {
            let cpu = ConstCounter::new(times.cpu_seconds);
            let help = "User and system time of this process";
            let unit = Some(&Unit::Seconds);
            cpu.encode(encoder.encode_descriptor("process_cpu", help, unit, cpu.metric_type())?)?;
        }
        let boot = read("/proc/stat").as_deref().and_then(boot_seconds);
        let start = times.zip(boot).map(|(times, boot)| boot + times.started_seconds);
        let memory = read("/proc/self/status").as_deref().and_then(resident_bytes);
        for (name, help, unit, value) in [
            (
                "process_start_time",
                "When this process started, in epoch seconds",
                Some(&Unit::Seconds),
                start,
            ),
            ("process_resident_memory", "Memory of this process in RAM", Some(&Unit::Bytes), memory),
            ("process_open_fds", "Open file descriptors of this process", None, open_files()),
        ] {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// From `/proc/self/stat`.
struct Times {
    cpu_seconds: f64,
    /// Since the machine's start.
    started_seconds: f64,
}

impl Times {
    fn of(stat: &str) -> Option<Self> {
        // The second field is the program's name, which may hold anything, also spaces and brackets.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // Numbered from 1 in proc(5); the first here is the third there.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
            started_seconds: field(22)? / TICKS_PER_SECOND,
        })
    }
}

fn boot_seconds(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn resident_bytes(status: &str) -> Option<f64> {
    let told = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = told.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

/// Without the one that reads the folder.
fn open_files() -> Option<f64> {
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as f64 - 1.0).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_name_with_brackets_and_spaces_confuses_nothing() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 900 0 0 0 150 50 0 0 20 0 9 0 12345 1000 20 18446744";
        let times = Times::of(stat).unwrap();
        assert_eq!((times.cpu_seconds, times.started_seconds), (2.0, 123.45));
        assert!(Times::of("7 (cut) S 1 7").is_none() && Times::of("").is_none());
    }

    #[test]
    fn memory_and_the_machine_s_start_are_found_among_the_other_lines() {
        assert_eq!(resident_bytes("VmHWM:\t   90 kB\nVmRSS:\t      20 kB\n"), Some(20_480.0));
        assert_eq!(resident_bytes("Name:\tkernel thread\n"), None);
        assert_eq!(boot_seconds("cpu 1 2 3\nbtime 1730000000\nprocesses 5\n"), Some(1_730_000_000.0));
    }
}

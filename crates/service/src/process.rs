//! This process as the kernel sees it: its metrics from `/proc`, and its limit of open files.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// Clock ticks per second in `/proc` (`USER_HZ`). It is 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Raises the soft limit of open files to the hard limit. Returns the number of files, sockets
/// included, that may be open now.
///
/// Most systems set the soft limit for programs that use `select`. Slipstream does not use it.
pub fn raise_open_files_limit() -> u64 {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard,
            Err(error) => {
                tracing::warn!(%error, soft, hard, "limit of open files cannot be raised");
                soft
            }
        },
        Ok((soft, _)) => soft,
        // Every supported system has this limit.
        Err(_) => u64::MAX,
    }
}

/// The metrics `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_open_fds` and
/// `process_start_time_seconds`, as every Prometheus client names them.
///
/// They have a registry of their own because their names have no prefix. A value that `/proc` does
/// not have is left out.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessCollector));
    registry
}

#[derive(Debug)]
struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let times = read("/proc/self/stat").as_deref().and_then(Times::parse);
        if let Some(times) = &times {
            let cpu = ConstCounter::new(times.cpu_seconds);
            let help = "User and system CPU time of this process";
            let unit = Some(&Unit::Seconds);
            cpu.encode(encoder.encode_descriptor("process_cpu", help, unit, cpu.metric_type())?)?;
        }
        let boot = read("/proc/stat").as_deref().and_then(boot_seconds);
        let start = times.zip(boot).map(|(times, boot)| boot + times.started_seconds);
        let memory = read("/proc/self/status").as_deref().and_then(resident_bytes);
        for (name, help, unit, value) in [
            (
                "process_start_time",
                "Start time of this process in epoch seconds",
                Some(&Unit::Seconds),
                start,
            ),
            ("process_resident_memory", "Resident memory of this process", Some(&Unit::Bytes), memory),
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

/// Times from `/proc/self/stat`.
struct Times {
    cpu_seconds: f64,
    /// Seconds from the boot of the machine to the start of the process.
    started_seconds: f64,
}

impl Times {
    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program name, which can contain spaces and brackets.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // proc(5) numbers the fields from 1. `fields` starts at the third.
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
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

/// The count leaves out the descriptor that reads the directory.
fn open_files() -> Option<f64> {
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as f64 - 1.0).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raising_the_limit_sets_the_soft_limit_to_the_hard_limit() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(512), hard).unwrap();
        assert_eq!(raise_open_files_limit(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((hard, hard)));
        assert_eq!(raise_open_files_limit(), hard);
    }

    #[test]
    fn a_program_name_with_brackets_and_spaces_is_parsed() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 900 0 0 0 150 50 0 0 20 0 9 0 12345 1000 20 18446744";
        let times = Times::parse(stat).unwrap();
        assert_eq!((times.cpu_seconds, times.started_seconds), (2.0, 123.45));
        assert!(Times::parse("7 (cut) S 1 7").is_none() && Times::parse("").is_none());
    }

    #[test]
    fn memory_and_boot_time_are_found_among_other_lines() {
        assert_eq!(resident_bytes("VmHWM:\t   90 kB\nVmRSS:\t      20 kB\n"), Some(20_480.0));
        assert_eq!(resident_bytes("Name:\tkernel thread\n"), None);
        assert_eq!(boot_seconds("cpu 1 2 3\nbtime 1730000000\nprocesses 5\n"), Some(1_730_000_000.0));
    }
}

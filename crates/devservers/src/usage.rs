//! CPU time and memory of a process, from `/proc`.

use std::io;
use std::time::Duration;

/// The kernel reports times in hundredths of a second (USER_HZ).
const TICK: Duration = Duration::from_millis(10);

/// The user and system time of all threads of a process.
pub fn processor_time(pid: u32) -> io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&stat).ok_or_else(|| io::Error::other("the kernel's line about a process is not understood"))
}

/// The name is in parentheses and can contain parentheses. User and system time are the 12th and
/// 13th field after it.
fn parse_stat(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(TICK * (user + system))
}

/// The maximum resident memory of a process in bytes (VmHWM).
pub fn peak_memory_bytes(pid: u32) -> io::Result<u64> {
    memory_bytes(pid, "VmHWM:")
}

/// The resident memory of a process in bytes (VmRSS).
pub fn resident_bytes(pid: u32) -> io::Result<u64> {
    memory_bytes(pid, "VmRSS:")
}

fn memory_bytes(pid: u32, name: &str) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse_status(&status, name).ok_or_else(|| io::Error::other("the kernel does not tell a process' memory"))
}

fn parse_status(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_found_behind_any_name() {
        let stat = "1 (a) b (c) S 0 1 1 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 1 0 9 10 11";
        assert_eq!(parse_stat(stat), Some(Duration::from_secs(2)));
        assert_eq!(parse_stat("1 (a) S"), None);
        assert_eq!(parse_status("VmPeak:\t 9 kB\nVmHWM:\t   12 kB\n", "VmHWM:"), Some(12_288));
    }

    #[test]
    fn this_process_has_used_something() {
        assert!(peak_memory_bytes(std::process::id()).unwrap() > 1_000_000);
        assert!(resident_bytes(std::process::id()).unwrap() > 1_000_000);
        processor_time(std::process::id()).unwrap();
    }
}

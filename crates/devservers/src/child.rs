//! A child process that never outlives its parent. It is killed when the value is dropped, when
//! this process ends, and when this process is killed (by the kernel, on Linux).
//!
//! Each child has a thread that starts it and then waits for it. The kernel ties a child to the
//! *thread* that started it, so that thread must live as long as the child. It reaps under the same
//! lock under which signals are sent: no signal can ever reach another process that got the child's
//! number.
//!
//! Also here: the log of a child, and the CPU time and memory of any process.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::watch;

/// Maximum time until all threads of a paused process have stopped.
const PAUSED_WITHIN: Duration = Duration::from_secs(5);

/// A running process in its own process group, so that Ctrl-C in the terminal reaches only the
/// parent.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    end: Arc<End>,
    ended: watch::Receiver<Option<ExitStatus>>,
    keeper: Option<JoinHandle<()>>,
}

/// The exit status. Signals are sent, and the process is reaped, only under this lock.
#[derive(Debug, Default)]
struct End {
    status: Mutex<Option<ExitStatus>>,
    over: Condvar,
}

/// Locks a mutex, even if it is poisoned.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Child {
    /// Starts the command and appends its output to `log`.
    pub fn start(mut command: Command, log: &Path) -> io::Result<Child> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        die_with_parent(&mut command);
        let (started, starting) = sync_channel(1);
        let (tell, ended) = watch::channel(None);
        let end = Arc::new(End::default());
        let shared = Arc::clone(&end);
        let name = "child-keeper".to_owned();
        let keeper =
            std::thread::Builder::new().name(name).spawn(move || keep(command, &started, &shared, &tell))?;
        // Not awaited: a caller that is dropped meanwhile must not leave a child behind.
        let pid = starting.recv().map_err(io::Error::other)??;
        Ok(Child { pid, end, ended, keeper: Some(keeper) })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Waits until the process has ended.
    pub async fn ended(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_default(),
            // The thread sends the status before it ends, so this branch is never taken.
            Err(_) => ExitStatus::default(),
        }
    }

    /// The exit status; `None` while the process runs.
    pub fn status(&self) -> Option<ExitStatus> {
        *lock(&self.end.status)
    }

    /// Sends SIGTERM, and SIGKILL after `grace`.
    pub async fn stop(&self, grace: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.signal(Signal::SIGCONT);
        if let Ok(status) = tokio::time::timeout(grace, self.ended()).await {
            return status;
        }
        self.signal(Signal::SIGKILL);
        self.ended().await
    }

    /// Sends SIGKILL and waits until the process has ended.
    pub async fn kill(&self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        self.ended().await
    }

    /// Sends SIGKILL and blocks this thread until the process has ended, which takes a moment.
    pub fn kill_now(&self) {
        self.signal(Signal::SIGKILL);
        let reaped = lock(&self.end.status);
        drop(
            self.end
                .over
                .wait_while(reaped, |status| status.is_none())
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Pauses it with SIGSTOP: connections stay open without responses.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        // Each thread stops independently, and on a busy machine not at once.
        let deadline = Instant::now() + PAUSED_WITHIN;
        while !self.stands_still() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }

    /// Whether each thread has stopped, according to `/proc`.
    fn stands_still(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid)) else { return false };
        let state = |stat: String| stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('T'));
        let mut states = threads.flatten().map(|thread| std::fs::read_to_string(thread.path().join("stat")));
        states.all(|stat| stat.ok().and_then(state).unwrap_or(true))
    }

    /// Resumes it with SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends a signal unless the process has ended.
    pub fn signal(&self, signal: Signal) {
        let status = lock(&self.end.status);
        if status.is_none()
            && let Err(error) = kill(self.pid, signal)
        {
            tracing::warn!(pid = self.pid.as_raw(), %signal, %error, "signal not sent");
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill_now();
        if let Some(keeper) = self.keeper.take() {
            // The thread cannot panic; if it did, nothing would be left to do.
            drop(keeper.join());
        }
    }
}

/// The thread of a child: starts it, waits for it, reaps it, and sends its status.
fn keep(
    mut command: Command,
    started: &SyncSender<io::Result<Pid>>,
    end: &End,
    tell: &watch::Sender<Option<ExitStatus>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return drop(started.send(Err(error))),
    };
    let pid = Pid::from_raw(child.id().cast_signed());
    drop(started.send(Ok(pid)));
    // Waits without reaping, so that the process id stays in use until the lock is held.
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {
    }
    let mut status = lock(&end.status);
    *status = Some(child.wait().unwrap_or_default());
    tell.send_replace(*status);
    end.over.notify_all();
}

/// Makes the kernel kill the child when the thread that started it ends.
#[expect(unsafe_code, reason = "only a hook between fork and exec can ask the kernel for this")]
fn die_with_parent(command: &mut Command) {
    let parent = Pid::this();
    let hook = move || {
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have ended before the call above.
        if Pid::parent() == parent { Ok(()) } else { Err(io::Error::from(nix::errno::Errno::ESRCH)) }
    };
    // SAFETY: the hook only makes two system calls, neither allocates nor takes a lock.
    unsafe { command.pre_exec(hook) };
}

/// Maximum number of lines in an error.
const EXCERPT_LINES: usize = 20;
/// Number of bytes at the end of the log from which they are taken.
const EXCERPT_BYTES: u64 = 1024 * 1024;
/// The first line with one of these words is more useful than the last lines, which are about the
/// shutdown.
const TROUBLE: [&str; 3] = ["ERROR", "FATAL", "Exception"];

/// A log file, from its end when this value was created.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    path: PathBuf,
    start: u64,
    read: u64,
}

impl Log {
    pub(crate) fn at_end_of(path: &Path) -> Log {
        let start = path.metadata().map_or(0, |meta| meta.len());
        Log { path: path.to_owned(), start, read: start }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The complete lines since the last call.
    pub(crate) fn new_lines(&mut self) -> Vec<String> {
        let text = self.text_from(self.read);
        let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        self.read += end as u64 + 1;
        String::from_utf8_lossy(&text[..end]).lines().map(str::to_owned).collect()
    }

    /// The lines from the first error on, or the last lines.
    pub(crate) fn excerpt(&self) -> String {
        let length = self.path.metadata().map_or(0, |meta| meta.len());
        let text = self.text_from(self.start.max(length.saturating_sub(EXCERPT_BYTES)));
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.trim_end().lines().collect();
        let trouble = lines.iter().position(|line| TROUBLE.iter().any(|word| line.contains(word)));
        let start = trouble.unwrap_or(lines.len().saturating_sub(EXCERPT_LINES));
        lines[start..lines.len().min(start + EXCERPT_LINES)].join("\n")
    }

    fn text_from(&self, offset: u64) -> Vec<u8> {
        let mut text = Vec::new();
        // A log that cannot be read counts as empty: it is shown only beside another error.
        let file = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.read_to_end(&mut text)
        });
        if let Err(error) = file {
            tracing::debug!(log = %self.path.display(), %error, "log not read");
        }
        text
    }
}

/// The kernel reports times in hundredths of a second (USER_HZ).
const TICK: Duration = Duration::from_millis(10);

/// The user and system time of all threads of a process, from `/proc`.
pub fn processor_time(pid: u32) -> io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&stat).ok_or_else(|| io::Error::other("/proc/PID/stat cannot be parsed"))
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
    parse_status(&status, name).ok_or_else(|| io::Error::other("/proc/PID/status has no such line"))
}

fn parse_status(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn sleeper(folder: &Path) -> Child {
        let mut command = Command::new("sleep");
        command.arg("600");
        Child::start(command, &folder.join("log")).unwrap()
    }

    #[tokio::test]
    async fn a_missing_program_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Command::new(folder.path().join("missing"));
        let error = Child::start(missing, &folder.path().join("log")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_paused_child_can_be_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let child = sleeper(folder.path());
        child.pause();
        assert_eq!(child.status(), None);
        assert_eq!(child.stop(Duration::from_secs(10)).await.signal(), Some(Signal::SIGTERM as i32));
        assert!(child.status().is_some());
    }

    #[tokio::test]
    async fn a_child_that_ignores_the_request_is_killed_after_its_grace_period() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]);
        let child = Child::start(command, &log).unwrap();
        let ready = async {
            while std::fs::read(&log).unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), ready).await.unwrap();
        assert_eq!(child.stop(Duration::from_millis(100)).await.signal(), Some(Signal::SIGKILL as i32));
    }

    #[tokio::test]
    async fn a_dropped_child_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let child = sleeper(folder.path());
        let pid = child.pid;
        drop(child);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }

    #[test]
    fn only_whole_new_lines_are_told_and_only_once() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "old").unwrap();
        let mut log = Log::at_end_of(file.path());
        write!(file, "one\ntwo\nhal").unwrap();
        assert_eq!(log.new_lines(), ["one", "two"]);
        writeln!(file, "f").unwrap();
        assert_eq!(log.new_lines(), ["half"]);
        assert_eq!(log.new_lines(), [""; 0]);
        assert_eq!(log.excerpt(), "one\ntwo\nhalf");
    }

    #[test]
    fn an_excerpt_starts_at_the_trouble_however_much_comes_after_it() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let log = Log::at_end_of(file.path());
        write!(file, "fine\nERROR no space\n{}", "shutting down\n".repeat(100)).unwrap();
        assert!(log.excerpt().starts_with("ERROR no space\nshutting down\n"), "{}", log.excerpt());
        assert_eq!(log.excerpt().lines().count(), EXCERPT_LINES);
    }

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

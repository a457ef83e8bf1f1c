//! Load by wrk, which costs the machine little besides what it measures: each connection sends a request, waits for the
//! answer, and sends the next. An answer that is not 202 fails the measurement.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::Failure;
use crate::side::Side;

/// About as large as an aircraft of ADSBDB.
const EVENT: &str = r#"{"source":"adsbdb","payload":{"type":"737 MAX 8","icao_type":"B38M","manufacturer":"Boeing","mode_s":"7823C4","registration":"B-228M","registered_owner_country_iso_name":"CN","registered_owner_country_name":"China","registered_owner_operator_flag_code":"CSN","registered_owner":"China Southern Airlines","url_photo":null,"url_photo_thumbnail":null}}"#;

/// An aircraft with 20 fields, for the comparison of envelope and sources.
const RECORD: &str = r#"{"type":"737 MAX 8","icao_type":"B38M","manufacturer":"Boeing","mode_s":"7823C4","registration":"B-228M","registered_owner_country_iso_name":"CN","registered_owner_country_name":"China","registered_owner_operator_flag_code":"CSN","registered_owner":"China Southern Airlines","url_photo":null,"url_photo_thumbnail":null,"lat":50.19,"lon":6.15,"altitude":9639.3,"on_ground":false,"speed":232.9,"heading":98.3,"climb":4.5,"squawk":"1000","seen":1795898399123}"#;

/// Gives each request an id of its own: records of one id share a partition.
const DISTINCT_IDS: &str = "local n, template = 0, wrk.body\nfunction request()\n  n = n + 1\n  return wrk.format(nil, nil, nil, \
                            (template:gsub(\"7823C4\", string.format(\"%06X\", n % 16777216))))\nend\n";

/// What is sent, as the script that wrk wants.
#[derive(Clone, Debug)]
pub struct Load {
    script: PathBuf,
    path: String,
    /// Events in each request.
    pub events: u32,
}

/// What one measurement told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    /// Requests answered within the time.
    pub requests: u64,
    /// The time.
    pub time: Duration,
    /// Half of the answers came within this.
    pub p50: Duration,
    /// And 99 of 100 within this.
    pub p99: Duration,
}

impl Load {
    /// The requests for a side: one event a request, or so many in a batch.
    pub fn write(folder: &Path, side: Side, batch: Option<u32>) -> Result<Load, Failure> {
        let event = match side {
            Side::Slipstream | Side::Minimal { .. } | Side::Original => EVENT.to_owned(),
            Side::Envelope => format!(
                r#"{{"id":"7823C4","timestamp":1795898399123,"source":"pointers","payload":{RECORD}}}"#
            ),
            Side::Source(_) => RECORD.to_owned(),
        };
        let endpoint = match side {
            Side::Source(mapping) => format!("/ingest/{}", mapping.source()),
            _ => "/ingest".to_owned(),
        };
        let (path, kind, body) = match batch {
            None => (endpoint, "application/json", event),
            Some(events) => {
                let body = format!("{event}\n").repeat(events as usize);
                (format!("{endpoint}/batch"), "application/x-ndjson", body)
            }
        };
        let body_file = folder.join("body");
        std::fs::write(&body_file, body)?;
        let script = folder.join("load.lua");
        let ids = if matches!(side, Side::Envelope | Side::Source(_)) { DISTINCT_IDS } else { "" };
        let text = format!(
            "wrk.method = \"POST\"\nwrk.headers[\"Content-Type\"] = \"{kind}\"\n\
             wrk.body = io.open({body_file:?}, \"rb\"):read(\"*a\")\n\
             {ids}\
             function done(summary, latency)\n  local e = summary.errors\n  \
             io.write(string.format(\"TOLD %d %d %d %d %d\\n\", summary.requests, summary.duration, \
             latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))\n\
             end\n"
        );
        std::fs::write(&script, text)?;
        Ok(Load { script, path, events: batch.unwrap_or(1) })
    }

    /// Sends to `address` over `connections` for `seconds`.
    pub async fn send(&self, address: SocketAddr, connections: u32, seconds: u32) -> Result<Told, Failure> {
        let mut wrk = Command::new("wrk");
        wrk.args(["--threads", "1", "--timeout", "20s", "--connections", &connections.to_string()]);
        wrk.args(["--duration", &format!("{seconds}s"), "--script"]).arg(&self.script);
        wrk.arg(format!("http://{address}{}", self.path)).kill_on_drop(true);
        let output = wrk.output().await.map_err(|error| format!("wrk (Debian's package wrk): {error}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        parse(&said).ok_or_else(|| format!("wrk: {said}{}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// `None` too if a request failed.
fn parse(said: &str) -> Option<Told> {
    let line = said.lines().find_map(|line| line.strip_prefix("TOLD "))?;
    let fields: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [requests, time, p50, p99, 0] = fields[..] else { return None };
    let microseconds = Duration::from_micros;
    Some(Told { requests, time: microseconds(time), p50: microseconds(p50), p99: microseconds(p99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_with_a_failed_request_tells_nothing() {
        let told = parse("Running 8s test\nTOLD 800 8000000 2500 9000 0\n").unwrap();
        assert_eq!((told.requests, told.time), (800, Duration::from_secs(8)));
        assert_eq!((told.p50, told.p99), (Duration::from_micros(2500), Duration::from_millis(9)));
        assert_eq!(parse("TOLD 800 8000000 2500 9000 1\n"), None);
        assert_eq!(parse("unable to connect\n"), None);
    }
}

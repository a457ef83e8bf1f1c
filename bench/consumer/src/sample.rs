//! 16,677 real aircraft, as the text in which ADSBDB would send them.

use std::io::Read;

use events::{EventId, Payload};
use flate2::read::GzDecoder;

use crate::Failure;

/// One JSON object a line; where it comes from is in README.md beside it.
const LINES: &[u8] = include_bytes!("../sample/aircraft.jsonl.gz");

/// One aircraft.
#[derive(Debug, Clone)]
pub struct Aircraft {
    /// Its `mode_s`, different for each.
    pub id: EventId,
    /// All of it.
    pub payload: Payload,
}

/// All aircraft, in an order that has nothing to do with their ids but is the same each time.
pub fn aircraft() -> Result<Vec<Aircraft>, Failure> {
    let mut text = String::new();
    GzDecoder::new(LINES).read_to_string(&mut text)?;
    let parse = |line: &str| {
        let payload =
            Payload::parse(line).map_err(|faults| format!("an aircraft is no payload: {faults:?}"))?;
        let id = events::aircraft_id(&payload).ok_or("an aircraft has no id")?;
        Ok::<_, Failure>(Aircraft { id, payload })
    };
    let mut aircraft = text.lines().map(parse).collect::<Result<Vec<_>, _>>()?;
    fastrand::Rng::with_seed(7).shuffle(&mut aircraft);
    Ok(aircraft)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_aircraft_has_an_id_of_its_own() {
        let aircraft = aircraft().unwrap();
        let ids: HashSet<&str> = aircraft.iter().map(|one| one.id.as_str()).collect();
        assert_eq!((aircraft.len(), ids.len()), (16_677, 16_677));
    }
}

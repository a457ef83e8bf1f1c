//! 1,000 real aircraft as texts, as ADSBDB sends them.

use std::collections::HashMap;
use std::io::{self, Read};

use flate2::read::GzDecoder;
use serde_json::Value;

/// One JSON object per line. README.md in this folder names the source.
const LINES: &[u8] = include_bytes!("../../sample/aircraft.jsonl.gz");

#[derive(Debug)]
pub(super) struct Sample {
    aircraft: Vec<String>,
    /// Index by mode_s and by registration, in upper case.
    index: HashMap<String, usize>,
}

impl Sample {
    pub(super) fn load() -> io::Result<Sample> {
        let mut text = String::new();
        GzDecoder::new(LINES).read_to_string(&mut text)?;
        let aircraft: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut index = HashMap::with_capacity(2 * aircraft.len());
        for (position, line) in aircraft.iter().enumerate() {
            let fields: Value = serde_json::from_str(line)?;
            for name in ["mode_s", "registration"] {
                if let Some(id) = fields[name].as_str() {
                    index.insert(id.to_ascii_uppercase(), position);
                }
            }
        }
        Ok(Sample { aircraft, index })
    }

    pub(super) fn random(&self) -> Option<&str> {
        fastrand::choice(&self.aircraft).map(String::as_str)
    }

    /// The aircraft with this mode_s or registration, ignoring case.
    pub(super) fn find(&self, id: &str) -> Option<&str> {
        self.index.get(&id.to_ascii_uppercase()).map(|position| self.aircraft[*position].as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: [&str; 11] = [
        "type",
        "icao_type",
        "manufacturer",
        "mode_s",
        "registration",
        "registered_owner_country_iso_name",
        "registered_owner_country_name",
        "registered_owner_operator_flag_code",
        "registered_owner",
        "url_photo",
        "url_photo_thumbnail",
    ];

    #[test]
    fn every_aircraft_has_the_eleven_fields_and_only_three_are_ever_null() {
        let sample = Sample::load().unwrap();
        assert_eq!(sample.aircraft.len(), 1000);
        for line in &sample.aircraft {
            let fields: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
            assert_eq!(fields.len(), FIELDS.len(), "{line}");
            for name in FIELDS {
                let nullable = name.starts_with("url_photo") || name.ends_with("_flag_code");
                assert!(fields[name].is_string() || nullable && fields[name].is_null(), "{name} of {line}");
            }
        }
    }

    #[test]
    fn an_aircraft_is_found_by_either_name_in_either_case() {
        let sample = Sample::load().unwrap();
        let line = sample.find("00800a").unwrap();
        assert!(
            line.contains("\"mode_s\":\"00800A\"") && line.contains("\"registration\":\"ZS-ZEN\""),
            "{line}"
        );
        assert_eq!(sample.find("zs-zen"), Some(line));
        assert_eq!(sample.find("nothing"), None);
    }
}

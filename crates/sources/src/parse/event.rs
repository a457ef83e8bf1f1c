//! The fields below `event`.

use events::Unit;

use super::{Parser, flat};
use crate::config::{EventMapping, PayloadRule};
use crate::filter::Filter;
use crate::id::{IdCandidate, IdRule};
use crate::place::Place;
use crate::pointer::Pointer;
use crate::reader::{At, Report};
use crate::time::{TimeForm, TimeRule, check_pattern, parse_zone};

const ID_FIELDS: [&str; 6] = ["from", "first", "join", "with", "answer", "else"];
const TIME_FIELDS: [&str; 7] = ["from", "first", "answer", "unit", "format", "zone", "else"];
/// Maximum number of places in a list.
const MAX_PLACES: usize = 16;
const PLACE: &str = "a JSON Pointer such as /id, a jq filter, or $key";

impl Parser<'_> {
    pub(super) fn event(&mut self, at: &At<'_>) -> Option<EventMapping> {
        let fields = at.fields(&mut self.report, &["id", "timestamp", "payload"], &[])?;
        let id = fields.required(&mut self.report, "id").and_then(|at| self.id(&at));
        let timestamp = fields.get("timestamp").map(|at| self.timestamp(&at));
        let payload = fields.get("payload").map(|at| at.parsed(&mut self.report, payload));
        Some(EventMapping {
            id: id?,
            timestamp: flat(timestamp)?.unwrap_or_else(TimeRule::now),
            payload: flat(payload)?.unwrap_or(PayloadRule::Record),
        })
    }

    fn id(&mut self, at: &At<'_>) -> Option<IdRule> {
        let mut rule = IdRule { candidates: Vec::new(), else_uuid: false };
        if at.is_list() {
            self.candidates(at, &mut rule)?;
            return Some(rule);
        }
        if !at.is_map() {
            rule.candidates.push(IdCandidate::One(place(at, &mut self.report)?));
            return Some(rule);
        }
        let fields = at.fields(&mut self.report, &ID_FIELDS, &[])?;
        let else_uuid = fields.get("else").map(|at| self.alternative(&at, "uuid"));
        rule.else_uuid = matches!(else_uuid, Some(Some(true)));
        if fields.get("join").is_none()
            && let Some(with) = fields.get("with")
        {
            with.fault(&mut self.report, "`with` stands beside `join`");
        }
        let names = ["from", "first", "join", "answer"];
        if rule.else_uuid && names.iter().all(|name| fields.get(name).is_none()) {
            // Each record is an event of its own.
            return Some(rule);
        }
        match fields.one_of(&mut self.report, &names)? {
            ("first", at) => self.candidates(&at, &mut rule)?,
            ("join", list) => rule.candidates.push(self.join(&list, fields.get("with"))?),
            ("answer", at) => rule.candidates.push(IdCandidate::One(answer(&at, &mut self.report)?)),
            (_, at) => rule.candidates.push(IdCandidate::One(place(&at, &mut self.report)?)),
        }
        flat(else_uuid)?;
        Some(rule)
    }

    /// The items of a list, of which the last may be `else: uuid`.
    fn candidates(&mut self, list: &At<'_>, rule: &mut IdRule) -> Option<()> {
        let items = self.places(list)?;
        let mut faulty = false;
        for (index, item) in items.iter().enumerate() {
            let mut candidate = IdRule { candidates: Vec::new(), else_uuid: false };
            if item.is_list() {
                item.fault(&mut self.report, format!("should be {PLACE}"));
                faulty = true;
            } else if let Some(found) = self.id(item) {
                candidate = found;
            } else {
                faulty = true;
            }
            if candidate.else_uuid && index + 1 < items.len() {
                item.fault(&mut self.report, "`else` should be the last of the list");
                faulty = true;
            }
            rule.else_uuid |= candidate.else_uuid;
            rule.candidates.append(&mut candidate.candidates);
        }
        (!faulty).then_some(())
    }

    fn join(&mut self, list: &At<'_>, with: Option<At<'_>>) -> Option<IdCandidate> {
        let items = self.places(list)?;
        let places: Vec<Option<Place>> = items.iter().map(|item| place(item, &mut self.report)).collect();
        let with = with.map(|at| at.text(&mut self.report).map(str::to_owned));
        let with = flat(with)?.unwrap_or_else(|| ":".to_owned());
        Some(IdCandidate::Join { places: places.into_iter().collect::<Option<_>>()?, with })
    }

    fn places<'n>(&mut self, list: &At<'n>) -> Option<Vec<At<'n>>> {
        let items = list.list(&mut self.report, "a list of places");
        if items.len() > MAX_PLACES {
            list.fault(&mut self.report, format!("should have at most {MAX_PLACES} places"));
        }
        (1..=MAX_PLACES).contains(&items.len()).then_some(items)
    }

    fn alternative(&mut self, at: &At<'_>, only: &str) -> Option<bool> {
        at.parsed(&mut self.report, |text| match text == only {
            true => Ok(true),
            false => Err(format!("should be {only} or absent")),
        })
    }

    fn timestamp(&mut self, at: &At<'_>) -> Option<TimeRule> {
        let mut rule = TimeRule { else_now: false, ..TimeRule::now() };
        if at.is_list() {
            self.times(at, &mut rule)?;
            return Some(rule);
        }
        if !at.is_map() {
            rule.places.push(place(at, &mut self.report)?);
            return Some(rule);
        }
        let fields = at.fields(&mut self.report, &TIME_FIELDS, &[])?;
        let else_now = fields.get("else").map(|at| self.alternative(&at, "now"));
        let unit = fields.get("unit").map(|at| at.parsed(&mut self.report, unit));
        let zone = fields.get("zone").map(|at| at.parsed(&mut self.report, parse_zone));
        let format = fields.get("format");
        let pattern = format.as_ref().map(|at| at.parsed(&mut self.report, format_of));
        if let (Some(_), Some(format)) = (&unit, &format) {
            format.fault(&mut self.report, "a time has either `unit` or `format`");
        }
        let names = ["from", "first", "answer"];
        let is_now = matches!(else_now, Some(Some(true)));
        if !is_now || names.iter().any(|name| fields.get(name).is_some()) {
            match fields.one_of(&mut self.report, &names)? {
                ("first", at) => self.times(&at, &mut rule)?,
                ("answer", at) => rule.places.push(answer(&at, &mut self.report)?),
                (_, at) => rule.places.push(place(&at, &mut self.report)?),
            }
        }
        rule.else_now |= flat(else_now)?.unwrap_or_default();
        rule.form = match (flat(unit)?, flat(pattern)?, flat(zone)?) {
            (Some(unit), None, None) => TimeForm::Epoch(unit),
            (None, Some(Form::Rfc3339) | None, None) => TimeForm::Contract,
            (None, Some(Form::Iso8601) | None, zone) => TimeForm::Iso8601 { zone },
            (None, Some(Form::Pattern(pattern)), zone) => TimeForm::Pattern { pattern, zone },
            _ => {
                at.fault(&mut self.report, "`zone` stands alone or beside `format: iso8601` or a pattern");
                return None;
            }
        };
        Some(rule)
    }

    /// The items of a list, of which the last may be `else: now`.
    fn times(&mut self, list: &At<'_>, rule: &mut TimeRule) -> Option<()> {
        let items = self.places(list)?;
        let mut faulty = false;
        for (index, item) in items.iter().enumerate() {
            let alternative =
                if item.is_map() { item.fields(&mut Report::default(), &["else"], &[]) } else { None };
            if let Some(at) = alternative.and_then(|fields| fields.get("else")) {
                faulty |= self.alternative(&at, "now").is_none();
                rule.else_now = true;
                if index + 1 < items.len() {
                    item.fault(&mut self.report, "`else` should be the last of the list");
                    faulty = true;
                }
            } else if let Some(place) = place(item, &mut self.report) {
                rule.places.push(place);
            } else {
                faulty = true;
            }
        }
        (!faulty).then_some(())
    }
}

/// A pointer, a filter, `$key`, or a map with `answer`.
fn place(at: &At<'_>, report: &mut Report) -> Option<Place> {
    if at.is_map() {
        let fields = at.fields(report, &["answer"], &[])?;
        return answer(&fields.required(report, "answer")?, report);
    }
    at.parsed(report, |text| {
        if text == "$key" {
            Ok(Place::Key)
        } else if text.starts_with('/') {
            Pointer::parse(text).map(Place::Record)
        } else {
            Filter::parse(text).map(Place::Filter)
        }
    })
}

fn answer(at: &At<'_>, report: &mut Report) -> Option<Place> {
    at.parsed(report, Pointer::parse).map(Place::Answer)
}

fn payload(text: &str) -> Result<PayloadRule, String> {
    if text.starts_with('/') {
        return Pointer::parse(text).map(PayloadRule::Pointer);
    }
    Filter::parse(text).map(PayloadRule::Filter)
}

fn unit(text: &str) -> Result<Unit, String> {
    match text {
        "s" => Ok(Unit::Seconds),
        "ms" => Ok(Unit::Millis),
        "us" => Ok(Unit::Micros),
        "ns" => Ok(Unit::Nanos),
        _ => Err("should be s, ms, us or ns".into()),
    }
}

enum Form {
    Rfc3339,
    Iso8601,
    Pattern(String),
}

fn format_of(text: &str) -> Result<Form, String> {
    match text {
        "rfc3339" => Ok(Form::Rfc3339),
        "iso8601" => Ok(Form::Iso8601),
        _ if text.contains('%') => check_pattern(text).map(|()| Form::Pattern(text.to_owned())),
        _ => Err("should be rfc3339, iso8601, or a pattern such as %d.%m.%Y %H:%M".into()),
    }
}

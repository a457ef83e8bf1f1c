//! The fields below `delete`.

use std::time::Duration;

use super::{Parser, flat};
use crate::config::Delete;
use crate::filter::Filter;
use crate::reader::At;
use crate::tree::Value;

/// How long a delete is remembered if the file does not say it.
const DEFAULT_TOMBSTONES: Duration = Duration::from_hours(90 * 24);

impl Parser<'_> {
    /// `has_mapping` is whether records of the source are mapped by `event`.
    pub(super) fn delete(&mut self, at: &At<'_>, has_mapping: bool) -> Option<Delete> {
        if matches!(at.node.value, Value::Null) {
            return Some(Delete { when: None, tombstones: DEFAULT_TOMBSTONES });
        }
        let fields = at.fields(&mut self.report, &["when", "tombstones"], &[])?;
        let when_field = fields.get("when");
        let when = when_field.as_ref().map(|at| at.parsed(&mut self.report, Filter::parse));
        if let Some(when) = when_field
            && !has_mapping
        {
            when.fault(
                &mut self.report,
                "only records that `event` maps can be tested; use `delete: {}`, which lets requests delete",
            );
        }
        let tombstones = fields.get("tombstones").map(|at| at.duration(&mut self.report, "1h", "3650d"));
        Some(Delete { when: flat(when)?, tombstones: flat(tombstones)?.unwrap_or(DEFAULT_TOMBSTONES) })
    }
}

//! Faults of ADSBDB.

use std::time::Duration;

/// A fault in place of a successful response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 429. The seconds are only in the text of the body, without Retry-After.
    RateLimited {
        /// Duration of the limit.
        seconds: u64,
    },
    /// 500 with a text in the usual body format.
    ServerError,
    /// 404, as for an unknown aircraft.
    NotFound,
    /// A successful response after this delay.
    Slow(Duration),
    /// A connection reset before the first byte of the response.
    Reset,
    /// 200 with an HTML page, as from a proxy.
    Html,
    /// 200 with truncated JSON.
    TruncatedJson,
    /// 200 with a text in place of the aircraft.
    ResponseIsText,
    /// A successful response with an unknown field.
    ExtraField,
    /// A successful response with null in each nullable field.
    Nulls,
}

/// The faults of the next responses.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub latency: Duration,
    fault: Option<Fault>,
    /// Number of responses that are left; `None` is unlimited.
    left: Option<u64>,
}

impl Plan {
    pub(super) fn set(&mut self, fault: Option<Fault>, left: Option<u64>) {
        (self.fault, self.left) = (fault, left);
    }

    /// The fault of the next response.
    pub(super) fn next(&mut self) -> Option<Fault> {
        match &mut self.left {
            None => self.fault,
            Some(0) => None,
            Some(left) => {
                *left -= 1;
                self.fault
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_lasts_for_as_many_answers_as_it_was_set_for() {
        let mut plan = Plan::default();
        assert_eq!(plan.next(), None);
        plan.set(Some(Fault::Html), Some(2));
        assert_eq!([plan.next(), plan.next(), plan.next()], [Some(Fault::Html), Some(Fault::Html), None]);
        plan.set(Some(Fault::Reset), None);
        assert_eq!([plan.next(), plan.next()], [Some(Fault::Reset), Some(Fault::Reset)]);
    }
}

//! The ways in which ADSBDB can fail.

use std::time::Duration;

/// What happens instead of a good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 429; the seconds are only in the text of the body, there is no Retry-After.
    RateLimited {
        /// How long the limit lasts.
        seconds: u64,
    },
    /// 500 with a text in the usual body.
    ServerError,
    /// 404, as for an aircraft that is not known.
    NotFound,
    /// A good answer, so much later.
    Slow(Duration),
    /// The connection is reset before a byte of the answer.
    Reset,
    /// 200 with a page for people, as from a proxy in between.
    Html,
    /// 200 with JSON that ends in the middle.
    TruncatedJson,
    /// 200 with a text where the aircraft should be.
    ResponseIsText,
    /// A good answer with a field that is new.
    ExtraField,
    /// A good answer in which all that may be null is null.
    Nulls,
}

/// What the next answers are like.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub latency: Duration,
    fault: Option<Fault>,
    /// For how many more answers; without end if none.
    left: Option<u64>,
}

impl Plan {
    pub(super) fn set(&mut self, fault: Option<Fault>, left: Option<u64>) {
        (self.fault, self.left) = (fault, left);
    }

    /// The fault of the next answer.
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

//! The members of objects in a BSON buffer. Of several members with one key only the last is kept.
//!
//! The cost is at most that of sorting the keys, whatever keys a client sends.

/// Up to this number comparing all pairs of keys is faster than sorting.
const FEW: usize = 16;

#[derive(Clone, Copy)]
struct Member {
    /// The first byte of the element: type, key, NUL, value.
    start: usize,
    /// The first byte of the value.
    value: usize,
    kept: bool,
}

/// The members of all incomplete objects, the outermost object first.
pub(crate) struct Members(Vec<Member>);

/// One member of a complete object.
pub(crate) struct Written<'b> {
    pub(crate) key: &'b [u8],
    pub(crate) kind: u8,
    /// The bytes of type, key and value.
    pub(crate) element: &'b [u8],
}

impl Members {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(32))
    }

    /// The number of members so far, which is the index of the next object's first member.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Adds a member whose element starts at byte `start` and whose value starts at byte `value`.
    pub(crate) fn push(&mut self, start: usize, value: usize) {
        self.0.push(Member { start, value, kept: true });
    }

    /// Completes the object whose members start at `first`. Removes from `bytes` the members that a
    /// later duplicate replaces, and those that `keep` does not accept.
    pub(crate) fn complete(
        &mut self,
        first: usize,
        bytes: &mut Vec<u8>,
        keep: &mut dyn FnMut(Written<'_>) -> bool,
    ) {
        let own = self.0.get_mut(first..).unwrap_or_default();
        mark_replaced(own, bytes);
        let mut to = own.first().map_or(bytes.len(), |member| member.start);
        for index in 0..own.len() {
            let end = own.get(index + 1).map_or(bytes.len(), |next| next.start);
            let Some(member) = own.get(index).filter(|member| member.kept) else { continue };
            let element = bytes.get(member.start..end).unwrap_or_default();
            let kind = element.first().copied().unwrap_or_default();
            if keep(Written { key: key(bytes, member), kind, element }) {
                if to != member.start {
                    bytes.copy_within(member.start..end, to);
                }
                to += end - member.start;
            }
        }
        bytes.truncate(to);
        self.0.truncate(first);
    }
}

fn mark_replaced(members: &mut [Member], bytes: &[u8]) {
    if members.len() <= FEW {
        let mut left = members;
        while let [member, later @ ..] = left {
            member.kept = !later.iter().any(|other| is_same_key(bytes, other, member));
            left = later;
        }
        return;
    }
    let mut sorted: Vec<&mut Member> = members.iter_mut().collect();
    sorted.sort_by(|one, other| key(bytes, one).cmp(key(bytes, other)));
    let mut left = sorted.as_mut_slice();
    while let [member, later @ ..] = left {
        member.kept = later.first().is_none_or(|next| key(bytes, next) != key(bytes, member));
        left = later;
    }
}

fn is_same_key(bytes: &[u8], one: &Member, other: &Member) -> bool {
    // The lengths are known without searching the keys.
    one.value - one.start == other.value - other.start && key(bytes, one) == key(bytes, other)
}

fn key<'b>(bytes: &'b [u8], member: &Member) -> &'b [u8] {
    bytes.get(member.start + 1..member.value.saturating_sub(1)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{FEW, Members};

    /// Elements of type `t` whose value is one byte: the number of the member.
    fn complete(keys: &[&str], keep: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut bytes = b"before".to_vec();
        let mut members = Members::new();
        members.push(0, 3);
        let first = members.count();
        for (number, key) in keys.iter().enumerate() {
            let start = bytes.len();
            bytes.push(b't');
            bytes.extend_from_slice(key.as_bytes());
            bytes.push(0);
            members.push(start, bytes.len());
            bytes.push(u8::try_from(number).unwrap());
        }
        members.complete(first, &mut bytes, &mut |member| keep(member.key));
        assert_eq!(members.count(), first);
        bytes
    }

    #[test]
    fn of_several_members_with_one_key_the_last_is_kept() {
        assert_eq!(complete(&["a", "b", "a", "c", "a"], |_| true), b"beforetb\0\x01tc\0\x03ta\0\x04");
        assert_eq!(complete(&["a", "a", ""], |_| true), b"beforeta\0\x01t\0\x02");
        assert_eq!(complete(&[], |_| true), b"before");
    }

    #[test]
    fn many_members_are_treated_like_few() {
        let mut keys = vec!["a"; FEW];
        keys.extend(["b", "c", "b"]);
        assert_eq!(complete(&keys, |_| true), b"beforeta\0\x0ftc\0\x11tb\0\x12");
    }

    #[test]
    fn a_removed_member_leaves_no_gap() {
        assert_eq!(complete(&["a", "b", "c"], |key| key != b"b"), b"beforeta\0\x00tc\0\x02");
        assert_eq!(complete(&["a", "b"], |_| false), b"before");
    }
}

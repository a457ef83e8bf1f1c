//! The functions that a filter may call.

/// What a function takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// Nothing.
    None,
    /// Texts or numbers that stand in the filter.
    Literals,
    /// A regular expression that stands in the filter, and a filter for each match.
    Replacement,
    /// A filter that gets the input.
    Filter,
    /// A filter of whose outputs one is taken.
    Outputs,
    /// A filter that gets each value of the input.
    Each,
    /// Places in the input.
    Path,
}

/// A function that a filter may call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Function {
    pub(crate) arguments: Arguments,
    /// Bytes of text that the function makes of each byte of its input.
    pub(crate) growth: f64,
    /// Bytes that it makes in addition.
    pub(crate) fixed: f64,
}

/// The functions with the number of their arguments. The time of each is linear in its input, apart
/// from sorting and `gsub`.
const FUNCTIONS: &[(&str, usize, Arguments, f64, f64)] = &[
    // No input to output.
    ("empty", 0, Arguments::None, 0.0, 0.0),
    ("null", 0, Arguments::None, 0.0, 4.0),
    ("true", 0, Arguments::None, 0.0, 4.0),
    ("false", 0, Arguments::None, 0.0, 5.0),
    ("not", 0, Arguments::None, 0.0, 5.0),
    ("error", 0, Arguments::None, 1.0, 0.0),
    ("error", 1, Arguments::Filter, 1.0, 0.0),
    // Types.
    ("type", 0, Arguments::None, 0.0, 9.0),
    ("length", 0, Arguments::None, 1.0, 20.0),
    ("utf8bytelength", 0, Arguments::None, 0.0, 20.0),
    ("tostring", 0, Arguments::None, 6.0, 2.0),
    ("tojson", 0, Arguments::None, 6.0, 2.0),
    ("tonumber", 0, Arguments::None, 1.0, 0.0),
    ("isboolean", 0, Arguments::None, 0.0, 5.0),
    ("isnumber", 0, Arguments::None, 0.0, 5.0),
    ("isstring", 0, Arguments::None, 0.0, 5.0),
    ("isarray", 0, Arguments::None, 0.0, 5.0),
    ("isobject", 0, Arguments::None, 0.0, 5.0),
    ("values", 0, Arguments::None, 1.0, 0.0),
    ("nulls", 0, Arguments::None, 1.0, 0.0),
    ("booleans", 0, Arguments::None, 1.0, 0.0),
    ("numbers", 0, Arguments::None, 1.0, 0.0),
    ("strings", 0, Arguments::None, 1.0, 0.0),
    ("arrays", 0, Arguments::None, 1.0, 0.0),
    ("objects", 0, Arguments::None, 1.0, 0.0),
    ("scalars", 0, Arguments::None, 1.0, 0.0),
    ("select", 1, Arguments::Filter, 1.0, 0.0),
    // Numbers. A rounded 1e308 has 309 digits.
    ("floor", 0, Arguments::None, 62.0, 0.0),
    ("round", 0, Arguments::None, 62.0, 0.0),
    ("ceil", 0, Arguments::None, 62.0, 0.0),
    ("abs", 0, Arguments::None, 1.0, 0.0),
    // Arrays and objects.
    ("keys", 0, Arguments::None, 4.0, 2.0),
    ("keys_unsorted", 0, Arguments::None, 4.0, 2.0),
    ("has", 1, Arguments::Literals, 0.0, 5.0),
    ("first", 0, Arguments::None, 1.0, 4.0),
    ("last", 0, Arguments::None, 1.0, 4.0),
    ("first", 1, Arguments::Outputs, 1.0, 0.0),
    ("add", 0, Arguments::None, 1.0, 25.0),
    ("any", 0, Arguments::None, 0.0, 5.0),
    ("all", 0, Arguments::None, 0.0, 5.0),
    ("any", 1, Arguments::Each, 0.0, 5.0),
    ("all", 1, Arguments::Each, 0.0, 5.0),
    ("min", 0, Arguments::None, 1.0, 4.0),
    ("max", 0, Arguments::None, 1.0, 4.0),
    ("min_by", 1, Arguments::Each, 1.0, 4.0),
    ("max_by", 1, Arguments::Each, 1.0, 4.0),
    ("sort", 0, Arguments::None, 1.0, 0.0),
    ("sort_by", 1, Arguments::Each, 1.0, 0.0),
    ("group_by", 1, Arguments::Each, 3.0, 0.0),
    ("unique", 0, Arguments::None, 1.0, 0.0),
    ("unique_by", 1, Arguments::Each, 1.0, 0.0),
    ("reverse", 0, Arguments::None, 1.0, 0.0),
    ("map", 1, Arguments::Each, 0.0, 0.0),
    ("map_values", 1, Arguments::Each, 1.0, 0.0),
    ("to_entries", 0, Arguments::None, 14.0, 0.0),
    ("from_entries", 0, Arguments::None, 1.0, 0.0),
    ("with_entries", 1, Arguments::Each, 14.0, 0.0),
    ("del", 1, Arguments::Path, 1.0, 0.0),
    ("join", 1, Arguments::Literals, 6.0, 2.0),
    // Strings.
    ("split", 1, Arguments::Literals, 4.0, 2.0),
    ("startswith", 1, Arguments::Literals, 0.0, 5.0),
    ("endswith", 1, Arguments::Literals, 0.0, 5.0),
    ("ltrimstr", 1, Arguments::Literals, 1.0, 0.0),
    ("rtrimstr", 1, Arguments::Literals, 1.0, 0.0),
    ("trim", 0, Arguments::None, 1.0, 0.0),
    ("ltrim", 0, Arguments::None, 1.0, 0.0),
    ("rtrim", 0, Arguments::None, 1.0, 0.0),
    ("ascii_downcase", 0, Arguments::None, 1.0, 0.0),
    ("ascii_upcase", 0, Arguments::None, 1.0, 0.0),
    ("contains", 1, Arguments::Literals, 0.0, 5.0),
    ("test", 1, Arguments::Literals, 0.0, 5.0),
    ("test", 2, Arguments::Literals, 0.0, 5.0),
    ("capture", 1, Arguments::Literals, 1.0, 2.0),
    ("sub", 2, Arguments::Replacement, 1.0, 2.0),
    ("gsub", 2, Arguments::Replacement, 1.0, 2.0),
    // Times.
    ("todate", 0, Arguments::None, 0.0, 40.0),
    ("fromdate", 0, Arguments::None, 0.0, 25.0),
    ("todateiso8601", 0, Arguments::None, 0.0, 40.0),
    ("fromdateiso8601", 0, Arguments::None, 0.0, 25.0),
];

/// Definitions and native functions that those of the list are made of.
const PARTS: &[(&str, usize)] = &[
    ("isempty", 1),
    ("any", 2),
    ("all", 2),
    ("add", 1),
    ("error_empty", 0),
    ("key_values", 0),
    ("min_by_or_empty", 1),
    ("max_by_or_empty", 1),
    ("matches", 2),
    ("capture_of_match", 0),
    ("split_matches", 2),
    ("capture", 2),
];

/// A function of the list.
pub(crate) fn function(name: &str, arity: usize) -> Option<Function> {
    let found = FUNCTIONS.iter().find(|found| found.0 == name && found.1 == arity);
    found.map(|(_, _, arguments, growth, fixed)| Function {
        arguments: *arguments,
        growth: *growth,
        fixed: *fixed,
    })
}

/// Functions of the list that this crate implements, because the library's overflow, recurse, or
/// take other values.
const OWN: [&str; 11] = [
    "tonumber",
    "todate",
    "todateiso8601",
    "fromdate",
    "fromdateiso8601",
    "tojson",
    "length",
    "has",
    "contains",
    "sub",
    "gsub",
];

/// Whether the compiler needs a definition or a native function of the library.
pub(crate) fn is_needed(name: &str, arity: usize) -> bool {
    !OWN.contains(&name) && (function(name, arity).is_some() || PARTS.contains(&(name, arity)))
}

/// Why a function that is not in the list is refused.
pub(crate) fn refusal(name: &str, arity: usize) -> String {
    match name {
        "env" | "now" | "halt" | "halt_error" | "debug" | "stderr" | "input" | "inputs" => {
            format!("{name} is not allowed, because a filter may depend on nothing but its record")
        }
        _ if name.starts_with('@') => "@ formats are not allowed".into(),
        "contains" | "inside" | "index" | "rindex" | "indices" => {
            format!("{name}/{arity} is not allowed, because its time is not linear; contains(\"text\") is")
        }
        _ => match FUNCTIONS.iter().find(|found| found.0 == name) {
            Some((_, wanted, ..)) => format!("{name} should have {wanted} arguments and has {arity}"),
            None if arity == 0 => format!(
                "{name}/0 is not among the functions that a filter may call; a field is .{name} or the JSON Pointer \
                 /{name}"
            ),
            None => format!("{name}/{arity} is not among the functions that a filter may call"),
        },
    }
}

/// The names of the functions, for the documentation.
pub fn function_names() -> impl Iterator<Item = (&'static str, usize)> {
    FUNCTIONS.iter().map(|(name, arity, ..)| (*name, *arity))
}

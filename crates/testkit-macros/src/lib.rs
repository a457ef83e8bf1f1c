//! The attribute [`macro@needs`]. Its build script finds out what this machine offers.

use proc_macro::{Delimiter, TokenStream, TokenTree};

/// Each requirement, and the reason for which it is not met on this machine.
const REQUIREMENTS: [(&str, Option<&str>); 5] = [
    ("apache_kafka", option_env!("TESTKIT_MISSING_APACHE_KAFKA")),
    ("pip", option_env!("TESTKIT_MISSING_PIP")),
    ("own_mongodb", option_env!("TESTKIT_MISSING_OWN_MONGODB")),
    ("open_files", option_env!("TESTKIT_MISSING_OPEN_FILES")),
    ("user_namespaces", option_env!("TESTKIT_MISSING_USER_NAMESPACES")),
];

/// Ignores a test, with the reason, if this machine does not meet one of its requirements.
///
/// Write it above the attribute that makes the function a test: `#[needs(apache_kafka,
/// own_mongodb)]`.
///
/// - `apache_kafka`: Java 17 and Maven on PATH, and SLIPSTREAM_BROKER is not `tansu`
/// - `pip`: python3 with pip
/// - `own_mongodb`: a MongoDB server that the test may stop, pause and configure
/// - `open_files`: a hard limit of 12,500 open files
/// - `user_namespaces`: a user namespace in which a tmpfs can be mounted
#[proc_macro_attribute]
pub fn needs(requirements: TokenStream, test: TokenStream) -> TokenStream {
    let requirements = requirements.to_string();
    let mut missing = None;
    for name in requirements.split(',').map(str::trim) {
        match REQUIREMENTS.iter().find(|(known, _)| *known == name) {
            Some((_, reason)) => missing = missing.or(*reason),
            None => {
                return tokens(&format!("compile_error!({:?});", format!("unknown requirement {name:?}")));
            }
        }
    }
    let mut output = TokenStream::new();
    if let Some(reason) = missing.filter(|_| !has_ignore(&test)) {
        output.extend(tokens(&format!("#[ignore = {reason:?}]")));
    }
    output.extend(test);
    output
}

/// Whether the test has an attribute `ignore` of its own: two of them are an error.
fn has_ignore(test: &TokenStream) -> bool {
    test.clone().into_iter().any(|token| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
            group.stream().to_string().starts_with("ignore")
        }
        _ => false,
    })
}

fn tokens(code: &str) -> TokenStream {
    code.parse().unwrap_or_default()
}

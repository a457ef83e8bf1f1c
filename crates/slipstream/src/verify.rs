//! `slipstream verify`: compares a ledger of `load` with the documents and the dead letters.

use std::process::ExitCode;

use kafka::BoxError;
use loadtest::VerifyOptions;
use loadtest::verify::{VerifyResult, run};

use crate::output;

/// Exit code of a verification without differences while records are unfinished.
const INCOMPLETE: u8 = 3;

/// Compares and prints the report. The exit code is 0 if the verification passed, 1 if it failed,
/// and 3 if it is incomplete.
///
/// # Errors
/// A wrong configuration, a ledger that cannot be verified, or a server that does not answer.
pub async fn verify(
    options: VerifyOptions,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, BoxError> {
    let config = consumer::Config::from_environment(environment)?;
    let report = run(&config, &options).await?;
    let text = if options.json { report.json().to_string() } else { report.to_string() };
    output::write_line(text)?;
    Ok(match report.result() {
        VerifyResult::Passed => ExitCode::SUCCESS,
        VerifyResult::Failed => ExitCode::FAILURE,
        VerifyResult::Incomplete => ExitCode::from(INCOMPLETE),
    })
}

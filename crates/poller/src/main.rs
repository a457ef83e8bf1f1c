//! The binary of the poller.

use std::process::ExitCode;

fn main() -> ExitCode {
    poller::PROGRAM.main(
        poller::Config::from_environment,
        |_| None,
        |config, stop| async move {
            let app = poller::App::build(config).await?;
            Ok(app.run_until(stop).await)
        },
    )
}

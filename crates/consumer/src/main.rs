//! The consumer process.

use std::process::ExitCode;

fn main() -> ExitCode {
    consumer::PROGRAM.main(
        consumer::Config::from_environment,
        |_| None,
        |config, stop| async move {
            let app = consumer::App::build(config).await?;
            app.run_until(stop).await?;
            Ok(ExitCode::SUCCESS)
        },
    )
}

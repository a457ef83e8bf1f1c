//! The binary of the producer.

use std::process::ExitCode;

fn main() -> ExitCode {
    producer::PROGRAM.main(producer::Config::from_environment, producer::secure, |config, stop| async move {
        let app = producer::App::build(config).await?;
        app.run_until(stop).await?;
        Ok(ExitCode::SUCCESS)
    })
}

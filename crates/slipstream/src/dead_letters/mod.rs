//! `slipstream dead-letters`: lists, shows and replays dead letters, and dead-letters a stuck
//! record. Only `replay` writes records; `add` sends a request to the consumer, which writes one.

mod add;
mod dead_letter;
mod list;
mod options;
mod replay;

use std::process::ExitCode;

pub use add::Settings;
use dead_letter::Deployment;
use kafka::BoxError;
pub use options::{Command, Options};
use service::ConfigErrors;

/// Runs the subcommand.
pub async fn run(
    command: Command,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ExitCode, BoxError> {
    let read = |environment| consumer::Config::from_environment(environment);
    match command {
        Command::Add(options) => add::add(options, environment).await,
        Command::List(options) => {
            let config = read(environment)?;
            let group = options.group.clone().unwrap_or_else(|| replay_group(&config));
            list::list(options, group, Deployment::load(config).await?).await
        }
        Command::Show(options) => list::show(options, Deployment::load(read(environment)?).await?).await,
        Command::Replay(options) => {
            let config = read(environment)?;
            let group = options.group.clone().unwrap_or_else(|| replay_group(&config));
            if group == config.group_id {
                let problem = format!("{group} is the consumer's own group (KAFKA_GROUP_ID)");
                return Err(ConfigErrors(vec![("--group".to_owned(), problem)]).into());
            }
            replay::replay(options, group, Deployment::load(config).await?).await
        }
    }
}

/// The default group of replays.
fn replay_group(config: &consumer::Config) -> String {
    format!("{}.dead-letters", config.group_id)
}

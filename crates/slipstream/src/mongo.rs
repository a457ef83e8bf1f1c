//! MongoDB, as the operator's commands see it.

use std::time::Duration;

use consumer::store::usable_uri;
use mongodb::error::Error;
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};
use service::Secret;

use crate::Failure;

/// How long MongoDB may take for one reply.
const LIMIT: Duration = Duration::from_secs(10);

/// What a reply brings.
///
/// # Errors
/// MongoDB refuses, or does not answer in time.
pub async fn in_time<T>(reply: impl IntoFuture<Output = Result<T, Error>>) -> Result<T, Failure> {
    let late = |_| Failure::from("mongodb does not answer");
    Ok(tokio::time::timeout(LIMIT, reply.into_future()).await.map_err(late)??)
}

/// The database `name`; nothing is asked yet, but the look-up of a `mongodb+srv` name.
///
/// # Errors
/// The driver refuses the connection string, or its name cannot be looked up.
pub async fn database(uri: &Secret, name: &str) -> Result<Database, Error> {
    let mut options = ClientOptions::parse(usable_uri(uri).expose()).await?;
    // The operator waits at the terminal: an absent server is told within seconds, not within the driver's 30.
    options.connect_timeout.get_or_insert(Duration::from_secs(2));
    options.server_selection_timeout.get_or_insert(Duration::from_secs(5));
    options.app_name.get_or_insert_with(|| "slipstream".to_owned());
    Ok(Client::with_options(options)?.database(name))
}

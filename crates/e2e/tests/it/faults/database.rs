//! A database that is cut off, silent, slow, loses replies, or lets nobody in any more. Killed and started again it is in
//! `outages`; a collection that refuses documents is in `series::refused`.

use std::time::Duration;

use bson::{Document, doc};
use e2e::proxy::Fault;
use e2e::trial::Setup;
use e2e::trial::servers::{Kept, Wanted, user};
use e2e::{Names, Stack, Trial, eventually, mongodb};

use super::{RECOVERY, SILENCE_NOTICED, lasts};

/// In each command that writes events, and in no other.
pub const WRITE: &[u8] = b"\x08ordered\0";

async fn trial() -> Option<Trial> {
    if !Stack::is_apache_kafka() {
        return None;
    }
    Some(Trial::begin(Setup::default()).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_that_is_cut_off_for_30_s_costs_nothing() {
    let Some(mut trial) = trial().await else { return };
    trial.mongodb().set(Fault::Cut);
    lasts(30).await;
    trial.mongodb().set(Fault::None);
    trial.works_within(RECOVERY).await;
    trial.is_only("mongodb");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_whose_network_loses_everything_for_15_s_costs_nothing() {
    let Some(mut trial) = trial().await else { return };
    trial.mongodb().set(Fault::Silent);
    lasts(15).await;
    trial.mongodb().set(Fault::None);
    trial.works_within(RECOVERY).await;
    trial.is_only("mongodb");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_half_open_connections_to_the_database_are_given_up_in_time() {
    let Some(mut trial) = trial().await else { return };
    trial.mongodb().forget_connections();
    trial.works_within(SILENCE_NOTICED).await;
    trial.never_said("consumer", "kafka");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_writes_whose_replies_are_lost_change_nothing_when_they_are_repeated() {
    let Some(mut trial) = trial().await else { return };
    trial.mongodb().set(Fault::LosesReplyTo(WRITE));
    lasts(10).await;
    trial.mongodb().set(Fault::None);
    assert!(trial.mongodb().lost_replies() > 10, "{} replies lost", trial.mongodb().lost_replies());
    trial.works_within(RECOVERY).await;
    trial.never_said("consumer", "kafka");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_database_behind_100_kb_a_second_is_waited_for() {
    let Some(mut trial) = trial().await else { return };
    trial.mongodb().set(Fault::Slow(100_000));
    lasts(20).await;
    trial.mongodb().set(Fault::None);
    trial.works_within(RECOVERY).await;
    trial.never_said("consumer", "kafka");
    trial.judged(0).await;
}

async fn command(trial: &Trial, command: Document) {
    let admin = mongodb::database(&trial.names).await.client().database("admin");
    admin.run_command(command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_credentials_that_are_revoked_and_given_back_cost_nothing() {
    if !Stack::is_apache_kafka() {
        return;
    }
    let database = Some(Kept { log_in: true, ..Kept::default() });
    let servers = Wanted { database, ..Wanted::default() };
    let mut trial = Trial::begin(Setup { servers, ..Setup::default() }).await;
    let user = user();
    let change = |password: &str| doc! { "updateUser": &user.user, "pwd": password };
    command(&trial, change("another")).await;
    // Who is logged in stays so: a new connection needs the password again.
    trial.mongodb().reset_connections();
    eventually("it says that it is refused", Duration::from_secs(15), || async {
        trial.has_said("consumer", "mongodb refuses").then_some(())
    })
    .await;
    lasts(10).await;
    trial.never_said("consumer", &user.password);
    let uri = trial.names.mongodb.replace(&user.password, "another");
    let owner = Names { mongodb: uri, ..trial.names.clone() };
    let admin = mongodb::database(&owner).await.client().database("admin");
    admin.run_command(change(&user.password)).await.unwrap();
    trial.works_within(RECOVERY).await;
    trial.never_said("producer", "mongodb");
    trial.never_said("consumer", "kafka");
    trial.judged(0).await;
}

//! A broker that is killed, cut off, silent, slow, or breaks off in the middle of a reply.

use std::time::Duration;

use e2e::proxy::Fault;
use e2e::trial::Setup;
use e2e::trial::servers::Wanted;
use e2e::{Stack, Trial};
use nix::sys::signal::Signal;

use super::{RECOVERY, SESSION, SILENCE_NOTICED, lasts};

/// A trial with a broker of its own; none where the broker is not Apache Kafka.
async fn trial() -> Option<Trial> {
    if !Stack::is_apache_kafka() {
        return None;
    }
    let servers = Wanted { broker: true, ..Wanted::default() };
    Some(Trial::begin(Setup { servers, ..Setup::default() }).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_broker_that_is_killed_and_started_again_costs_nothing() {
    let Some(mut trial) = trial().await else { return };
    trial.breaks();
    trial.servers.broker().kill();
    lasts(5).await;
    trial.servers.broker().restart().await.unwrap();
    // The member gave its place up, and the broker keeps it for the old one until that one's session is over.
    trial.recovers_within(RECOVERY + SESSION).await;
    trial.is_only("kafka");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_broker_that_is_cut_off_for_30_s_costs_nothing() {
    let Some(mut trial) = trial().await else { return };
    trial.breaks();
    trial.kafka().set(Fault::Cut);
    lasts(30).await;
    trial.kafka().set(Fault::None);
    trial.recovers_within(RECOVERY).await;
    trial.is_only("kafka");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_broker_whose_network_loses_everything_for_15_s_costs_nothing() {
    let Some(mut trial) = trial().await else { return };
    trial.breaks();
    trial.kafka().set(Fault::Silent);
    lasts(15).await;
    trial.kafka().set(Fault::None);
    trial.recovers_within(RECOVERY).await;
    trial.is_only("kafka");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_half_open_connections_to_the_broker_are_given_up_in_time() {
    let Some(mut trial) = trial().await else { return };
    trial.breaks();
    trial.kafka().forget_connections();
    trial.works_within(SILENCE_NOTICED).await;
    trial.mends();
    trial.never_said("consumer", "mongodb");
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_a_broker_that_answers_late_is_no_outage() {
    let Some(trial) = trial().await else { return };
    trial.kafka().set(Fault::Late(Duration::from_millis(100)));
    trial.finishes(1_000, Duration::from_secs(60)).await;
    trial.kafka().set(Fault::None);
    for process in ["producer", "consumer"] {
        trial.never_said(process, "kafka");
    }
    trial.judged(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_broker_that_breaks_off_in_the_middle_of_replies_costs_nothing() {
    let Some(mut trial) = trial().await else { return };
    trial.breaks();
    trial.kafka().set(Fault::ResetAfter(4_000));
    lasts(10).await;
    trial.kafka().set(Fault::None);
    assert!(trial.kafka().lost_replies() > 10, "{} replies lost", trial.kafka().lost_replies());
    trial.recovers_within(RECOVERY).await;
    trial.never_said("consumer", "mongodb");
    trial.judged(0).await;
}

/// For as long as in the storm that found it, to the millisecond; even so it takes rounds: without
/// `kafka::rebootstrap` one end or the other had lost the only broker by the eighth.
#[tokio::test(flavor = "multi_thread")]
async fn g6_a_broker_that_stands_still_again_and_again_is_found_again() {
    let Some(mut trial) = trial().await else { return };
    for _ in 0..8 {
        trial.breaks();
        trial.servers.broker().pause();
        tokio::time::sleep(Duration::from_millis(4_188)).await;
        trial.servers.broker().resume();
        trial.recovers_within(RECOVERY + SESSION).await;
        trial.breaks();
        trial.servers.broker().pause();
        trial.producer().signal(Signal::SIGSTOP);
        tokio::time::sleep(Duration::from_millis(1_780)).await;
        trial.servers.broker().resume();
        trial.producer().signal(Signal::SIGCONT);
        trial.recovers_within(RECOVERY).await;
    }
    trial.never_said("consumer", "mongodb");
    trial.judged(0).await;
}

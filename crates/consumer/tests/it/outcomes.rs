//! G2: every record has one outcome, which is counted, whatever happens to its partition.

use std::collections::HashMap;
use std::time::Duration;

use bson::Document;
use fastrand::Rng;
use testkit::servers::start_broker;
use tokio::sync::watch;

use crate::trial::{SOON, Sent, Trial, event, eventually};
use testkit::scripted_mongodb::{Answer, ScriptedServer, is_write, open};

/// The expected number of each outcome, and the expected documents.
#[derive(Debug, Default, PartialEq)]
struct Model {
    inserted: u64,
    updated: u64,
    superseded: u64,
    skipped: u64,
    dead_lettered: u64,
    newest: HashMap<String, (i64, usize)>,
}

impl Model {
    /// Creates the next record of `partition` and counts its expected outcome.
    fn record(&mut self, random: &mut Rng, partition: i32, n: usize) -> (String, Option<String>) {
        let id = format!("{partition}-{}", random.u8(..40));
        let value = match random.u8(..12) {
            0 => None,
            1 => Some(String::new()),
            2 => Some(format!(r#"{{"id":"{id}","source":"adsbdb","payload":{n}}}"#)),
            3 => Some(event(&id, 1, "{}").replace("adsbdb", "other")),
            _ => {
                let at = 1_000 + random.i64(0..100);
                self.count_event(&id, at, n);
                return (id.clone(), Some(event(&id, at, &format!(r#"{{"n":{n}}}"#))));
            }
        };
        match &value {
            None => self.skipped += 1,
            Some(text) if text.contains("other") => self.skipped += 1,
            Some(_) => self.dead_lettered += 1,
        }
        (id, value)
    }

    fn count_event(&mut self, id: &str, at: i64, n: usize) {
        match self.newest.get(id) {
            Some((stored, _)) if *stored > at => return self.superseded += 1,
            Some(_) => self.updated += 1,
            None => self.inserted += 1,
        }
        self.newest.insert(id.to_owned(), (at, n));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g2_every_record_has_exactly_one_outcome() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let (mut random, mut model) = (Rng::with_seed(seed), Model::default());
    let trial = Trial::new(3).await;
    let member = trial.start(&[("BATCH_MAX_RECORDS", "50")]).await;
    for n in 0..1_500 {
        let partition = random.i32(0..3);
        let (key, value) = model.record(&mut random, partition, n);
        let value = value.as_deref().map(str::as_bytes);
        trial.send(Sent { partition, value, ..Sent::new(&key, "") }).await;
    }
    eventually("all are finished", SOON, async || member.seen().finished() >= 1_500).await;
    let lag = async || member.seen().lag == Some(0);
    eventually("no record waits", SOON, lag).await;
    let counted = member.stop().await;
    assert_eq!((counted.read, counted.finished(), counted.unchanged), (1_500, 1_500, 0), "{counted:?}");
    let outcomes =
        (counted.inserted, counted.updated, counted.superseded, counted.skipped, counted.dead_lettered);
    let expected = (model.inserted, model.updated, model.superseded, model.skipped, model.dead_lettered);
    assert_eq!(outcomes, expected);
    assert_eq!(trial.dead_letters().await.len() as u64, model.dead_lettered);
    assert_eq!(trial.committed().await.values().sum::<i64>(), 1_500);
    for (id, (at, n)) in &model.newest {
        let document = trial.document(id).await.unwrap();
        assert_eq!(document.get_i32("n").unwrap(), i32::try_from(*n).unwrap(), "{document}");
        assert_eq!(document.get_i64("event_timestamp").unwrap(), *at);
    }
    assert_eq!(trial.ids().await.len(), model.newest.len());
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g2_records_read_again_after_a_lost_partition_count_as_repeated() {
    let (gate, opened) = watch::channel(false);
    let script = move |command: &Document| {
        if is_write(command) { Answer::after(open(&opened)) } else { Answer::Usual }
    };
    let (broker, server) = (start_broker().await, ScriptedServer::start(13, script).await);
    let trial = Trial::on(&broker.bootstrap(), &server.uri, 2);
    trial.make_topic(&trial.topic, 2, &[]).await;
    trial.send_many("k", 100).await;
    let member = trial.start_with(&[], |config| config.call_deadline = Duration::from_secs(60)).await;
    eventually("both workers are writing", SOON, async || server.writes().len() == 2).await;
    eventually("all records were read", SOON, async || {
        let waiting = member.health().await["assignment"].clone();
        let queued = |partition: &serde_json::Value| partition["queued"].as_u64().unwrap();
        waiting.as_array().unwrap().iter().map(queued).sum::<u64>() + member.seen().read == 100
    })
    .await;
    // Records that are finished from now on cannot be committed, and the session expires.
    broker.kill();
    gate.send_replace(true);
    eventually("all are finished", SOON, async || member.seen().finished() == 100).await;
    assert!(member.counters.has_finished(&trial.topic, 0, 49));
    eventually("the partitions are lost", SOON, async || member.assigned().await == 0).await;
    // The workers have ended a moment after the partitions are gone.
    let stays = async || member.counters.has_finished(&trial.topic, 0, 49);
    eventually("finished records stay finished", SOON, stays).await;
    assert!(!member.counters.has_finished(&trial.topic, 0, 50));
    broker.restart().await.unwrap();
    eventually("all are read again", SOON, async || member.seen().repeated == 100).await;
    trial.send_many("m", 10).await;
    eventually("the new records are finished too", SOON, async || member.seen().finished() >= 210).await;
    let counted = member.stop().await;
    assert_eq!((counted.read, counted.finished(), counted.repeated), (210, 210, 100), "{counted:?}");
    assert_eq!(trial.committed().await.values().sum::<i64>(), 110);
}

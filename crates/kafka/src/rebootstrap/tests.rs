//! A client whose only broker says in every other answer that there is none.

use std::io::{Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicU32;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::producer::{Producer, ThreadedProducer};

use super::*;
use crate::{ConnectionContext, KafkaProperties, client_config};

const TOPIC: &str = "t";
const PARTITIONS: u32 = 6;
/// Without help the client was lost in the fifteenth.
const ROUNDS: u32 = 40;

/// Answers questions for metadata, version 0 of the protocol's, until the client hangs up.
fn serve(mut client: TcpStream, port: u16, answers: &AtomicU32) -> Result<()> {
    loop {
        let mut length = [0; 4];
        client.read_exact(&mut length)?;
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        client.read_exact(&mut request)?;
        assert_eq!(request[..4], [0, 3, 0, 0], "metadata, version 0");
        let names_itself = answers.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        let answer = [&request[4..8], &metadata(port, names_itself)].concat();
        client.write_all(&u32::try_from(answer.len()).unwrap().to_be_bytes())?;
        client.write_all(&answer)?;
    }
}

fn metadata(port: u16, names_itself: bool) -> Vec<u8> {
    let text = |text: &str| [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
    let (one, leader_not_available, nobody) = ([0, 0, 0, 1], [0, 5], [255; 4]);
    let mut answer = u32::from(names_itself).to_be_bytes().to_vec();
    if names_itself {
        answer.extend([&one, &*text("127.0.0.1"), &u32::from(port).to_be_bytes()].concat());
    }
    answer.extend([&one, [0, 0].as_slice(), &text(TOPIC), &PARTITIONS.to_be_bytes()].concat());
    for partition in 0..PARTITIONS {
        answer.extend([leader_not_available.as_slice(), &partition.to_be_bytes(), &nobody].concat());
        let (replicas, in_sync) = ([one, one], [one, one]);
        answer.extend([replicas, in_sync].concat().concat());
    }
    answer
}

#[test]
fn g6_a_client_whose_only_broker_names_none_finds_it_again_every_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&answers);
    // Ends with the process that runs the tests.
    thread::spawn(move || {
        for client in listener.incoming() {
            let count = Arc::clone(&count);
            thread::spawn(move || serve(client.unwrap(), port, &count));
        }
    });
    let old = [("api.version.request", "false"), ("broker.version.fallback", "0.9.0.1")];
    let mut config = client_config(&format!("127.0.0.1:{port}"), "c", &old, &KafkaProperties::default());
    let bootstrap = Rebootstrap::enable(&mut config);
    let client: ThreadedProducer<ConnectionContext> =
        config.create_with_context(ConnectionContext::new(Arc::clone(&bootstrap))).unwrap();
    for round in 0..ROUNDS {
        let (before, asked) = (answers.load(Ordering::Relaxed), Instant::now());
        while answers.load(Ordering::Relaxed) == before {
            assert!(
                asked.elapsed() < Duration::from_secs(4),
                "no question reached the broker in round {round}"
            );
            bootstrap.restore_brokers(client.client());
            _ = client.client().fetch_metadata(Some(TOPIC), Duration::from_millis(200));
        }
    }
}

//! A client whose only broker leaves itself out of every other metadata response.

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
/// Without the workaround, the client lost its broker for ever in round 15.
const ROUNDS: u32 = 40;

/// Responds to metadata requests of version 0 until the client disconnects.
fn serve(mut client: TcpStream, port: u16, responses: &AtomicU32) -> Result<()> {
    loop {
        let mut length = [0; 4];
        client.read_exact(&mut length)?;
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        client.read_exact(&mut request)?;
        assert_eq!(request[..4], [0, 3, 0, 0], "metadata, version 0");
        let includes_itself = responses.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        let response = [&request[4..8], &metadata(port, includes_itself)].concat();
        client.write_all(&u32::try_from(response.len()).unwrap().to_be_bytes())?;
        client.write_all(&response)?;
    }
}

fn metadata(port: u16, includes_itself: bool) -> Vec<u8> {
    let text = |text: &str| [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
    let (one, leader_not_available, no_broker) = ([0, 0, 0, 1], [0, 5], [255; 4]);
    let mut response = u32::from(includes_itself).to_be_bytes().to_vec();
    if includes_itself {
        response.extend([&one, &*text("127.0.0.1"), &u32::from(port).to_be_bytes()].concat());
    }
    response.extend([&one, [0, 0].as_slice(), &text(TOPIC), &PARTITIONS.to_be_bytes()].concat());
    for partition in 0..PARTITIONS {
        response.extend([leader_not_available.as_slice(), &partition.to_be_bytes(), &no_broker].concat());
        let (replicas, in_sync) = ([one, one], [one, one]);
        response.extend([replicas, in_sync].concat().concat());
    }
    response
}

#[test]
fn g6_client_recovers_when_metadata_of_the_only_broker_is_empty() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let responses = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&responses);
    // The threads end with the test process.
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
        let (before, start) = (responses.load(Ordering::Relaxed), Instant::now());
        while responses.load(Ordering::Relaxed) == before {
            assert!(
                start.elapsed() < Duration::from_secs(4),
                "no request reached the broker in round {round}"
            );
            bootstrap.restore_brokers(client.client());
            _ = client.client().fetch_metadata(Some(TOPIC), Duration::from_millis(200));
        }
    }
}

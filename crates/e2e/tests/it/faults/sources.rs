//! Faults while two sources of a file, on two topics, have a load each. A ledger judges each source.

use std::time::Duration;

use bson::doc;
use testkit::fault_test::Setup;
use testkit::{FaultTest, SourcesFile, mongo};

use super::{RECOVERY_TIMEOUT, SESSION_TIMEOUT, wait_seconds};

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g1_consumer_of_two_topics_killed_under_load_no_event_is_lost() {
    let file = SourcesFile::new(&format!(
        "
sources:
  manual: {{envelope: true}}
  readings:
    envelope: true
    topic: readings-{:016x}
    store: {{collection: measured, source_field: origin, indexes: [{{keys: {{type: 1}}}}]}}
",
        fastrand::u64(..)
    ));
    let load = ["--rate", "100", "--connections", "8", "--keys", "1000"];
    let sources = Some((&file, &["manual", "readings"][..]));
    let mut test = FaultTest::start_with_load(Setup { load: &load, sources, ..Setup::default() }).await;
    test.consumers.pop().unwrap().kill().await;
    wait_seconds(5).await;
    test.start_consumer(&[]);
    // The broker keeps the partitions for the killed member until its session expires.
    test.assert_work_resumes_within(RECOVERY_TIMEOUT + SESSION_TIMEOUT).await;
    test.wait_for_finished(500, Duration::from_secs(60)).await;
    let measured = mongo::collection(&test.names, "measured").await;
    assert!(measured.count_documents(doc! {"origin": "readings"}).await.unwrap() > 0);
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}

//! Replies that a healthy database does not give, to each command of a batch with deletes. The batch
//! still ends as the newest version says, and each record has one outcome, which the retry decides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::{Document, doc};
use consumer::mongo::{BatchOutcome, Counts, Store};
use events::StorableEvent;
use futures::future::join_all;
use testkit::scripted_mongodb::{Answer, ScriptedServer, batch};

use crate::delete_fixture::{Op, delete, expected_sources, open, orders, write};
use crate::model_mongodb::{Model, is_probe, version};

const WIRE_VERSION_7_0: i32 = 21;
const DEADLINE: Duration = Duration::from_secs(3);
const UNLISTED_CODE: i32 = 987_654;

/// A tombstone with an older event of its id, and an event that another consumer deletes while it
/// is inserted.
const BATCH: [Op; 3] = [delete('a', 2), write('a', 1), write('b', 1)];

/// The commands of [`BATCH`] without a fault.
const STEPS: [&str; 8] = [
    "update orders.deletes",
    "find orders.deletes",
    "find orders",
    "delete orders",
    "insert orders",
    "find orders.deletes",
    "find orders",
    "delete orders",
];
const INSERT: usize = 4;

/// What happens to one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The connection is closed before or after the server applies the command.
    Lost { applied: bool },
    /// No reply comes within the deadline.
    Silent { applied: bool },
    /// The command is applied, and its write concern is not met.
    WriteConcern,
    /// The command is rejected as a whole.
    Command(i32),
    /// The command is rejected, and its write concern is not met.
    CommandAndWriteConcern(i32),
    /// The first statement of the command is rejected.
    Statement(i32),
    /// The statement is rejected, and its write concern is not met.
    StatementAndWriteConcern(i32),
    /// The command is applied, and the reply lacks its result.
    Garbled,
}

impl Fault {
    /// Whether only a command that writes can have it.
    const fn needs_write(self) -> bool {
        matches!(
            self,
            Self::WriteConcern
                | Self::CommandAndWriteConcern(_)
                | Self::Statement(_)
                | Self::StatementAndWriteConcern(_)
        )
    }

    const fn times_out(self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Command(50) | Self::Statement(50))
    }

    /// Whether it leaves all records of the batch unfinished.
    const fn stops_batch(self) -> bool {
        !matches!(self, Self::Statement(_))
    }

    fn answer(self, model: &mut Model, command: &Document) -> Answer {
        let unmet = doc! { "code": 64, "errmsg": "waiting for replication timed out" };
        let error = |code: i32| doc! { "ok": 0, "code": code, "codeName": "Scripted", "errmsg": "rejected" };
        match self {
            Self::Lost { applied } | Self::Silent { applied } => {
                if applied {
                    model.apply(command);
                }
                match self {
                    Self::Lost { .. } => Answer::Silence,
                    _ => Answer::Later(Box::pin(std::future::pending())),
                }
            }
            Self::WriteConcern => {
                let mut reply = model.apply(command);
                reply.insert("writeConcernError", unmet);
                Answer::Reply(reply)
            }
            Self::Command(code) => Answer::Reply(error(code)),
            Self::CommandAndWriteConcern(code) => {
                let mut reply = error(code);
                reply.insert("writeConcernError", unmet);
                Answer::Reply(reply)
            }
            Self::Statement(code) => Answer::Reply(first_fails(model, command, code)),
            Self::StatementAndWriteConcern(code) => {
                let mut reply = first_fails(model, command, code);
                reply.insert("writeConcernError", unmet);
                Answer::Reply(reply)
            }
            Self::Garbled => {
                model.apply(command);
                Answer::Reply(doc! { "ok": 1 })
            }
        }
    }
}

/// Applies a command without its first statement, which fails with `code`.
fn first_fails(model: &mut Model, command: &Document, code: i32) -> Document {
    let (list, mut statements) = statements(command);
    statements.remove(0);
    let mut rest = command.clone();
    rest.insert(list, statements.clone());
    let mut reply = if statements.is_empty() {
        doc! { "ok": 1, "n": 0, "nModified": 0 }
    } else {
        model.apply(&rest)
    };
    assert!(reply.get("writeErrors").is_none(), "{reply}");
    reply.insert("writeErrors", vec![doc! { "index": 0, "code": code, "errmsg": "rejected" }]);
    reply
}

fn statements(command: &Document) -> (&'static str, bson::Array) {
    let lists = ["documents", "updates", "deletes"].into_iter();
    let mut found = lists.filter_map(|list| Some((list, command.get_array(list).ok()?.clone())));
    found.next().expect("a command that writes")
}

/// A database, and a store that writes to it.
struct Scene {
    model: Arc<Mutex<Model>>,
    sent: Arc<Mutex<Vec<String>>>,
    store: Store,
    _server: ScriptedServer,
}

impl Scene {
    /// The database has a document of `a`. `script` decides on the commands of the batch, and gets
    /// the number of the commands before.
    async fn new(script: impl Fn(&mut Model, usize, &Document) -> Answer + Send + Sync + 'static) -> Self {
        let mut model = Model::default();
        let existing = write('a', 1).decode(&expected_sources()).document;
        model.documents.insert("a".to_owned(), Document::try_from(existing).expect("a document"));
        let (model, sent) = (Arc::new(Mutex::new(model)), Arc::new(Mutex::new(Vec::new())));
        let (shared, log) = (Arc::clone(&model), Arc::clone(&sent));
        let answer = move |command: &Document| {
            let (name, collection) = command.iter().next().expect("a command");
            match name.as_str() {
                "find" | "insert" | "update" | "delete" => {}
                "listCollections" => return Answer::Reply(batch(Vec::new())),
                _ => return Answer::Usual,
            }
            let mut model = shared.lock().expect("no panic");
            let step = {
                let mut log = log.lock().expect("no panic");
                log.push(format!("{name} {}", collection.as_str().expect("a name")));
                log.len() - 1
            };
            if inserts_b(command) {
                // Another consumer deletes it and finds no document yet.
                let tombstone = doc! { "event_timestamp": 2_i64, "ingested_at": 2_i64 };
                model.tombstones.insert("b".to_owned(), tombstone);
            }
            script(&mut model, step, command)
        };
        let server = ScriptedServer::start(WIRE_VERSION_7_0, answer).await;
        let store = open(&server.uri, "d", DEADLINE);
        Self { model, sent, store, _server: server }
    }

    /// The `step`-th command has a fault.
    async fn with_fault(step: usize, fault: Fault) -> Self {
        Self::new(move |model, at, command| match at == step {
            true => fault.answer(model, command),
            false => Answer::Reply(model.apply(command)),
        })
        .await
    }

    async fn apply(&self, events: &[&StorableEvent]) -> BatchOutcome {
        let applied = self.store.apply(&orders(), events, 0).await;
        let mut indexes: Vec<usize> = applied.rejected.iter().map(|rejected| rejected.index).collect();
        indexes.extend(&applied.unfinished);
        assert_eq!(indexes.len() as u64 + applied.counts.total(), events.len() as u64, "{applied:?}");
        indexes.sort_unstable();
        indexes.dedup();
        assert_eq!(indexes.len(), applied.rejected.len() + applied.unfinished.len(), "{applied:?}");
        assert_eq!(applied.unfinished.is_empty(), applied.error.is_none(), "{applied:?}");
        applied
    }

    /// Applies what is unfinished until all is finished. Returns the sum of the outcomes.
    async fn finish(&self, events: &[StorableEvent], first: &BatchOutcome) -> (Counts, Vec<usize>) {
        let mut left: Vec<usize> = first.unfinished.clone();
        let mut counts = first.counts;
        let mut rejected: Vec<usize> = first.rejected.iter().map(|rejected| rejected.index).collect();
        for _ in 0..20 {
            if left.is_empty() {
                return (counts, rejected);
            }
            let batch: Vec<&StorableEvent> = left.iter().map(|index| &events[*index]).collect();
            let applied = self.apply(&batch).await;
            counts = sum(counts, applied.counts);
            rejected.extend(applied.rejected.iter().map(|rejected| left[rejected.index]));
            left = applied.unfinished.iter().map(|index| left[*index]).collect();
        }
        panic!("unfinished: {left:?}");
    }

    fn versions(&self) -> [BTreeMap<String, i64>; 2] {
        let model = self.model.lock().expect("no panic");
        [&model.documents, &model.tombstones]
            .map(|stored| stored.iter().map(|(id, one)| (id.clone(), version(one).0)).collect())
    }

    fn sent(&self) -> Vec<String> {
        self.sent.lock().expect("no panic").clone()
    }
}

/// Whether a command inserts the event of `b`.
fn inserts_b(command: &Document) -> bool {
    let documents = command.get_array("documents").ok();
    let mut documents = documents.into_iter().flatten().filter_map(|document| document.as_document());
    documents.any(|document| document.get_str("event_id").is_ok_and(|id| id == "b"))
}

fn sum(one: Counts, other: Counts) -> Counts {
    Counts {
        inserted: one.inserted + other.inserted,
        updated: one.updated + other.updated,
        unchanged: one.unchanged + other.unchanged,
        superseded: one.superseded + other.superseded,
        deleted: one.deleted + other.deleted,
    }
}

fn decode(ops: &[Op]) -> Vec<StorableEvent> {
    let expected = expected_sources();
    ops.iter().map(|op| op.decode(&expected)).collect()
}

fn tombstones(versions: &[(&str, i64)]) -> BTreeMap<String, i64> {
    versions.iter().map(|(id, at)| ((*id).to_owned(), *at)).collect()
}

/// Applies [`BATCH`] with this fault until it is finished.
async fn newest_wins_after(step: usize, fault: Fault) {
    let scene = Scene::with_fault(step, fault).await;
    let events = decode(&BATCH);
    let first = scene.apply(&events.iter().collect::<Vec<_>>()).await;
    let at = format!("{fault:?} at {step} ({})", STEPS[step]);
    assert_eq!(scene.sent()[..=step], STEPS[..=step], "{at}");
    assert_eq!((&first.rejected, &first.unlisted), (&vec![], &vec![]), "{at}");
    if fault.stops_batch() && step != INSERT {
        assert_eq!((first.counts, &first.unfinished), (Counts::default(), &vec![0, 1, 2]), "{at}");
    }
    let error = first.error.clone().unwrap_or_else(|| panic!("{at}: finished too early"));
    assert_eq!(error.timed_out, fault.times_out(), "{at}: {error:?}");
    // What is finished has its final state.
    let [documents, _] = scene.versions();
    for (index, op) in BATCH.iter().enumerate().filter(|(index, _)| !first.unfinished.contains(index)) {
        let waits = BATCH.iter().enumerate().any(|(other, waiting)| {
            waiting.id == op.id && other != index && first.unfinished.contains(&other)
        });
        assert!(waits || !documents.contains_key(&op.id.to_string()), "{at}: {op:?} is finished too early");
    }
    let (counts, rejected) = scene.finish(&events, &first).await;
    let [documents, remembered] = scene.versions();
    assert_eq!((documents, rejected), (BTreeMap::new(), vec![]), "{at}");
    assert_eq!(remembered, tombstones(&[("a", 2), ("b", 2)]), "{at}");
    let expected = match (step, fault) {
        // The tombstone comes after the older event, which was stored already.
        (0, Fault::Statement(_)) => Counts { deleted: 1, unchanged: 1, inserted: 1, ..Counts::default() },
        // The first attempt that finishes inserts the event of `b`, and then removes it.
        (..INSERT, _) => Counts { deleted: 1, superseded: 1, inserted: 1, ..Counts::default() },
        // The tombstone of `b` is there before the retry.
        _ => Counts { deleted: 1, superseded: 2, ..Counts::default() },
    };
    assert_eq!(counts, expected, "{at}");
}

async fn newest_wins_after_each(faults: &[Fault]) {
    let steps = STEPS.iter().enumerate();
    let cases = steps.flat_map(|(step, command)| faults.iter().map(move |fault| (step, command, *fault)));
    let possible = cases.filter(|(_, command, fault)| !fault.needs_write() || !command.starts_with("find"));
    join_all(possible.map(|(step, _, fault)| newest_wins_after(step, fault))).await;
}

#[tokio::test]
async fn without_a_fault_the_batch_needs_these_commands() {
    let scene = Scene::new(|model, _, command| Answer::Reply(model.apply(command))).await;
    let events = decode(&BATCH);
    let applied = scene.apply(&events.iter().collect::<Vec<_>>()).await;
    assert_eq!(applied.counts, Counts { deleted: 1, superseded: 1, inserted: 1, ..Counts::default() });
    assert_eq!(scene.sent(), STEPS);
    assert_eq!(scene.versions(), [BTreeMap::new(), tombstones(&[("a", 2), ("b", 2)])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn g2_after_a_lost_reply_to_any_command_the_retry_decides() {
    newest_wins_after_each(&[Fault::Lost { applied: false }, Fault::Lost { applied: true }, Fault::Garbled])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g2_after_a_timeout_of_any_command_the_retry_decides() {
    newest_wins_after_each(&[Fault::Silent { applied: false }, Fault::Silent { applied: true }]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_a_transient_rejection_of_any_command_is_retried() {
    let commands = [189, 112, 50, 91, 11600].map(Fault::Command);
    newest_wins_after_each(&commands).await;
    newest_wins_after_each(&[112, 50, 189].map(Fault::Statement)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_a_write_concern_error_of_any_command_is_retried() {
    // A rejection is not final while the write concern is not met, even if its code is permanent.
    newest_wins_after_each(&[
        Fault::WriteConcern,
        Fault::CommandAndWriteConcern(121),
        Fault::CommandAndWriteConcern(UNLISTED_CODE),
        Fault::StatementAndWriteConcern(121),
        Fault::StatementAndWriteConcern(UNLISTED_CODE),
    ])
    .await;
}

/// The commands of deletes whose statements the server can reject.
const WRITES: [&str; 2] = ["update orders.deletes", "delete orders"];

/// Whether a statement concerns `a`.
fn concerns_a(statement: &bson::Bson) -> bool {
    let filter = statement.as_document().and_then(|statement| statement.get_document("q").ok());
    filter
        .is_some_and(|filter| filter.get_str("_id").or(filter.get_str("event_id")).is_ok_and(|id| id == "a"))
}

/// Rejects the statements on `a` of these commands, each alone or with its whole command.
fn rejects_a(kind: &'static str, code: i32, whole: bool) -> impl Fn(&mut Model, usize, &Document) -> Answer {
    move |model, _, command| {
        let (name, collection) = command.iter().next().expect("a command");
        let is_kind = format!("{name} {}", collection.as_str().expect("a name")) == kind;
        if !is_kind || is_probe(command) {
            return Answer::Reply(model.apply(command));
        }
        let (list, mut all) = statements(command);
        let Some(position) = all.iter().position(concerns_a) else {
            return Answer::Reply(model.apply(command));
        };
        if whole {
            return Answer::Reply(
                doc! { "ok": 0, "code": code, "codeName": "Scripted", "errmsg": "rejected" },
            );
        }
        let rejected = all.remove(position);
        all.insert(0, rejected);
        let mut reordered = command.clone();
        reordered.insert(list, all);
        let mut reply = first_fails(model, &reordered, code);
        let index = i32::try_from(position).expect("a small batch");
        reply.insert("writeErrors", vec![doc! { "index": index, "code": code, "errmsg": "rejected" }]);
        Answer::Reply(reply)
    }
}

/// Deletes and events of several ids; those of `a` are the second and the fifth.
const MANY: [Op; 6] =
    [delete('c', 2), delete('a', 2), delete('d', 2), write('e', 1), write('a', 1), delete('f', 2)];

#[tokio::test(flavor = "multi_thread")]
async fn g5_records_of_a_permanently_rejected_statement_are_rejected_alone() {
    for (kind, whole) in WRITES.iter().flat_map(|kind| [(*kind, false), (*kind, true)]) {
        let scene = Scene::new(rejects_a(kind, 121, whole)).await;
        let applied = scene.apply(&decode(&MANY).iter().collect::<Vec<_>>()).await;
        let at = format!("{kind}, whole command: {whole}");
        let rejected: Vec<usize> = applied.rejected.iter().map(|rejected| rejected.index).collect();
        let [documents, remembered] = scene.versions();
        assert_eq!((&applied.unfinished, &applied.error), (&vec![], &None), "{at}");
        assert!(applied.rejected.iter().all(|rejected| rejected.code_name == "DocumentValidationFailure"));
        assert_eq!(documents, tombstones(&[("a", 1), ("e", 1)]), "{at}");
        let others = [("c", 2), ("d", 2), ("f", 2)];
        match kind {
            // There is no tombstone, so the event of the id is not covered.
            "update orders.deletes" => {
                assert_eq!(rejected, [1], "{at}");
                let counts = Counts { deleted: 3, inserted: 1, unchanged: 1, ..Counts::default() };
                assert_eq!(applied.counts, counts, "{at}");
                assert_eq!(remembered, tombstones(&others), "{at}");
            }
            _ => {
                assert_eq!(rejected, [1, 4], "{at}");
                assert_eq!(applied.counts, Counts { deleted: 3, inserted: 1, ..Counts::default() }, "{at}");
                let all: Vec<(&str, i64)> = [("a", 2)].into_iter().chain(others).collect();
                assert_eq!(remembered, tombstones(&all), "{at}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_records_of_a_statement_with_an_unlisted_code_wait_alone() {
    for (kind, whole) in WRITES.iter().flat_map(|kind| [(*kind, false), (*kind, true)]) {
        let scene = Scene::new(rejects_a(kind, UNLISTED_CODE, whole)).await;
        let applied = scene.apply(&decode(&MANY).iter().collect::<Vec<_>>()).await;
        let at = format!("{kind}, whole command: {whole}");
        let waiting = if kind == "delete orders" { vec![1, 4] } else { vec![1] };
        let unlisted: Vec<usize> = applied.unlisted.iter().map(|rejected| rejected.index).collect();
        assert_eq!((&applied.unfinished, &unlisted), (&waiting, &waiting), "{at}: {applied:?}");
        assert_eq!(applied.rejected, vec![], "{at}");
        assert_eq!((applied.counts.deleted, applied.counts.inserted), (3, 1), "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_an_unlisted_code_of_every_write_is_an_outage() {
    for kind in WRITES {
        let collection = kind.split(' ').next_back().expect("a collection");
        let scene = Scene::new(move |model, _, command| {
            let is_write = !command.contains_key("find");
            match is_write && command.values().next().and_then(|name| name.as_str()) == Some(collection) {
                true => Answer::Reply(
                    doc! { "ok": 0, "code": UNLISTED_CODE, "codeName": "Scripted", "errmsg": "rejected" },
                ),
                false => Answer::Reply(model.apply(command)),
            }
        })
        .await;
        let applied = scene.apply(&decode(&BATCH).iter().collect::<Vec<_>>()).await;
        assert_eq!((applied.rejected, applied.unlisted), (vec![], vec![]), "{kind}");
        assert_eq!((applied.counts, applied.unfinished), (Counts::default(), vec![0, 1, 2]), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g5_an_event_whose_late_delete_is_rejected_is_rejected_by_the_retry() {
    // The document of `b` is removed after the write only.
    for code in [121, UNLISTED_CODE] {
        let scene = Scene::new(move |model, _, command| match command.contains_key("delete") {
            true => Answer::Reply(first_fails(model, command, code)),
            false => Answer::Reply(model.apply(command)),
        })
        .await;
        let events = decode(&[write('b', 1)]);
        let first = scene.apply(&[&events[0]]).await;
        assert_eq!((first.rejected, first.unfinished), (vec![], vec![0]), "{code}");
        let second = scene.apply(&[&events[0]]).await;
        let codes = |list: &[consumer::mongo::Rejected]| list.iter().map(|one| one.code).collect::<Vec<_>>();
        match code {
            121 => assert_eq!((codes(&second.rejected), second.unfinished), (vec![121], vec![])),
            _ => assert_eq!((codes(&second.unlisted), second.unfinished), (vec![code], vec![0])),
        }
    }
}

#[tokio::test]
async fn g5_a_tombstone_that_collides_in_an_index_of_the_user_is_rejected() {
    for (fields, is_rejected) in [(doc! { "event_timestamp": 1 }, true), (doc! { "_id": 1 }, false)] {
        let script = move |model: &mut Model, _, command: &Document| {
            let is_tombstone = command.get_str("update").is_ok_and(|name| name == "orders.deletes");
            let collision =
                doc! { "index": 0, "code": 11000, "keyPattern": fields.clone(), "errmsg": "E11000" };
            match is_tombstone {
                true => Answer::Reply(doc! { "ok": 1, "n": 0, "nModified": 0, "writeErrors": [collision] }),
                false => Answer::Reply(model.apply(command)),
            }
        };
        let scene = Scene::new(script).await;
        let applied = scene.apply(&[&decode(&[delete('a', 2)])[0]]).await;
        assert_eq!(applied.rejected.len(), usize::from(is_rejected));
        assert_eq!(applied.unfinished.len(), usize::from(!is_rejected));
        assert_eq!(scene.versions()[0], tombstones(&[("a", 1)]), "nothing is removed without a tombstone");
    }
}

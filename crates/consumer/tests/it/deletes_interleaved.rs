//! Two consumers that write and delete the same document, step by step in every order. The real
//! write path runs against a model of the database, which applies one command at a time in the order
//! that a schedule decides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::Document;
use consumer::ExpectedSources;
use consumer::mongo::Store;
use events::StorableEvent;
use proptest::prelude::*;
use testkit::scripted_mongodb::{Answer, ScriptedServer, batch};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::delete_fixture::{Op, delete, expected_sources, one_after_another, open, orders, write};
use crate::model_mongodb::{Model, version};

const WIRE_VERSION_7_0: i32 = 21;
/// The batches of one consumer.
type Batches = Vec<Vec<Op>>;

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The server applies the command of a consumer and replies.
    Apply(usize),
    /// A consumer is killed. The server does not get its command.
    KillBefore(usize),
    /// A consumer is killed after the server applied its command.
    KillAfter(usize),
    /// A consumer is killed, and the server applies its command later.
    KillDuring(usize),
    /// The server applies the oldest command of a killed consumer.
    ApplyLate,
}

/// What a consumer reports.
enum Message {
    Sends(usize, Document, oneshot::Sender<Document>),
    Finished(usize),
}

/// Two consumers with the write path of the product, and the model that they write to.
struct Pair {
    servers: [ScriptedServer; 2],
    stores: [Store; 2],
    expected: ExpectedSources,
    messages: mpsc::UnboundedReceiver<Message>,
    sender: mpsc::UnboundedSender<Message>,
}

/// How consumers end.
#[derive(Clone, Copy)]
struct Kills {
    at_most: usize,
    /// Whether commands of a killed consumer may be applied later.
    late: bool,
    /// Whether a killed consumer starts again with its first unfinished batch.
    restarts: bool,
}

const NO_KILLS: Kills = Kills { at_most: 0, late: false, restarts: true };

impl Pair {
    async fn start() -> Self {
        let (sender, messages) = mpsc::unbounded_channel();
        let expected = expected_sources();
        let server = |consumer: usize| {
            let sender = sender.clone();
            ScriptedServer::start(WIRE_VERSION_7_0, move |command| {
                let name = command.keys().next().map(String::as_str);
                match name {
                    Some("find" | "insert" | "update" | "delete") => {
                        let (reply, replied) = oneshot::channel();
                        _ = sender.send(Message::Sends(consumer, command.clone(), reply));
                        Answer::Later(Box::pin(async move { replied.await.ok() }))
                    }
                    Some("listCollections") => Answer::Reply(batch(Vec::new())),
                    _ => Answer::Usual,
                }
            })
        };
        let servers = [server(0).await, server(1).await];
        let store = |server: &ScriptedServer| open(&server.uri, "d", Duration::from_secs(600));
        let stores = [store(&servers[0]), store(&servers[1])];
        Self { servers, stores, expected, messages, sender }
    }

    /// Runs both consumers until their batches are finished. `choose` gets the number of possible
    /// next steps and decides on one.
    async fn run(
        &mut self,
        batches: &[Batches; 2],
        kills: Kills,
        mut choose: impl FnMut(usize) -> usize,
    ) -> (Model, Vec<Step>) {
        let mut run = Run {
            model: Model::default(),
            finished: [Arc::default(), Arc::default()],
            tasks: [None, None],
            waiting: [None, None],
            late: Vec::new(),
            kills: 0,
        };
        let mut steps = Vec::new();
        for consumer in 0..2 {
            self.spawn(&mut run, consumer, batches);
        }
        loop {
            run.settle(&mut self.messages).await;
            let possible = run.possible(kills);
            if possible.is_empty() {
                break;
            }
            let step = possible[choose(possible.len())];
            steps.push(step);
            if let Some(killed) = run.take(step) {
                run.kill(killed, &mut self.messages).await;
                if kills.restarts {
                    self.spawn(&mut run, killed, batches);
                }
            }
        }
        if !kills.restarts {
            self.recheck(&mut run.model).await;
        }
        (run.model, steps)
    }

    /// Examines the tombstones as each consumer does after a while.
    async fn recheck(&mut self, model: &mut Model) {
        let store = self.stores[1].clone();
        let source = orders();
        let task = tokio::spawn(async move { store.recheck_all_deletes(&source).await });
        while !task.is_finished() {
            let message = tokio::time::timeout(Duration::from_millis(20), self.messages.recv()).await;
            if let Ok(Some(Message::Sends(_, command, reply))) = message {
                _ = reply.send(model.apply(&command));
            }
        }
        assert!(task.await.expect("no panic"), "the examination succeeds");
    }

    /// Starts a consumer at its first unfinished batch.
    fn spawn(&self, run: &mut Run, consumer: usize, batches: &[Batches; 2]) {
        let store = self.stores[consumer].clone();
        let finished = Arc::clone(&run.finished[consumer]);
        let begin = *finished.lock().expect("no panic");
        let batches: Vec<Vec<StorableEvent>> = batches[consumer][begin..]
            .iter()
            .map(|batch| batch.iter().map(|op| op.decode(&self.expected)).collect())
            .collect();
        let sender = self.sender.clone();
        let source = orders();
        run.tasks[consumer] = Some(tokio::spawn(async move {
            for events in batches {
                let mut left: Vec<&StorableEvent> = events.iter().collect();
                while !left.is_empty() {
                    let outcome = store.apply(&source, &left, 0).await;
                    assert_eq!(outcome.rejected, vec![]);
                    let accounted = outcome.counts.total() + outcome.unfinished.len() as u64;
                    assert_eq!(accounted, left.len() as u64, "{outcome:?}");
                    left = outcome.unfinished.iter().map(|index| left[*index]).collect();
                }
                *finished.lock().expect("no panic") += 1;
            }
            _ = sender.send(Message::Finished(consumer));
        }));
    }
}

/// The state of one run.
struct Run {
    model: Model,
    /// The number of finished batches of each consumer.
    finished: [Arc<Mutex<usize>>; 2],
    tasks: [Option<JoinHandle<()>>; 2],
    /// The command that a consumer sent.
    waiting: [Option<(Document, oneshot::Sender<Document>)>; 2],
    /// Commands of killed consumers that the server has not applied.
    late: Vec<Document>,
    kills: usize,
}

impl Run {
    /// Waits until each consumer has sent a command or is finished.
    async fn settle(&mut self, messages: &mut mpsc::UnboundedReceiver<Message>) {
        while (0..2).any(|consumer| self.tasks[consumer].is_some() && self.waiting[consumer].is_none()) {
            let message = tokio::time::timeout(Duration::from_secs(60), messages.recv()).await;
            match message.expect("a consumer goes on").expect("a sender") {
                Message::Sends(consumer, command, reply) => self.waiting[consumer] = Some((command, reply)),
                Message::Finished(consumer) => {
                    self.tasks[consumer] = None;
                }
            }
        }
    }

    fn waits_for(&self, name: &str, consumer: usize) -> bool {
        self.waiting[consumer].as_ref().is_some_and(|(command, _)| command.contains_key(name))
    }

    fn possible(&self, kills: Kills) -> Vec<Step> {
        let waiting = || (0..2).filter(|consumer| self.waiting[*consumer].is_some());
        let mut steps: Vec<Step> = waiting().map(Step::Apply).collect();
        if self.kills < kills.at_most {
            let kill = if kills.late { Step::KillDuring } else { Step::KillBefore };
            // The records of a consumer that does not start again are those of the other one too.
            let killed = waiting().filter(|consumer| kills.restarts || *consumer == 0);
            // A query that is answered late changes nothing.
            let killed = killed.filter(|consumer| !kills.late || !self.waits_for("find", *consumer));
            steps.extend(killed.flat_map(|consumer| [kill(consumer), Step::KillAfter(consumer)]));
        }
        if !self.late.is_empty() {
            steps.push(Step::ApplyLate);
        }
        steps
    }

    /// Takes a step. Returns the consumer that it kills.
    fn take(&mut self, step: Step) -> Option<usize> {
        match step {
            Step::ApplyLate => {
                let command = self.late.remove(0);
                self.model.apply(&command);
                None
            }
            Step::Apply(consumer) => {
                let (command, reply) = self.waiting[consumer].take()?;
                _ = reply.send(self.model.apply(&command));
                None
            }
            Step::KillBefore(consumer) => Some(consumer),
            Step::KillAfter(consumer) => {
                let (command, _) = self.waiting[consumer].as_ref()?;
                self.model.apply(command);
                Some(consumer)
            }
            Step::KillDuring(consumer) => {
                let (command, _) = self.waiting[consumer].as_ref()?;
                self.late.push(command.clone());
                Some(consumer)
            }
        }
    }

    async fn kill(&mut self, consumer: usize, messages: &mut mpsc::UnboundedReceiver<Message>) {
        self.kills += 1;
        self.waiting[consumer] = None;
        if let Some(task) = self.tasks[consumer].take() {
            task.abort();
            _ = task.await;
        }
        // A command that it sent meanwhile cannot be one: it waited for a reply.
        while let Ok(message) = messages.try_recv() {
            match message {
                Message::Sends(sender, command, reply) if sender != consumer => {
                    self.waiting[sender] = Some((command, reply));
                }
                Message::Finished(sender) if sender != consumer => self.tasks[sender] = None,
                _ => {}
            }
        }
    }
}

/// The stored versions by id.
fn stored(model: &Model) -> BTreeMap<String, i64> {
    model.documents.iter().map(|(id, document)| (id.clone(), version(document).0)).collect()
}

fn assert_newest_wins(model: &Model, batches: &[Batches; 2], steps: &[Step]) {
    let ops = || batches.iter().flatten().flatten().copied();
    assert_eq!(stored(model), one_after_another(ops()), "{batches:?} after {steps:?}");
    for op in ops().filter(|op| op.deletes) {
        let newest = ops().filter(|other| other.deletes && other.id == op.id).map(|other| other.at).max();
        let tombstone = model.tombstones.get(&op.id.to_string()).map(|tombstone| version(tombstone).0);
        assert_eq!(tombstone, newest, "{batches:?} after {steps:?}");
    }
}

/// Runs every schedule. Returns their number.
async fn every_schedule(pair: &mut Pair, batches: &[Batches; 2], kills: Kills) -> usize {
    let mut schedule: Vec<usize> = Vec::new();
    let mut runs = 0;
    loop {
        let mut taken: Vec<(usize, usize)> = Vec::new();
        let choose = |possible: usize| {
            let wanted = schedule.get(taken.len()).copied().unwrap_or(0);
            // The first command may differ between runs, so that fewer steps are possible.
            let choice = wanted.min(possible - 1);
            taken.push((choice, possible));
            choice
        };
        let (model, steps) = pair.run(batches, kills, choose).await;
        assert_newest_wins(&model, batches, &steps);
        runs += 1;
        assert!(runs < 20_000, "too many schedules");
        let Some(last) = taken.iter().rposition(|(choice, possible)| choice + 1 < *possible) else {
            return runs;
        };
        schedule = taken[..last].iter().map(|(choice, _)| *choice).collect();
        schedule.push(taken[last].0 + 1);
    }
}

#[tokio::test]
async fn newest_wins_in_every_interleaving_of_two_consumers() {
    let mut pair = Pair::start().await;
    let mut runs = 0;
    for batches in [
        [vec![vec![write('a', 1)]], vec![vec![delete('a', 2)]]],
        [vec![vec![write('a', 2)]], vec![vec![delete('a', 1)]]],
        [vec![vec![write('a', 1)]], vec![vec![delete('a', 1)]]],
        [vec![vec![delete('a', 1)]], vec![vec![delete('a', 2)]]],
        [vec![vec![write('a', 1)], vec![write('a', 3)]], vec![vec![delete('a', 2)]]],
        [vec![vec![write('a', 3), write('a', 1)]], vec![vec![delete('a', 2)]]],
        [vec![vec![write('a', 1)]], vec![vec![write('a', 1)], vec![delete('a', 2)]]],
        [vec![vec![write('a', 1), delete('a', 2)]], vec![vec![write('a', 1), delete('a', 2)]]],
        [vec![vec![write('a', 1), write('b', 2)]], vec![vec![delete('a', 2), delete('b', 1)]]],
    ] {
        runs += every_schedule(&mut pair, &batches, NO_KILLS).await;
    }
    assert!(runs > 500, "{runs} schedules");
    assert!(!pair.servers[0].commands_named("delete").is_empty(), "a writer removes its document");
}

#[tokio::test]
async fn newest_wins_after_a_kill_of_a_consumer_at_every_step() {
    let mut pair = Pair::start().await;
    let kills = Kills { at_most: 1, late: false, restarts: true };
    let mut runs = 0;
    for batches in [
        [vec![vec![write('a', 1)]], vec![vec![delete('a', 2)]]],
        [vec![vec![write('a', 1), delete('a', 2)]], vec![]],
        [vec![vec![write('a', 1)], vec![delete('a', 2)], vec![write('a', 3)]], vec![]],
    ] {
        runs += every_schedule(&mut pair, &batches, kills).await;
    }
    assert!(runs > 200, "{runs} schedules");
}

/// The first consumer loses its partition to the second one and is killed. Its last command is
/// applied at any later time, or its last step is left out.
#[tokio::test]
async fn what_a_killed_consumer_wrote_late_is_removed_again() {
    let mut pair = Pair::start().await;
    let kills = Kills { at_most: 1, late: true, restarts: false };
    let records = vec![vec![write('a', 1)], vec![delete('a', 2)]];
    let runs = every_schedule(&mut pair, &[vec![vec![write('a', 1)]], records], kills).await;
    assert!(runs > 50, "{runs} schedules");
}

fn op() -> impl Strategy<Value = Op> {
    (prop_oneof![4 => Just('a'), 1 => Just('b')], 1_i64..5, any::<bool>()).prop_map(|(id, at, deletes)| Op {
        id,
        at,
        deletes,
    })
}

/// Records of two partitions in batches. Some records occur twice, as a replayed dead letter or a
/// repeated record does.
fn batches() -> impl Strategy<Value = [Batches; 2]> {
    let one = || proptest::collection::vec(proptest::collection::vec(op(), 1..4), 0..3);
    (one(), one(), proptest::collection::vec(op(), 0..2)).prop_map(|(mut one, mut other, twice)| {
        one.push(twice.clone());
        other.insert(0, twice);
        [one, other].map(|batches| batches.into_iter().filter(|batch| !batch.is_empty()).collect())
    })
}

#[test]
fn newest_wins_for_any_records_schedule_and_kills() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let pair = Mutex::new(runtime.block_on(Pair::start()));
    let config = ProptestConfig { cases: 400, ..ProptestConfig::default() };
    proptest!(config, |(batches in batches(), choices in proptest::collection::vec(any::<u8>(), 200))| {
        let mut pair = pair.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut choices = choices.into_iter();
        let kills = Kills { at_most: 3, late: false, restarts: true };
        let choose = |possible| usize::from(choices.next().unwrap_or(0)) % possible;
        let (model, steps) = runtime.block_on(pair.run(&batches, kills, choose));
        assert_newest_wins(&model, &batches, &steps);
    });
}

//! Finds out what a trouble of the Kafka client amounts to: asks until a broker answers, and replaces a client that
//! cannot go on. So no trouble needs a restart, and none is believed longer than it lasts.

use std::sync::Arc;
use std::time::Duration;

use service::backoff::Backoff;
use service::standstill::Standstill;
use tokio_util::sync::CancellationToken;

use super::client::Sender;
use super::client_health::Trouble;

/// How long a new client may take to be refused: librdkafka asks for a producer id every half second.
const FIRST_WORDS: Duration = Duration::from_millis(600);
const PROBE_PAUSE: Duration = Duration::from_millis(50);

/// Takes care of a sender's client until `stop`.
pub async fn take_care(sender: Arc<Sender>, topic: Arc<str>, stop: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
    let (mut troubles, standstill) = (sender.signals.troubles(), Standstill::watch());
    while stop.run_until_cancelled(troubles.wait_for(|trouble| *trouble != Trouble::None)).await.is_some() {
        let mut pause = PROBE_PAUSE;
        if let Some(why) = sender.fatal() {
            if sender.signals.confirmed_lately() {
                backoff.reset();
            }
            sender.replace(&why);
            // A client that is refused for good hears of it within this time, and is not called ready before.
            pause = FIRST_WORDS + backoff.next_delay();
        } else {
            let (errors, asked) = (sender.signals.errors(), sender.signals.now());
            // The question may be slow where records are acknowledged: that is an answer, too.
            if sender.answers(&topic).await || sender.signals.confirmed_since(asked) {
                sender.signals.well_unless_new(errors);
                if sender.signals.trouble() == Trouble::None {
                    sender.works();
                }
            } else if !standstill.is_just_over() {
                sender.signals.away();
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

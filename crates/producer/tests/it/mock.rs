//! librdkafka's mock cluster, for brokers that misbehave.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use crate::application::{Application, unique};

/// A cluster of one broker with one topic.
pub struct Cluster {
    pub mock: MockCluster<'static, DefaultProducerContext>,
    pub topic: String,
}

impl Cluster {
    /// Starts it.
    pub fn start() -> Self {
        let mock = MockCluster::new(1).unwrap();
        let topic = unique("events");
        mock.create_topic(&topic, 1, 1).unwrap();
        Self { mock, topic }
    }

    /// A producer that is ready to send to it.
    pub async fn application(&self, settings: &[(&str, &str)]) -> Application {
        Application::start_on(&self.mock.bootstrap_servers(), &self.topic, settings).await.ready().await
    }
}
